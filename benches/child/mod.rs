//! A process that a bench starts of its own program, talks to in lines, and that is gone when the bench is.
#![allow(dead_code, reason = "each bench uses its part")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Who says nothing for so long hangs, and the bench has failed.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Child {
    process: std::process::Child,
    // None once it is closed: the child ends then.
    stdin: Option<ChildStdin>,
    said: Receiver<String>,
}

impl Child {
    /// Starts this program with these arguments; what it leaves on sockets stands under `own`.
    pub(crate) fn start(args: &[&str], own: &Path) -> Self {
        Self::run(Command::new(Self::program()).args(args), own)
    }

    /// The same in a network namespace of its own, if that may be: its reports find no other process of
    /// the machine to ask, and wait for none.
    pub(crate) fn start_alone(args: &[&str], own: &Path) -> Self {
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        if !is_root {
            return Self::start(args, own);
        }
        let mut unshare = Command::new("unshare");
        Self::run(unshare.arg("--net").arg(Self::program()).args(args), own)
    }

    fn program() -> PathBuf {
        std::env::current_exe().expect("the bench knows its program")
    }

    fn run(command: &mut Command, own: &Path) -> Self {
        let mut process = command
            .env("INFLIGHT_DIR", own)
            .env_remove("INFLIGHT")
            .env_remove("INFLIGHT_PEERS")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C is for the bench: its children end when their stdin does, and tidy up.
            .process_group(0)
            .spawn()
            .expect("a child");
        let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let (say, said) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = process.stdin.take();
        Self {
            process,
            stdin,
            said,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn tell(&mut self, what: &str) {
        let stdin = self.stdin.as_mut().expect("it is not closed");
        writeln!(stdin, "{what}").expect("it listens");
    }

    /// Waits for a line that begins so, and returns the rest.
    pub(crate) fn expect(&mut self, begin: &str) -> String {
        let line = self.said.recv_timeout(DEADLINE);
        let line = line.unwrap_or_else(|why| panic!("instead of {begin:?}: {why}"));
        match line.strip_prefix(begin) {
            Some(rest) => rest.trim().to_owned(),
            None => panic!("instead of {begin:?}: {line:?}"),
        }
    }

    /// Says something, and waits for a line that begins so, past what the child says of its own accord.
    pub(crate) fn ask_past(&mut self, what: &str, answer: &str) {
        self.tell(what);
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(line) if line.starts_with(answer) => return,
                Ok(_) => {}
                Err(why) => panic!("instead of {answer:?}: {why}"),
            }
        }
    }

    pub(crate) fn ask(&mut self, what: &str, answer: &str) -> String {
        self.tell(what);
        self.expect(answer)
    }

    /// The time all its threads have run.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        let tasks = tasks.into_iter().flatten().flatten();
        let nanos = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Tells it to end by itself; false if it has not done so in time.
    pub(crate) fn end_within(&mut self, most: Duration) -> bool {
        self.stdin = None;
        let until = Instant::now() + most;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    pub(crate) fn kill(&mut self) {
        let _gone_already = self.process.kill();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.end_within(Duration::from_millis(200)) {
            self.kill();
            // One that hangs in a mount ends when that is aborted.
            self.end_within(Duration::from_millis(200));
        }
    }
}

/// Keeps this thread, and those it starts, on one processor: where two processes of a pair run is chance otherwise,
/// and decides more than what is measured.
pub(crate) fn stay_on(processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor % thread::available_parallelism().map_or(1, usize::from));
    // Not everybody may: then the numbers are noisier.
    let _ = sched_setaffinity(None, &only);
}

/// A line for whoever started this process.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The other end may be gone: then nobody needs to know.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
