//! What /proc says of the threads in a snapshot: their names, where they sleep, whose they are.
//!
//! Read for a report, not for every snapshot, oldest op first and within a budget. No path of a mount
//! is opened.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use crate::{
    snapshot::{Caller, Snapshot, Thread},
    text,
};

/// How long one report may read.
const BUDGET: Duration = Duration::from_millis(50);

/// Adds to a snapshot of this process what the kernel knows of its threads and of its callers.
/// Returns what could not be found out, a sentence each.
pub(crate) fn add(snapshot: &mut Snapshot) -> Vec<String> {
    let until = Instant::now() + BUDGET;
    let (mut unread, mut foreign) = (0, 0);
    for op in &mut snapshot.ops {
        if Instant::now() > until {
            unread += 1;
            continue;
        }
        let threads = op.thread.iter_mut().chain(&mut op.more_threads);
        threads.for_each(read_thread);
        if let Some(caller) = &mut op.caller {
            foreign += usize::from(caller.tid == 0);
            read_caller(caller);
        }
    }
    for resource in &mut snapshot.resources {
        let parties = resource.holders.iter_mut().chain(&mut resource.waiters);
        let threads = parties.filter_map(|party| party.thread.as_mut());
        threads
            .take_while(|_| Instant::now() <= until)
            .for_each(read_thread);
    }
    let mut unknown = Vec::new();
    if unread > 0 {
        unknown.push(format!(
            "threads and callers of {unread} younger ops, which there was no time to read"
        ));
    }
    if foreign > 0 {
        unknown.push(format!(
            "callers of {foreign} ops, which are in another pid namespace, or in the kernel itself"
        ));
    }
    unknown
}

fn read_thread(thread: &mut Thread) {
    let read = |file: &str| read(&format!("/proc/self/task/{}/{file}", thread.tid)).ok();
    thread.name = read("comm").unwrap_or_default();
    thread.wchan = read("wchan").and_then(wchan);
}

fn read_caller(caller: &mut Caller) {
    if caller.tid == 0 {
        caller.unknown = Some("other pid namespace, or the kernel itself".to_owned());
        return;
    }
    let status = match fs::read_to_string(format!("/proc/{}/status", caller.tid)) {
        Ok(status) => status,
        Err(error) => {
            caller.unknown = Some(match error.kind() {
                io::ErrorKind::NotFound => "gone".to_owned(),
                _ => error.to_string(),
            });
            return;
        }
    };
    let (pid, state) = parse_status(&status);
    caller.pid = pid;
    caller.state = state;
    // The process, not the thread: `ps` knows it by this name.
    caller.comm = pid.and_then(|pid| read(&format!("/proc/{pid}/comm")).ok());
    caller.wchan = read(&format!("/proc/{}/wchan", caller.tid))
        .ok()
        .and_then(wchan);
}

fn read(path: &str) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(text::visible(String::from_utf8_lossy(&bytes).trim_end()))
}

// "0" stands for a thread that runs, and for one that this process may not look at.
fn wchan(text: String) -> Option<String> {
    (!text.is_empty() && text != "0").then_some(text)
}

// proc_pid_status(5). The process id, and the letter of the state.
fn parse_status(status: &str) -> (Option<u32>, Option<String>) {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim()))
    };
    let pid = field("Tgid:").and_then(|pid| pid.parse().ok());
    let state = field("State:").and_then(|state| state.chars().next());
    (pid, state.map(String::from))
}

#[cfg(test)]
mod tests {
    use super::{add, parse_status, wchan};
    use crate::{
        snapshot::{Caller, Snapshot},
        tracker::Tracker,
    };

    #[test]
    fn a_thread_name_cannot_pass_for_a_field() {
        let status =
            "Name:\tx\\nTgid:\t1\nUmask:\t0022\nState:\tD (disk sleep)\nTgid:\t512\nPid:\t513\n";

        assert_eq!(parse_status(status), (Some(512), Some("D".to_owned())));
        assert_eq!(parse_status(""), (None, None));
        assert_eq!(wchan("0".to_owned()), None);
    }

    #[test]
    fn a_thread_gets_its_name_and_a_caller_its_process() {
        let tracker = Tracker::new("test");
        let op = tracker.begin("x");
        let _entered = op.enter();
        let mut snapshot = tracker.snapshot();
        let tid = snapshot.ops[0].thread.as_ref().unwrap().tid;
        let caller = |tid| {
            let uid = 0;
            Some(Caller {
                tid,
                uid,
                ..Caller::default()
            })
        };
        snapshot.ops[0].caller = caller(tid);

        assert!(add(&mut snapshot).is_empty());

        let op = &snapshot.ops[0];
        assert!(!op.thread.as_ref().unwrap().name.is_empty());
        assert_eq!(op.caller.as_ref().unwrap().pid, Some(std::process::id()));

        let mut foreign = Snapshot::default();
        foreign.ops.push(snapshot.ops[0].clone());
        foreign.ops[0].caller = caller(0);
        assert_eq!(add(&mut foreign).len(), 1);
    }
}
