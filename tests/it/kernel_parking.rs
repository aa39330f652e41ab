//! What the wrapper does with requests that find no slot, with panics, and with replies that come late or never.

use std::{
    collections::HashMap,
    ffi::OsStr,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use inflight::{
    Op, Outcome, Snapshot, State, Tracker,
    fuse::{
        Options, Tracked,
        fuser::{
            Config, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags,
            ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request as Asked,
            WriteFlags,
        },
    },
    testing::{FakeKernel, Request, assert_idle},
};

use crate::mounted::until;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const UNLINK: u32 = 10;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

const DEADLINE: Duration = Duration::from_secs(20);

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    config
}

fn start<F: Filesystem>(file_system: F, tracker: &Tracker, slots: usize) -> FakeKernel {
    let tracked = Tracked::with(file_system, tracker, Options::new().slots(slots));
    FakeKernel::start(tracked, config(slots + 1)).unwrap()
}

fn getattr(inode: u64) -> Request {
    Request::new(GETATTR, inode).body([0; 16])
}

fn named(opcode: u32, name: &[u8]) -> Request {
    Request::new(opcode, 1).body([name, b"\0"].concat())
}

fn queued(tracker: &Tracker) -> usize {
    let ops = tracker.snapshot().ops;
    ops.iter().filter(|op| op.state == State::Queued).count()
}

/// `getattr` says that it has begun and waits to be told to go on; forgets are written down.
struct Gated {
    begun: Sender<u64>,
    go_on: Mutex<Receiver<()>>,
    forgotten: Arc<Mutex<HashMap<u64, u64>>>,
}

/// The test's ends of it.
struct Gate {
    begun: Receiver<u64>,
    go_on: Sender<()>,
    forgotten: Arc<Mutex<HashMap<u64, u64>>>,
}

impl Gated {
    fn new() -> (Self, Gate) {
        let (begun, has_begun) = channel();
        let (go_on, told) = channel();
        let forgotten = Arc::default();
        let gate = Gate {
            begun: has_begun,
            go_on,
            forgotten: Arc::clone(&forgotten),
        };
        let gated = Self {
            begun,
            go_on: Mutex::new(told),
            forgotten,
        };
        (gated, gate)
    }
}

impl Filesystem for Gated {
    fn getattr(&self, _: &Asked, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _ = self.begun.send(ino.0);
        // Closed: the test is over.
        let _ = self.go_on.lock().unwrap().recv_timeout(DEADLINE);
        reply.error(Errno::ENOENT);
    }

    fn unlink(&self, _: &Asked, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.ok();
    }

    fn lookup(&self, _: &Asked, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "panic" {
            panic!("on purpose");
        }
        if name != "dropped" {
            reply.error(Errno::ENOENT);
        }
    }

    fn forget(&self, _: &Asked, ino: INodeNo, lookups: u64) {
        *self.forgotten.lock().unwrap().entry(ino.0).or_default() += lookups;
    }
}

#[test]
fn an_op_that_finds_no_slot_waits_for_the_one_that_has_it() {
    let tracker = Tracker::new("test");
    let (gated, gate) = Gated::new();
    let kernel = start(gated, &tracker, 1);
    let first = kernel.send(getattr(10)).unwrap();
    assert_eq!(gate.begun.recv_timeout(DEADLINE), Ok(10));

    let second = kernel.send(named(UNLINK, b"x")).unwrap();
    until(|| queued(&tracker) == 1);

    let ops = tracker.snapshot().ops;
    let parked = ops.iter().find(|op| op.name == "unlink").unwrap();
    let wait = parked.phase.wait.as_ref().unwrap();
    let running = ops.iter().find(|op| op.name == "getattr").unwrap();
    assert_eq!((wait.ops.as_slice(), wait.all), (&[running.id][..], true));
    gate.go_on.send(()).unwrap();
    assert_eq!(kernel.reply(first).unwrap().error, ENOENT);
    assert_eq!(kernel.reply(second).unwrap().error, 0);
    assert_idle(&tracker);
}

#[test]
fn sixty_thousand_forgets_beside_a_stuck_slot_are_no_ops_and_none_is_lost() {
    const FORGETS: u64 = 60_000;
    let tracker = Tracker::new("test");
    let (gated, gate) = Gated::new();
    let kernel = start(gated, &tracker, 1);
    let stuck = kernel.send(getattr(10)).unwrap();
    assert_eq!(gate.begun.recv_timeout(DEADLINE), Ok(10));

    let batches: Vec<(u64, u64)> = (0..FORGETS)
        .map(|n| (1000 + n % 30_000, 1 + n % 3))
        .collect();
    for batch in batches.chunks(1000) {
        kernel.batch_forget(batch).unwrap();
    }
    // Behind them in the order of the socket.
    let last = kernel.send(named(UNLINK, b"x")).unwrap();
    until(|| queued(&tracker) == 1);
    assert_eq!(tracker.snapshot().ops.len(), 2);
    assert!(gate.forgotten.lock().unwrap().is_empty());
    gate.go_on.send(()).unwrap();
    kernel.reply(stuck).unwrap();
    kernel.reply(last).unwrap();

    let mut sent: HashMap<u64, u64> = HashMap::new();
    for (inode, lookups) in batches {
        *sent.entry(inode).or_default() += lookups;
    }
    until(|| *gate.forgotten.lock().unwrap() == sent);
}

#[test]
fn what_is_parked_and_panics_or_gives_no_answer_holds_up_nothing() {
    let tracker = Tracker::new("test");
    let (gated, gate) = Gated::new();
    let kernel = start(gated, &tracker, 1);
    let first = kernel.send(getattr(10)).unwrap();
    assert_eq!(gate.begun.recv_timeout(DEADLINE), Ok(10));
    let names: [&[u8]; 3] = [b"panic", b"dropped", b"other"];
    let parked = names.map(|name| kernel.send(named(LOOKUP, name)).unwrap());
    until(|| queued(&tracker) == 3);

    gate.go_on.send(()).unwrap();

    let error = |unique| kernel.reply(unique).unwrap().error;
    assert_eq!(error(first), ENOENT);
    assert_eq!(parked.map(error), [EIO, EIO, ENOENT]);
    let next = kernel.send(named(UNLINK, b"x")).unwrap();
    assert_eq!(error(next), 0, "the reader lives on");
    assert_idle(&tracker);
    let recent = tracker.snapshot().recent;
    let outcomes: Vec<_> = recent[1..4].iter().map(|ended| &ended.outcome).collect();
    assert_eq!(
        outcomes,
        [&Outcome::Panicked, &Outcome::Returned, &Outcome::Returned]
    );
}

#[test]
fn what_is_parked_is_run_whoever_called() {
    let tracker = Tracker::new("test");
    let (gated, gate) = Gated::new();
    let kernel = start(gated, &tracker, 1);
    kernel.send(getattr(10)).unwrap();
    assert_eq!(gate.begun.recv_timeout(DEADLINE), Ok(10));
    // Of no process, of one that is not there, of none that could be.
    let parked =
        [0, 1, 4_000_000, u32::MAX].map(|pid| kernel.send(named(UNLINK, b"x").pid(pid)).unwrap());
    until(|| queued(&tracker) == parked.len());

    gate.go_on.send(()).unwrap();

    for unique in parked {
        assert_eq!(kernel.reply(unique).unwrap().error, 0);
    }
}

/// Says of what it opens where it is; a read says that it has begun and waits to be told to go on.
struct Telling {
    path: &'static str,
    begun: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Telling {
    fn new(path: &'static str) -> (Self, Receiver<()>, Sender<()>) {
        let (begun, has_begun) = channel();
        let (go_on, told) = channel();
        let telling = Self {
            path,
            begun,
            go_on: Mutex::new(told),
        };
        (telling, has_begun, go_on)
    }
}

impl Filesystem for Telling {
    fn open(&self, _: &Asked, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        inflight::target(self.path);
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Asked,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _ = self.begun.send(());
        let _ = self.go_on.lock().unwrap().recv_timeout(DEADLINE);
        reply.data(b"");
    }
}

/// What is in flight while the second reads the inode that the first has opened.
fn seen_in_read(
    tracker: &Tracker,
    [opens, reads]: [&FakeKernel; 2],
    begun: &Receiver<()>,
    go_on: &Sender<()>,
) -> Snapshot {
    let open = opens.send(Request::new(OPEN, 5).body([0; 8])).unwrap();
    assert_eq!(opens.reply(open).unwrap().error, 0);
    let read = reads.send(Request::new(READ, 5).body([0; 40])).unwrap();
    begun.recv_timeout(DEADLINE).unwrap();
    // A reply is there before its op has ended.
    until(|| tracker.snapshot().ops.len() == 1);
    let seen = tracker.snapshot();
    go_on.send(()).unwrap();
    reads.reply(read).unwrap();
    seen
}

#[test]
fn what_was_told_of_an_open_file_shows_no_secret_in_what_follows() {
    let tracker = Tracker::new("test");
    let (telling, begun, go_on) = Telling::new("https://bob:s3cret@api/x?token=s3cret#s3cret");
    let kernel = start(telling, &tracker, 1);

    let seen = seen_in_read(&tracker, [&kernel, &kernel], &begun, &go_on);

    assert_eq!(seen.ops[0].target, "~https://api/x?token=..");
    let json = serde_json::to_string(&seen).unwrap();
    assert!(!json.contains("s3cret"), "{json}");
}

#[test]
fn two_that_are_mounted_by_hand_know_nothing_of_each_other() {
    let tracker = Tracker::new("test");
    let (one, begun, go_on) = Telling::new("/only/in/one");
    let (other, ..) = Telling::new("/only/in/the/other");
    let (one, other) = (start(one, &tracker, 1), start(other, &tracker, 1));

    let seen = seen_in_read(&tracker, [&other, &one], &begun, &go_on);

    assert_eq!(seen.ops[0].target, "inode 5");
    let tracked: Vec<u64> = seen.mounts.iter().map(|mount| mount.tracked).collect();
    assert_eq!(tracked, [1, 0]);
}

/// Counts how many of its methods run at once; each waits to be let through until all may pass.
struct Counting {
    inside: AtomicUsize,
    most: Arc<AtomicUsize>,
    door: Arc<RwLock<()>>,
}

impl Filesystem for Counting {
    fn write(
        &self,
        _: &Asked,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let inside = self.inside.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(inside, SeqCst);
        drop(self.door.read().unwrap());
        // Gives another thread the chance to come in.
        thread::yield_now();
        self.inside.fetch_sub(1, SeqCst);
        reply.written(data.len() as u32);
    }
}

#[test]
fn sixty_four_writers_never_overlap_with_one_slot_nor_with_three_more_than_three() {
    const WRITERS: usize = 64;
    const ROUNDS: usize = 50;
    for slots in [1, 3] {
        let tracker = Tracker::new("test");
        let (most, door) = (Arc::<AtomicUsize>::default(), Arc::<RwLock<()>>::default());
        let counting = Counting {
            inside: AtomicUsize::new(0),
            most: Arc::clone(&most),
            door: Arc::clone(&door),
        };
        let tracked = Tracked::with(counting, &tracker, Options::new().slots(slots));
        // More readers than the wrapper asks for: it must not count on having one to spare.
        let kernel = FakeKernel::start(tracked, config(slots + 5)).unwrap();
        let mut body = vec![0; 40];
        body[16..20].copy_from_slice(&4_u32.to_ne_bytes());
        body.extend(b"data");
        let send = || kernel.send(Request::new(WRITE, 10).body(body.clone()));
        let is_answered = |unique| assert_eq!(kernel.reply(unique).unwrap().error, 0);

        let shut = door.write().unwrap();
        let all: Vec<u64> = (0..WRITERS).map(|_| send().unwrap()).collect();
        until(|| queued(&tracker) == WRITERS - slots);
        assert_eq!(most.load(SeqCst), slots);
        drop(shut);
        all.into_iter().for_each(is_answered);
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| (0..ROUNDS).for_each(|_| is_answered(send().unwrap())));
            }
        });

        assert_eq!(most.load(SeqCst), slots);
        assert_idle(&tracker);
        let begun = tracker.snapshot().totals.begun;
        assert_eq!(begun, (WRITERS * (ROUNDS + 1)) as u64);
    }
}

/// Hands its replies to whoever asks for them, with or without a handle of the op.
struct Later {
    replies: Mutex<Sender<(ReplyEntry, Option<Op>)>>,
    keeps_op: bool,
}

impl Filesystem for Later {
    fn lookup(&self, _: &Asked, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "panic" {
            panic!("on purpose");
        }
        if name == "dropped" {
            return;
        }
        let op = Op::current().filter(|_| self.keeps_op);
        self.replies.lock().unwrap().send((reply, op)).unwrap();
    }
}

fn later(keeps_op: bool) -> (Later, Receiver<(ReplyEntry, Option<Op>)>) {
    let (send, receive) = channel();
    let later = Later {
        replies: Mutex::new(send),
        keeps_op,
    };
    (later, receive)
}

#[test]
fn an_op_whose_reply_is_handed_off_with_a_handle_lasts_until_it_is_answered() {
    let tracker = Tracker::new("test");
    let (later, replies) = later(true);
    let kernel = start(later, &tracker, 1);
    // One after the other: until one reader stands by, two that have just begun may overtake each other.
    let first = kernel.send(named(LOOKUP, b"one")).unwrap();
    let of_first = replies.recv_timeout(DEADLINE).unwrap();
    let second = kernel.send(named(LOOKUP, b"two")).unwrap();
    let of_second = replies.recv_timeout(DEADLINE).unwrap();
    assert_eq!(tracker.snapshot().ops.len(), 2, "both are owed");

    // Out of order.
    of_second.0.error(Errno::ENOENT);
    drop(of_second.1);
    kernel.reply(second).unwrap();
    // The callback may be about to return, and holds a handle until it has.
    until(|| tracker.snapshot().ops.len() == 1);
    of_first.0.error(Errno::ENOENT);
    drop(of_first.1);
    kernel.reply(first).unwrap();

    assert_idle(&tracker);
    assert_eq!(kernel.replied()[1..], [second, first]);
}

#[test]
fn a_reply_that_is_dropped_is_an_error_and_ends_the_op() {
    let tracker = Tracker::new("test");
    let (later, _replies) = later(true);
    let kernel = start(later, &tracker, 1);

    let unique = kernel.send(named(LOOKUP, b"dropped")).unwrap();

    assert_eq!(kernel.reply(unique).unwrap().error, EIO);
    assert_idle(&tracker);
    assert_eq!(tracker.snapshot().recent[0].outcome, Outcome::Returned);
}

#[test]
fn a_panic_is_answered_with_eio_and_the_next_request_is_served() {
    let tracker = Tracker::new("test");
    let (later, replies) = later(false);
    let kernel = start(later, &tracker, 1);

    let panicked = kernel.send(named(LOOKUP, b"panic")).unwrap();
    assert_eq!(kernel.reply(panicked).unwrap().error, EIO);
    let next = kernel.send(named(LOOKUP, b"next")).unwrap();
    let (reply, _) = replies.recv_timeout(DEADLINE).unwrap();
    reply.error(Errno::ENOENT);

    assert_eq!(kernel.reply(next).unwrap().error, ENOENT);
    assert_idle(&tracker);
    let recent = tracker.snapshot().recent;
    assert_eq!(recent[0].outcome, Outcome::Panicked);
    assert_eq!(recent[0].op.error.as_deref(), Some("panicked: on purpose"));
}

#[test]
fn an_interrupt_changes_nothing_of_an_op_that_runs_or_is_parked() {
    let tracker = Tracker::new("test");
    let (gated, gate) = Gated::new();
    let kernel = start(gated, &tracker, 1);
    let running = kernel.send(getattr(10)).unwrap();
    gate.begun.recv_timeout(DEADLINE).unwrap();
    let parked = kernel.send(named(UNLINK, b"x")).unwrap();
    until(|| queued(&tracker) == 1);

    for unique in [running, parked] {
        let interrupt = kernel.interrupt(unique).unwrap();
        // What is parked is read by the spare, and so is this.
        assert_eq!(kernel.reply(interrupt).unwrap().error, ENOSYS);
    }
    let ops = tracker.snapshot().ops;
    assert_eq!((ops.len(), queued(&tracker)), (2, 1));
    gate.go_on.send(()).unwrap();

    assert_eq!(kernel.reply(running).unwrap().error, ENOENT);
    assert_eq!(kernel.reply(parked).unwrap().error, 0);
    assert_idle(&tracker);
}

#[test]
fn any_caller_is_shown_as_the_kernel_named_it() {
    for pid in [0, 1, 4_000_000, u32::MAX] {
        let tracker = Tracker::new("test");
        let (gated, gate) = Gated::new();
        let kernel = start(gated, &tracker, 1);

        let unique = kernel.send(getattr(10).pid(pid).uid(77)).unwrap();
        gate.begun.recv_timeout(DEADLINE).unwrap();
        let op = tracker.snapshot().ops.remove(0);
        let text = inflight::Report::local(&tracker).to_string();
        gate.go_on.send(()).unwrap();
        kernel.reply(unique).unwrap();

        let caller = op.caller.unwrap();
        assert_eq!((caller.tid, caller.uid), (pid, 77));
        assert!(text.contains("getattr inode 10"), "{text}");
    }
}

#[test]
fn fuser_has_no_method_that_the_wrapper_does_not_know() {
    // What cannot be implemented elsewhere (its types are private), or is macOS' alone.
    const OTHERS: [&str; 4] = ["batch_forget", "setvolname", "exchange", "getxtimes"];
    let methods = |source: &str, from: &str| -> Vec<String> {
        let source = source.split(from).nth(1).unwrap();
        let end = source.find("\n}").unwrap();
        let lines = source[..end].lines();
        let names = lines.filter_map(|line| line.strip_prefix("    fn "));
        names
            .map(|rest| rest.split('(').next().unwrap().to_owned())
            .collect()
    };
    // Without a platform it would ask for packages that are not there.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = std::process::Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", &platform])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&metadata.stderr);
    assert!(metadata.status.success(), "{error}");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let fuser = packages
        .iter()
        .find(|package| package["name"] == "fuser")
        .unwrap();
    let manifest = std::path::Path::new(fuser["manifest_path"].as_str().unwrap());
    let theirs = std::fs::read_to_string(manifest.with_file_name("src").join("lib.rs")).unwrap();
    // Some are written out, the others stand in a list of operations.
    let ours = include_str!("../../src/fuse/fs.rs");
    let ours = ours.split("Filesystem for Tracked<F>").nth(1).unwrap();
    let is_ours = |method: &str| {
        ours.contains(&format!("\n    fn {method}("))
            || ours.contains(&format!("\n        {method}("))
    };

    let theirs = methods(&theirs, "pub trait Filesystem");
    let missing: Vec<_> = theirs
        .iter()
        .filter(|method| !OTHERS.contains(&method.as_str()) && !is_ours(method))
        .collect();

    assert!(theirs.len() > 40, "{theirs:?}");
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(theirs.len() - OTHERS.len(), 40);
}
