//! The last lines: counts, where was looked, what is not known, and where to look on.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    Text, WIDTH,
    words::{bytes, count, count_u64, plain, time_of_day, time_of_day_with_millis},
};
use crate::{
    report::Verdict,
    snapshot::{Mount, Snapshot, State},
};

impl<'a> Text<'a> {
    pub(super) fn counts(&mut self) {
        let snapshots = &self.analysis.snapshots;
        let ops = |snapshot: &Snapshot| snapshot.ops.len() as u64 + snapshot.totals.left_out;
        let here = snapshots[0];
        // One that only asks others, as the program does, has none.
        let mut parts = match ops(here) == 0 && here.mounts.is_empty() && snapshots.len() > 1 {
            true => Vec::new(),
            false => vec![format!("{} here", count_u64(ops(here), "op"))],
        };
        for (process, snapshot) in snapshots.iter().enumerate().skip(1).take(6) {
            let many = match parts.is_empty() {
                true => count_u64(ops(snapshot), "op"),
                false => ops(snapshot).to_string(),
            };
            parts.push(format!("{many} in {}", self.process(process)));
        }
        if snapshots.len() > 7 {
            let more: u64 = snapshots[7..].iter().map(|s| ops(s)).sum();
            parts.push(format!("{more} in {} more processes", snapshots.len() - 7));
        }
        let others = match self.others_that_are_slow() {
            0 => "nothing else is slow".to_owned(),
            n => format!("{n} more are slow or stuck"),
        };
        self.wrapped(&format!("In flight: {}; {others}", parts.join(", ")));
        if !matches!(self.report.verdict(), Verdict::Ok) {
            let checked = self.checked();
            self.wrapped(&format!("Checked: {checked}"));
        }
        for mount in self.mounts() {
            for note in &mount.notes {
                self.wrapped(&format!("Note on {}: {note}", mount.path));
            }
        }
        let unknown = self.unknown();
        let unknown = match unknown.is_empty() {
            true => "nothing".to_owned(),
            false => unknown.join("; "),
        };
        self.wrapped(&format!("Not known: {unknown}"));
        self.spans();
        self.traces();
        let local = &self.report.local;
        let line = format!(
            "Taken {} by {}, slow after {}, stuck after {}",
            time_of_day_with_millis(&local.taken_at),
            self.process(0),
            plain(local.slow_after_ms),
            plain(local.stuck_after_ms)
        );
        self.wrapped(&line);
    }

    // Of which nothing was said above: there was no room, or they have to do with another mount.
    fn others_that_are_slow(&self) -> usize {
        let analysis = self.analysis;
        let nodes = 0..analysis.graph.nodes.len();
        nodes
            .filter(|node| !self.shown.contains(node))
            .filter(|node| matches!(analysis.state(*node), State::Stuck | State::Slow))
            .count()
    }

    pub(super) fn mounts(&self) -> Vec<Mount> {
        let mounts = self
            .report
            .snapshots()
            .flat_map(|snapshot| &snapshot.mounts);
        mounts.cloned().collect()
    }

    // Where we looked, and whether the kernel has the same number.
    pub(super) fn checked(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mounts = self.mounts();
        for mount in &mounts {
            let of = match mounts.len() {
                1 => String::new(),
                _ => format!(" on {}", mount.path),
            };
            let mut part = match mount.kernel_waiting {
                Some(waiting) => format!("kernel {waiting} waiting, {} tracked{of}", mount.tracked),
                None => format!(
                    "{} tracked{of}, the kernel's count cannot be read",
                    mount.tracked
                ),
            };
            if mount.queued > 0 {
                let size = bytes(mount.queued_bytes);
                let _ = write!(part, ", parked {}, {size}", mount.queued);
            }
            parts.push(part);
        }
        let answered = self.report.peers.len();
        let asked = answered + self.report.peers_failed.len();
        parts.push(match asked {
            0 => "no peer asked".to_owned(),
            n => format!("{} asked, {answered} answered", count(n, "peer")),
        });
        parts.join("; ")
    }

    pub(super) fn unknown(&self) -> Vec<String> {
        let mut unknown = self.report.unknown.clone();
        for failed in &self.report.peers_failed {
            unknown.push(format!("what {} does ({})", failed.address, failed.why));
        }
        for (process, snapshot) in self.analysis.snapshots.iter().enumerate() {
            if let Some(off) = &snapshot.off
                && (process > 0 || self.report.verdict() != &Verdict::Off)
            {
                let since = time_of_day(&off.since);
                let name = self.process(process);
                unknown.push(format!(
                    "what {name} has begun since {since} UTC ({})",
                    off.why
                ));
            }
            // Peers are asked for nothing younger.
            if process == 0 && snapshot.totals.left_out > 0 {
                let name = self.process(process);
                unknown.push(format!(
                    "{} ops of {name}, left out",
                    snapshot.totals.left_out
                ));
            }
        }
        for mount in self.mounts() {
            let Some(waiting) = mount.kernel_waiting else {
                continue;
            };
            let difference = waiting.abs_diff(mount.tracked);
            if waiting > mount.tracked {
                unknown.push(format!(
                    "{} that the kernel counts on {}: handed off without a handle, or their reply was lost",
                    count_u64(difference, "more request"),
                    mount.path
                ));
            } else if difference > 0 {
                unknown.push(format!(
                    "why {} have been answered on {} and are in flight still: a handle that was kept",
                    count_u64(difference, "op"),
                    mount.path
                ));
            }
        }
        unknown
    }

    // What the tracing back end was not told.
    fn spans(&mut self) {
        for (process, snapshot) in self.analysis.snapshots.iter().enumerate() {
            let totals = &snapshot.totals;
            let lost = match totals.spans_dropped {
                0 => None,
                n => Some(format!("{} not sent", count_u64(n, "ended op"))),
            };
            let problem = totals.spans_problem.clone();
            let parts: Vec<String> = lost.into_iter().chain(problem).collect();
            if !parts.is_empty() {
                let name = self.process(process);
                self.wrapped(&format!("Spans of {name}: {}", parts.join("; ")));
            }
        }
    }

    // Where to look on in a tracing back end.
    fn traces(&mut self) {
        let mut traces: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (node, number) in &self.numbers {
            if let Some(op) = self.op(*node) {
                traces
                    .entry(op.trace_id.to_string())
                    .or_default()
                    .push(*number);
            }
        }
        let mut traces: Vec<_> = traces.into_iter().collect();
        traces
            .iter_mut()
            .for_each(|(_, numbers)| numbers.sort_unstable());
        traces.sort_by(|a, b| a.1.cmp(&b.1));
        let mut line = String::from("Find it:");
        for (n, (trace, numbers)) in traces.iter().take(4).enumerate() {
            let numbers: Vec<String> = numbers.iter().take(6).map(|n| format!("[{n}]")).collect();
            let part = format!("trace {trace} ({})", numbers.join(" "));
            if n > 0 && line.len() + part.len() + 2 > WIDTH {
                self.line(&format!("{line},"));
                line = format!("         {part}");
            } else {
                line.push_str(if n > 0 { ", " } else { " " });
                line.push_str(&part);
            }
        }
        if !traces.is_empty() {
            self.line(&line);
        }
    }
}
