//! The founding hang on a real mount, over real HTTP: what each side shows of it while it lasts.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use inflight::snapshot::{LiveOp, On};
use inflight::{Kind, Snapshot};
use serde_json::Value;
use tempfile::TempDir;

/// Frees a test that hangs; nothing is judged by it.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn the_hang_is_shown_from_both_sides_with_the_same_ids() {
    let Some(stage) = Stage::set(
        &["--walk", "naive", "--gate", "locked", "--gate", "list"],
        &[],
    ) else {
        return;
    };
    let send = stage.mnt().join("conversation/1b9b/send");
    let mut shell = Hung::start(&format!("echo hello > {}", send.display()));
    stage.arrival("locked");
    stage.arrival("list");

    let text = until(|| Some(stage.diag(".diag")).filter(|text| text.starts_with("DEADLOCK")));
    let report: Value = serde_json::from_str(&stage.diag(".diag.json")).unwrap();
    let here: Snapshot = serde_json::from_value(report["local"].clone()).unwrap();
    let server = stage.snapshot(&stage.server);

    // The daemon's side: two FUSE ops, and the request each waits for.
    let flush = only(&here, Kind::Fuse, "flush");
    assert_eq!(flush.target, "/conversation/1b9b/send");
    assert_eq!(flush.caller.as_ref().unwrap().pid, Some(shell.0.id()));
    let sent = awaited(&here, flush);
    assert_eq!(
        (&sent.kind, sent.name.as_str()),
        (&Kind::HttpClient, "POST")
    );
    assert!(
        sent.target.ends_with("/api/conversations/new"),
        "{}",
        sent.target
    );
    assert_eq!(
        sent.http.as_ref().unwrap().peer,
        Some(stage.address().to_owned())
    );
    assert!(sent.age_ms > 0.0 && !sent.phase.path.is_empty(), "{sent:?}");
    let readdir = only(&here, Kind::Fuse, "readdir");
    assert_eq!(readdir.target, "/conversation");
    let asked = awaited(&here, readdir);
    assert_eq!(
        (&asked.kind, asked.name.as_str()),
        (&Kind::HttpClient, "GET")
    );
    assert_eq!(
        asked.http.as_ref().unwrap().peer,
        Some(stage.address().to_owned())
    );

    // The server's side: the same two requests, one waiting for the lock that the other holds.
    let post = only(&server, Kind::HttpServer, "POST");
    let get = only(&server, Kind::HttpServer, "GET");
    assert_eq!(post.parent_id, Some(sent.id));
    assert_eq!(get.parent_id, Some(asked.id));
    assert_eq!(
        (post.trace_id, get.trace_id),
        (flush.trace_id, readdir.trace_id)
    );
    let lock = server
        .resources
        .iter()
        .find(|resource| resource.name == "conversations")
        .unwrap();
    assert_eq!(
        lock.holders
            .iter()
            .map(|party| party.op)
            .collect::<Vec<_>>(),
        [Some(post.id)]
    );
    assert_eq!(
        lock.waiters
            .iter()
            .map(|party| party.op)
            .collect::<Vec<_>>(),
        [Some(get.id)]
    );
    let wait = get.phase.wait.as_ref().unwrap();
    assert_eq!(
        (&wait.on, wait.ops.as_slice()),
        (&On::Resource, [post.id].as_slice())
    );
    assert!(
        post.phase
            .path
            .iter()
            .any(|phase| phase.starts_with("walk ")),
        "{:?}",
        post.phase.path
    );
    // What joins the two: the thread that works for the POST is the one that called readdir.
    let caller = readdir.caller.as_ref().unwrap();
    assert_eq!(caller.pid, Some(stage.server.0.id()));
    assert_eq!(post.thread.as_ref().unwrap().tid, caller.tid);

    for part in [
        "flush /conversation/1b9b/send",
        "POST",
        "readdir /conversation",
        "HOLDS lock \"conversations\"",
        "WAITS for lock \"conversations\"",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    shell.ended();
}

#[test]
fn fifty_readers_that_share_one_request_each_show_it_and_then_none_does() {
    const READERS: usize = 50;
    let Some(stage) = Stage::set(&["--walk", "repaired", "--gate", "one"], &[]) else {
        return;
    };
    stage.say("1b9b");
    let file = stage.mnt().join("conversation/1b9b/messages/all.json");
    let readers: Vec<Hung> = (0..READERS)
        .map(|_| Hung::start(&format!("cat {} > /dev/null", file.display())))
        .collect();
    let gate = stage.arrive("one");
    let mount = until(|| {
        let mount = stage.snapshot(&stage.mount);
        let reads = mount
            .ops
            .iter()
            .filter(|op| op.kind == Kind::Fuse && op.name == "read");
        (reads.filter(|op| op.phase.wait.is_some()).count() == READERS).then_some(mount)
    });

    let gets: Vec<&LiveOp> = mount
        .ops
        .iter()
        .filter(|op| op.kind == Kind::HttpClient)
        .collect();
    let [get] = gets.as_slice() else {
        panic!("{} requests, not one", gets.len())
    };
    assert_eq!(
        get.http.as_ref().unwrap().peer,
        Some(stage.address().to_owned())
    );
    assert!(get.age_ms > 0.0);
    for read in mount.ops.iter().filter(|op| op.name == "read") {
        assert_eq!(read.target, "/conversation/1b9b/messages/all.json");
        assert_eq!(awaited(&mount, awaited(&mount, read)).id, get.id);
    }
    assert!(
        stage.arrivals.try_recv().is_err(),
        "there was a second request"
    );

    drop(gate);
    readers
        .into_iter()
        .for_each(|mut reader| assert!(reader.ended()));
    until(|| stage.snapshot(&stage.mount).ops.is_empty().then_some(()));
}

#[test]
fn each_of_eight_requests_blocked_in_the_mount_names_the_thread_that_called_it() {
    const POSTS: usize = 8;
    let elsewhere = TempDir::new().unwrap();
    let Some(stage) = Stage::set(
        &["--walk", "repaired", "--gate", "one"],
        &["--cwd", &elsewhere.path().display().to_string()],
    ) else {
        return;
    };
    let ids: Vec<String> = (0..POSTS).map(|n| format!("beef{n}")).collect();
    ids.iter().for_each(|id| stage.say(id));

    let posts: Vec<TcpStream> = ids
        .iter()
        .map(|id| {
            let cwd = stage.mnt().join("conversation").join(id).join("messages");
            let body = format!(r#"{{"message":"hello","cwd":"{}"}}"#, cwd.display());
            let mut post = TcpStream::connect(stage.address()).unwrap();
            post.set_read_timeout(Some(DEADLINE)).unwrap();
            let head = format!("POST /api/conversations/new HTTP/1.1\r\nHost: x\r\nX-Shelley-Request: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            post.write_all((head + &body).as_bytes()).unwrap();
            post
        })
        .collect();
    let gates: Vec<UnixStream> = ids.iter().map(|_| stage.arrive("one")).collect();
    let server = stage.snapshot(&stage.server);
    let mount = stage.snapshot(&stage.mount);

    let posted: Vec<&LiveOp> = server
        .ops
        .iter()
        .filter(|op| op.kind == Kind::HttpServer && op.name == "POST")
        .collect();
    let readdirs: Vec<&LiveOp> = mount
        .ops
        .iter()
        .filter(|op| op.kind == Kind::Fuse && op.name == "readdir")
        .collect();
    assert_eq!((posted.len(), readdirs.len()), (POSTS, POSTS));
    let threads: HashSet<u32> = posted
        .iter()
        .map(|op| op.thread.as_ref().unwrap().tid)
        .collect();
    assert_eq!(threads.len(), POSTS, "two requests name one thread");
    for post in posted {
        let tid = post.thread.as_ref().unwrap().tid;
        let called: Vec<&&LiveOp> = readdirs
            .iter()
            .filter(|op| op.caller.as_ref().unwrap().tid == tid)
            .collect();
        let [readdir] = called.as_slice() else {
            panic!("thread {tid} made {} calls, not one", called.len())
        };
        let walk = post
            .phase
            .path
            .iter()
            .find_map(|phase| phase.strip_prefix("walk "))
            .unwrap();
        assert_eq!(format!("{}{}", stage.mnt().display(), readdir.target), walk);
    }

    drop(gates);
    for mut post in posts {
        let mut answer = String::new();
        post.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    }
}

#[test]
fn the_story_ends_well_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let tmp = TempDir::new().unwrap();

    let story = Command::new(example())
        .env("TMPDIR", tmp.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output(story, 3 * DEADLINE);

    let (told, complaints) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{told}\n{complaints}");
    assert!(
        told.contains("\nDEADLOCK for ") && told.contains("\n  OK: nothing is stuck."),
        "{told}"
    );
    assert_eq!(
        fs::read_dir(tmp.path()).unwrap().count(),
        0,
        "files are left"
    );
    let name = tmp.path().display().to_string();
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&name),
        "a mount is left"
    );
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("environ")).ok());
    let left = processes
        .filter(|environ| String::from_utf8_lossy(environ).contains(&name))
        .count();
    assert_eq!(left, 0, "processes are left");
}

/// A server and a file system over it, each a process of its own; the test is never one of those that hang.
struct Stage {
    mount: Daemon,
    server: Daemon,
    arrivals: Receiver<(String, UnixStream)>,
    dir: TempDir,
}

impl Stage {
    /// `--gate POINT` in the server's options gets its socket here.
    fn set(server: &[&str], mount: &[&str]) -> Option<Self> {
        if skipped() {
            return None;
        }
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

        let mut args = vec!["serve".to_owned()];
        for (at, arg) in server.iter().enumerate() {
            let gate = at > 0 && server[at - 1] == "--gate";
            args.push(if gate {
                format!("{arg}={}", socket.display())
            } else {
                (*arg).to_owned()
            });
        }
        let server = Daemon::start(dir.path(), &args);
        let mut args = vec!["mount".to_owned(), mnt.display().to_string()];
        args.extend(
            [
                "--http-timeout",
                "8",
                "--server",
                server.1.strip_prefix("serving ").unwrap(),
            ]
            .map(str::to_owned),
        );
        args.extend(mount.iter().map(|arg| (*arg).to_owned()));
        let mount = Daemon::start(dir.path(), &args);
        Some(Self {
            mount,
            server,
            arrivals,
            dir,
        })
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn address(&self) -> &str {
        self.server.1.strip_prefix("serving http://").unwrap()
    }

    /// Waits for the server to stand at a gate, where it stays until the stream is dropped.
    fn arrive(&self, point: &str) -> UnixStream {
        let (line, stream) = self
            .arrivals
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|e| panic!("nobody came to gate {point}: {e}"));
        assert_eq!(line.split_whitespace().next(), Some(point));
        stream
    }

    fn arrival(&self, point: &str) {
        drop(self.arrive(point));
    }

    fn say(&self, id: &str) {
        let send = self.mnt().join("conversation").join(id).join("send");
        assert!(Hung::start(&format!("echo hello > {}", send.display())).ended());
    }

    fn diag(&self, name: &str) -> String {
        let cat = Command::new("cat")
            .arg(self.mnt().join(name))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = output(cat, DEADLINE);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn snapshot(&self, daemon: &Daemon) -> Snapshot {
        let socket = run_dir(self.dir.path()).join(format!("{}.sock", daemon.0.id()));
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
}

impl Drop for Stage {
    // The directory is removed next: nothing may be mounted in it then, or its removal could hang.
    fn drop(&mut self) {
        self.mount.end();
        let mnt = self.mnt();
        let mounted = format!(" {} ", mnt.display());
        if fs::read_to_string("/proc/self/mountinfo").is_ok_and(|list| list.contains(&mounted))
            && let Ok(mut umount) = Command::new("umount").arg("-l").arg(mnt).spawn()
        {
            stop(&mut umount);
        }
    }
}

/// One of the two, with what it said when it was up; stopped when dropped, and a mount with it.
struct Daemon(Child, String);

impl Daemon {
    fn start(dir: &Path, args: &[String]) -> Self {
        let mut child = Command::new(example())
            .args(args)
            .arg("--stop-at-eof")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("INFLIGHT_DIR", run_dir(dir))
            .env_remove("INFLIGHT_PEERS")
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, line) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = said.send(line.trim().to_owned());
        });
        match line.recv_timeout(DEADLINE) {
            Ok(line) if !line.is_empty() => Self(child, line),
            said => {
                drop(Self(child, String::new()));
                panic!("{args:?} did not start: {said:?}");
            }
        }
    }
}

impl Daemon {
    fn end(&mut self) {
        drop(self.0.stdin.take());
        stop(&mut self.0);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// A shell with a command that is expected to hang for a while.
struct Hung(Child);

impl Hung {
    fn start(command: &str) -> Self {
        Self(
            Command::new("sh")
                .args(["-c", command])
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Waits for its end: whether it ended well.
    fn ended(&mut self) -> bool {
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
fn stop(child: &mut Child) {
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

fn output(child: Child, within: Duration) -> Output {
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
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

fn only<'a>(snapshot: &'a Snapshot, kind: Kind, name: &str) -> &'a LiveOp {
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
fn awaited<'a>(snapshot: &'a Snapshot, op: &LiveOp) -> &'a LiveOp {
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

fn run_dir(dir: &Path) -> PathBuf {
    dir.join(".run")
}

/// The example, which `cargo test` builds beside the tests.
fn example() -> PathBuf {
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
fn skipped() -> bool {
    std::env::var("INFLIGHT_SKIP_FUSE").is_ok_and(|skip| skip == "1")
}
