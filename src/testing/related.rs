//! Leaves out of a report what has nothing to do with a test: machines that run tests run more than one.

use std::{
    collections::{HashMap, HashSet},
    fs, iter,
    path::{Path, PathBuf},
};

use super::run_id;
use crate::{
    mountinfo, proc,
    report::Report,
    snapshot::{Filter, Snapshot},
};

/// How many generations a child may be away.
const GENERATIONS: usize = 32;

/// Keeps what has its socket in these directories, what this process has started in another way than as a daemon of
/// another test, and whatever waits for one of these or is waited for.
pub(super) fn keep(mut report: Report, directories: &[PathBuf]) -> Report {
    let kept = related(&report, directories);
    report.peers.retain(|peer| kept.contains(&peer.process.pid));
    report.peers_failed.retain(|failed| {
        let mut directories = directories.iter();
        let is_ours = directories.any(|dir| Path::new(&failed.address).starts_with(dir));
        is_ours || failed.address.contains("://")
    });
    let mounts = snapshots(&report).flat_map(|snapshot| &snapshot.mounts);
    let mounts: HashSet<String> = mounts.map(|mount| mount.path.clone()).collect();
    // Who waits for mounts of others is none of this test's.
    report.held_up.retain(|held_up| match &held_up.mount {
        Some(mount) => mounts.contains(mount),
        None => is_descendant(held_up.pid),
    });
    report.filtered(&Filter::new())
}

fn related(report: &Report, directories: &[PathBuf]) -> HashSet<u32> {
    let in_directories = sockets_in(directories);
    let marked: HashSet<u32> = run_id::marked().into_iter().map(|(pid, _)| pid).collect();
    let is_ours =
        |pid: u32| in_directories.contains(&pid) || (!marked.contains(&pid) && is_descendant(pid));
    let peers = report.peers.iter().map(|peer| peer.process.pid);
    let mut related: HashSet<u32> = peers.filter(|pid| is_ours(*pid)).collect();
    related.insert(report.local.process.pid);
    let edges = edges(report);
    let mut before = 0;
    while related.len() > before {
        before = related.len();
        for (from, to) in &edges {
            if related.contains(from) || related.contains(to) {
                related.extend([from, to]);
            }
        }
    }
    related
}

// Which processes wait for which.
fn edges(report: &Report) -> Vec<(u32, u32)> {
    let mut owners = HashMap::new();
    for snapshot in snapshots(report) {
        for op in &snapshot.ops {
            owners.insert(op.id.to_string(), snapshot.process.pid);
        }
    }
    // An op by its id; all else is `what:PID:which`.
    let owner = |end: &str| {
        let named = || end.split(':').nth(1)?.parse().ok();
        owners.get(end).copied().or_else(named)
    };
    let edges = report.edges.iter();
    edges
        .filter_map(|edge| Some((owner(&edge.from)?, owner(&edge.to)?)))
        .collect()
}

fn snapshots(report: &Report) -> impl Iterator<Item = &Snapshot> {
    iter::once(&report.local).chain(&report.peers)
}

// By their names, which are `PID.sock` or `PID-1.sock`.
fn sockets_in(directories: &[PathBuf]) -> HashSet<u32> {
    let mounts = mountinfo::read().unwrap_or_default();
    let here = directories
        .iter()
        .filter(|dir| !mountinfo::is_in_fuse(&mounts, dir));
    let entries = here.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let pids = entries.filter_map(|entry| {
        let name = entry.file_name();
        let pid = name.to_str()?.strip_suffix(".sock")?;
        pid.split('-').next()?.parse().ok()
    });
    pids.collect()
}

fn is_descendant(pid: u32) -> bool {
    let parent = |pid: &u32| {
        let stat = proc::stat(&Path::new("/proc").join(pid.to_string()))?;
        Some(stat.parent)
    };
    let own = std::process::id();
    let ancestors = iter::successors(Some(pid), parent).take(GENERATIONS);
    ancestors.skip(1).any(|ancestor| ancestor == own)
}
