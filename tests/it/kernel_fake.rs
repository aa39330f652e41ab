//! The kernel that a test plays, without the wrapper: it waits for nothing without end, and loses nothing.

use std::{
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use inflight::{
    fuse::fuser::{
        Config, FileHandle, Filesystem, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
        ReplyData, Request as Asked,
    },
    testing::{FakeKernel, Request},
};

use crate::mounted::until;

const GETATTR: u32 = 3;
const READ: u32 = 15;

const DEADLINE: Duration = Duration::from_secs(20);

/// More than a request of the kernel asks for by default, and within what is promised.
const MUCH: usize = 256 * 1024;

/// Says that it has begun, and waits for the end of the test.
struct Stuck {
    begun: Sender<()>,
    end: Mutex<Receiver<()>>,
    is_destroyed: Arc<Mutex<bool>>,
}

impl Filesystem for Stuck {
    fn destroy(&mut self) {
        *self.is_destroyed.lock().unwrap() = true;
    }

    fn getattr(&self, _: &Asked, _: INodeNo, _: Option<FileHandle>, _: ReplyAttr) {
        self.begun.send(()).unwrap();
        let _ = self.end.lock().unwrap().recv_timeout(2 * DEADLINE);
    }

    fn read(
        &self,
        _: &Asked,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&vec![b'x'; size as usize]);
    }
}

/// A session, and what frees it.
struct Session {
    kernel: FakeKernel,
    begun: Receiver<()>,
    end: Sender<()>,
    is_destroyed: Arc<Mutex<bool>>,
}

fn session() -> Session {
    let (begin, begun) = channel();
    let (end, is_over) = channel();
    let is_destroyed = Arc::default();
    let stuck = Stuck {
        begun: begin,
        end: Mutex::new(is_over),
        is_destroyed: Arc::clone(&is_destroyed),
    };
    Session {
        kernel: FakeKernel::start(stuck, Config::default()).unwrap(),
        begun,
        end,
        is_destroyed,
    }
}

fn getattr() -> Request {
    Request::new(GETATTR, 10).body([0; 16])
}

#[test]
fn a_file_system_that_reads_nothing_more_hangs_neither_sender_nor_receiver() {
    let Session {
        kernel, begun, end, ..
    } = session();
    let stuck = kernel.send(getattr()).unwrap();
    begun.recv_timeout(DEADLINE).unwrap();

    let (no_reply, not_sent) = thread::scope(|scope| {
        let reply = scope.spawn(|| kernel.reply(stuck));
        // As many as the socket holds, and one more.
        let sent = scope.spawn(|| -> io::Result<()> {
            loop {
                kernel.send(getattr().body(vec![0; MUCH]))?;
            }
        });
        (reply.join().unwrap(), sent.join().unwrap())
    });

    assert_eq!(no_reply.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(not_sent.unwrap_err().kind(), ErrorKind::TimedOut);
    drop(kernel);
    drop(end);
}

#[test]
fn hanging_up_does_not_wait_for_a_stuck_file_system() {
    let Session {
        kernel,
        begun,
        end,
        is_destroyed,
    } = session();
    kernel.send(getattr()).unwrap();
    begun.recv_timeout(DEADLINE).unwrap();

    drop(kernel);

    assert!(!*is_destroyed.lock().unwrap(), "it is still stuck");
    drop(end);
    until(|| *is_destroyed.lock().unwrap());
}

#[test]
fn hanging_up_ends_a_file_system_that_is_not_stuck() {
    let Session {
        kernel,
        is_destroyed,
        ..
    } = session();

    drop(kernel);

    until(|| *is_destroyed.lock().unwrap());
}

#[test]
fn a_long_reply_arrives_whole() {
    let Session { kernel, .. } = session();
    let mut body = vec![0; 40];
    body[16..20].copy_from_slice(&(MUCH as u32).to_ne_bytes());

    let unique = kernel.send(Request::new(READ, 10).body(body)).unwrap();

    assert_eq!(kernel.reply(unique).unwrap().body, vec![b'x'; MUCH]);
}

#[test]
fn an_interrupt_has_the_number_after_that_of_its_request() {
    let Session {
        kernel, begun, end, ..
    } = session();
    let unique = kernel.send(getattr()).unwrap();
    begun.recv_timeout(DEADLINE).unwrap();
    assert_eq!(kernel.interrupt(unique).unwrap(), unique + 1);

    drop(end);

    kernel.reply(unique).unwrap();
    kernel.reply(unique + 1).unwrap();
    assert_eq!(kernel.replied()[1..], [unique, unique + 1]);
}

#[test]
fn after_destroy_there_is_nobody_to_send_to() {
    let Session {
        kernel,
        is_destroyed,
        ..
    } = session();
    let never = kernel.interrupt(1000).unwrap();
    kernel.reply(never).unwrap();

    assert_eq!(kernel.destroy().unwrap().error, 0);

    let again = kernel.reply(never).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::BrokenPipe);
    assert!(*is_destroyed.lock().unwrap());
    assert_eq!(
        kernel.send(getattr()).unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
}

struct Refuses;

impl Filesystem for Refuses {
    fn init(&mut self, _: &Asked, _: &mut KernelConfig) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(13))
    }
}

struct Panics;

impl Filesystem for Panics {
    fn init(&mut self, _: &Asked, _: &mut KernelConfig) -> io::Result<()> {
        panic!("on purpose");
    }
}

#[test]
fn a_file_system_that_does_not_start_is_an_error() {
    let refused = FakeKernel::start(Refuses, Config::default()).unwrap_err();
    let panicked = FakeKernel::start(Panics, Config::default()).unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert_eq!(panicked.kind(), ErrorKind::BrokenPipe);
}
