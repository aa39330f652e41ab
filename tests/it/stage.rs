//! A server and a file system over it, for tests: processes of their own, gates that force an order.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use inflight::{
    Kind, Report, Snapshot,
    snapshot::{Filter, LiveOp},
    testing::{self, Watch},
};
use tempfile::TempDir;

use crate::mounted::guard;

/// Frees a test that hangs; nothing is judged by it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A server and a file system over it, each a process of its own; the test is never one of those that hang.
pub(crate) struct Stage {
    pub(crate) mount: Daemon,
    pub(crate) server: Daemon,
    pub(crate) arrivals: Receiver<(String, UnixStream)>,
    // Removed when nothing is mounted in it any more, or its removal could hang.
    dir: TempDir,
    _watch: Watch,
}

impl Stage {
    /// `--gate POINT` in the server's options gets its socket here.
    pub(crate) fn set(server: &[&str], mount: &[&str]) -> Option<Self> {
        Self::with(
            |dir, gate| {
                let mut args = vec!["serve".to_owned()];
                for (at, arg) in server.iter().enumerate() {
                    let is_gate = at > 0 && server[at - 1] == "--gate";
                    args.push(match is_gate {
                        true => format!("{arg}={}", gate.display()),
                        false => (*arg).to_owned(),
                    });
                }
                args.push("--stop-at-eof".to_owned());
                Daemon::start(dir, Command::new(example()).args(args))
            },
            mount,
        )
    }

    /// A server of another make: its first line is `serving URL`, and it ends when its stdin does.
    pub(crate) fn over(server: &mut Command, mount: &[&str]) -> Option<Self> {
        Self::with(|dir, _| Daemon::start(dir, server), mount)
    }

    fn with(server: impl FnOnce(&Path, &Path) -> Daemon, mount: &[&str]) -> Option<Self> {
        if skipped() {
            return None;
        }
        let guard = guard();
        let dir = tempfile::Builder::new()
            .prefix("inflight-")
            .tempdir()
            .unwrap();
        let mnt = dir.path().join("mnt");
        fs::create_dir(&mnt).unwrap();
        let socket = dir.path().join(".gate");
        let gate = UnixListener::bind(&socket).unwrap();
        let (arrived, arrivals) = channel();
        // Ends with the process: nothing is joined.
        thread::spawn(move || {
            for stream in gate.incoming().map_while(Result::ok) {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                if stream.read_line(&mut line).is_err()
                    || arrived.send((line, stream.into_inner())).is_err()
                {
                    break;
                }
            }
        });

        let server = server(dir.path(), &socket);
        let mut args = vec!["mount".to_owned(), mnt.display().to_string()];
        args.extend(["--server", server.url()].map(str::to_owned));
        if !mount.contains(&"--http-timeout") {
            args.extend(["--http-timeout", "8"].map(str::to_owned));
        }
        args.extend(mount.iter().map(|arg| (*arg).to_owned()));
        args.push("--stop-at-eof".to_owned());
        let mount = Daemon::start(dir.path(), Command::new(example()).args(args));
        Some(Self {
            mount,
            server,
            arrivals,
            dir,
            _watch: guard,
        })
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub(crate) fn address(&self) -> &str {
        self.server.url().strip_prefix("http://").unwrap()
    }

    /// Waits for the server to stand at a gate, where it stays until the stream is dropped.
    pub(crate) fn arrive(&self, point: &str) -> UnixStream {
        let (line, stream) = self
            .arrivals
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|e| panic!("nobody came to gate {point}: {e}"));
        assert_eq!(line.split_whitespace().next(), Some(point));
        stream
    }

    pub(crate) fn arrival(&self, point: &str) {
        drop(self.arrive(point));
    }

    pub(crate) fn say(&self, id: &str) {
        let send = self.mnt().join("conversation").join(id).join("send");
        assert!(Hung::start(&format!("echo hello > {}", send.display())).ended());
    }

    /// The program, run to its end; it must come to one whatever hangs.
    pub(crate) fn inflight(&self, arguments: &[&str]) -> Output {
        inflight(&run_dir(self.dir.path()), arguments)
    }

    pub(crate) fn diag(&self, name: &str) -> String {
        cat(&self.mnt().join(name))
    }

    /// What the mount says of its own two processes: other tests have hangs of their own meanwhile.
    pub(crate) fn report(&self) -> Report {
        let mut report: Report = serde_json::from_str(&self.diag(".diag.json")).unwrap();
        let ours = [self.server.0.id(), self.mount.0.id()];
        let run_dir = run_dir(self.dir.path());
        report.peers.retain(|peer| ours.contains(&peer.process.pid));
        report
            .peers_failed
            .retain(|failed| Path::new(&failed.address).starts_with(&run_dir));
        report
            .listeners
            .retain(|listener| listener.peer == self.address());
        report.filtered(&Filter::default())
    }

    pub(crate) fn snapshot(&self, daemon: &Daemon) -> Snapshot {
        snapshot_of(&run_dir(self.dir.path()), daemon.0.id())
    }
}

/// What a process says of itself, over its socket.
pub(crate) fn snapshot_of(run_dir: &Path, pid: u32) -> Snapshot {
    let socket = run_dir.join(format!("{pid}.sock"));
    let mut stream =
        UnixStream::connect(&socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
        .write_all(b"GET /debug/inflight?format=json HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

/// The program, run to its end.
pub(crate) fn inflight(run_dir: &Path, arguments: &[&str]) -> Output {
    let child = Command::new(env!("CARGO_BIN_EXE_inflight"))
        .args(arguments)
        .env("INFLIGHT_DIR", run_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    output(child.unwrap(), DEADLINE)
}

/// What a file says, read by a child that cannot hang the test.
pub(crate) fn cat(file: &Path) -> String {
    let cat = Command::new("cat")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output(cat, DEADLINE);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// One of the two, with what it said when it was up; stopped when dropped, and a mount with it.
pub(crate) struct Daemon(pub(crate) testing::Daemon, String);

impl Daemon {
    pub(crate) fn start(dir: &Path, command: &mut Command) -> Self {
        // `sh -c` has them in one argument.
        let words = command
            .get_args()
            .flat_map(|word| word.to_str().unwrap().split(' '));
        let words: Vec<&str> = words.collect();
        let mount = words.iter().position(|word| *word == "mount");
        let mut taken = Command::new(command.get_program());
        taken
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("INFLIGHT_DIR", run_dir(dir))
            .env_remove("INFLIGHT_PEERS");
        let daemon = testing::Daemon::builder(taken).stops_at_eof();
        let (begin, daemon) = match mount {
            Some(at) => ("mounted ", daemon.mounts_at(words[at + 1])),
            None => ("serving ", daemon),
        };
        let daemon = daemon.ready_line(begin).start().unwrap();
        let said = daemon.said();
        let line = said.lines().find(|line| line.starts_with(begin));
        Self(daemon, line.unwrap().to_owned())
    }

    /// Where it serves, by its first line `serving URL`.
    pub(crate) fn url(&self) -> &str {
        self.0.url()
    }

    /// What it said when it was up.
    pub(crate) fn line(&self) -> &str {
        &self.1
    }

    pub(crate) fn end(&mut self) {
        self.0.stop().unwrap();
    }
}

/// A shell with a command that is expected to hang for a while.
pub(crate) struct Hung(pub(crate) Child);

impl Hung {
    pub(crate) fn start(command: &str) -> Self {
        Self(
            Command::new("sh")
                .args(["-c", command])
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Waits for its end: whether it ended well.
    pub(crate) fn ended(&mut self) -> bool {
        let status = until(|| self.0.try_wait().unwrap());
        status.success()
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.0.kill();
            stop(&mut self.0);
        }
    }
}

/// Waits for a process to end by itself, else kills it; one that cannot even be killed is left alone.
pub(crate) fn stop(child: &mut Child) {
    let ended = |child: &mut Child| {
        let deadline = Instant::now() + DEADLINE;
        while child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        child.try_wait().is_ok_and(|ended| ended.is_some())
    };
    if !ended(child) {
        let _ = child.kill();
        ended(child);
    }
}

/// What a test, called by its whole name, says in a process of its own.
pub(crate) fn child(test: &str, variables: &[(&str, &str)]) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = output(child.unwrap(), 3 * DEADLINE);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    said.into_owned()
}

pub(crate) fn output(child: Child, within: Duration) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (ended, output) = channel();
    thread::spawn(move || ended.send(child.wait_with_output()));
    match output.recv_timeout(within) {
        Ok(output) => output.unwrap(),
        Err(RecvTimeoutError::Timeout) => {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("process {pid:?} hangs");
        }
        Err(e) => panic!("{e}"),
    }
}

/// Asks again until there is an answer.
pub(crate) fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn only<'a>(snapshot: &'a Snapshot, kind: Kind, name: &str) -> &'a LiveOp {
    let found: Vec<&LiveOp> = snapshot
        .ops
        .iter()
        .filter(|op| op.kind == kind && op.name == name)
        .collect();
    let [op] = found.as_slice() else {
        panic!("{} ops {name}, not one", found.len())
    };
    op
}

/// The one op of this process that `op` waits for.
pub(crate) fn awaited<'a>(snapshot: &'a Snapshot, op: &LiveOp) -> &'a LiveOp {
    let wait = op
        .phase
        .wait
        .as_ref()
        .unwrap_or_else(|| panic!("{op:?} waits for nothing"));
    let [id] = wait.ops.as_slice() else {
        panic!("{wait:?}")
    };
    snapshot
        .op(*id)
        .unwrap_or_else(|| panic!("{id} is not in the snapshot"))
}

pub(crate) fn run_dir(dir: &Path) -> PathBuf {
    dir.join(".run")
}

/// The example, which `cargo test` builds beside the tests.
pub(crate) fn example() -> PathBuf {
    let path = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/shelley");
    assert!(
        path.exists(),
        "{} is missing: cargo build --example shelley",
        path.display()
    );
    path
}

/// Without a way to mount the tests fail, unless they were told to skip.
pub(crate) fn skipped() -> bool {
    std::env::var("INFLIGHT_SKIP_FUSE").is_ok_and(|skip| skip == "1")
}
