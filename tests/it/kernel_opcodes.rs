//! The wrapper changes nothing: for each opcode the same bytes go to a bare and to a wrapped file system.

use std::time::{Duration, Instant};

use inflight::{
    State, Tracker,
    fuse::{Options, Tracked, fuser::Config},
    testing::{FakeKernel, Reply, Request},
};

use crate::kernel_recorder::{GATED, Log, Recorder};

const GETATTR: u32 = 3;

/// A body, piece by piece.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, values: &[u32]) -> Self {
        for value in values {
            self.0.extend(value.to_ne_bytes());
        }
        self
    }

    fn u64(mut self, values: &[u64]) -> Self {
        for value in values {
            self.0.extend(value.to_ne_bytes());
        }
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn body() -> Body {
    Body::default()
}

/// Name, opcode and body of every request that has a reply, as linux/fuse.h lays them out.
fn requests() -> Vec<(&'static str, u32, Body)> {
    let lock = || body().u64(&[7, 8, 9, 10]).u32(&[1, 11, 0, 0]);
    vec![
        ("lookup", 1, body().bytes(b"na\xffme\0")),
        ("getattr", 3, body().u32(&[1, 0]).u64(&[5])),
        (
            "setattr",
            4,
            body()
                .u32(&[0x7f, 0])
                .u64(&[5, 600, 0, 1000, 2000, 3000])
                .u32(&[1, 2, 3, 0o644, 0, 7, 8, 0]),
        ),
        ("readlink", 5, body()),
        ("symlink", 6, body().bytes(b"link\0a/target\0")),
        (
            "mknod",
            8,
            body().u32(&[0o100_644, 3, 0o22, 0]).bytes(b"node\0"),
        ),
        ("mkdir", 9, body().u32(&[0o755, 0o22]).bytes(b"dir\0")),
        ("unlink", 10, body().bytes(b"gone\0")),
        ("rmdir", 11, body().bytes(b"gonedir\0")),
        ("rename", 12, body().u64(&[77]).bytes(b"old\0new\0")),
        ("link", 13, body().u64(&[78]).bytes(b"hard\0")),
        ("open", 14, body().u32(&[0o2, 0])),
        (
            "read",
            15,
            body()
                .u64(&[5, 4096])
                .u32(&[1234, 2])
                .u64(&[99])
                .u32(&[0o1, 0]),
        ),
        (
            "write",
            16,
            body()
                .u64(&[5, 4096])
                .u32(&[4, 2])
                .u64(&[99])
                .u32(&[0o1, 0])
                .bytes(b"data"),
        ),
        ("statfs", 17, body()),
        ("release", 18, body().u64(&[5]).u32(&[0o2, 3]).u64(&[99])),
        ("fsync", 20, body().u64(&[5]).u32(&[1, 0])),
        (
            "setxattr",
            21,
            body().u32(&[5, 1]).bytes(b"user.a\0").bytes(b"value"),
        ),
        ("getxattr", 22, body().u32(&[64, 0]).bytes(b"user.a\0")),
        ("listxattr", 23, body().u32(&[0, 0])),
        ("removexattr", 24, body().bytes(b"user.a\0")),
        ("flush", 25, body().u64(&[5]).u32(&[0, 0]).u64(&[99])),
        ("opendir", 27, body().u32(&[0o200_000, 0])),
        (
            "readdir",
            28,
            body().u64(&[5, 6]).u32(&[4096, 0]).u64(&[0]).u32(&[0, 0]),
        ),
        ("releasedir", 29, body().u64(&[5]).u32(&[0o1, 0]).u64(&[0])),
        ("fsyncdir", 30, body().u64(&[5]).u32(&[1, 0])),
        ("getlk", 31, lock()),
        ("setlk", 32, lock()),
        ("setlk", 33, lock()),
        ("access", 34, body().u32(&[4, 0])),
        (
            "create",
            35,
            body().u32(&[0o102, 0o640, 0o22, 0]).bytes(b"made\0"),
        ),
        ("bmap", 37, body().u64(&[12]).u32(&[512, 0])),
        (
            "ioctl",
            39,
            body()
                .u64(&[5])
                .u32(&[0, 0x1234])
                .u64(&[0])
                .u32(&[2, 8])
                .bytes(b"in"),
        ),
        ("poll", 40, body().u64(&[5, 6]).u32(&[1, 4])),
        ("fallocate", 43, body().u64(&[5, 100, 200]).u32(&[1, 0])),
        (
            "readdirplus",
            44,
            body().u64(&[5, 6]).u32(&[4096, 0]).u64(&[0]).u32(&[0, 0]),
        ),
        (
            "rename",
            45,
            body().u64(&[77]).u32(&[1, 0]).bytes(b"old\0new\0"),
        ),
        ("lseek", 46, body().u64(&[5, 100]).u32(&[3, 0])),
        (
            "copy_file_range",
            47,
            body().u64(&[5, 10, 79, 6, 20, 30, 0]),
        ),
    ]
}

fn request(opcode: u32, body: &Body) -> Request {
    Request::new(opcode, 30)
        .uid(501)
        .gid(502)
        .pid(503)
        .body(body.0.clone())
}

/// The reply without its number, and the one call that was made.
fn ask(kernel: &FakeKernel, log: &Log, request: Request) -> ((i32, Vec<u8>), Vec<String>) {
    let before = log.calls().len();
    let unique = kernel.send(request).unwrap();
    let Reply { error, body, .. } = kernel.reply(unique).unwrap();
    ((error, body), log.calls()[before..].to_vec())
}

fn wrapped(tracker: &Tracker, log: &Log) -> FakeKernel {
    let mut config = Config::default();
    config.n_threads = Some(2);
    let options = Options::new().slots(1);
    let tracked = Tracked::with(Recorder(log.clone()), tracker, options);
    FakeKernel::start(tracked, config).unwrap()
}

fn queued(tracker: &Tracker) -> usize {
    let ops = tracker.snapshot().ops;
    ops.iter().filter(|op| op.state == State::Queued).count()
}

fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_opcode_is_answered_as_without_the_wrapper() {
    let (bare_log, log, tracker) = (Log::default(), Log::default(), Tracker::new("test"));
    let bare = FakeKernel::start(Recorder(bare_log.clone()), Config::default()).unwrap();
    let kernel = wrapped(&tracker, &log);
    let mut methods = Vec::new();

    for (name, opcode, body) in requests() {
        let expected = ask(&bare, &bare_log, request(opcode, &body));
        let answered = ask(&kernel, &log, request(opcode, &body));

        assert_eq!(answered, expected, "{name}");
        assert!(answered.1[0].starts_with(name), "{name}: {answered:?}");
        methods.push(name);
    }
    methods.dedup();
    assert!(methods.len() >= 36, "{}", methods.len());
}

#[test]
fn every_opcode_is_answered_alike_when_it_was_parked() {
    for (name, opcode, body) in requests() {
        let (bare_log, log, tracker) = (Log::default(), Log::default(), Tracker::new("test"));
        let bare = FakeKernel::start(Recorder(bare_log.clone()), Config::default()).unwrap();
        let kernel = wrapped(&tracker, &log);
        let blocker = kernel
            .send(Request::new(GETATTR, GATED).body(vec![0; 16]))
            .unwrap();
        log.wait_for_calls(2);

        let expected = ask(&bare, &bare_log, request(opcode, &body));
        let parked = kernel.send(request(opcode, &body)).unwrap();
        until(|| queued(&tracker) == 1);
        assert_eq!(log.calls().len(), 2, "{name} was run beside another op");
        log.open_gate();
        let Reply { error, body, .. } = kernel.reply(parked).unwrap();

        kernel.reply(blocker).unwrap();
        assert_eq!((error, body), expected.0, "{name}");
        assert_eq!(log.calls()[2..], expected.1, "{name}");
    }
}

#[test]
fn forgets_and_destroy_arrive_too() {
    let (log, tracker) = (Log::default(), Tracker::new("test"));
    let kernel = wrapped(&tracker, &log);

    kernel.forget(5, 2).unwrap();
    log.wait_for_calls(2);
    kernel.batch_forget(&[(6, 1), (7, 3)]).unwrap();
    log.wait_for_calls(4);
    assert_eq!(kernel.destroy().unwrap().error, 0);
    drop(kernel);
    until(|| log.calls().last().is_some_and(|call| call == "destroy"));

    let calls = log.calls();
    assert!(calls[1].starts_with("forget INodeNo(5) 2"), "{calls:?}");
    assert!(calls[2].starts_with("forget INodeNo(6) 1"), "{calls:?}");
    assert!(calls[3].starts_with("forget INodeNo(7) 3"), "{calls:?}");
}
