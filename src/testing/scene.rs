//! What is seen at the moment of a failure: the joined report, threads, open files, what was said.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{registry, related};
use crate::{
    held_up, machine, machine::Sleeper, report::Report, snapshot::from_millis, text,
    tracker::Tracker,
};

/// No more of what a process said is shown, and that is the end of it.
const MOST_SAID: u64 = 64 * 1024;

/// Threads of one process that are listed.
const MOST_THREADS: usize = 64;

/// How long open files are looked for.
const LOOKING: Duration = Duration::from_millis(100);

/// What is joined: the tracker, the daemons of one test, and of all that serves a report on this machine what they have
/// to do with.
pub(super) fn report(tracker: Option<&Tracker>, test: Option<&str>) -> Report {
    let own;
    let tracker = match tracker {
        Some(tracker) => tracker,
        None => {
            own = registry::tracker().unwrap_or_else(|| Tracker::new("test"));
            &own
        }
    };
    let directories = registry::directories(test);
    related::keep(Report::collect_also_in(tracker, &directories), &directories)
}

/// Judged by a deadline: what has not moved for half of it is stuck, whatever its process says.
pub(super) fn judged(report: Report, deadline: Duration) -> Report {
    let stuck_after = from_millis(report.local.stuck_after_ms);
    report.stuck_after(stuck_after.min(deadline / 2))
}

/// The threads of a process, and which of them is meant.
pub(super) fn threads(pid: u32, this: Option<u32>) -> String {
    let threads = machine::threads(pid);
    let mut text = String::new();
    for thread in threads.iter().take(MOST_THREADS) {
        let note = match this == Some(thread.tid) {
            true => "   <- the test",
            false => idle(thread),
        };
        let _infallible = writeln!(text, "  {thread}{note}");
    }
    if threads.len() > MOST_THREADS {
        let _infallible = writeln!(text, "  and {} more", threads.len() - MOST_THREADS);
    }
    text
}

// Whoever waits for work looks stuck, and is not.
fn idle(thread: &Sleeper) -> &'static str {
    let wchan = thread.wchan.as_deref().unwrap_or_default();
    if thread.name.starts_with("inflight") {
        "   of inflight itself"
    } else if wchan.starts_with("fuse_dev_") {
        "   idle: waits for requests"
    } else if wchan.contains("ep_poll") || wchan.contains("epoll") {
        "   idle: waits for events"
    } else {
        ""
    }
}

/// What processes have open on FUSE mounts.
pub(super) fn open_files(pids: impl IntoIterator<Item = u32>) -> String {
    let until = Instant::now() + LOOKING;
    let mut text = String::new();
    for pid in pids {
        for file in held_up::open_files(pid, until) {
            let detached = if file.is_detached { ", detached" } else { "" };
            let _infallible = writeln!(text, "  [{pid}] fd {} {}{detached}", file.fd, file.path);
        }
    }
    text
}

/// The end of what a process wrote to a file, fit to be shown.
pub(super) fn said(file: &Path) -> String {
    match end_of(file) {
        Ok((text, 0)) => text,
        Ok((text, cut)) => format!("[the first {cut} bytes are left out]\n{text}"),
        Err(error) => format!("[what it said cannot be read: {error}]"),
    }
}

fn end_of(file: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(file)?;
    let cut = file.metadata()?.len().saturating_sub(MOST_SAID);
    file.seek(SeekFrom::Start(cut))?;
    let mut bytes = Vec::new();
    file.take(MOST_SAID).read_to_end(&mut bytes)?;
    let lines = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = lines.lines().map(text::visible).collect();
    Ok((lines.join("\n"), cut))
}

/// With a heading, if there is anything.
pub(super) fn section(heading: &str, text: &str) -> String {
    match text.trim_end() {
        "" => String::new(),
        text if heading.is_empty() => format!("\n{text}\n"),
        text => format!("\n{heading}\n{text}\n"),
    }
}

/// Through the handle: what `eprintln!` writes, libtest keeps to itself until a test has ended.
pub(super) fn print(text: &str) {
    // Nobody reads it: nothing to be done.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Where reports of a test's daemons can be asked for from outside.
pub(super) fn way_in(directories: &[PathBuf]) -> String {
    match directories.first() {
        Some(dir) => format!("INFLIGHT_DIR={} inflight", dir.display()),
        None => "inflight".to_owned(),
    }
}
