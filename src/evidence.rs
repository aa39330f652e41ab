//! What /proc says of the threads in a snapshot: their names, where they sleep, whose they are.
//!
//! Read for a report, not for every snapshot, oldest op first and within a budget. No path of a mount
//! is opened.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    held_up, proc,
    snapshot::{Caller, Parent, Snapshot, Thread},
};

/// How long one report may read.
const BUDGET: Duration = Duration::from_millis(50);

/// Adds to a snapshot of this process what the kernel knows of its threads and of its callers.
/// Returns what could not be found out, a sentence each.
pub(crate) fn add(snapshot: &mut Snapshot) -> Vec<String> {
    let until = Instant::now() + BUDGET;
    let (mut unread, mut foreign) = (0, 0);
    let slow = snapshot.slow_after_ms;
    let mut files = HashMap::new();
    for op in &mut snapshot.ops {
        if Instant::now() > until {
            unread += 1;
            continue;
        }
        let threads = op
            .thread
            .as_deref_mut()
            .into_iter()
            .chain(&mut op.more_threads);
        threads.for_each(read_thread);
        if let Some(caller) = &mut op.caller {
            foreign += usize::from(caller.tid == 0);
            read_caller(caller);
            // Of what moves nobody asks where it came from.
            if op.age_ms >= slow
                && let Some(pid) = caller.pid
            {
                let of_process = || held_up::open_files(pid, until);
                caller.files = files.entry(pid).or_insert_with(of_process).clone();
            }
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
    let path = Path::new("/proc/self/task").join(thread.tid.to_string());
    thread.name = proc::read(path.join("comm")).unwrap_or_default();
    thread.wchan = proc::wchan(&path);
}

fn read_caller(caller: &mut Caller) {
    if caller.tid == 0 {
        caller.unknown = Some("other pid namespace, or the kernel itself".to_owned());
        return;
    }
    let thread = of_process(caller.tid);
    let status = match fs::read_to_string(thread.join("status")) {
        Ok(status) => status,
        Err(error) => {
            caller.unknown = Some(match error.kind() {
                io::ErrorKind::NotFound => "gone".to_owned(),
                _ => error.to_string(),
            });
            return;
        }
    };
    caller.pid = proc::field(&status, "Tgid:").and_then(|pid| pid.parse().ok());
    let state = proc::field(&status, "State:").and_then(|state| state.chars().next());
    caller.state = state.map(String::from);
    // The process, not the thread: `ps` knows it by this name.
    caller.comm = caller.pid.and_then(name);
    caller.wchan = proc::wchan(&thread);
    let parent = proc::field(&status, "PPid:").and_then(|pid| pid.parse().ok());
    if let (Some(pid), Some(parent)) = (caller.pid, parent)
        && is_before_exec(pid, parent)
    {
        caller.child_of = Some(Parent {
            pid: parent,
            comm: name(parent).unwrap_or_default(),
        });
    }
}

// A child that was made to run another program is still the program of its parent, which waits for that.
fn is_before_exec(pid: u32, parent: u32) -> bool {
    let is_forked = proc::stat(&of_process(pid)).is_some_and(|stat| stat.is_forked);
    let exe = |pid: u32| fs::read_link(of_process(pid).join("exe")).ok();
    let waits = |wchan: String| {
        let waits_in = ["vfork", "kernel_clone", "pipe_read"];
        waits_in.iter().any(|name| wchan.contains(name))
    };
    is_forked
        && exe(pid).is_some_and(|of_child| Some(of_child) == exe(parent))
        && proc::threads(&of_process(parent))
            .iter()
            .any(|(_, thread)| proc::wchan(thread).is_some_and(waits))
}

fn of_process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn name(pid: u32) -> Option<String> {
    proc::read(of_process(pid).join("comm")).ok()
}

#[cfg(test)]
mod tests {
    use super::add;
    use crate::{
        snapshot::{Caller, Snapshot},
        tracker::Tracker,
    };

    #[test]
    fn a_thread_gets_its_name_and_a_caller_its_process() {
        let tracker = Tracker::new("test");
        let op = tracker.begin("x");
        let _entered = op.enter();
        let mut snapshot = tracker.snapshot();
        let tid = snapshot.ops[0].thread.as_ref().unwrap().tid;
        let caller = |tid| {
            let uid = 0;
            Some(Box::new(Caller {
                tid,
                uid,
                ..Caller::default()
            }))
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
