//! One or more snapshots joined: the verdict, the edges, the cycles, and what is not known.
//!
//! ```
//! use inflight::{Report, Tracker, report::Verdict};
//!
//! let tracker = Tracker::new("indexer");
//! let op = tracker.begin("reindex");
//! op.phase("open index");
//!
//! let report = Report::local(&tracker);
//! assert_eq!(report.verdict(), &Verdict::Ok);
//! assert!(report.to_string().starts_with("OK: nothing is stuck. 1 op in flight"));
//! # drop(op);
//! ```

use std::{collections::HashSet, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    evidence,
    graph::{self, Circle, Node, Target, WaitGraph, Who, Why},
    held_up,
    id::OpId,
    listeners,
    snapshot::{
        Filter, HeldUp, Kind, Listener, LiveOp, Resource, SCHEMA, Snapshot, State, Thread,
        from_millis, millis,
    },
    tracker::Tracker,
};

/// The snapshots of one or more processes, joined.
///
/// Its `Display` is the text that `.diag` shows; it serialises as `.diag.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    verdict: Verdict,
    /// When the local snapshot was taken, UTC, RFC 3339.
    pub taken_at: String,
    /// The snapshot of the process that made the report.
    pub local: Snapshot,
    /// The snapshots of other processes.
    pub peers: Vec<Snapshot>,
    /// The processes that were asked and did not answer.
    pub peers_failed: Vec<PeerFailed>,
    /// Who waits for whom.
    pub edges: Vec<Edge>,
    cycles: Vec<Cycle>,
    /// The ops that wait behind a cycle and are not part of it.
    pub blocked: Vec<OpId>,
    /// The processes that calls wait for and that run no tracker.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
    /// Threads that wait in the kernel for a FUSE mount, behind a request of another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_up: Vec<HeldUp>,
    /// What could not be found out, a sentence each.
    pub unknown: Vec<String>,
    /// The mount whose ops it is about; all ops if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    mount: Option<String>,
    /// It is for whoever looks at the machine from outside: a process that records nothing leaves a gap.
    #[serde(skip)]
    is_of_machine: bool,
}

/// What a report comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// Ops wait for each other in a circle: proven, with no way round it.
    Deadlock,
    /// What is known is circular, but something is missing for a proof.
    LikelyDeadlock,
    /// Something has made no progress for the stuck threshold.
    Stuck,
    /// Something has made no progress for the slow threshold.
    Slow,
    /// Nothing is slow.
    #[default]
    Ok,
    /// Nothing is slow as far as is known, but somebody did not answer.
    Unknown,
    /// Nothing is recorded.
    Off,
    /// A verdict this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// One waits for another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edge {
    /// The id of the op that waits, or `resource:PID:ID`, or `thread:PID:TID`.
    pub from: String,
    /// What is waited for, likewise.
    pub to: String,
    /// `sent`, `served_by`, `waiting_for`, `thread`, `process`, `waits`, `holds` or `slot`.
    pub why: String,
    /// `certain` or `likely`.
    pub certainty: String,
    /// Since when.
    pub since_ms: f64,
}

/// Ops that wait for each other in a circle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cycle {
    /// Its members and no others, one that holds something first. Threads that work for no op stand in
    /// [`Report::edges`] alone.
    pub ops: Vec<OpId>,
    /// How long all its edges have held together.
    pub for_ms: f64,
    /// It is proof of a deadlock: all edges are certain, and have held together for one second.
    pub confirmed: bool,
}

/// A process that was asked for its snapshot, in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerFailed {
    /// Its socket or URL.
    pub address: String,
    /// What went wrong.
    pub why: String,
}

impl PeerFailed {
    /// The process that its socket is named after; `None` if it has no socket.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let name = Path::new(&self.address).file_name()?.to_str()?;
        let name = name.strip_suffix(".sock")?;
        name.split('-').next()?.parse().ok()
    }
}

/// A report's snapshots with their graph: what the verdict and the text are made from.
pub(crate) struct Analysis<'a> {
    pub(crate) snapshots: Vec<&'a Snapshot>,
    pub(crate) clocks: Vec<f64>,
    pub(crate) graph: WaitGraph<'a>,
    /// Those that have stood for long enough, and touch what the report is about.
    pub(crate) circles: Vec<Circle>,
    /// Which nodes the report is about.
    pub(crate) is_in_scope: Vec<bool>,
    /// Time since the node, or anything that it waits for, last moved.
    pub(crate) progress_ms: Vec<f64>,
}

impl Report {
    /// Reports what this process knows by itself.
    #[must_use]
    pub fn local(tracker: &Tracker) -> Self {
        let (snapshot, unknown) = seen_from_inside(tracker.snapshot());
        Self::joined(snapshot, Vec::new(), Vec::new(), unknown).with_evidence(false)
    }

    /// Joins snapshots, wherever they come from; the first stands for the process that asks.
    #[must_use]
    pub fn from_snapshots(snapshots: Vec<Snapshot>) -> Self {
        let mut snapshots = snapshots.into_iter();
        let local = snapshots.next().unwrap_or_default();
        Self::joined(local, snapshots.collect(), Vec::new(), Vec::new())
    }

    pub(crate) fn joined(
        local: Snapshot,
        peers: Vec<Snapshot>,
        peers_failed: Vec<PeerFailed>,
        unknown: Vec<String>,
    ) -> Self {
        let mut report = Self {
            schema: SCHEMA.to_owned(),
            taken_at: local.taken_at.clone(),
            local,
            peers,
            peers_failed,
            unknown,
            ..Self::default()
        };
        report.conclude();
        report
    }

    /// Adds what the kernel knows of those that carry no tracker: who listens where calls wait, and who is held up
    /// behind them. While all is well only `in_any_case`.
    pub(crate) fn with_evidence(mut self, in_any_case: bool) -> Self {
        let analysis = self.analyse();
        let is_here = |node: usize| {
            let of_node = analysis.snapshots[analysis.graph.nodes[node].process];
            graph::share_threads(analysis.snapshots[0], of_node)
        };
        let nodes = || analysis.graph.nodes.iter().enumerate();
        let calls: Vec<(u32, String)> = nodes()
            .filter(|(node, entry)| {
                let is_slow = matches!(analysis.state(*node), State::Slow | State::Stuck);
                is_slow && entry.waits.is_empty() && is_here(*node)
            })
            .filter_map(|(node, entry)| {
                let op = entry.op().filter(|op| op.kind == Kind::HttpClient)?;
                Some((analysis.pid(node), op.http.as_ref()?.peer.clone()?))
            })
            .collect();
        let callers: HashSet<u32> = nodes()
            .filter(|(node, _)| is_here(*node))
            .filter_map(|(_, entry)| Some(entry.op()?.caller.as_ref()?.tid))
            .collect();
        if !calls.is_empty() {
            let pids: Vec<u32> = self.snapshots().map(|s| s.process.pid).collect();
            self.listeners = listeners::find(&calls);
            self.listeners
                .retain(|listener| !pids.contains(&listener.pid));
            self.conclude();
        }
        if in_any_case || !matches!(self.verdict, Verdict::Ok | Verdict::Off) {
            let (held_up, unknown) = held_up::find(&callers);
            self.held_up = held_up;
            self.unknown.extend(unknown);
        }
        self
    }

    /// Narrows it to the ops that one mount has to do with.
    #[cfg(any(feature = "debug", feature = "fuse"))]
    pub(crate) fn about_mount(mut self, path: &str) -> Self {
        self.mount = Some(path.to_owned());
        self.conclude();
        // Of those that may be of any mount none is of one where all is well.
        let is_well = matches!(self.verdict, Verdict::Ok | Verdict::Off);
        self.held_up.retain(|held_up| match &held_up.mount {
            Some(mount) => mount == path,
            None => !is_well,
        });
        self
    }

    /// Has a process that records nothing count as one that is not known.
    #[cfg(feature = "debug")]
    pub(crate) fn of_machine(mut self) -> Self {
        self.is_of_machine = true;
        self.conclude();
        self
    }

    /// The peers that record nothing.
    pub(crate) fn silent(&self) -> usize {
        let peers = self.peers.iter().filter(|_| self.is_of_machine);
        peers.filter(|peer| peer.off.is_some()).count()
    }

    /// Judges anew: what has not moved for so long is stuck, whatever its process says.
    #[must_use]
    pub fn stuck_after(mut self, after: Duration) -> Self {
        for snapshot in std::iter::once(&mut self.local).chain(&mut self.peers) {
            snapshot.stuck_after_ms = millis(after);
            snapshot.slow_after_ms = snapshot.slow_after_ms.min(snapshot.stuck_after_ms);
        }
        self.conclude();
        self
    }

    /// Keeps the ops that pass the filter, and those that have to do with what is slow or stuck: to leave them
    /// out would hide it. Counts the others as left out.
    #[must_use]
    pub fn filtered(mut self, filter: &Filter) -> Self {
        let in_trouble = self.analyse().in_trouble();
        for snapshot in std::iter::once(&mut self.local).chain(&mut self.peers) {
            let before = snapshot.ops.len();
            snapshot.ops.retain(|op| {
                in_trouble.contains(&op.id) || filter.keeps(&op.kind, from_millis(op.age_ms))
            });
            snapshot.ops.truncate(filter.most());
            snapshot.totals.left_out += (before - snapshot.ops.len()) as u64;
        }
        self.conclude();
        self
    }

    /// What it comes to.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The circles, proven ones first.
    #[must_use]
    pub fn cycles(&self) -> &[Cycle] {
        &self.cycles
    }

    /// The ops that have not moved for the stuck threshold, nor has anything they wait for.
    #[must_use]
    pub fn stuck(&self) -> Vec<&LiveOp> {
        let analysis = self.analyse();
        let nodes = 0..analysis.graph.nodes.len();
        nodes
            .filter(|node| analysis.state(*node) == State::Stuck)
            .filter_map(|node| analysis.graph.nodes[node].op())
            .collect()
    }

    /// The ops that wait for this one, directly or not.
    #[must_use]
    pub fn blocked_behind(&self, op: OpId) -> Vec<OpId> {
        let analysis = self.analyse();
        let graph = &analysis.graph;
        let behind = graph.node(op).map(|node| graph.behind(&[node]));
        let behind = behind.into_iter().flatten();
        behind
            .filter_map(|node| graph.nodes[node].op().map(|op| op.id))
            .collect()
    }

    /// The local snapshot and those of the peers.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        std::iter::once(&self.local).chain(&self.peers)
    }

    pub(crate) fn analyse(&self) -> Analysis<'_> {
        let snapshots: Vec<&Snapshot> = self.snapshots().collect();
        let clocks = graph::clocks(&snapshots);
        let graph = WaitGraph::new(&snapshots, &self.listeners);
        let is_in_scope = scope(&graph, self.mount.as_deref());
        let mut circles = graph.circles(&clocks);
        circles.retain(|circle| {
            graph::has_stood(circle) && circle.members.iter().any(|node| is_in_scope[*node])
        });
        let progress_ms = progress(&graph);
        Analysis {
            snapshots,
            clocks,
            graph,
            circles,
            is_in_scope,
            progress_ms,
        }
    }

    fn conclude(&mut self) {
        let analysis = self.analyse();
        let verdict = analysis.verdict(self);
        let edges = analysis.edges();
        let ids = |nodes: &[usize]| {
            let ops = nodes.iter().filter_map(|n| analysis.graph.nodes[*n].op());
            ops.map(|op| op.id).collect()
        };
        let circles = analysis.circles.iter();
        let cycles = circles
            .map(|circle| Cycle {
                ops: ids(&circle.members),
                for_ms: micros(circle.for_ms),
                confirmed: WaitGraph::is_proof(circle),
            })
            .collect();
        let blocked = ids(&analysis.behind_circles());
        (self.verdict, self.edges, self.cycles, self.blocked) = (verdict, edges, cycles, blocked);
    }
}

impl Analysis<'_> {
    /// How a node fares, with what it waits for taken into account.
    pub(crate) fn state(&self, node: usize) -> State {
        let entry = &self.graph.nodes[node];
        let snapshot = self.snapshots[entry.process];
        match self.progress_ms[node] {
            _ if entry.is_idle() => State::Idle,
            // Of a process without a tracker, and a thread that waits for nothing known, none can tell.
            _ if entry.op().is_none() && entry.waits.is_empty() => State::Running,
            _ if matches!(entry.who, Who::Process(_)) => State::Running,
            progress if progress >= snapshot.stuck_after_ms => State::Stuck,
            progress if progress >= snapshot.slow_after_ms => State::Slow,
            _ => State::Running,
        }
    }

    /// The nodes the report is about that fare so.
    pub(crate) fn nodes_that_are(&self, state: &State) -> Vec<usize> {
        let nodes = 0..self.graph.nodes.len();
        nodes
            .filter(|node| self.is_in_scope[*node] && self.state(*node) == *state)
            .collect()
    }

    /// The nodes that wait for a member of a circle and are none.
    pub(crate) fn behind_circles(&self) -> Vec<usize> {
        let members = self.circles.iter().flat_map(|circle| &circle.members);
        self.graph.behind(&members.copied().collect::<Vec<_>>())
    }

    // The ops that have to do with what is slow or stuck, by any edge.
    fn in_trouble(&self) -> HashSet<OpId> {
        let nodes = 0..self.graph.nodes.len();
        let is_slow = |node: &usize| matches!(self.state(*node), State::Slow | State::Stuck);
        let is_related = connected(&self.graph, nodes.clone().filter(is_slow).collect());
        let ops = nodes.filter(|node| is_related[*node]);
        ops.filter_map(|node| Some(self.graph.nodes[node].op()?.id))
            .collect()
    }

    fn verdict(&self, report: &Report) -> Verdict {
        if let Some(first) = self.circles.first() {
            return match WaitGraph::is_proof(first) {
                true => Verdict::Deadlock,
                false => Verdict::LikelyDeadlock,
            };
        }
        if !self.nodes_that_are(&State::Stuck).is_empty() {
            Verdict::Stuck
        } else if !self.nodes_that_are(&State::Slow).is_empty() {
            Verdict::Slow
        } else if report.local.off.is_some() {
            Verdict::Off
        } else if !report.peers_failed.is_empty() || report.silent() > 0 {
            Verdict::Unknown
        } else {
            Verdict::Ok
        }
    }

    fn edges(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        let mut seen = HashSet::new();
        let now = self.clocks.first().copied().unwrap_or_default();
        for (from, node) in self.graph.nodes.iter().enumerate() {
            for condition in &node.waits {
                if let Some(resource) = condition.resource {
                    let pid = self.pid(from);
                    let name = format!("resource:{pid}:{}", resource.id);
                    edges.push(Edge {
                        from: self.name(from),
                        to: name.clone(),
                        why: "waits".to_owned(),
                        certainty: certainty(true).to_owned(),
                        since_ms: node.waited_ms(),
                    });
                    if seen.insert(name.clone()) {
                        edges.extend(held(&name, resource, pid));
                    }
                    continue;
                }
                edges.extend(condition.targets.iter().map(|target| Edge {
                    from: self.name(from),
                    to: self.name(target.node),
                    why: target.why.word().to_owned(),
                    certainty: certainty(target.is_certain).to_owned(),
                    since_ms: micros(now - target.since),
                }));
            }
        }
        edges
    }

    fn name(&self, node: usize) -> String {
        match self.graph.nodes[node].who {
            Who::Op(op) => op.id.to_string(),
            Who::Thread(thread) => thread_name(self.pid(node), thread),
            Who::Process(process) => format!("process:{}", process.pid),
        }
    }

    fn pid(&self, node: usize) -> u32 {
        self.snapshots[self.graph.nodes[node].process].process.pid
    }
}

/// Has the process say what it alone can: where its threads sleep.
pub(crate) fn seen_from_inside(mut snapshot: Snapshot) -> (Snapshot, Vec<String>) {
    let mut unknown = evidence::add(&mut snapshot);
    if snapshot.totals.not_recorded > 0 {
        unknown.push(format!(
            "ops that were not recorded ({}), because as many were in flight as the tracker keeps",
            snapshot.totals.not_recorded
        ));
    }
    (snapshot, unknown)
}

// The nodes that have to do with ops of the mount, by any edge; all without a mount.
fn scope(graph: &WaitGraph<'_>, mount: Option<&str>) -> Vec<bool> {
    let nodes = &graph.nodes;
    let Some(mount) = mount else {
        return vec![true; nodes.len()];
    };
    let is_of_mount = |node: &usize| {
        let fuse = nodes[*node].op().and_then(|op| op.fuse.as_ref());
        fuse.is_some_and(|fuse| fuse.mount == mount)
    };
    connected(graph, (0..nodes.len()).filter(is_of_mount).collect())
}

// Those that have to do with any of these, by any edge.
fn connected(graph: &WaitGraph<'_>, mut todo: Vec<usize>) -> Vec<bool> {
    let mut is_connected = vec![false; graph.nodes.len()];
    while let Some(node) = todo.pop() {
        if !std::mem::replace(&mut is_connected[node], true) {
            todo.extend(&graph.waiters[node]);
            todo.extend(graph.out(node).map(|target| target.node));
        }
    }
    is_connected
}

// What is waited for moves for those who wait.
fn progress(graph: &WaitGraph<'_>) -> Vec<f64> {
    let mut progress: Vec<f64> = graph.nodes.iter().map(Node::own_progress_ms).collect();
    let movers = movers(graph);
    let mut order: Vec<usize> = (0..progress.len()).collect();
    order.sort_by(|a, b| progress[*a].total_cmp(&progress[*b]));
    let mut is_known = vec![false; progress.len()];
    // From the one that moved last: all who wait for it, and are not known yet, moved with it.
    for node in order {
        let mut todo = vec![node];
        let moved = progress[node];
        while let Some(node) = todo.pop() {
            if !std::mem::replace(&mut is_known[node], true) {
                progress[node] = moved;
                todo.extend(&movers[node]);
            }
        }
    }
    progress
}

// For each node those who move with it. Along a guess nobody does: what is stuck would hide behind it.
fn movers(graph: &WaitGraph<'_>) -> Vec<Vec<usize>> {
    let edges =
        || (0..graph.nodes.len()).flat_map(|from| graph.out(from).map(move |to| (from, to)));
    let by_trace = |target: &Target| target.why == Why::ServedBy && !target.is_certain;
    let mut callers = vec![0; graph.nodes.len()];
    for (_, target) in edges().filter(|(_, target)| by_trace(target)) {
        callers[target.node] += 1;
    }
    let mut movers = vec![Vec::new(); graph.nodes.len()];
    for (from, target) in edges() {
        let is_guess = match target.why {
            Why::Process => graph.nodes[from].op().is_some(),
            _ => by_trace(target) && callers[target.node] > 1,
        };
        // A stream that goes on gives nothing back by that.
        let is_kept = matches!(target.why, Why::Holds | Why::Slot);
        if is_guess || (is_kept && graph.nodes[target.node].is_idle()) {
            continue;
        }
        movers[target.node].push(from);
    }
    movers
}

fn held<'a>(name: &str, resource: &'a Resource, pid: u32) -> impl Iterator<Item = Edge> + 'a {
    let name = name.to_owned();
    resource.holders.iter().filter_map(move |holder| {
        let op = holder.op.map(|op| op.to_string());
        let thread = holder.thread.as_ref();
        Some(Edge {
            from: name.clone(),
            to: op.or_else(|| Some(thread_name(pid, thread?)))?,
            why: Why::Holds.word().to_owned(),
            certainty: certainty(true).to_owned(),
            since_ms: holder.since_ms,
        })
    })
}

fn thread_name(pid: u32, thread: &Thread) -> String {
    format!("thread:{pid}:{}", thread.tid)
}

fn certainty(is_certain: bool) -> &'static str {
    match is_certain {
        true => "certain",
        false => "likely",
    }
}

// Three decimals, as all times of the schema.
fn micros(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}
