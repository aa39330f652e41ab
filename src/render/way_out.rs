//! Who is blocked, and the commands that free them.

use super::{
    Text,
    words::{count, width},
};
use crate::snapshot::{Mount, State};

/// Callers that are named.
const MOST_NAMED: usize = 5;

/// So long a path still stands on one line with the command.
const LONGEST_PATH: usize = 70;

impl Text<'_> {
    pub(super) fn blocked_and_way_out(&mut self) {
        let mounts = self.ways_out();
        let callers = self.callers(&mounts);
        let mut units = Vec::new();
        if !callers.is_empty() {
            let more = match callers.len() > MOST_NAMED {
                true => ", ..",
                false => "",
            };
            let named = callers.iter().take(MOST_NAMED).cloned();
            let named: Vec<String> = named.collect();
            let blocked = count(callers.len(), "caller");
            let line = format!("Blocked: {blocked}, {}{more}.", named.join(", "));
            units.extend(line.split(' ').map(str::to_owned));
        }
        // What is to be copied stands on one line.
        for (n, mount) in mounts.iter().enumerate() {
            let whom = if callers.len() == 1 { "it" } else { "them" };
            let begin = match n {
                0 if units.is_empty() => format!("To free {whom} now:"),
                0 => format!(" To free {whom} now:"),
                _ => "and".to_owned(),
            };
            let connection = mount.connection.unwrap_or_default();
            units.push(format!("{begin} inflight abort {}", name(mount)));
            units.push(format!(
                "or echo 1 > /sys/fs/fuse/connections/{connection}/abort"
            ));
        }
        if !mounts.is_empty() {
            units.push("  (they get errors)".to_owned());
        }
        if !units.is_empty() {
            self.filled(units.iter().map(String::as_str));
        }
    }

    // The processes that are held up and do not report themselves.
    fn callers(&self, mounts: &[&Mount]) -> Vec<String> {
        let analysis = self.analysis;
        let mut callers: Vec<(u32, String)> = Vec::new();
        for (node, entry) in analysis.graph.nodes.iter().enumerate() {
            let held_up = analysis.is_in_scope[node]
                && matches!(analysis.state(node), State::Stuck | State::Slow);
            let caller = entry.op().and_then(|op| op.caller.as_ref());
            let Some(caller) = caller.filter(|_| held_up) else {
                continue;
            };
            let pid = caller.pid.unwrap_or(caller.tid);
            if pid == 0 || self.reporter(node, pid).is_some() {
                continue;
            }
            callers.push((pid, self.caller(node).unwrap_or_default()));
        }
        // Of another mount they are not freed by what is done to these.
        let of_mounts = self.report.held_up.iter().filter(|held_up| {
            let mut mounts = mounts.iter();
            mounts.any(|mount| held_up.mount.as_ref() == Some(&mount.path))
        });
        callers.extend(of_mounts.map(|it| (it.pid, format!("{}[{}]", it.comm, it.pid))));
        callers.sort();
        callers.dedup_by_key(|(pid, _)| *pid);
        callers.into_iter().map(|(_, name)| name).collect()
    }

    // The mounts whose end would free what is stuck, if this machine lets us end them: one a circle, else all
    // that something is stuck in.
    fn ways_out(&self) -> Vec<&Mount> {
        let analysis = self.analysis;
        let mut mounts: Vec<&Mount> = Vec::new();
        let circles = &analysis.circles;
        let nodes: Vec<usize> = match circles.is_empty() {
            true => analysis.nodes_that_are(&State::Stuck),
            false => {
                let of_circle = circles.iter().filter_map(|circle| {
                    let mut members = circle.members.iter();
                    members.find(|node| self.mount_to_end(**node).is_some())
                });
                of_circle.copied().collect()
            }
        };
        for mount in nodes.iter().filter_map(|node| self.mount_to_end(*node)) {
            if !mounts
                .iter()
                .any(|known| known.connection == mount.connection)
            {
                mounts.push(mount);
            }
        }
        mounts
    }

    fn mount_to_end(&self, node: usize) -> Option<&Mount> {
        let analysis = self.analysis;
        let path = &self.op(node)?.fuse.as_ref()?.mount;
        let snapshot = analysis.snapshots[analysis.graph.nodes[node].process];
        // The connections of another machine have the same numbers as ours.
        let (here, there) = (&analysis.snapshots[0].process, &snapshot.process);
        let is_told = !here.host.is_empty() && !there.host.is_empty();
        if here.boot_id != there.boot_id || (is_told && here.host != there.host) {
            return None;
        }
        let mount = snapshot.mounts.iter().find(|mount| mount.path == *path)?;
        // Who can read the kernel's count has fusectl, and may write there as well.
        mount.kernel_waiting.and(mount.connection)?;
        Some(mount)
    }
}

// As a shell takes it: the number, where the path would have to be quoted, or cut.
fn name(mount: &Mount) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    match mount.path.chars().all(is_plain) && width(&mount.path) <= LONGEST_PATH {
        true => mount.path.clone(),
        false => mount.connection.unwrap_or_default().to_string(),
    }
}
