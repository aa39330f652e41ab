//! The wrapper changes nothing: for each opcode the same bytes go to a bare and to a wrapped file system.

use std::collections::BTreeSet;

use inflight::{
    Report, State, Tracker,
    fuse::{Options, Tracked, fuser::Config},
    testing::{FakeKernel, Reply, Request, assert_idle},
};

use crate::{
    kernel_recorder::{GATED, Log, Recorder},
    mounted::until,
};

const GETATTR: u32 = 3;

const ROOT: u64 = 1;

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

/// Method, opcode and body of every request that has a reply, as linux/fuse.h lays them out; some twice,
/// with and without what may be left out. `name` is all the names in them.
fn requests(name: &[u8]) -> Vec<(&'static str, u32, Body)> {
    let one = [name, b"\0"].concat();
    let two = [name, b"\0new ", name, b"\0"].concat();
    let lock = || body().u64(&[7, 8, 9, 10]).u32(&[1, 11, 0, 0]);
    let times = |valid| {
        body()
            .u32(&[valid, 0])
            .u64(&[5, 600, 0, 1000, 2000, 3000])
            .u32(&[1, 2, 3, 0o644, 0, 7, 8, 0])
    };
    let read = |flags| {
        body()
            .u64(&[5, 4096])
            .u32(&[1234, flags])
            .u64(&[99])
            .u32(&[0o1, 0])
    };
    let write = |flags, data: &[u8]| {
        body()
            .u64(&[5, 4096])
            .u32(&[data.len() as u32, flags])
            .u64(&[99])
            .u32(&[0o1, 0])
            .bytes(data)
    };
    let list = || body().u64(&[5, 6]).u32(&[4096, 0]).u64(&[0]).u32(&[0, 0]);
    let value = || body().u32(&[5, 1]).bytes(&one).bytes(b"value");
    vec![
        ("lookup", 1, body().bytes(&one)),
        ("getattr", 3, body().u32(&[0, 0]).u64(&[5])),
        ("getattr", 3, body().u32(&[1, 0]).u64(&[5])),
        ("setattr", 4, times(0)),
        // Times, and the times of now.
        ("setattr", 4, times(0x47f)),
        ("setattr", 4, times(0x1b0)),
        ("readlink", 5, body()),
        ("symlink", 6, body().bytes(&two)),
        ("mknod", 8, body().u32(&[0o100_644, 3, 0o22, 0]).bytes(&one)),
        ("mkdir", 9, body().u32(&[0o755, 0o22]).bytes(&one)),
        ("unlink", 10, body().bytes(&one)),
        ("rmdir", 11, body().bytes(&one)),
        ("rename", 12, body().u64(&[77]).bytes(&two)),
        ("link", 13, body().u64(&[78]).bytes(&one)),
        ("open", 14, body().u32(&[0o2, 0])),
        ("read", 15, read(0)),
        ("read", 15, read(2)),
        ("write", 16, write(0, b"")),
        ("write", 16, write(2, b"data")),
        ("write", 16, write(1, &vec![b'x'; 128 * 1024])),
        ("statfs", 17, body()),
        ("release", 18, body().u64(&[5]).u32(&[0o2, 0]).u64(&[99])),
        ("release", 18, body().u64(&[5]).u32(&[0o2, 3]).u64(&[99])),
        ("fsync", 20, body().u64(&[5]).u32(&[1, 0])),
        ("setxattr", 21, value()),
        ("getxattr", 22, body().u32(&[64, 0]).bytes(&one)),
        ("listxattr", 23, body().u32(&[0, 0])),
        ("removexattr", 24, body().bytes(&one)),
        ("flush", 25, body().u64(&[5]).u32(&[0, 0]).u64(&[99])),
        ("opendir", 27, body().u32(&[0o200_000, 0])),
        ("readdir", 28, list()),
        ("releasedir", 29, body().u64(&[5]).u32(&[0o1, 0]).u64(&[0])),
        ("fsyncdir", 30, body().u64(&[5]).u32(&[1, 0])),
        ("getlk", 31, lock()),
        ("setlk", 32, lock()),
        ("setlk", 33, lock()),
        ("access", 34, body().u32(&[4, 0])),
        (
            "create",
            35,
            body().u32(&[0o102, 0o640, 0o22, 0]).bytes(&one),
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
        ("readdirplus", 44, list()),
        ("rename", 45, body().u64(&[77]).u32(&[1, 0]).bytes(&two)),
        ("lseek", 46, body().u64(&[5, 100]).u32(&[3, 0])),
        (
            "copy_file_range",
            47,
            body().u64(&[5, 10, 79, 6, 20, 30, 0]),
        ),
    ]
}

/// Those that name something.
fn named(name: &[u8]) -> Vec<(&'static str, u32, Body)> {
    let mut requests = requests(name);
    requests.retain(|(_, _, body)| body.0.windows(name.len()).any(|part| part == name));
    requests
}

fn request(opcode: u32, inode: u64, body: &Body) -> Request {
    Request::new(opcode, inode)
        .uid(501)
        .gid(502)
        .pid(503)
        .body(body.0.clone())
}

/// What was answered, and the call that was made for it, without the number of the request.
type Seen = ((i32, Vec<u8>), String);

fn seen(unique: u64, reply: Reply, calls: &[String]) -> Seen {
    let Reply { error, body, .. } = reply;
    let number = format!(" #{unique}");
    let mut calls = calls.iter().filter_map(|call| call.strip_suffix(&number));
    let call = calls.next().unwrap_or("none").to_owned();
    assert_eq!(calls.next(), None, "twice");
    ((error, body), call)
}

fn ask(kernel: &FakeKernel, log: &Log, request: Request) -> Seen {
    let unique = kernel.send(request).unwrap();
    let reply = kernel.reply(unique).unwrap();
    seen(unique, reply, &log.calls())
}

fn bare() -> (FakeKernel, Log) {
    let log = Log::default();
    let kernel = FakeKernel::start(Recorder(log.clone()), Config::default()).unwrap();
    (kernel, log)
}

fn wrapped(tracker: &Tracker) -> (FakeKernel, Log) {
    let log = Log::default();
    let mut config = Config::default();
    config.n_threads = Some(2);
    let options = Options::new().slots(1);
    let tracked = Tracked::with(Recorder(log.clone()), tracker, options);
    (FakeKernel::start(tracked, config).unwrap(), log)
}

/// The same with its slot taken, until the gate of the log is opened. What was called so far are two.
fn wrapped_and_stuck(tracker: &Tracker) -> (FakeKernel, Log) {
    let (kernel, log) = wrapped(tracker);
    kernel
        .send(Request::new(GETATTR, GATED).body([0; 16]))
        .unwrap();
    log.wait_for_calls(2);
    (kernel, log)
}

fn queued(tracker: &Tracker) -> usize {
    let ops = tracker.snapshot().ops;
    ops.iter().filter(|op| op.state == State::Queued).count()
}

#[test]
fn every_opcode_is_answered_as_without_the_wrapper() {
    let tracker = Tracker::new("test");
    let (bare, bare_log) = bare();
    let (kernel, log) = wrapped(&tracker);
    let mut methods = BTreeSet::new();

    for inode in [30, ROOT] {
        for (name, opcode, body) in requests(b"na\xffme") {
            let expected = ask(&bare, &bare_log, request(opcode, inode, &body));
            let answered = ask(&kernel, &log, request(opcode, inode, &body));

            assert_eq!(answered, expected, "{name}");
            assert!(answered.1.starts_with(name), "{name}: {answered:?}");
            methods.insert(name);
        }
    }
    // Of 40; `init`, `destroy` and `forget` are not asked for like these.
    assert_eq!(methods.len(), 37);
}

#[test]
fn every_opcode_is_answered_alike_when_it_was_parked() {
    let (bare, bare_log) = bare();
    for (name, opcode, body) in requests(b"na\xffme") {
        let tracker = Tracker::new("test");
        let (kernel, log) = wrapped_and_stuck(&tracker);

        let expected = ask(&bare, &bare_log, request(opcode, 30, &body));
        let parked = kernel.send(request(opcode, 30, &body)).unwrap();
        until(|| queued(&tracker) == 1);
        assert_eq!(log.calls().len(), 2, "{name} was run beside another op");
        log.open_gate();
        let reply = kernel.reply(parked).unwrap();

        assert_eq!(seen(parked, reply, &log.calls()), expected, "{name}");
    }
}

#[test]
fn the_handshake_differs_only_in_what_one_thread_at_a_time_cannot_tell() {
    const FLAGS: usize = 12;
    const PARALLEL_DIROPS: u32 = 1 << 18;
    let (bare, _log) = bare();
    let (kernel, _log) = wrapped(&Tracker::new("test"));

    let mut expected = bare.init().body.clone();
    let flags = u32::from_ne_bytes(expected[FLAGS..FLAGS + 4].try_into().unwrap());
    assert_eq!(flags & PARALLEL_DIROPS, 0);
    let flags = flags | PARALLEL_DIROPS;
    expected[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());

    assert_eq!(kernel.init().body, expected);
}

#[test]
fn forgets_and_destroy_arrive_too() {
    let (kernel, log) = wrapped(&Tracker::new("test"));

    kernel.forget(5, 2).unwrap();
    log.wait_for_calls(2);
    kernel.batch_forget(&[(6, 1), (7, 3)]).unwrap();
    log.wait_for_calls(4);
    assert_eq!(kernel.destroy().unwrap().error, 0);
    drop(kernel);
    until(|| log.calls().last().is_some_and(|call| call == "destroy"));

    // Forgets that meet a slot not yet given back are delivered together, in any order.
    let mut calls = log.calls();
    calls[1..4].sort();
    assert!(calls[1].starts_with("forget INodeNo(5) 2"), "{calls:?}");
    assert!(calls[2].starts_with("forget INodeNo(6) 1"), "{calls:?}");
    assert!(calls[3].starts_with("forget INodeNo(7) 3"), "{calls:?}");
}

// A name is what a user of the mount chooses.
#[test]
fn hostile_names_reach_the_file_system_as_they_are_and_nobody_else() {
    let long = [b'n'; 1000];
    let names: [&[u8]; 5] = [
        b"a\nb",
        b"\x1b[31mred",
        "\u{202e}gnp.exe".as_bytes(),
        b"\xff\xfe",
        &long,
    ];
    for name in names {
        let tracker = Tracker::new("test");
        let (bare, bare_log) = bare();
        let (kernel, log) = wrapped_and_stuck(&tracker);
        let named = named(name);
        assert_eq!(named.len(), 13);

        let parked = named
            .iter()
            .map(|(_, opcode, body)| kernel.send(request(*opcode, ROOT, body)).unwrap());
        let parked: Vec<u64> = parked.collect();
        until(|| queued(&tracker) == parked.len());
        let report = Report::local(&tracker);
        assert_is_harmless(&report);
        log.open_gate();

        for ((method, opcode, body), unique) in named.iter().zip(parked) {
            let expected = ask(&bare, &bare_log, request(*opcode, ROOT, body));
            let reply = kernel.reply(unique).unwrap();
            assert_eq!(seen(unique, reply, &log.calls()), expected, "{method}");
            let inline = ask(&kernel, &log, request(*opcode, ROOT, body));
            assert_eq!(inline, expected, "{method}");
        }
        assert_is_harmless(&Report::local(&tracker));
    }
}

fn assert_is_harmless(report: &Report) {
    let is_harmless = |c: char| !c.is_control() && c != '\u{202e}';
    for op in &report.local.ops {
        assert!(op.target.len() <= 520, "{} bytes", op.target.len());
    }
    let text = report.to_string();
    assert!(text.lines().all(|line| line.chars().all(is_harmless)));
    let json = serde_json::to_string(report).unwrap();
    assert!(json.chars().all(is_harmless), "{json:?}");
    assert!(!text.contains('\u{fffd}') && !json.contains('\u{fffd}'));
}

#[test]
fn nothing_that_is_parked_is_run_when_the_kernel_has_hung_up() {
    let tracker = Tracker::new("test");
    let (kernel, log) = wrapped_and_stuck(&tracker);
    let requests = requests(b"name");
    for (_, opcode, body) in &requests {
        kernel.send(request(*opcode, 30, body)).unwrap();
    }
    kernel.forget(5, 2).unwrap();
    until(|| queued(&tracker) == requests.len());

    drop(kernel);
    until(|| queued(&tracker) == 0);
    log.open_gate();
    assert_idle(&tracker);

    let calls = log.calls();
    let mut others = calls.iter().skip(2);
    assert!(
        others.all(|call| call == "destroy" || call.starts_with("forget")),
        "{calls:?}"
    );
}

#[test]
fn nothing_that_is_parked_is_run_after_destroy_and_every_caller_is_told() {
    const ENOTCONN: i32 = 107;
    let tracker = Tracker::new("test");
    let (kernel, log) = wrapped_and_stuck(&tracker);
    let requests = requests(b"name");
    let parked = requests
        .iter()
        .map(|(_, opcode, body)| kernel.send(request(*opcode, 30, body)).unwrap());
    let parked: Vec<u64> = parked.collect();
    until(|| queued(&tracker) == requests.len());

    assert_eq!(kernel.destroy().unwrap().error, 0);
    for unique in parked {
        assert_eq!(kernel.reply(unique).unwrap().error, ENOTCONN);
    }
    log.open_gate();
    assert_idle(&tracker);

    assert_eq!(log.calls().len(), 2, "{:?}", log.calls());
}
