//! The first lines: the verdict in a sentence, who is to blame, who is blocked, and the way out.

use std::collections::HashSet;

use super::{
    Text,
    words::{age, and, count, count_u64, resource, short, time_of_day},
};
use crate::{
    graph::{Circle, Condition, Target, WaitGraph, Why},
    report::Verdict,
    snapshot::{Kind, Listener, State},
};

/// A process of a circle that is known only by where it listens, and the mount that it is inside of.
struct Stranger<'a> {
    node: usize,
    listener: &'a Listener,
    mount: &'a str,
}

impl<'a> Text<'a> {
    pub(super) fn headline(&mut self, chains: &[Vec<usize>]) {
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
                let (failed, silent) = (self.report.peers_failed.len(), self.report.silent());
                let asked = failed + self.report.peers.len();
                let missing = match (failed, silent) {
                    (_, 0) => format!("{failed} of {asked} peers did not answer"),
                    (0, _) => format!("{silent} of {asked} peers recorded nothing"),
                    _ => format!(
                        "of {asked} peers {failed} did not answer, and {silent} recorded nothing"
                    ),
                };
                self.wrapped(&format!(
                    "UNKNOWN: {missing}, and nothing is stuck as far as this process can see"
                ));
            }
            _ => {
                let ops = self.in_scope();
                let oldest = ops.iter().map(|node| self.age(*node));
                let oldest = oldest.fold(0.0, f64::max);
                let young: u64 = self.report.snapshots().map(|s| s.totals.left_out).sum();
                let in_flight = match ops.len() {
                    0 if young > 0 => format!("{} in flight", count_u64(young, "younger op")),
                    0 => "Nothing is in flight".to_owned(),
                    _ => format!("{} in flight, oldest {}", self.counted(&ops), age(oldest)),
                };
                let checked = self.checked();
                self.wrapped(&format!("OK: nothing is stuck. {in_flight}; {checked}"));
                let held_up = self.report.held_up.len();
                if held_up > 0 {
                    let threads = count(held_up, "thread");
                    self.wrapped(&format!(
                        "But {threads} wait in the kernel for FUSE mounts, for how long is not known: they are listed below"
                    ));
                }
            }
        }
    }

    fn deadlock(&mut self) {
        let analysis = self.analysis;
        let circle = &analysis.circles[0];
        let mut names: Vec<String> = circle.members.iter().map(|n| self.process_of(*n)).collect();
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let who = match (names.as_slice(), self.stranger(circle)) {
            (_, Some(stranger)) => {
                let process = self.process_of(stranger.node);
                let mount = short(stranger.mount, 30);
                format!("{mount} waits for {process}, which is itself inside it")
            }
            ([one], None) if self.calls_itself(circle) => {
                format!("{one} calls into its own mount")
            }
            ([one], None) if circle.members.len() == 1 => {
                let one_op = self.counted(&circle.members);
                format!("{one_op} in {one} waits for what it holds itself")
            }
            ([one], None) => {
                let members = self.counted(&circle.members);
                format!("{members} in {one} wait for each other")
            }
            (names, None) => format!("{} wait for each other", and(names)),
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

    fn calls_itself(&self, circle: &Circle) -> bool {
        let edges = self.edges_within(circle);
        let mut calls = edges.iter().filter(|(_, target)| target.why == Why::Thread);
        calls.any(|(from, target)| self.is_of_one_process(*from, target.node))
    }

    fn stranger(&self, circle: &Circle) -> Option<Stranger<'a>> {
        let edges = self.edges_within(circle);
        let found = edges
            .iter()
            .find_map(|(from, target)| Some((*from, self.listener(*from)?, target)));
        let (node, listener, target) = found?;
        Some(Stranger {
            node,
            listener,
            mount: &self.op(target.node)?.fuse.as_ref()?.mount,
        })
    }

    /// Why no more is known of a process than that it listens, as what follows its name.
    pub(super) fn why_unknown(&self, listener: &Listener) -> &'static str {
        let mut failed = self.report.peers_failed.iter();
        if !failed.any(|failed| failed.pid() == Some(listener.pid)) {
            "runs no inflight"
        } else if is_stopped(listener) {
            "is stopped (state T; kill -CONT lets it go on)"
        } else {
            "was asked and did not answer"
        }
    }

    fn why_only_likely(&self, circle: &Circle) -> Option<String> {
        let likely = self.edges_within(circle);
        let (from, target) = likely.into_iter().find(|(_, target)| !target.is_certain)?;
        let number = |node| self.number(node);
        if let Some(stranger) = self.stranger(circle) {
            let process = self.process_of(stranger.node);
            let why = self.why_unknown(stranger.listener);
            return Some(format!(
                "{process} {why}: its process is known, its requests are not"
            ));
        }
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
            Some(held) => format!("holds {}", resource(held)),
            None => "has the only slot left".to_owned(),
        };
        let mount = |node: usize| {
            let op = self.op(node)?;
            Some(op.fuse.as_ref()?.mount.clone())
        };
        let doing = match (waits.1.why, mount(waits.1.node)) {
            (Why::Thread, Some(_)) if self.is_of_one_process(holder, waits.1.node) => {
                format!("calls into its own mount ({})", self.number(waits.1.node))
            }
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

    pub(super) fn stuck(&mut self, chains: &[Vec<usize>]) {
        let stuck = self.analysis.nodes_that_are(&State::Stuck);
        let longest = self.longest(&stuck);
        let chain = chains.first().map(Vec::as_slice).unwrap_or_default();
        let is_op = |node: &&usize| self.listener(**node).is_none();
        let Some(cause) = chain.iter().rfind(is_op).copied() else {
            return;
        };
        let what = self.what_a_cause_does(cause);
        let more = match chains.len() {
            1 => String::new(),
            n => format!("; {} below", count(n - 1, "more cause")),
        };
        self.wrapped(&format!(
            "STUCK for {} (since {}): {what}{more}",
            age(longest),
            self.since(longest),
        ));
        let mut out = self.analysis.graph.out(cause);
        let listener = out.find_map(|target| self.listener(target.node));
        if listener.is_some_and(is_stopped) {
            self.line("Why: its process is stopped (state T); kill -CONT lets it go on");
        }
        if let Some(resource) = self.held_by(cause).first() {
            let held = format!("{} holds {resource}", self.number(cause));
            let doing = match self.analysis.state(cause) {
                State::Idle => "is idle",
                _ => "does not move",
            };
            self.wrapped(&format!("Culprit: {held} while it {doing}"));
        }
        self.blocked_and_way_out();
    }

    fn what_a_cause_does(&self, cause: usize) -> String {
        let behind = self.analysis.graph.behind(&[cause]);
        let wait = match behind.len() {
            0 => String::new(),
            1 => format!("{} waits for ", self.counted(&behind)),
            _ => format!("{} wait for ", self.counted(&behind)),
        };
        let what = format!("{} in {}", self.what(cause), self.process_of(cause));
        if let Some(wanted) = self.wanted_by(cause) {
            return format!("{wait}{what}, which waits for {wanted}");
        }
        let Some(op) = self.op(cause) else {
            return format!("{wait}a thread that works for no op, and holds what they want");
        };
        let peer = op.http.as_ref().and_then(|http| http.peer.clone());
        let has_status = op.http.as_ref().is_some_and(|http| http.status.is_some());
        match (&op.kind, peer) {
            (Kind::HttpClient, Some(peer)) => {
                let wait = if behind.is_empty() {
                    "1 op waits for "
                } else {
                    &wait
                };
                let mut out = self.analysis.graph.out(cause);
                let process = out.find(|target| self.listener(target.node).is_some());
                let process = process.map(|target| format!(" = {}", self.process_of(target.node)));
                let peer = format!("{peer}{}", process.unwrap_or_default());
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
                match self.analysis.state(cause) {
                    State::Idle => format!("{wait}{what}, which is long by design{phase}"),
                    _ => format!("{wait}{what}, which does not move{phase}"),
                }
            }
        }
    }

    pub(super) fn slow(&mut self) {
        let slow = self.analysis.nodes_that_are(&State::Slow);
        let longest = self.longest(&slow);
        let verb = if slow.len() == 1 { "has" } else { "have" };
        self.line(&format!(
            "SLOW: {} {verb} not moved for more than {}, the longest for {}",
            self.counted(&slow),
            age(self.report.local.slow_after_ms),
            age(longest)
        ));
    }

    pub(super) fn longest(&self, nodes: &[usize]) -> f64 {
        let progress = nodes.iter().map(|node| self.analysis.progress_ms[*node]);
        progress.fold(0.0, f64::max)
    }

    pub(super) fn since(&self, for_ms: f64) -> String {
        let at: Option<jiff::Timestamp> = self.report.taken_at.parse().ok();
        let span = jiff::SignedDuration::from_millis(for_ms as i64);
        let at = at.and_then(|at| at.checked_sub(span).ok());
        at.map_or_else(
            || "?".to_owned(),
            |at| format!("{} UTC", time_of_day(&at.to_string())),
        )
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

    pub(super) fn condition(&self, from: usize, to: usize) -> Option<&Condition<'a>> {
        let mut waits = self.analysis.graph.nodes[from].waits.iter();
        waits.find(|condition| condition.targets.iter().any(|target| target.node == to))
    }
}

fn is_stopped(listener: &Listener) -> bool {
    matches!(listener.state.as_str(), "T" | "t")
}
