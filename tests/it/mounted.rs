//! A mount for a test: served by a child process, touched by child processes only, and gone whatever happens.
//!
//! The daemon is this very test binary, started once more. It is told what to hold up on its stdin and
//! says in turn what has begun, so that tests force an order instead of waiting for one.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs,
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use inflight::{
    Op, State, Tracker,
    fuse::{
        self, Options,
        fuser::{
            Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
            INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
            ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
        },
    },
    machine,
    testing::{Daemon, Watch, watch},
};
use tempfile::TempDir;

/// Frees a test that hangs; nothing is judged by it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What is unreachable never answers: this much is enough to tell.
const DIAG_DEADLINE: Duration = Duration::from_secs(5);

/// So many ops are looked at to see how many are parked.
const SAMPLED: usize = 200;

/// Longer than all deadlines of a test, one after the other, on a machine that does much else.
const GUARD: Duration = Duration::from_secs(240);

const SPEC: &str = "INFLIGHT_TEST_MOUNT";

/// Has a test hang, for another to see that it ends all the same.
pub(crate) const PLANT: &str = "INFLIGHT_TEST_PLANT";

/// How a mount is to be served.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spec {
    pub(crate) slots: usize,
    pub(crate) default_permissions: bool,
    /// Reads are answered by another thread, with a handle of the op.
    pub(crate) is_async: bool,
    /// And without one.
    pub(crate) no_handle: bool,
}

/// A mount and the process that serves it.
pub(crate) struct Mounted {
    // Ended before its directory is removed.
    daemon: Daemon,
    backlog: Vec<String>,
    dir: TempDir,
    _watch: Watch,
}

/// A program that may hang; ended with all its children when it is dropped.
pub(crate) struct Client {
    child: Child,
    // Read all along: a full pipe would hang it.
    out: Option<thread::JoinHandle<String>>,
}

/// Guards the test that calls it: whatever hangs in it in spite of all deadlines does not hang the others for ever.
pub(crate) fn guard() -> Watch {
    let guard = watch(&Tracker::new("test"));
    match std::env::var_os("INFLIGHT_TEST_DEADLINE") {
        Some(_) => guard,
        None => guard.deadline(GUARD),
    }
}

/// Whether mount tests are to be left out. Without /dev/fuse they fail, unless somebody said so.
pub(crate) fn is_skipped(wanted: Option<&OsStr>) -> bool {
    wanted.is_some_and(|value| value == "1")
}

impl Mounted {
    /// One slot, and nothing special.
    pub(crate) fn new() -> Option<Self> {
        Self::with(Spec {
            slots: 1,
            ..Spec::default()
        })
    }

    pub(crate) fn slots(slots: usize) -> Option<Self> {
        Self::with(Spec {
            slots,
            ..Spec::default()
        })
    }

    /// One where the kernel checks permissions, for which it asks for the root.
    pub(crate) fn checking_permissions(slots: usize) -> Option<Self> {
        Self::with(Spec {
            slots,
            default_permissions: true,
            ..Spec::default()
        })
    }

    /// `None` if mount tests are to be skipped.
    pub(crate) fn with(spec: Spec) -> Option<Self> {
        if is_skipped(std::env::var_os("INFLIGHT_SKIP_FUSE").as_deref()) {
            return None;
        }
        assert!(
            Path::new("/dev/fuse").exists(),
            "there is no /dev/fuse; INFLIGHT_SKIP_FUSE=1 leaves these tests out"
        );
        let guard = guard();
        let dir = tempfile::Builder::new().prefix("it-").tempdir().unwrap();
        let mnt = dir.path().join("mnt");
        fs::create_dir(&mnt).unwrap();
        let flags = [
            spec.default_permissions,
            spec.is_async || spec.no_handle,
            spec.no_handle,
        ];
        let flags: Vec<&str> = flags.map(|flag| if flag { "1" } else { "0" }).to_vec();
        let told = format!("{}:{}:{}", spec.slots, flags.join(":"), mnt.display());
        let mut daemon = Command::new(std::env::current_exe().unwrap());
        daemon
            .args(["--exact", "mounted::serves_a_mount_if_told_to"])
            .args(["--nocapture", "--test-threads=1"])
            .env(SPEC, told)
            .env("INFLIGHT_DIR", dir.path().join("inflight"))
            .env_remove("INFLIGHT");
        let daemon = Daemon::builder(daemon).mounts_at(&mnt).stops_at_eof();
        let mounted = Self {
            daemon: daemon.start().unwrap(),
            backlog: Vec::new(),
            dir,
            _watch: guard,
        };
        let fusectl = Path::new("/sys/fs/fuse/connections");
        if fs::read_dir(fusectl).is_ok_and(|mut entries| entries.next().is_none()) {
            let mut mount = Command::new("mount");
            mount.args(["-t", "fusectl", "none"]).arg(fusectl);
            assert!(mount.status().unwrap().success(), "cannot mount fusectl");
        }
        Some(mounted)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let mnt = self.dir.path().join("mnt");
        match name {
            "" => mnt,
            name => mnt.join(name),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// Tells the daemon: `hold OP`, `free OP`, `panic OP`, `stats`, `unmount`.
    pub(crate) fn tell(&mut self, what: &str) {
        let stdin = self.daemon.stdin().unwrap();
        writeln!(stdin, "{what}").unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn hold(&mut self, op: &str) {
        self.tell(&format!("hold {op}"));
        self.wait_for(&format!("held {op}"));
    }

    pub(crate) fn free(&mut self, op: &str) {
        self.tell(&format!("free {op}"));
    }

    /// Waits until the daemon says a line that begins so, and returns the rest of it.
    pub(crate) fn wait_for(&mut self, begin: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let known = self.backlog.iter();
            if let Some(at) = known.clone().position(|line| line.starts_with(begin)) {
                return self.backlog.remove(at)[begin.len()..].trim().to_owned();
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.daemon.line(left) {
                Ok(line) => self.backlog.push(line),
                Err(error) => panic!("no {begin:?}, but {:?}: {error}", self.backlog),
            }
        }
    }

    /// Runs a shell command; `$M` in it is the mount.
    pub(crate) fn client(&self, command: &str) -> Client {
        let mut bash = Command::new("bash");
        bash.args(["-c", command]);
        self.run(bash)
    }

    pub(crate) fn run(&self, mut command: Command) -> Client {
        command
            .env("M", self.path(""))
            .env_remove("BASH_ENV")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let out = thread::spawn(move || {
            let mut out = String::new();
            let _ = stdout.read_to_string(&mut out);
            out
        });
        Client {
            child,
            out: Some(out),
        }
    }

    /// What `cat .diag` prints, if it is answered at all.
    pub(crate) fn diag(&self) -> String {
        self.cat(".diag").0
    }

    /// The same, and the process that read it.
    pub(crate) fn diag_and_reader(&self) -> (String, u32) {
        self.cat(".diag")
    }

    /// The same as data.
    pub(crate) fn report(&self) -> inflight::Report {
        serde_json::from_str(&self.cat(".diag.json").0).unwrap()
    }

    fn cat(&self, name: &str) -> (String, u32) {
        let mut cat = Command::new("cat");
        cat.arg(self.path(name));
        let mut client = self.run(cat);
        let Some(status) = client.end_within(DIAG_DEADLINE) else {
            panic!("{name} was not answered within {DIAG_DEADLINE:?}");
        };
        let out = client.output();
        assert!(status.success(), "cat {name}: {status}");
        (out, client.pid())
    }

    /// Requests that the kernel counts as not answered.
    pub(crate) fn kernel_waiting(&self) -> u64 {
        let connection = self.daemon.connection().unwrap();
        machine::kernel_waiting(connection).unwrap_or(0)
    }

    pub(crate) fn wait_for_kernel(&self, waiting: u64) {
        until(|| self.kernel_waiting() >= waiting);
    }

    pub(crate) fn threads(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        tasks.map_or(0, |tasks| tasks.count())
    }

    pub(crate) fn abort(&self) {
        self.daemon.abort();
    }

    /// Kills the daemon, and waits until it has ended.
    pub(crate) fn kill(&mut self) -> bool {
        self.daemon.kill().is_ok()
    }
}

impl Drop for Mounted {
    // Whoever is stuck in it is freed first: then it ends by itself.
    fn drop(&mut self) {
        self.abort();
    }
}

impl Client {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; fails if it does not come.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let ended = self.end_within(DEADLINE);
        ended.expect("the client hangs")
    }

    pub(crate) fn end_within(&mut self, most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it wrote; it must have ended.
    pub(crate) fn output(&mut self) -> String {
        self.out.take().unwrap().join().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let mut kill = Command::new("bash");
        kill.args(["-c", &format!("kill -{name} -- -{}", self.pid())]);
        // Whoever is gone needs no signal.
        let _ = kill.stderr(Stdio::null()).status();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.signal("KILL");
        // One that cannot die yet is reaped by whoever comes later.
        let _ = self.end_within(Duration::from_millis(200));
    }
}

/// Has a slot stuck in a read and an unlink parked behind it.
pub(crate) fn with_parked_unlink(mounted: &mut Mounted) -> [Client; 2] {
    mounted.client("stat $M/k1").ended();
    mounted.hold("read");
    let cat = mounted.client("exec cat $M/f1");
    mounted.wait_for("begun read");
    let rm = mounted.client("exec unlink $M/k1");
    until(|| {
        let ops = mounted.report().local.ops;
        let mut ops = ops.iter();
        ops.any(|op| op.name == "unlink" && op.state == inflight::State::Queued)
    });
    [cat, rm]
}

/// Waits until it is so.
pub(crate) fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come to that");
        thread::sleep(Duration::from_millis(2));
    }
}

/// From the kernel's list: a look at the mount may hang.
pub(crate) fn connection_of(mount: &Path) -> Option<u64> {
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut lines = list
        .lines()
        .rev()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let fields = lines.find(|fields| Path::new(fields[4]) == mount)?;
    fields[2].split(':').nth(1)?.parse().ok()
}

/// The file system: directories `d..`, else files, whatever is asked for; names with `no` are not there.
#[derive(Clone)]
struct Served(Arc<Inner>);

struct Inner {
    gate: Mutex<Gate>,
    changed: Condvar,
    names: Mutex<HashMap<u64, bool>>,
    opened: AtomicU64,
    released: AtomicU64,
    inversions: AtomicU64,
    forgotten: AtomicU64,
    unlinked: AtomicU64,
    flushed: AtomicU64,
    root_mode: AtomicU16,
    is_async: bool,
    no_handle: bool,
}

#[derive(Default)]
struct Gate {
    held: HashSet<String>,
    panics: HashSet<String>,
    is_over: bool,
}

const NOW: Duration = Duration::ZERO;
const KEPT: Duration = Duration::from_secs(3600);

fn say(line: &str) {
    Daemon::say(line);
}

impl Served {
    /// Waits here while ops of this name are held.
    fn pass(&self, op: &str) {
        let mut gate = self.0.gate.lock().unwrap();
        if gate.panics.contains(op) {
            drop(gate);
            panic!("told to, in {op}");
        }
        if gate.held.contains(op) {
            say(&format!("begun {op}"));
        }
        while gate.held.contains(op) && !gate.is_over {
            gate = self.0.changed.wait(gate).unwrap();
        }
    }

    fn told(&self, line: &str) {
        let mut gate = self.0.gate.lock().unwrap();
        match line.split_once(' ') {
            Some(("hold", op)) => {
                gate.held.insert(op.to_owned());
                say(&format!("held {op}"));
            }
            Some(("free", op)) => {
                gate.held.remove(op);
            }
            Some(("panic", op)) => {
                gate.panics.insert(op.to_owned());
                say(&format!("held {op}"));
            }
            _ => panic!("what is {line}?"),
        }
        self.0.changed.notify_all();
    }

    fn attr(&self, ino: u64, is_dir: bool) -> FileAttr {
        let at = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size: 5,
            blocks: 1,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind: match is_dir {
                true => FileType::Directory,
                false => FileType::RegularFile,
            },
            perm: match (ino, is_dir) {
                (1, _) => self.0.root_mode.load(SeqCst),
                (_, true) => 0o755,
                (_, false) => 0o644,
            },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes();
        self.pass(&format!("lookup-{}", String::from_utf8_lossy(name)));
        if name.starts_with(b"no") {
            return reply.error(Errno::ENOENT);
        }
        let ino = name.iter().fold(7, |ino: u64, byte| {
            ino.wrapping_mul(31).wrapping_add(u64::from(*byte))
        });
        let ino = 1000 + (ino & (u64::MAX >> 8));
        let is_dir = name.starts_with(b"d");
        self.0.names.lock().unwrap().insert(ino, is_dir);
        // Names with `k` the kernel keeps: what comes next on them comes without a lookup.
        let kept = if name.starts_with(b"k") { KEPT } else { NOW };
        reply.entry(&kept, &self.attr(ino, is_dir), Generation(0));
    }

    fn forget(&self, _: &Request, _: INodeNo, lookups: u64) {
        self.0.forgotten.fetch_add(lookups, SeqCst);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.pass(if ino.0 == 1 {
            "getattr-root"
        } else {
            "getattr"
        });
        let is_dir = ino.0 == 1 || self.0.names.lock().unwrap().get(&ino.0) == Some(&true);
        reply.attr(&NOW, &self.attr(ino.0, is_dir));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<inflight::fuse::fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.pass("setattr");
        let is_root = ino.0 == 1;
        if let Some(mode) = mode.filter(|_| is_root) {
            self.0.root_mode.store(mode as u16 & 0o7777, SeqCst);
        }
        reply.attr(&NOW, &self.attr(ino.0, is_root));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.pass("mkdir");
        reply.entry(&NOW, &self.attr(77, true), Generation(0));
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.0.unlinked.fetch_add(1, SeqCst);
        reply.ok();
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.pass("open");
        let opened = self.0.opened.fetch_add(1, SeqCst) + 1;
        if self.0.released.load(SeqCst) + 1 < opened {
            self.0.inversions.fetch_add(1, SeqCst);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.released.fetch_add(1, SeqCst);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data: &[u8] = if offset == 0 { b"hello" } else { b"" };
        if !self.0.is_async {
            self.pass("read");
            return reply.data(data);
        }
        let handle = Op::current().filter(|_| !self.0.no_handle);
        let this = self.clone();
        thread::spawn(move || {
            this.pass("read");
            reply.data(data);
            drop(handle);
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.pass("write");
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.pass("flush");
        self.0.flushed.fetch_add(1, SeqCst);
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.pass("readdir");
        if offset == 0 {
            let _full = reply.add(INodeNo(1), 1, FileType::Directory, ".");
            let _full = reply.add(INodeNo(1), 2, FileType::Directory, "..");
            let _full = reply.add(INodeNo(200), 3, FileType::RegularFile, "f1");
        }
        reply.ok();
    }
}

/// The daemon. In an ordinary run of the tests there is nothing to do.
#[test]
fn serves_a_mount_if_told_to() {
    let Ok(told) = std::env::var(SPEC) else {
        return;
    };
    let fields: Vec<&str> = told.splitn(5, ':').collect();
    let served = Served(Arc::new(Inner {
        gate: Mutex::default(),
        changed: Condvar::new(),
        names: Mutex::default(),
        opened: AtomicU64::new(0),
        released: AtomicU64::new(0),
        inversions: AtomicU64::new(0),
        forgotten: AtomicU64::new(0),
        unlinked: AtomicU64::new(0),
        flushed: AtomicU64::new(0),
        root_mode: AtomicU16::new(0o755),
        is_async: fields[2] == "1",
        no_handle: fields[3] == "1",
    }));
    let mut config = Config::default();
    config.n_threads = Some(fields[0].parse().unwrap());
    if fields[1] == "1" {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    let tracker = Tracker::new("served");
    let _debug = inflight::debug::serve(&tracker);
    let mount =
        fuse::spawn_mount_with(served.clone(), fields[4], &config, &tracker, Options::new())
            .unwrap();
    let mut mount = Some(mount);
    say("mounted");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "stats" => {
                let inner = &served.0;
                say(&format!(
                    "stats opened={} inversions={} forgotten={} unlinked={} flushed={}",
                    inner.opened.load(SeqCst),
                    inner.inversions.load(SeqCst),
                    inner.forgotten.load(SeqCst),
                    inner.unlinked.load(SeqCst),
                    inner.flushed.load(SeqCst),
                ));
            }
            // Counts how many of the ops seen in snapshots are parked.
            "sample" => {
                let tracker = tracker.clone();
                thread::spawn(move || {
                    // Each once, however long it was held up by whoever else wants a processor.
                    let (mut ops, mut parked) = (HashSet::new(), HashSet::new());
                    while ops.len() < SAMPLED {
                        for op in tracker.snapshot().ops {
                            if op.state == State::Queued {
                                parked.insert(op.id);
                            }
                            ops.insert(op.id);
                        }
                    }
                    let (ops, parked) = (ops.len(), parked.len());
                    say(&format!("sampled {ops} {parked}"));
                });
            }
            "unmount" => {
                let ended = mount.take().map(|mount| mount.umount_and_join());
                say(&format!("unmounted {ended:?}"));
            }
            line => served.told(line),
        }
    }
    served.0.gate.lock().unwrap().is_over = true;
    served.0.changed.notify_all();
    // The test has aborted it: nothing is owed any more.
    drop(mount);
}

#[test]
fn mount_tests_are_skipped_only_when_somebody_says_so() {
    assert!(is_skipped(Some(OsStr::new("1"))));
    assert!(!is_skipped(Some(OsStr::new("0"))));
    assert!(!is_skipped(None));
}

/// What a mistake in a test of ours may come to: it waits for a client, and that for an answer, for ever.
#[test]
fn hangs_if_told_to() {
    if std::env::var_os(PLANT).is_none() {
        return;
    }
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.hold("read");
    let mut client = mounted.client("exec cat $M/f1");

    client.child.wait().unwrap();
}
