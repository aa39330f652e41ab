//! The files `.diag` and `.diag.json`: they never reach the inner file system, and one thread makes what they say.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fmt, fs, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, SystemTime},
};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo,
    OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, Request,
};

use super::options::Options;
use crate::{report::Report, tracker::Tracker};

// Far above what file systems number their inodes with, and still positive as an i64.
const FIRST_INODE: u64 = 0x7fff_696e_666c_7401;

// In a listing: what follows our entries is the inner file system's from its beginning.
const LISTED: u64 = FIRST_INODE;

/// How long the kernel may keep the entry and what it knows of the file.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

// Answers that were opened and never released, as after an abort, are forgotten above this.
const MOST_OPEN: usize = 4096;

/// The two files of one mount.
pub(super) struct Diag {
    names: [OsString; 2],
    listed: bool,
    mode: u16,
    /// The daemon's user, and who mounted.
    owners: [u32; 2],
    gid: u32,
    since: SystemTime,
    tracker: Tracker,
    desk: Arc<Desk>,
}

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Text,
    Json,
}

// Where readers leave their requests and the reporter thread its answers.
struct Desk {
    mount: String,
    queue: Mutex<Queue>,
    arrived: Condvar,
    open: Mutex<Open>,
    /// Readers whose open is not answered yet: the kernel counts them as waiting.
    pending: AtomicU64,
}

#[derive(Default)]
struct Queue {
    asked: Vec<Asked>,
    /// The process that has a reporter thread: a fork leaves it behind.
    reporter_of: u32,
    closed: bool,
}

struct Asked {
    file: File,
    /// The thread that opens it, which waits for nothing but this.
    reader: u32,
    /// Its supplementary groups decide.
    is_undecided: bool,
    reply: ReplyOpen,
}

#[derive(Default)]
struct Open {
    answers: HashMap<u64, Arc<[u8]>>,
    next: u64,
}

impl Diag {
    /// `mount` is where it is mounted, as reports show it.
    pub(super) fn new(options: &Options, tracker: &Tracker, mount: &str) -> Self {
        let name = options.diag_name.clone();
        let mut json = name.clone();
        json.push(".json");
        Self {
            names: [name, json],
            listed: options.listed,
            mode: options.mode,
            owners: [
                rustix::process::geteuid().as_raw(),
                rustix::process::getuid().as_raw(),
            ],
            gid: options
                .gid
                .unwrap_or_else(|| rustix::process::getegid().as_raw()),
            since: SystemTime::now(),
            tracker: tracker.clone(),
            desk: Arc::new(Desk {
                mount: mount.to_owned(),
                queue: Mutex::new(Queue::default()),
                arrived: Condvar::new(),
                open: Mutex::new(Open::default()),
                pending: AtomicU64::new(0),
            }),
        }
    }

    /// The file of this name in this directory, if it is one of ours.
    pub(super) fn named(&self, parent: INodeNo, name: &OsStr) -> Option<File> {
        if parent != INodeNo::ROOT {
            return None;
        }
        if name == self.names[0] {
            Some(File::Text)
        } else if name == self.names[1] {
            Some(File::Json)
        } else {
            None
        }
    }

    pub(super) fn names(&self) -> &[OsString; 2] {
        &self.names
    }

    /// Readers that wait for their answer.
    pub(super) fn pending(&self) -> u64 {
        self.desk.pending.load(SeqCst)
    }

    pub(super) fn lookup(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.named(parent, name) {
            Some(file) => reply.entry_with_ttls(&KEPT, &KEPT, &self.attr(file), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    pub(super) fn getattr(&self, inode: INodeNo, reply: ReplyAttr) {
        match File::of(inode) {
            Some(file) => reply.attr(&KEPT, &self.attr(file)),
            None => reply.error(Errno::ENOENT),
        }
    }

    pub(super) fn access(&self, request: &Request, mask: AccessFlags, reply: ReplyEmpty) {
        if !mask.intersects(AccessFlags::W_OK | AccessFlags::X_OK)
            && self.decide(request) == Some(true)
        {
            reply.ok();
        } else {
            reply.error(Errno::EACCES);
        }
    }

    /// Answers later, from the reporter thread.
    pub(super) fn open(
        &self,
        request: &Request,
        inode: INodeNo,
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        let Some(file) = File::of(inode) else {
            return reply.error(Errno::ENOENT);
        };
        let decided = self.decide(request);
        if flags.acc_mode() != OpenAccMode::O_RDONLY || decided == Some(false) {
            return reply.error(Errno::EACCES);
        }
        self.desk.pending.fetch_add(1, SeqCst);
        let mut queue = lock(&self.desk.queue);
        queue.asked.push(Asked {
            file,
            reader: request.pid(),
            is_undecided: decided.is_none(),
            reply,
        });
        drop(queue);
        if self.start_reporter().is_ok() {
            self.desk.arrived.notify_one();
        } else {
            // No thread to be had: late is better than never.
            self.desk.answer(&self.tracker, self.gid);
        }
    }

    pub(super) fn read(&self, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let answer = lock(&self.desk.open).answers.get(&handle.0).map(Arc::clone);
        let Some(answer) = answer else {
            return reply.error(Errno::EBADF);
        };
        let from = usize::try_from(offset).map_or(answer.len(), |at| at.min(answer.len()));
        let to = from.saturating_add(size as usize).min(answer.len());
        reply.data(&answer[from..to]);
    }

    pub(super) fn release(&self, handle: FileHandle, reply: ReplyEmpty) {
        let gone = lock(&self.desk.open).answers.remove(&handle.0);
        drop(gone);
        reply.ok();
    }

    /// Adds the files to a listing of the root that is at `offset`; says where the inner file system
    /// goes on. `None`: the reply is full.
    pub(super) fn list(&self, inode: INodeNo, offset: u64, reply: &mut ReplyDirectory) -> u64 {
        if !self.listed || inode != INodeNo::ROOT {
            return offset;
        }
        if offset == 0 {
            for (file, name) in [File::Text, File::Json].into_iter().zip(&self.names) {
                let _full = reply.add(file.inode(), LISTED, FileType::RegularFile, name);
            }
        }
        if offset == LISTED { 0 } else { offset }
    }

    /// The same with attributes.
    pub(super) fn list_plus(
        &self,
        inode: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> u64 {
        if !self.listed || inode != INodeNo::ROOT {
            return offset;
        }
        if offset == 0 {
            for (file, name) in [File::Text, File::Json].into_iter().zip(&self.names) {
                let attr = self.attr(file);
                let _full = reply.add(file.inode(), LISTED, name, &KEPT, &attr, Generation(0));
            }
        }
        if offset == LISTED { 0 } else { offset }
    }

    /// Starts the thread that makes the answers, unless this process has it.
    pub(super) fn start_reporter(&self) -> io::Result<()> {
        let pid = std::process::id();
        let mut queue = lock(&self.desk.queue);
        if queue.reporter_of == pid {
            return Ok(());
        }
        let (desk, tracker, gid) = (Arc::clone(&self.desk), self.tracker.clone(), self.gid);
        thread::Builder::new()
            .name("inflight-report".to_owned())
            .spawn(move || {
                while desk.wait() {
                    desk.answer(&tracker, gid);
                }
            })?;
        queue.reporter_of = pid;
        Ok(())
    }

    // Whether the caller may read; `None` if only its supplementary groups can tell.
    fn decide(&self, request: &Request) -> Option<bool> {
        let uid = request.uid();
        let may = |bits: u16| self.mode & bits != 0;
        if uid == 0 || may(0o004) || (self.owners.contains(&uid) && may(0o400)) {
            return Some(true);
        }
        if !may(0o040) {
            return Some(false);
        }
        if request.gid() == self.gid {
            return Some(true);
        }
        if request.pid() == 0 {
            Some(false)
        } else {
            None
        }
    }

    fn attr(&self, file: File) -> FileAttr {
        FileAttr {
            ino: file.inode(),
            size: 0,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: FileType::RegularFile,
            perm: self.mode,
            nlink: 1,
            uid: self.owners[0],
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Drop for Diag {
    fn drop(&mut self) {
        lock(&self.desk.queue).closed = true;
        self.desk.arrived.notify_all();
    }
}

impl fmt::Debug for Diag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diag")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl File {
    pub(super) fn of(inode: INodeNo) -> Option<Self> {
        match inode.0.checked_sub(FIRST_INODE) {
            Some(0) => Some(Self::Text),
            Some(1) => Some(Self::Json),
            _ => None,
        }
    }

    fn inode(self) -> INodeNo {
        INodeNo(match self {
            Self::Text => FIRST_INODE,
            Self::Json => FIRST_INODE + 1,
        })
    }
}

impl Desk {
    // Sleeps until there is a reader; false when there will be none.
    fn wait(&self) -> bool {
        let mut queue = lock(&self.queue);
        while queue.asked.is_empty() && !queue.closed {
            let waited = self.arrived.wait(queue);
            queue = waited.unwrap_or_else(PoisonError::into_inner);
        }
        !queue.asked.is_empty()
    }

    // One report for all who have come before it was ready.
    fn answer(&self, tracker: &Tracker, gid: u32) {
        let rendered = catch_unwind(AssertUnwindSafe(|| self.render(tracker)));
        let [text, json] = rendered.unwrap_or_else(|_| {
            let text = "UNKNOWN: the report could not be made, its making panicked\n";
            [text.to_owned(), "null\n".to_owned()]
        });
        let (text, json): (Arc<[u8]>, Arc<[u8]>) =
            (text.into_bytes().into(), json.into_bytes().into());
        let asked = mem::take(&mut lock(&self.queue).asked);
        for Asked {
            file,
            reader,
            is_undecided,
            reply,
        } in asked
        {
            let allowed = !is_undecided || is_in_group(reader, gid);
            // Before the reply: after it the kernel no longer counts this reader.
            self.pending.fetch_sub(1, SeqCst);
            if !allowed {
                reply.error(Errno::EACCES);
                continue;
            }
            let answer = match file {
                File::Text => &text,
                File::Json => &json,
            };
            let handle = lock(&self.open).keep(Arc::clone(answer));
            reply.opened(
                FileHandle(handle),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            );
        }
    }
}

impl Desk {
    // What the two files say now of what this mount has to do with.
    fn render(&self, tracker: &Tracker) -> [String; 2] {
        #[cfg(feature = "debug")]
        let report = Report::collect(tracker);
        #[cfg(not(feature = "debug"))]
        let report = Report::local(tracker);
        let mut report = report.about_mount(&self.mount);
        let readers = lock(&self.queue);
        let is_reader = |tid: u32| readers.asked.iter().any(|asked| asked.reader == tid);
        report.held_up.retain(|held_up| !is_reader(held_up.tid));
        drop(readers);
        let mut json = serde_json::to_string_pretty(&report).unwrap_or_default();
        json.push('\n');
        [report.to_string(), json]
    }
}

impl Open {
    fn keep(&mut self, answer: Arc<[u8]>) -> u64 {
        self.next += 1;
        if self.answers.len() >= MOST_OPEN
            && let Some(oldest) = self.answers.keys().min().copied()
        {
            self.answers.remove(&oldest);
        }
        self.answers.insert(self.next, answer);
        self.next
    }
}

// proc_pid_status(5).
fn is_in_group(tid: u32, gid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| {
        let mut groups = groups.split_whitespace();
        groups.any(|group| group.parse() == Ok(gid))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
