//! Finds what earlier runs of tests have left on this machine, and removes what is surely theirs.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    clear::clear,
    run_id::{self, RunId},
};
use crate::bounded::within;

/// What it may take in all.
const DEADLINE: Duration = Duration::from_secs(5);

/// What was found of earlier runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Processes that were ended.
    pub processes: Vec<u32>,
    /// Mounts whose requests were failed and that were unmounted.
    pub mounts: Vec<PathBuf>,
    /// Directories that were removed, with the sockets in them.
    pub directories: Vec<PathBuf>,
    /// What could not be removed, and why.
    pub left: Vec<String>,
}

/// Removes what earlier runs of tests have left: processes, mounts and sockets.
///
/// All that [`Daemon`](super::Daemon) and [`run`](super::run()) start carries the mark of its run, the process that
/// runs the tests. Only what has that of a run which has surely ended is touched, and only this user's: never
/// another live run's, nor one's in another pid namespace. Called at the begin of a test run it makes up for
/// what was killed before it could clean up. Takes at most 5 s.
///
/// ```
/// let swept = inflight::testing::sweep();
/// assert!(swept.left.is_empty(), "{swept}");
/// ```
#[must_use = "it says what it found"]
pub fn sweep() -> Swept {
    let until = Instant::now() + DEADLINE;
    within(until, DEADLINE, move || sweep_until(until)).unwrap_or_else(|| Swept {
        left: vec![format!(
            "something that could not even be looked at within {DEADLINE:?}"
        )],
        ..Swept::default()
    })
}

fn sweep_until(until: Instant) -> Swept {
    let mut swept = Swept::default();
    for run in runs_that_are_over() {
        let directory = run.directory();
        let was_there = directory.exists();
        let cleared = clear(&run, until);
        swept.processes.extend(cleared.processes);
        swept.mounts.extend(cleared.mounts);
        swept.left.extend(cleared.left);
        if directory.exists() {
            let left = format!("directory {}", directory.display());
            swept.left.push(left);
        } else if was_there {
            swept.directories.push(directory);
        }
    }
    swept
}

// By their directories, and by the marks of processes that lost theirs.
fn runs_that_are_over() -> Vec<RunId> {
    let uid = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(run_id::temporary())
        .into_iter()
        .flatten()
        .flatten();
    let of_directories = entries.filter_map(|entry| {
        let run = RunId::of_directory(entry.file_name().to_str()?)?;
        let metadata = entry.metadata().ok()?;
        (metadata.is_dir() && metadata.uid() == uid).then_some(run)
    });
    let of_processes = run_id::marked().into_iter().flat_map(|(_, runs)| {
        // What a live run has started is that one's, whatever else is over.
        let runs: Vec<RunId> = runs.iter().filter_map(|run| RunId::parse(run)).collect();
        match runs.iter().all(RunId::is_over) {
            true => runs,
            false => Vec::new(),
        }
    });
    let found: BTreeSet<RunId> = of_directories.chain(of_processes).collect();
    found.into_iter().filter(RunId::is_over).collect()
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for process in &self.processes {
            writeln!(f, "ended process {process}")?;
        }
        for mount in &self.mounts {
            writeln!(f, "unmounted {}", mount.display())?;
        }
        for directory in &self.directories {
            writeln!(f, "removed {}", directory.display())?;
        }
        for left in &self.left {
            writeln!(f, "left: {left}")?;
        }
        Ok(())
    }
}
