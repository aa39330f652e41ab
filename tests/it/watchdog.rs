//! The watchdog notices, says so, and says when it is over. It runs in a process of its own, whose stderr is read.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use inflight::{Tracker, report::Verdict, watchdog};

const DEADLINE: Duration = Duration::from_secs(20);

const CHILD: &str = "INFLIGHT_TEST_WATCHDOG";

struct Watched {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Watched {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "watchdog::is_watched_if_told_to", "--nocapture"])
            .env(CHILD, "1")
            .env("INFLIGHT_DIR", dir.path())
            .env_remove("INFLIGHT")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Self {
            child,
            stdin,
            lines,
        }
    }

    fn wait_for(&self, begin: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) if line.starts_with(begin) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{begin:?} was not said, but {seen:#?}"),
            }
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Begins an op at `begin`, ends it at `end`; what callbacks see goes to stderr, too.
#[test]
fn is_watched_if_told_to() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let tracker = Tracker::builder("watched")
        .slow_after(Duration::from_millis(100))
        .stuck_after(Duration::from_millis(300))
        .build();
    let say = |line: String| drop(writeln!(std::io::stderr(), "{line}"));
    let _watchdog = watchdog::spawn(&tracker)
        .on_slow(move |report| say(format!("@slow {:?}", report.verdict())))
        .on_stuck(move |report| {
            say(format!("@stuck {}", report.stuck().len()));
            assert_ne!(report.verdict(), &Verdict::Ok);
            panic!("a callback may panic");
        });
    let mut op = None;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "begin" => op = Some(tracker.begin("reindex")),
            "fail" => {
                if let Some(op) = op.take() {
                    op.fail("EIO");
                }
            }
            _ => break,
        }
    }
}

#[test]
fn what_is_slow_then_stuck_then_over_is_said_each_time() {
    let mut watched = Watched::start();

    for _ in 0..2 {
        watched.tell("begin");
        watched.wait_for("inflight: SLOW: 1 op has not moved for more than 0.1 s");
        watched.wait_for("@slow Slow");
        watched.wait_for("inflight: STUCK for ");
        watched.wait_for("inflight:  [1]  watched[");
        watched.wait_for("@stuck 1");
        watched.tell("fail");
        let ended = watched.wait_for("inflight: ENDED after all: reindex after ");
        assert!(ended.ends_with(", EIO"), "{ended}");
    }
}

#[test]
fn one_that_is_dropped_stops() {
    let tracker = Tracker::new("test");
    let watchdog = watchdog::spawn(&tracker);
    assert_eq!(watchdog.problem(), None);
    let is_there = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
        names
            .flatten()
            .any(|name| name.starts_with("inflight-watchd"))
    };

    drop(watchdog);

    crate::mounted::until(|| !is_there());
}
