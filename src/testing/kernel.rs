//! The kernel's end of a FUSE connection, played by a test.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::{
    io::{Errno, read},
    net::{
        AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, send, shutdown, socketpair,
        sockopt::{
            Timeout, set_socket_recv_buffer_size, set_socket_send_buffer_size, set_socket_timeout,
        },
    },
};

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

const FORGET: u32 = 2;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// No wait is longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asked of the sockets; without privileges the system may grant less, and then at least 400 KiB a message.
const SOCKET_BYTES: usize = 1024 * 1024;

/// Runs real fuser over a file system without a kernel: the test sends the requests.
///
/// Any process id, any order, replies that never come: what the kernel would not do for the asking.
/// Messages may hold 256 KiB of data. Nothing waits for longer than 10 s, dropping it for 1 s.
///
/// ```
/// use inflight::{fuse::fuser, testing::{FakeKernel, Request}};
///
/// struct Empty;
///
/// impl fuser::Filesystem for Empty {}
///
/// let kernel = FakeKernel::start(Empty, fuser::Config::default())?;
/// const GETATTR: u32 = 3;
/// let unique = kernel.send(Request::new(GETATTR, 1).body([0; 16]))?;
/// assert_eq!(kernel.reply(unique)?.error, 38); // ENOSYS
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "dropped at once, it hangs up at once"]
pub struct FakeKernel {
    socket: Arc<OwnedFd>,
    next: AtomicU64,
    replies: Arc<Replies>,
    init: Reply,
    session: Option<JoinHandle<()>>,
    reader: Option<JoinHandle<()>>,
}

/// One request, as the kernel would send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    opcode: u32,
    inode: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    body: Vec<u8>,
}

/// One reply of the file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The request that it answers.
    pub unique: u64,
    /// The error number; 0 is success.
    pub error: i32,
    /// What follows the header.
    pub body: Vec<u8>,
}

#[derive(Default)]
struct Replies {
    arrived: Mutex<Arrived>,
    changed: Condvar,
}

#[derive(Default)]
struct Arrived {
    by_unique: HashMap<u64, Reply>,
    order: Vec<u64>,
    is_over: bool,
}

impl FakeKernel {
    /// Starts a session over the file system, and does the handshake.
    ///
    /// # Errors
    ///
    /// If there is no socket pair or no thread to be had, or the file system's `init` failed.
    pub fn start<F: Filesystem>(file_system: F, config: Config) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        for end in [&ours, &theirs] {
            set_socket_send_buffer_size(end, SOCKET_BYTES)?;
            set_socket_recv_buffer_size(end, SOCKET_BYTES)?;
        }
        // A file system that reads nothing more must not hang whoever sends.
        set_socket_timeout(&ours, Timeout::Send, Some(DEADLINE))?;
        let socket = Arc::new(ours);
        let replies = Arc::new(Replies::default());
        let reader = thread::Builder::new().name("fake-kernel".to_owned());
        let reader = reader.spawn({
            let (socket, replies) = (Arc::clone(&socket), Arc::clone(&replies));
            move || replies.collect(&socket)
        })?;
        let mut kernel = Self {
            socket,
            next: AtomicU64::new(2),
            replies,
            init: Reply::default(),
            session: None,
            reader: Some(reader),
        };
        let init = kernel.send(Request::new(INIT, 0).body(init()))?;
        let session = thread::Builder::new().name("fake-session".to_owned());
        let hang_up = Arc::clone(&kernel.socket);
        kernel.session = Some(session.spawn(move || {
            let session = Session::from_fd(file_system, theirs, SessionACL::All, config);
            // That the test hung up ends a session with an error.
            let _hung_up = session.and_then(|session| session.spawn()?.join());
            let _gone = shutdown(&*hang_up, Shutdown::Both);
        })?);
        kernel.init = kernel.reply(init)?;
        match kernel.init.error {
            0 => Ok(kernel),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// What the handshake was answered with: `struct fuse_init_out` of linux/fuse.h.
    #[must_use]
    pub fn init(&self) -> &Reply {
        &self.init
    }

    /// Sends a request, and returns its number.
    ///
    /// # Errors
    ///
    /// If the session is over, or nothing was read for 10 s.
    pub fn send(&self, request: Request) -> io::Result<u64> {
        // Even, as the kernel's: the odd ones are for interrupts.
        self.send_as(self.next.fetch_add(2, Relaxed), &request)
    }

    /// Waits for the reply to a request, at most 10 s.
    ///
    /// # Errors
    ///
    /// If it did not come, or the session is over.
    pub fn reply(&self, unique: u64) -> io::Result<Reply> {
        let until = Instant::now() + DEADLINE;
        self.replies
            .wait(until, |arrived| arrived.by_unique.remove(&unique))
    }

    /// The numbers of all replies so far, in the order in which they came.
    #[must_use]
    pub fn replied(&self) -> Vec<u64> {
        self.replies.lock().order.clone()
    }

    /// Says that whoever waits for a request was interrupted, and returns the number of that message.
    /// fuser answers it by itself.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn interrupt(&self, unique: u64) -> io::Result<u64> {
        let interrupt = Request::new(INTERRUPT, 0).body(unique.to_ne_bytes());
        // As the kernel numbers it: one more than what it interrupts.
        self.send_as(unique | 1, &interrupt)
    }

    /// Forgets so many lookups of an inode. There is no reply.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn forget(&self, inode: u64, lookups: u64) -> io::Result<()> {
        self.send(Request::new(FORGET, inode).body(lookups.to_ne_bytes()))
            .map(drop)
    }

    /// Forgets so many lookups of each inode, in one message. There is no reply.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn batch_forget(&self, forgets: &[(u64, u64)]) -> io::Result<()> {
        let count = u32::try_from(forgets.len()).map_err(io::Error::other)?;
        let mut body = count.to_ne_bytes().to_vec();
        body.extend([0; 4]);
        for (inode, lookups) in forgets {
            body.extend(inode.to_ne_bytes());
            body.extend(lookups.to_ne_bytes());
        }
        self.send(Request::new(BATCH_FORGET, 0).body(body))
            .map(drop)
    }

    /// Ends the session as an unmount does.
    ///
    /// # Errors
    ///
    /// If it is over already.
    pub fn destroy(&self) -> io::Result<Reply> {
        let unique = self.send(Request::new(DESTROY, 0))?;
        self.reply(unique)
    }

    fn send_as(&self, unique: u64, request: &Request) -> io::Result<u64> {
        let message = request.message(unique);
        loop {
            return match send(&*self.socket, &message, SendFlags::NOSIGNAL) {
                Ok(_) => Ok(unique),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Err(timed_out("nothing was read")),
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeKernel")
            .field("replied", &self.replies.lock().order.len())
            .finish_non_exhaustive()
    }
}

impl Drop for FakeKernel {
    // A session whose file system is stuck is left behind: waiting for it would hang the test.
    fn drop(&mut self) {
        let _gone = shutdown(&*self.socket, Shutdown::Both);
        let until = Instant::now() + Duration::from_secs(1);
        for thread in [self.session.take(), self.reader.take()] {
            let Some(thread) = thread else {
                continue;
            };
            while !thread.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _panicked = thread.join();
            }
        }
    }
}

impl Request {
    /// A request of this opcode about this inode, by process 1 of user 0, with an empty body.
    #[must_use]
    pub fn new(opcode: u32, inode: u64) -> Self {
        Self {
            opcode,
            inode,
            uid: 0,
            gid: 0,
            pid: 1,
            body: Vec::new(),
        }
    }

    /// Sets what follows the header. Default: nothing.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the user. Default: 0.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// Sets the group. Default: 0.
    #[must_use]
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = gid;
        self
    }

    /// Sets the thread that calls; 0 is one of another pid namespace. Default: 1.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Self {
        self.pid = pid;
        self
    }

    // struct fuse_in_header of linux/fuse.h.
    fn message(&self, unique: u64) -> Vec<u8> {
        let length = IN_HEADER + self.body.len();
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(self.opcode.to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend(self.inode.to_ne_bytes());
        for value in [self.uid, self.gid, self.pid, 0] {
            message.extend(value.to_ne_bytes());
        }
        message.extend(&self.body);
        message
    }
}

impl Reply {
    // struct fuse_out_header of linux/fuse.h; the error is negative there.
    fn parse(message: &[u8]) -> Option<Self> {
        let (header, body) = message.split_at_checked(OUT_HEADER)?;
        Some(Self {
            unique: u64::from_ne_bytes(header[8..16].try_into().ok()?),
            error: -i32::from_ne_bytes(header[4..8].try_into().ok()?),
            body: body.to_vec(),
        })
    }
}

impl Replies {
    fn collect(&self, socket: &OwnedFd) {
        // socket(7): the system doubles what it was asked for.
        let mut buffer = vec![0; 2 * SOCKET_BYTES];
        loop {
            let length = match read(socket, &mut buffer) {
                Err(Errno::INTR) => continue,
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            if let Some(reply) = Reply::parse(&buffer[..length]) {
                let mut arrived = self.lock();
                arrived.order.push(reply.unique);
                arrived.by_unique.insert(reply.unique, reply);
            }
            self.changed.notify_all();
        }
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    fn wait<T>(
        &self,
        until: Instant,
        mut look: impl FnMut(&mut Arrived) -> Option<T>,
    ) -> io::Result<T> {
        let mut arrived = self.lock();
        loop {
            if let Some(found) = look(&mut arrived) {
                return Ok(found);
            }
            if arrived.is_over {
                return Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the session is over",
                ));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timed_out("no reply came"));
            }
            let waited = self.changed.wait_timeout(arrived, left);
            arrived = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn timed_out(what: &str) -> io::Error {
    let what = format!("{what} within {} s", DEADLINE.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, what)
}

// struct fuse_init_in of linux/fuse.h: protocol 7.40, and all that a kernel of 2025 offers without
// the extended flags.
fn init() -> Vec<u8> {
    const FLAGS: u32 = 0x33ff_fffb;
    let mut body = Vec::with_capacity(64);
    for value in [7, 40, 128 * 1024, FLAGS] {
        body.extend(u32::to_ne_bytes(value));
    }
    body.resize(64, 0);
    body
}
