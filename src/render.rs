//! The text of a report: what is stuck, why, and the way out; then the proof, and who waits behind.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{self, Write},
};

use crate::{
    graph::{Circle, Condition, Needs, Target, WaitGraph, Who, Why},
    report::{Analysis, Report, Verdict},
    snapshot::{Kind, LiveOp, Mount, Outcome, Snapshot, State},
};

/// Lines are at most this wide.
const WIDTH: usize = 120;

/// Columns for the process and for what it does, at most.
const PROCESS: usize = 26;
const WHAT: usize = 52;

/// Lines of ops that are listed one by one; the rest is counted.
const MOST_LISTED: usize = 40;

/// Ended ops that are listed.
const MOST_ENDED: usize = 5;

impl fmt::Display for Report {
    /// Writes the text that `.diag` shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let analysis = self.analyse();
        let mut text = Text::new(self, &analysis);
        text.write();
        f.write_str(&text.out)
    }
}

struct Text<'a> {
    report: &'a Report,
    analysis: &'a Analysis<'a>,
    /// The numbers of the ops that have a line of their own.
    numbers: BTreeMap<usize, usize>,
    shown: HashSet<usize>,
    listed: usize,
    left_out: usize,
    /// Columns that the process and what it does really take.
    columns: (usize, usize),
    out: String,
}

impl<'a> Text<'a> {
    fn new(report: &'a Report, analysis: &'a Analysis<'a>) -> Self {
        Self {
            report,
            analysis,
            numbers: BTreeMap::new(),
            shown: HashSet::new(),
            listed: 0,
            left_out: 0,
            columns: (0, 0),
            out: String::new(),
        }
    }

    fn write(&mut self) {
        let chains = self.chains();
        for node in chains.iter().flatten() {
            let number = self.numbers.len() + 1;
            self.numbers.entry(*node).or_insert(number);
        }
        self.columns = self.widths();
        self.headline(&chains);
        for chain in &chains {
            self.line("");
            self.chain(chain);
        }
        let title = match self.report.verdict() {
            Verdict::Deadlock | Verdict::LikelyDeadlock => "Behind it, not part of it",
            _ if !chains.is_empty() => "Behind them",
            _ => "In flight",
        };
        self.behind(title);
        self.rest();
        self.ended();
        self.line("");
        self.counts();
    }

    // The circles; without one, from each cause a chain to the one that has waited for it the longest.
    fn chains(&self) -> Vec<Vec<usize>> {
        let circles = &self.analysis.circles;
        if !circles.is_empty() {
            return circles.iter().map(|c| c.members.clone()).collect();
        }
        let state = match self.report.verdict() {
            Verdict::Stuck => State::Stuck,
            Verdict::Slow => State::Slow,
            _ => return Vec::new(),
        };
        let mut chains: Vec<Vec<usize>> = Vec::new();
        let mut known = HashSet::new();
        for cause in self.causes(&state) {
            let mut chain = vec![cause];
            while let Some(waiter) = self.oldest_waiter(chain[chain.len() - 1], &chain, &known) {
                chain.push(waiter);
            }
            chain.reverse();
            known.extend(chain.iter().copied());
            chains.push(chain);
            if known.len() >= MOST_LISTED {
                break;
            }
        }
        chains
    }

    // What is stuck and waits for nothing else that is, the one with the most behind it first.
    fn causes(&self, state: &State) -> Vec<usize> {
        let graph = &self.analysis.graph;
        let mut causes = self.analysis.nodes_that_are(state);
        causes.retain(|node| graph.out(*node).next().is_none());
        if causes.is_empty() {
            // A circle too young or too open to be called one.
            causes = self.analysis.nodes_that_are(state);
            causes.truncate(1);
        }
        causes.sort_by_cached_key(|node| std::cmp::Reverse(graph.behind(*node).len()));
        causes
    }

    fn oldest_waiter(&self, node: usize, chain: &[usize], known: &HashSet<usize>) -> Option<usize> {
        let nodes = 0..self.analysis.graph.nodes.len();
        let waits = |from: &usize| {
            let mut out = self.analysis.graph.out(*from);
            out.any(|target| target.node == node) && !chain.contains(from) && !known.contains(from)
        };
        let waiters = nodes.filter(waits);
        waiters.max_by(|a, b| self.age(*a).total_cmp(&self.age(*b)))
    }

    fn headline(&mut self, chains: &[Vec<usize>]) {
        match self.report.verdict() {
            Verdict::Deadlock | Verdict::LikelyDeadlock => self.deadlock(),
            Verdict::Stuck => self.stuck(chains),
            Verdict::Slow => self.slow(),
            Verdict::Off => {
                let off = self.report.local.off.clone().unwrap_or_default();
                self.line(&format!(
                    "OFF: nothing has been recorded since {} UTC ({})",
                    time_of_day(&off.since),
                    off.why
                ));
            }
            Verdict::Unknown => {
                let failed = self.report.peers_failed.len();
                let asked = failed + self.report.peers.len();
                self.line(&format!(
                    "UNKNOWN: {failed} of {asked} peers did not answer, and nothing is stuck as far as this process can see"
                ));
            }
            _ => {
                let ops = self.in_scope();
                let oldest = ops.iter().map(|node| self.age(*node));
                let oldest = oldest.fold(0.0, f64::max);
                let in_flight = match ops.len() {
                    0 => "Nothing is in flight".to_owned(),
                    n => format!("{} in flight, oldest {}", count(n, "op"), age(oldest)),
                };
                let checked = self.checked();
                self.line(&format!("OK: nothing is stuck. {in_flight}; {checked}"));
            }
        }
    }

    fn deadlock(&mut self) {
        let analysis = self.analysis;
        let circle = &analysis.circles[0];
        let mut processes: Vec<usize> = circle
            .members
            .iter()
            .map(|node| analysis.graph.nodes[*node].process)
            .collect();
        processes.sort_unstable();
        processes.dedup();
        let names: Vec<String> = processes.iter().map(|p| self.process(*p)).collect();
        let who = match names.as_slice() {
            [one] => format!("{} in {one} wait for each other", self.members(circle)),
            names => format!("{} wait for each other", and(names)),
        };
        let word = match WaitGraph::is_proof(circle) {
            true => "DEADLOCK",
            false => "LIKELY DEADLOCK",
        };
        let more = match analysis.circles.len() {
            1 => String::new(),
            n => format!("; {} below", count(n - 1, "more circle")),
        };
        self.wrapped(&format!(
            "{word} for {} (since {}): {who}{more}",
            age(circle.for_ms),
            self.since(circle.for_ms),
        ));
        if let Some(why) = self.why_only_likely(circle) {
            self.wrapped(&format!("Only likely, because {why}"));
        }
        if let Some(culprit) = self.culprit(circle) {
            self.wrapped(&format!("Culprit: {culprit}"));
        }
        self.blocked_and_way_out();
    }

    fn members(&self, circle: &Circle) -> String {
        count(circle.members.len(), "op")
    }

    fn why_only_likely(&self, circle: &Circle) -> Option<String> {
        let likely = self.edges_within(circle);
        let (from, target) = likely.into_iter().find(|(_, target)| !target.is_certain)?;
        let number = |node| self.number(node);
        Some(match target.why {
            Why::Process => format!(
                "{} was called by {}, on a thread that no op is known to run on: that {} made the call is a guess",
                number(target.node),
                self.process_of(from),
                number(from)
            ),
            Why::Thread => format!(
                "the thread of {} called {}, but was not seen asleep in that call",
                number(from),
                number(target.node)
            ),
            _ => format!(
                "that {} is served by {} is known by its trace alone",
                number(from),
                number(target.node)
            ),
        })
    }

    // A member that holds something while it waits.
    fn culprit(&self, circle: &Circle) -> Option<String> {
        let within = self.edges_within(circle);
        let held = |why: Why| within.iter().find(|(_, target)| target.why == why).copied();
        let (waiter, target) = held(Why::Holds).or_else(|| held(Why::Slot))?;
        let holder = target.node;
        let waits = within.iter().find(|(from, _)| *from == holder)?;
        let what = match self.condition(waiter, holder).and_then(|c| c.resource) {
            Some(resource) => format!("holds {} {:?}", kind_of(resource.capacity), resource.name),
            None => "has the only slot left".to_owned(),
        };
        let mount = |node: usize| {
            let op = self.op(node)?;
            Some(op.fuse.as_ref()?.mount.clone())
        };
        let doing = match (waits.1.why, mount(waits.1.node)) {
            (Why::Thread | Why::Process, Some(mount)) => {
                format!("waits for a file in {}", short(&mount, 40))
            }
            _ => format!("waits for {}", self.number(waits.1.node)),
        };
        Some(format!(
            "{} {what} while it {doing}, and {} needs what it holds",
            self.number(holder),
            self.number(waiter)
        ))
    }

    fn stuck(&mut self, chains: &[Vec<usize>]) {
        let stuck = self.analysis.nodes_that_are(&State::Stuck);
        let longest = self.longest(&stuck);
        let Some(cause) = chains.first().and_then(|chain| chain.last()).copied() else {
            return;
        };
        let behind = self.analysis.graph.behind(cause).len();
        let what = self.what_a_cause_does(cause, behind);
        let more = match chains.len() {
            1 => String::new(),
            n => format!("; {} below", count(n - 1, "more cause")),
        };
        self.wrapped(&format!(
            "STUCK for {} (since {}): {what}{more}",
            age(longest),
            self.since(longest),
        ));
        if let Some(resource) = self.held_by(cause).first() {
            let held = format!("{} holds {resource}", self.number(cause));
            self.wrapped(&format!("Culprit: {held} while it does not move"));
        }
        self.blocked_and_way_out();
    }

    fn what_a_cause_does(&self, cause: usize, behind: usize) -> String {
        let wait = match behind {
            0 => String::new(),
            n => format!("{} for ", wait(n)),
        };
        let Some(op) = self.op(cause) else {
            return format!("{wait}a thread that works for no op, and holds what they want");
        };
        let peer = op.http.as_ref().and_then(|http| http.peer.clone());
        let has_status = op.http.as_ref().is_some_and(|http| http.status.is_some());
        match (&op.kind, peer) {
            (Kind::HttpClient, Some(peer)) => {
                let wait = if behind == 0 {
                    "1 op waits for "
                } else {
                    &wait
                };
                match has_status {
                    false => format!("{wait}{peer}, which does not answer"),
                    true => format!("{wait}{peer}, which has stopped in the middle of its answer"),
                }
            }
            _ => {
                let phase = op.phase.path.join(" > ");
                let phase = match phase.as_str() {
                    "" => String::new(),
                    phase => format!(" (in {phase})"),
                };
                let what = format!("{} in {}", self.what(cause), self.process_of(cause));
                format!("{wait}{what}, which does not move{phase}")
            }
        }
    }

    fn slow(&mut self) {
        let slow = self.analysis.nodes_that_are(&State::Slow);
        let longest = self.longest(&slow);
        let verb = if slow.len() == 1 { "has" } else { "have" };
        self.line(&format!(
            "SLOW: {} {verb} not moved for more than {}, the longest for {}",
            count(slow.len(), "op"),
            age(self.report.local.slow_after_ms),
            age(longest)
        ));
    }

    fn blocked_and_way_out(&mut self) {
        let callers = self.callers();
        let mut line = match callers.len() {
            0 => String::new(),
            n => {
                let some: Vec<_> = callers.iter().take(5).cloned().collect();
                let more = if n > 5 { ", .." } else { "" };
                format!(
                    "Blocked: {}, {}{more}. ",
                    count(n, "caller"),
                    some.join(", ")
                )
            }
        };
        if let Some(connection) = self.way_out() {
            let whom = if callers.len() > 1 { "them" } else { "it" };
            let _ = write!(
                line,
                " To free {whom} now: echo 1 > /sys/fs/fuse/connections/{connection}/abort   (they get errors)"
            );
        }
        if !line.is_empty() {
            self.wrapped(line.trim());
        }
    }

    // The processes that are held up and do not report themselves.
    fn callers(&self) -> Vec<String> {
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
            if pid == 0 || self.reports_itself(pid) {
                continue;
            }
            callers.push((pid, self.caller(node).unwrap_or_default()));
        }
        callers.sort();
        callers.dedup();
        callers.into_iter().map(|(_, name)| name).collect()
    }

    fn reports_itself(&self, pid: u32) -> bool {
        let mut snapshots = self.analysis.snapshots.iter();
        snapshots.any(|snapshot| snapshot.process.pid == pid)
    }

    // The connection whose end would free what is stuck, if this machine lets us end it.
    fn way_out(&self) -> Option<u64> {
        let analysis = self.analysis;
        let members = analysis
            .circles
            .first()
            .map(|circle| circle.members.clone());
        let nodes = members.unwrap_or_else(|| analysis.nodes_that_are(&State::Stuck));
        let mut mounts = nodes.iter().filter_map(|node| {
            let op = self.op(*node)?;
            let path = &op.fuse.as_ref()?.mount;
            let snapshot = analysis.snapshots[analysis.graph.nodes[*node].process];
            let mount = snapshot.mounts.iter().find(|mount| mount.path == *path)?;
            // Who can read the kernel's count has fusectl, and may write there as well.
            mount.kernel_waiting.and(mount.connection)
        });
        mounts.next()
    }

    // A line for each, and between them how one leads to the next.
    fn chain(&mut self, chain: &[usize]) {
        for (at, node) in chain.iter().enumerate() {
            self.numbered(*node);
            let next = chain.get(at + 1);
            self.connectors(*node, next.copied());
        }
    }

    fn numbered(&mut self, node: usize) {
        self.shown.insert(node);
        self.listed += 1;
        let number = self.numbers.get(&node).copied().unwrap_or_default();
        let head = self.columns(
            &format!("[{number}]"),
            &self.process_of(node),
            &self.what(node),
            self.age(node),
        );
        let details = self.details(node);
        self.with_details(&head, &details);
    }

    // Details follow on the line as long as they fit, then on lines of their own.
    fn with_details(&mut self, head: &str, details: &[String]) {
        let mut line = head.to_owned();
        for detail in details {
            if width(&line) + 3 + width(detail) <= WIDTH {
                line.push_str("   ");
            } else {
                self.line(&line);
                line = " ".repeat(10);
            }
            line.push_str(detail);
        }
        self.line(&line);
    }

    fn connectors(&mut self, node: usize, next: Option<usize>) {
        let graph = &self.analysis.graph;
        for condition in &graph.nodes[node].waits {
            let Some(first) = condition.targets.first() else {
                continue;
            };
            let to_next = condition.targets.len() == 1 && Some(first.node) == next;
            // A wait for a resource stands in the line of the op.
            if first.why == Why::Holds {
                continue;
            }
            let what = self.connector(node, condition, first);
            let numbers: Vec<String> = condition
                .targets
                .iter()
                .take(8)
                .map(|target| self.number(target.node))
                .collect();
            let named = match to_next {
                true => String::new(),
                false => format!(" {}", numbers.join(", ")),
            };
            self.line(&format!("       {what}{named}"));
        }
    }

    fn connector(&self, node: usize, condition: &Condition<'_>, target: &Target) -> String {
        let likely = if target.is_certain { "" } else { " (likely)" };
        match target.why {
            Why::Sent => format!("which sent, and waits for{likely}"),
            Why::ServedBy => format!("which is served by{likely}"),
            Why::WaitingFor => format!("which waits for{likely}"),
            Why::Thread => {
                let tid = match self.analysis.graph.nodes[node].who {
                    Who::Op(op) => op.thread.as_ref().map_or(0, |thread| thread.tid),
                    Who::Thread(thread) => thread.tid,
                };
                format!("its thread {tid} is in a file-system call{likely}")
            }
            Why::Process => {
                "a thread of its process is in a file-system call, likely for it".to_owned()
            }
            Why::Slot if condition.needs == Needs::Any && condition.targets.len() > 1 => {
                "which waits for any of the slots, in which are".to_owned()
            }
            Why::Slot => "which waits for the slot of".to_owned(),
            Why::Holds => String::new(),
        }
    }

    // Whoever waits for one that has a number, or for no one: a line each, with what is between.
    fn behind(&mut self, title: &str) {
        let analysis = self.analysis;
        let roots: Vec<usize> = self.roots();
        let mut lines = Vec::new();
        for root in roots {
            if self.listed + lines.len() >= MOST_LISTED {
                break;
            }
            let mut arrows = String::new();
            let mut node = root;
            let mut chain = vec![root];
            self.shown.insert(root);
            loop {
                let mut out = analysis.graph.out(node);
                let next = out.find(|t| self.numbers.contains_key(&t.node));
                let next = next.or_else(|| analysis.graph.out(node).next());
                let Some(target) = next else {
                    break;
                };
                if let Some(number) = self.numbers.get(&target.node) {
                    let _ = write!(arrows, " -> [{number}]");
                    break;
                }
                if chain.contains(&target.node) {
                    break;
                }
                if target.why == Why::Slot {
                    arrows.push_str(" -> a slot");
                }
                let _ = write!(arrows, " -> {}", self.what(target.node));
                chain.push(target.node);
                if !self.shown.insert(target.node) {
                    break;
                }
                node = target.node;
            }
            let who = self.caller(root).unwrap_or_else(|| self.process_of(root));
            let head = self.columns("", &who, &self.what(root), self.age(root));
            let mut details = self.plain_details(root);
            if !arrows.is_empty() {
                details.insert(0, arrows.trim_start().to_owned());
            } else if let Some(last) = chain.last().filter(|last| **last != root) {
                details.extend(self.plain_details(*last));
            }
            lines.push((head, details));
        }
        if lines.is_empty() {
            return;
        }
        self.line("");
        self.line(title);
        for (head, details) in lines {
            self.with_details(&head, &details);
            self.listed += 1;
        }
    }

    // Those without a line that nobody waits for, oldest first; those in a young circle come in any order.
    fn roots(&self) -> Vec<usize> {
        let graph = &self.analysis.graph;
        let mut is_waited_for = vec![false; graph.nodes.len()];
        for node in 0..graph.nodes.len() {
            for target in graph.out(node) {
                is_waited_for[target.node] = target.node != node;
            }
        }
        let rest = self.in_scope().into_iter();
        let mut roots: Vec<usize> = rest.filter(|node| !self.shown.contains(node)).collect();
        roots.sort_by(|a, b| {
            let first = is_waited_for[*a].cmp(&is_waited_for[*b]);
            first.then(self.age(*b).total_cmp(&self.age(*a)))
        });
        roots.retain(|node| {
            !is_waited_for[*node]
                || graph
                    .out(*node)
                    .next()
                    .is_some_and(|t| !is_waited_for[t.node])
        });
        roots
    }

    fn rest(&mut self) {
        let ops = self.in_scope();
        self.left_out = ops.iter().filter(|node| !self.shown.contains(node)).count();
        if self.left_out > 0 {
            let left_out = count(self.left_out, "op");
            self.line(&format!("     and {left_out} more; all stand in the JSON"));
        }
    }

    // The end of a hang is silent: nothing but this tells that there was one.
    fn ended(&mut self) {
        let slow = self.report.local.slow_after_ms;
        let mut ended: Vec<_> = self
            .report
            .snapshots()
            .enumerate()
            .flat_map(|(process, snapshot)| snapshot.recent.iter().map(move |op| (process, op)))
            .filter(|(_, ended)| match ended.outcome {
                Outcome::Failed | Outcome::Panicked => true,
                Outcome::Completed => false,
                _ => ended.duration_ms >= slow || ended.op.error.is_some(),
            })
            .collect();
        ended.sort_by(|a, b| a.1.ended_ms.total_cmp(&b.1.ended_ms));
        ended.truncate(MOST_ENDED);
        if ended.is_empty() {
            return;
        }
        self.line("");
        self.line("Ended not long ago, and not well or not fast");
        for (process, ended) in ended {
            let process = self.process(process);
            let head = self.columns("", &process, &what(&ended.op), ended.duration_ms);
            let mut details = vec![format!("{} ago", age(ended.ended_ms))];
            let how = match (&ended.op.error, &ended.outcome) {
                (Some(error), _) => short(error, WIDTH - 14),
                (None, Outcome::Failed) => "failed".to_owned(),
                (None, Outcome::Panicked) => "panicked".to_owned(),
                (None, Outcome::DroppedBeforeResponse) => {
                    "given up before there was an answer".to_owned()
                }
                (None, Outcome::DroppedInBody) => "given up in the body".to_owned(),
                (None, _) => String::new(),
            };
            details.extend((!how.is_empty()).then_some(how));
            self.with_details(&head, &details);
        }
    }

    fn counts(&mut self) {
        let snapshots = &self.analysis.snapshots;
        let ops = |snapshot: &Snapshot| snapshot.ops.len() as u64 + snapshot.totals.left_out;
        let mut here = format!("In flight: {} here", count_u64(ops(snapshots[0]), "op"));
        for (process, snapshot) in snapshots.iter().enumerate().skip(1).take(6) {
            let _ = write!(here, ", {} in {}", ops(snapshot), self.process(process));
        }
        if snapshots.len() > 7 {
            let more: u64 = snapshots[7..].iter().map(|s| ops(s)).sum();
            let _ = write!(here, ", {more} in {} more processes", snapshots.len() - 7);
        }
        let elsewhere = self.stuck_out_of_scope();
        here.push_str(&match elsewhere {
            0 => "; nothing else is slow".to_owned(),
            n => format!("; {n} that have nothing to do with this mount are slow or stuck"),
        });
        self.wrapped(&here);
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

    fn stuck_out_of_scope(&self) -> usize {
        let analysis = self.analysis;
        let nodes = 0..analysis.graph.nodes.len();
        nodes
            .filter(|node| !analysis.is_in_scope[*node])
            .filter(|node| matches!(analysis.state(*node), State::Stuck | State::Slow))
            .count()
    }

    fn mounts(&self) -> Vec<Mount> {
        let mounts = self
            .report
            .snapshots()
            .flat_map(|snapshot| &snapshot.mounts);
        mounts.cloned().collect()
    }

    // Where we looked, and whether the kernel has the same number.
    fn checked(&self) -> String {
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

    fn unknown(&self) -> Vec<String> {
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
                    "{difference} more requests that the kernel counts on {}: handed off without a handle, or their reply was lost",
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

    fn details(&self, node: usize) -> Vec<String> {
        let mut details = self.plain_details(node);
        if let (Some(caller), Some(_)) = (self.caller(node), self.op(node)) {
            details.insert(0, format!("for {caller}"));
        }
        details
    }

    // What the op says of itself.
    fn plain_details(&self, node: usize) -> Vec<String> {
        let mut details = Vec::new();
        let Some(op) = self.op(node) else {
            return self
                .held_by(node)
                .iter()
                .map(|held| format!("HOLDS {held}"))
                .collect();
        };
        if !op.phase.path.is_empty() {
            details.push(short(&op.phase.path.join(" > "), 70));
        }
        if let Some(http) = &op.http {
            if let Some(status) = http.status {
                details.push(format!("status {status}"));
            }
            if op.kind == Kind::HttpClient {
                match http.status {
                    None if http.sent_bytes == 0 && !op.phase.path.is_empty() => {}
                    None => details.push(format!("no answer yet, {} sent", bytes(http.sent_bytes))),
                    Some(_) => details.push(format!("{} received", bytes(http.received_bytes))),
                }
            }
            if let Some(route) = http.route.as_ref().filter(|route| **route != op.target) {
                details.push(format!("route {}", short(route, 60)));
            }
        }
        if self.analysis.state(node) == State::Idle {
            details.push(format!("idle, moved {} ago", age(op.progress_ms)));
        }
        if let Some(error) = &op.error {
            details.push(format!("said: {}", short(error, 80)));
        }
        let held = self.held_by(node);
        details.extend(held.iter().map(|held| format!("HOLDS {held}")));
        details.extend(self.waits_for_resource(node));
        details
    }

    fn waits_for_resource(&self, node: usize) -> Option<String> {
        let waits = &self.analysis.graph.nodes[node].waits;
        let condition = waits
            .iter()
            .find(|condition| condition.resource.is_some())?;
        let resource = condition.resource?;
        let holders: Vec<String> = condition
            .targets
            .iter()
            .take(4)
            .map(|target| self.number(target.node))
            .collect();
        let held = match holders.is_empty() {
            true => ", which nobody holds now".to_owned(),
            false => format!(", held by {}", holders.join(", ")),
        };
        let kind = kind_of(resource.capacity);
        Some(format!("WAITS for {kind} {:?}{held}", resource.name))
    }

    // The resources that a node holds and others wait for; all, if none is waited for.
    fn held_by(&self, node: usize) -> Vec<String> {
        let entry = &self.analysis.graph.nodes[node];
        let snapshot = self.analysis.snapshots[entry.process];
        let holds = |resource: &&crate::snapshot::Resource| {
            resource.holders.iter().any(|holder| match entry.who {
                Who::Op(op) => holder.op == Some(op.id),
                Who::Thread(thread) => {
                    holder.op.is_none()
                        && holder.thread.as_ref().is_some_and(|t| t.tid == thread.tid)
                }
            })
        };
        let held = snapshot.resources.iter().filter(holds);
        held.map(|resource| format!("{} {:?}", kind_of(resource.capacity), resource.name))
            .collect()
    }

    fn edges_within(&self, circle: &Circle) -> Vec<(usize, Target)> {
        let mut edges = Vec::new();
        for from in &circle.members {
            let inner = self.analysis.graph.out(*from);
            let inner = inner.filter(|target| circle.members.contains(&target.node));
            edges.extend(inner.map(|target| (*from, *target)));
        }
        edges
    }

    fn condition(&self, from: usize, to: usize) -> Option<&Condition<'a>> {
        let mut waits = self.analysis.graph.nodes[from].waits.iter();
        waits.find(|condition| condition.targets.iter().any(|target| target.node == to))
    }

    fn op(&self, node: usize) -> Option<&'a LiveOp> {
        self.analysis.graph.nodes[node].op()
    }

    fn in_scope(&self) -> Vec<usize> {
        let nodes = 0..self.analysis.graph.nodes.len();
        nodes
            .filter(|node| self.analysis.is_in_scope[*node])
            .collect()
    }

    fn age(&self, node: usize) -> f64 {
        match self.analysis.graph.nodes[node].who {
            Who::Op(op) => op.age_ms,
            Who::Thread(thread) => thread.since_ms,
        }
    }

    fn columns(&self, number: &str, who: &str, what: &str, ms: f64) -> String {
        let (process, column) = self.columns;
        format!(
            " {number:<4} {who:<process$}  {what:<column$} {:>9}",
            age(ms)
        )
    }

    // As wide as what is likely to be listed, so that lines stay short.
    fn widths(&self) -> (usize, usize) {
        let nodes = self.in_scope().into_iter().take(4 * MOST_LISTED);
        let widest = nodes.fold((0, 0), |(process, column), node| {
            let caller = self.caller(node).unwrap_or_default();
            let who = width(&self.process_of(node)).max(width(&caller));
            (process.max(who), column.max(width(&self.what(node))))
        });
        (widest.0.min(PROCESS), widest.1.min(WHAT))
    }

    fn longest(&self, nodes: &[usize]) -> f64 {
        let progress = nodes.iter().map(|node| self.analysis.progress_ms[*node]);
        progress.fold(0.0, f64::max)
    }

    fn number(&self, node: usize) -> String {
        match self.numbers.get(&node) {
            Some(number) => format!("[{number}]"),
            None => self.what(node),
        }
    }

    fn what(&self, node: usize) -> String {
        match self.analysis.graph.nodes[node].who {
            Who::Op(op) => what(op),
            Who::Thread(thread) => format!("thread {} {}", thread.tid, thread.name),
        }
    }

    fn process(&self, process: usize) -> String {
        let process = &self.analysis.snapshots[process].process;
        format!("{}[{}]", short(&process.service, 30), process.pid)
    }

    fn process_of(&self, node: usize) -> String {
        self.process(self.analysis.graph.nodes[node].process)
    }

    // Who made a FUSE call: by the name of its service, if it reports.
    fn caller(&self, node: usize) -> Option<String> {
        let caller = self.op(node)?.caller.as_ref()?;
        let pid = caller.pid.unwrap_or(caller.tid);
        let mut snapshots = self.analysis.snapshots.iter();
        if let Some(process) = snapshots.position(|snapshot| snapshot.process.pid == pid) {
            return Some(self.process(process));
        }
        let name = match (&caller.comm, &caller.unknown) {
            (Some(comm), _) => comm.clone(),
            (None, Some(why)) if caller.tid != 0 => format!("({why})"),
            (None, _) => "(a caller that is not known)".to_owned(),
        };
        Some(match pid {
            0 => name,
            pid => format!("{name}[{pid}]"),
        })
    }

    fn since(&self, for_ms: f64) -> String {
        let at: Option<jiff::Timestamp> = self.report.taken_at.parse().ok();
        let span = jiff::SignedDuration::from_millis(for_ms as i64);
        let at = at.and_then(|at| at.checked_sub(span).ok());
        at.map_or_else(
            || "?".to_owned(),
            |at| format!("{} UTC", time_of_day(&at.to_string())),
        )
    }

    fn line(&mut self, line: &str) {
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    // Breaks between words, which no id has in it.
    fn wrapped(&mut self, line: &str) {
        let mut now = String::new();
        for word in line.split(' ') {
            if !now.is_empty() && width(&now) + 1 + width(word) > WIDTH {
                self.line(&now);
                now = "        ".to_owned();
            } else if !now.is_empty() {
                now.push(' ');
            }
            now.push_str(word);
        }
        self.line(&now);
    }
}

fn what(op: &LiveOp) -> String {
    let target = op.target.strip_prefix("http://").unwrap_or(&op.target);
    match target {
        "" => op.name.clone(),
        target => {
            let room = WHAT.saturating_sub(op.name.chars().count() + 1).max(20);
            format!("{} {}", short(&op.name, 30), short(target, room))
        }
    }
}

fn kind_of(capacity: u64) -> &'static str {
    match capacity {
        0 | 1 => "lock",
        _ => "pool",
    }
}

// The end of a path says more than its beginning.
fn short(text: &str, max: usize) -> String {
    let length = text.chars().count();
    if length <= max {
        return text.to_owned();
    }
    let head = max / 3;
    let tail = max - head - 2;
    let begin: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - tail).collect();
    format!("{begin}..{end}")
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn and(names: &[String]) -> String {
    match names {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        names => names.join(", "),
    }
}

fn wait(n: usize) -> String {
    match n {
        1 => "1 op waits".to_owned(),
        n => format!("{n} ops wait"),
    }
}

fn count(n: usize, of: &str) -> String {
    count_u64(n as u64, of)
}

fn count_u64(n: u64, of: &str) -> String {
    match n {
        1 => format!("1 {of}"),
        n => format!("{n} {of}s"),
    }
}

fn bytes(n: u64) -> String {
    match n {
        1 => "1 byte".to_owned(),
        n if n < 10_000 => format!("{n} bytes"),
        n if n < 10_000_000 => format!("{} KiB", n / 1024),
        n => format!("{} MiB", n / (1024 * 1024)),
    }
}

/// A time as people read it: 0.2 s, 29.9 s, 4 m 10 s.
pub(crate) fn age(ms: f64) -> String {
    // Cut, not rounded: 59.96 s is no 60.0 s.
    let tenths = (ms.max(0.0) / 100.0) as u64;
    let seconds = tenths / 10;
    match seconds {
        0..60 => format!("{seconds}.{} s", tenths % 10),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

// A threshold: 10 s rather than 10.0 s.
fn plain(ms: f64) -> String {
    let text = age(ms);
    text.replace(".0 s", " s")
}

// Of "2026-02-11T13:56:28.123Z".
fn time_of_day(timestamp: &str) -> &str {
    timestamp.get(11..19).unwrap_or("?")
}

fn time_of_day_with_millis(timestamp: &str) -> String {
    format!("{} UTC", timestamp.get(11..23).unwrap_or("?"))
}
