//! Who waits for whom over the snapshots of several processes, and which of them wait in a circle.
//!
//! Pure: the same snapshots always give the same graph. An op that can never go on again is *doomed*:
//! something it waits for leaves it no way out. Ops that are doomed by each other are a cycle; the
//! others that are doomed stand behind one.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    id::{OpId, TraceId},
    proc::sleeps_in_fuse,
    snapshot::{
        Kind, Listener, LiveOp, On, ParentFrom, Party, Resource, Snapshot, State, Thread, Wait,
    },
};

/// So long must all edges of a cycle have held together.
const PROOF_MS: f64 = 1000.0;

/// The wait-for graph of some snapshots.
#[derive(Debug)]
pub(crate) struct WaitGraph<'a> {
    pub(crate) nodes: Vec<Node<'a>>,
    index: HashMap<OpId, usize>,
    /// The edges the other way round: who waits for a node.
    pub(crate) waiters: Vec<Vec<usize>>,
}

/// An op, a thread that holds a resource or waits for one without an op, or a process that runs no tracker.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) who: Who<'a>,
    /// Which snapshot it stands in.
    pub(crate) process: usize,
    /// What it waits for: each of these alone holds it up.
    pub(crate) waits: Vec<Condition<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Who<'a> {
    Op(&'a LiveOp),
    Thread(&'a Thread),
    /// One that runs no tracker.
    Process(&'a Listener),
}

/// One thing that is waited for.
#[derive(Debug)]
pub(crate) struct Condition<'a> {
    pub(crate) targets: Vec<Target>,
    pub(crate) needs: Needs,
    /// There is a further way to go on that no target stands for.
    pub(crate) has_way_out: bool,
    /// The resource between, if there is one.
    pub(crate) resource: Option<&'a Resource>,
}

/// Which of the targets must go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Any one of them is enough.
    Any,
    /// Every one of them.
    All,
}

/// An edge to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) node: usize,
    pub(crate) why: Why,
    pub(crate) is_certain: bool,
    /// Since when, on the clock of the first snapshot.
    pub(crate) since: f64,
}

/// Why one waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Sent,
    ServedBy,
    WaitingFor,
    Thread,
    Process,
    Holds,
    Slot,
}

/// Nodes that wait for each other in a circle.
#[derive(Clone, Debug)]
pub(crate) struct Circle {
    /// In the order in which they wait for each other, as far as there is one.
    pub(crate) members: Vec<usize>,
    /// How long all edges have held together.
    pub(crate) for_ms: f64,
    /// All edges are certain.
    pub(crate) is_certain: bool,
}

impl<'a> WaitGraph<'a> {
    /// Joins snapshots. Of an op that stands in two of them the first counts.
    pub(crate) fn new(snapshots: &[&'a Snapshot], listeners: &'a [Listener]) -> Self {
        let mut nodes = Vec::new();
        let mut index = HashMap::new();
        for (process, snapshot) in snapshots.iter().enumerate() {
            for op in &snapshot.ops {
                index.entry(op.id).or_insert_with(|| {
                    nodes.push(Node {
                        who: Who::Op(op),
                        process,
                        waits: Vec::new(),
                    });
                    nodes.len() - 1
                });
            }
        }
        let mut graph = Self {
            nodes,
            index,
            waiters: Vec::new(),
        };
        let mut joined = Join::new(snapshots, &mut graph);
        joined.waiting_threads();
        joined.stated();
        joined.served();
        joined.threads();
        joined.listeners(listeners);
        graph.waiters = vec![Vec::new(); graph.nodes.len()];
        for from in 0..graph.nodes.len() {
            let targets: Vec<usize> = graph.out(from).map(|target| target.node).collect();
            targets
                .into_iter()
                .for_each(|to| graph.waiters[to].push(from));
        }
        graph
    }

    pub(crate) fn node(&self, id: OpId) -> Option<usize> {
        self.index.get(&id).copied()
    }

    /// All edges that leave a node.
    pub(crate) fn out(&self, node: usize) -> impl Iterator<Item = &Target> {
        let waits = self.nodes[node].waits.iter();
        waits.flat_map(|condition| &condition.targets)
    }

    /// The circles, proven ones first, then the oldest.
    pub(crate) fn circles(&self, clocks: &[f64]) -> Vec<Circle> {
        let mut circles = Vec::new();
        let proven = self.doomed(true);
        self.find(&proven, true, clocks, &mut circles);
        let possible = self.doomed(false);
        let mut known = vec![false; self.nodes.len()];
        let members = circles.iter().flat_map(|circle| &circle.members);
        members.for_each(|member| known[*member] = true);
        let mut likely = Vec::new();
        self.find(&possible, false, clocks, &mut likely);
        likely.retain(|circle| circle.members.iter().all(|member| !known[*member]));
        circles.append(&mut likely);
        let is_proof = |circle: &Circle| circle.is_certain && circle.for_ms >= PROOF_MS;
        circles.sort_by(|a, b| {
            let proof = is_proof(b).cmp(&is_proof(a));
            proof.then(b.for_ms.total_cmp(&a.for_ms))
        });
        circles
    }

    /// Whether a circle is proof of a deadlock.
    pub(crate) fn is_proof(circle: &Circle) -> bool {
        circle.is_certain && has_stood(circle)
    }

    /// Which nodes can never go on; with `strictly` only certain edges count.
    pub(crate) fn doomed(&self, strictly: bool) -> Vec<bool> {
        let mut doomed = vec![true; self.nodes.len()];
        // All are, until they are shown to have a way out; who is free may free those who wait for it.
        let mut todo: Vec<usize> = (0..self.nodes.len()).collect();
        while let Some(node) = todo.pop() {
            let mut waits = self.nodes[node].waits.iter();
            if doomed[node] && !waits.any(|wait| wait.is_final(&doomed, strictly)) {
                doomed[node] = false;
                todo.extend(&self.waiters[node]);
            }
        }
        doomed
    }

    /// The nodes that wait for any of these, directly or not, nearest first.
    pub(crate) fn behind(&self, nodes: &[usize]) -> Vec<usize> {
        let mut seen = vec![false; self.nodes.len()];
        nodes.iter().for_each(|node| seen[*node] = true);
        let mut found = nodes.to_vec();
        let mut at = 0;
        while at < found.len() {
            for waiter in &self.waiters[found[at]] {
                if !seen[*waiter] {
                    seen[*waiter] = true;
                    found.push(*waiter);
                }
            }
            at += 1;
        }
        found.split_off(nodes.len())
    }

    // Strongly connected parts of what is doomed.
    fn find(&self, doomed: &[bool], strictly: bool, clocks: &[f64], into: &mut Vec<Circle>) {
        let edges: Vec<Vec<&Target>> = (0..self.nodes.len())
            .map(|node| {
                if !doomed[node] {
                    return Vec::new();
                }
                let waits = self.nodes[node].waits.iter();
                waits
                    .filter(|wait| wait.is_final(doomed, strictly))
                    .flat_map(|wait| &wait.targets)
                    .filter(|target| doomed[target.node] && (target.is_certain || !strictly))
                    .collect()
            })
            .collect();
        let mut part = vec![usize::MAX; self.nodes.len()];
        for (number, members) in components(&edges).into_iter().enumerate() {
            members.iter().for_each(|node| part[*node] = number);
            let inner: Vec<&&Target> = members
                .iter()
                .flat_map(|node| &edges[*node])
                .filter(|target| part[target.node] == number)
                .collect();
            if inner.is_empty() {
                continue;
            }
            let youngest = inner.iter().map(|t| t.since).fold(f64::MIN, f64::max);
            let processes = members.iter().map(|node| self.nodes[*node].process);
            let seen_at = processes.map(|p| clocks[p]).fold(f64::MAX, f64::min);
            let held = |why: Why| inner.iter().find(|t| t.why == why).map(|t| t.node);
            let first = held(Why::Holds).or_else(|| held(Why::Slot));
            let first = first.unwrap_or(members[0]);
            let is_member = |node: usize| part[node] == number;
            into.push(Circle {
                for_ms: (seen_at - youngest).max(0.0),
                is_certain: inner.iter().all(|target| target.is_certain),
                members: in_order(first, is_member, &edges),
            });
        }
    }
}

impl<'a> Node<'a> {
    pub(crate) fn op(&self) -> Option<&'a LiveOp> {
        match self.who {
            Who::Op(op) => Some(op),
            Who::Thread(_) | Who::Process(_) => None,
        }
    }

    /// How long it has waited for the resource that it waits for.
    pub(crate) fn waited_ms(&self) -> f64 {
        match self.who {
            Who::Op(op) => op.phase.wait.as_ref().map_or(0.0, |wait| wait.since_ms),
            // One that waits is here as it is among the waiters.
            Who::Thread(thread) => thread.since_ms,
            Who::Process(_) => 0.0,
        }
    }

    /// It waits for a resource.
    pub(crate) fn wants_resource(&self) -> bool {
        self.waits.iter().any(|wait| wait.resource.is_some())
    }

    /// Time since it moved by itself.
    pub(crate) fn own_progress_ms(&self) -> f64 {
        match self.who {
            Who::Op(op) => f64::min(op.progress_ms, op.age_ms),
            Who::Thread(thread) if self.wants_resource() => thread.since_ms,
            Who::Thread(_) | Who::Process(_) => f64::MAX,
        }
    }

    /// It is long by design.
    pub(crate) fn is_idle(&self) -> bool {
        self.op().is_some_and(|op| op.state == State::Idle)
    }
}

impl Condition<'_> {
    // Nothing of it will ever come.
    fn is_final(&self, doomed: &[bool], strictly: bool) -> bool {
        let holds = |t: &Target| doomed[t.node] && (t.is_certain || !strictly);
        match self.needs {
            Needs::All => self.targets.iter().any(holds),
            Needs::Any => {
                !self.has_way_out && !self.targets.is_empty() && self.targets.iter().all(holds)
            }
        }
    }
}

impl Why {
    /// The word of the schema.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::ServedBy => "served_by",
            Self::WaitingFor => "waiting_for",
            Self::Thread => "thread",
            Self::Process => "process",
            Self::Holds => "holds",
            Self::Slot => "slot",
        }
    }
}

/// Whether a circle has stood long enough to be more than a moment.
pub(crate) fn has_stood(circle: &Circle) -> bool {
    circle.for_ms >= PROOF_MS
}

/// When each snapshot was taken, on the clock of the first.
pub(crate) fn clocks(snapshots: &[&Snapshot]) -> Vec<f64> {
    let Some(first) = snapshots.first() else {
        return Vec::new();
    };
    snapshots
        .iter()
        // Another boot has another clock: then all that is known is that they were asked together.
        .map(|snapshot| match share_clock(first, snapshot) {
            true => snapshot.clock_ms,
            false => first.clock_ms,
        })
        .collect()
}

fn share_clock(one: &Snapshot, other: &Snapshot) -> bool {
    one.process.boot_id == other.process.boot_id && one.process.time_ns == other.process.time_ns
}

/// Whether thread ids compare, and so do times.
pub(crate) fn share_threads(one: &Snapshot, other: &Snapshot) -> bool {
    share_clock(one, other) && one.process.pid_ns == other.process.pid_ns
}

/// Draws the edges.
struct Join<'g, 'a> {
    snapshots: &'g [&'a Snapshot],
    clocks: Vec<f64>,
    graph: &'g mut WaitGraph<'a>,
    // The nodes of threads, by process and thread id.
    of_threads: HashMap<(usize, u32), usize>,
}

impl<'g, 'a> Join<'g, 'a> {
    fn new(snapshots: &'g [&'a Snapshot], graph: &'g mut WaitGraph<'a>) -> Self {
        Self {
            snapshots,
            clocks: clocks(snapshots),
            graph,
            of_threads: HashMap::new(),
        }
    }

    // Threads that work for no op and wait for a resource.
    fn waiting_threads(&mut self) {
        for (process, snapshot) in self.snapshots.iter().enumerate() {
            // Of waits within each other the youngest is the one that the thread is in.
            let mut innermost: BTreeMap<u32, (&Resource, &Party, &Thread)> = BTreeMap::new();
            for resource in &snapshot.resources {
                for waiter in resource.waiters.iter().filter(|waiter| waiter.op.is_none()) {
                    let Some(thread) = &waiter.thread else {
                        continue;
                    };
                    let this = (resource, waiter, thread);
                    let known = innermost.entry(thread.tid).or_insert(this);
                    if waiter.since_ms < known.1.since_ms {
                        *known = this;
                    }
                }
            }
            for (_, _, thread) in innermost.values() {
                self.thread(process, thread);
            }
            for (resource, waiter, thread) in innermost.into_values() {
                let since = self.clocks[process] - waiter.since_ms;
                // As for ops: one that is given back frees a waiter, all of them only where there is one.
                let needs = match resource.capacity {
                    0 | 1 => Needs::All,
                    _ => Needs::Any,
                };
                let condition = self.on_holders(process, resource, needs, since);
                let node = self.thread(process, thread);
                self.graph.nodes[node].waits.push(condition);
            }
        }
    }

    // What ops said that they wait for.
    fn stated(&mut self) {
        for node in 0..self.graph.nodes.len() {
            let Some(op) = self.graph.nodes[node].op() else {
                continue;
            };
            let Some(wait) = &op.phase.wait else {
                continue;
            };
            let process = self.graph.nodes[node].process;
            let since = self.clocks[process] - wait.since_ms;
            let condition = match wait.on {
                On::Call => self.on_ops(wait, Why::Sent, since),
                On::Op => self.on_ops(wait, Why::WaitingFor, since),
                On::Queue => self.on_ops(wait, Why::Slot, since),
                On::Resource => self.on_resource(process, wait, since),
                _ => continue,
            };
            self.graph.nodes[node].waits.push(condition);
        }
    }

    fn on_ops(&self, wait: &Wait, why: Why, since: f64) -> Condition<'a> {
        let known = wait.ops.iter().filter_map(|id| self.graph.node(*id));
        let targets: Vec<_> = known
            .map(|node| Target {
                node,
                why,
                is_certain: true,
                // An op that came into a slot after the wait began holds it up only since then.
                since: since.max(self.begun(node)),
            })
            .collect();
        Condition {
            has_way_out: wait.others > 0 || targets.len() < wait.ops.len(),
            needs: needs(wait),
            targets,
            resource: None,
        }
    }

    fn on_resource(&mut self, process: usize, wait: &Wait, since: f64) -> Condition<'a> {
        let snapshot = self.snapshots[process];
        let mut of_id = snapshot.resources.iter();
        let Some(resource) = of_id.find(|r| Some(&r.id) == wait.resource.as_ref()) else {
            return self.on_ops(wait, Why::Holds, since);
        };
        let mut condition = self.on_holders(process, resource, needs(wait), since);
        condition.has_way_out |= wait.others > 0;
        condition
    }

    fn on_holders(
        &mut self,
        process: usize,
        resource: &'a Resource,
        needs: Needs,
        since: f64,
    ) -> Condition<'a> {
        let mut has_way_out = (resource.holders.len() as u64) < resource.capacity.max(1);
        let mut targets = Vec::with_capacity(resource.holders.len());
        for holder in &resource.holders {
            let node = match (holder.op, &holder.thread) {
                (Some(id), _) => self.graph.node(id),
                (None, Some(thread)) => Some(self.thread(process, thread)),
                (None, None) => None,
            };
            match node {
                Some(node) => targets.push(Target {
                    node,
                    why: Why::Holds,
                    is_certain: true,
                    since: since.max(self.clocks[process] - holder.since_ms),
                }),
                None => has_way_out = true,
            }
        }
        Condition {
            targets,
            needs,
            has_way_out,
            resource: Some(resource),
        }
    }

    // One node a thread and process.
    fn thread(&mut self, process: usize, thread: &'a Thread) -> usize {
        let nodes = &mut self.graph.nodes;
        *self
            .of_threads
            .entry((process, thread.tid))
            .or_insert_with(|| {
                nodes.push(Node {
                    who: Who::Thread(thread),
                    process,
                    waits: Vec::new(),
                });
                nodes.len() - 1
            })
    }

    // From a request that was sent to the op that answers it.
    fn served(&mut self) {
        let mut found: HashMap<usize, Vec<Target>> = HashMap::new();
        let mut calls: HashMap<TraceId, Vec<usize>> = HashMap::new();
        for (node, caller) in self.graph.nodes.iter().enumerate() {
            if let Some(op) = caller.op().filter(|op| op.kind == Kind::HttpClient) {
                calls.entry(op.trace_id).or_default().push(node);
            }
        }
        for node in 0..self.graph.nodes.len() {
            let Some(op) = self.graph.nodes[node].op() else {
                continue;
            };
            if op.kind != Kind::HttpServer {
                continue;
            }
            for (caller, is_certain) in self.callers(op, &calls) {
                found.entry(caller).or_default().push(Target {
                    node,
                    why: Why::ServedBy,
                    is_certain,
                    since: self.begun(node),
                });
            }
        }
        for (caller, targets) in found {
            self.graph.nodes[caller].waits.push(Condition {
                targets,
                needs: Needs::Any,
                has_way_out: false,
                resource: None,
            });
        }
    }

    // Who sent a request, and whether that is certain; `calls` are those of each trace.
    fn callers(&self, op: &LiveOp, calls: &HashMap<TraceId, Vec<usize>>) -> Vec<(usize, bool)> {
        let Some(parent) = op.parent_id else {
            return Vec::new();
        };
        let is_named = op.parent_from == Some(ParentFrom::InflightOp);
        if let Some(caller) = self.graph.node(parent) {
            return vec![(caller, is_named)];
        }
        if is_named {
            return Vec::new();
        }
        // Something in between made a span of its own: only the trace is left to go by.
        let of_trace = calls.get(&op.trace_id).into_iter().flatten();
        of_trace.map(|caller| (*caller, false)).collect()
    }

    // From whoever runs on a thread to the FUSE op which that thread has called.
    fn threads(&mut self) {
        let mut by_tid: HashMap<u32, Vec<usize>> = HashMap::new();
        for (node, called) in self.graph.nodes.iter().enumerate() {
            let caller = called.op().and_then(|op| op.caller.as_ref());
            if let Some(caller) = caller.filter(|caller| caller.tid != 0) {
                by_tid.entry(caller.tid).or_default().push(node);
            }
        }
        let mut has_runner = vec![false; self.graph.nodes.len()];
        for node in 0..self.graph.nodes.len() {
            let runner = &self.graph.nodes[node];
            let threads: Vec<&Thread> = match runner.who {
                Who::Op(op) => op
                    .thread
                    .as_deref()
                    .into_iter()
                    .chain(&op.more_threads)
                    .collect(),
                Who::Thread(thread) => vec![thread],
                Who::Process(_) => Vec::new(),
            };
            let mut targets = Vec::new();
            let mut has_way_out = false;
            for thread in threads {
                let called = by_tid.get(&thread.tid).into_iter().flatten();
                let before = targets.len();
                for called in called.filter(|called| **called != node) {
                    if let Some(target) = self.called_by(node, thread, *called) {
                        has_runner[*called] = true;
                        targets.push(target);
                    }
                }
                // A thread that is in no file-system call can go on.
                has_way_out |= targets.len() == before;
            }
            if !targets.is_empty() {
                has_way_out |= self.goes_on_without(node, &targets);
                self.graph.nodes[node].waits.push(Condition {
                    targets,
                    needs: Needs::Any,
                    has_way_out,
                    resource: None,
                });
            }
        }
        self.processes(&has_runner);
    }

    // An op may have given up what a thread of it does, as at a timeout: it has if it waits for something else, or
    // moved while the thread was in the call.
    fn goes_on_without(&self, runner: usize, calls: &[Target]) -> bool {
        let node = &self.graph.nodes[runner];
        // A thread is nowhere else.
        let Some(op) = node.op() else {
            return false;
        };
        let moved = self.clocks[node.process] - op.progress_ms;
        let youngest = calls.iter().map(|call| call.since).fold(f64::MIN, f64::max);
        op.phase.wait.is_some() || moved > youngest
    }

    fn called_by(&self, runner: usize, thread: &Thread, called: usize) -> Option<Target> {
        let (runner, call) = (&self.graph.nodes[runner], &self.graph.nodes[called]);
        let (of_runner, of_call) = (self.snapshots[runner.process], self.snapshots[call.process]);
        if !share_threads(of_runner, of_call) {
            return None;
        }
        let begun = self.begun(called);
        let seen_at = self.clocks[runner.process];
        // It ran before the call began, and did so still when it was looked at after that.
        let ran_all_along = seen_at - thread.since_ms <= begun && begun <= seen_at;
        if !ran_all_along {
            return None;
        }
        Some(Target {
            node: called,
            why: Why::Thread,
            is_certain: thread.wchan.as_deref().is_some_and(sleeps_in_fuse),
            since: begun,
        })
    }

    // A call made by a process that serves requests, on a thread that works for none of them: it may
    // have been made for any that are older and wait for nothing else.
    fn processes(&mut self, has_runner: &[bool]) {
        let serving: Vec<u32> = self.snapshots.iter().map(|s| s.process.pid).collect();
        for (called, has_runner) in has_runner.iter().enumerate() {
            let call = &self.graph.nodes[called];
            let caller = call.op().and_then(|op| op.caller.as_ref());
            // A child that has not reached its exec calls for its parent.
            let Some(pid) = caller.and_then(|caller| match &caller.child_of {
                Some(parent) => Some(parent.pid),
                None => caller.pid,
            }) else {
                continue;
            };
            if *has_runner || !serving.contains(&pid) {
                continue;
            }
            let begun = self.begun(called);
            let may_be = |node: &usize| {
                let runner = &self.graph.nodes[*node];
                let of_runner = self.snapshots[runner.process];
                let Some(op) = runner.op() else {
                    return false;
                };
                runner.process != call.process
                    && of_runner.process.pid == pid
                    && share_threads(of_runner, self.snapshots[call.process])
                    && matches!(op.kind, Kind::HttpServer | Kind::Task)
                    && op.state != State::Idle
                    && runner.waits.is_empty()
                    && self.begun(*node) <= begun
            };
            let candidates: Vec<_> = (0..self.graph.nodes.len()).filter(may_be).collect();
            // Of several nobody knows which: they are shown, and nothing follows from them.
            let is_guess = candidates.len() > 1;
            for node in candidates {
                self.graph.nodes[node].waits.push(Condition {
                    targets: vec![Target {
                        node: called,
                        why: Why::Process,
                        is_certain: false,
                        since: begun,
                    }],
                    needs: Needs::Any,
                    has_way_out: is_guess,
                    resource: None,
                });
            }
        }
    }

    // A process of which no more is known than that it listens where a call waits, and which calls its
    // threads have made: likely, both ways.
    fn listeners(&mut self, listeners: &'a [Listener]) {
        for listener in listeners {
            let nodes = || self.graph.nodes.iter().enumerate();
            let edge = |node: usize, since: f64| Target {
                node,
                why: Why::Process,
                is_certain: false,
                since,
            };
            // They were looked for where the first snapshot was taken.
            let is_here =
                |node: &Node| share_threads(self.snapshots[0], self.snapshots[node.process]);
            let number = self.graph.nodes.len();
            let asks: Vec<usize> = nodes()
                .filter(|(_, node)| {
                    let http = node.op().and_then(|op| op.http.as_ref());
                    let peer = http.and_then(|http| http.peer.as_ref());
                    let pid = self.snapshots[node.process].process.pid;
                    let is_asked = listener.callers.contains(&pid) && peer == Some(&listener.peer);
                    node.waits.is_empty() && is_asked && is_here(node)
                })
                .map(|(node, _)| node)
                .collect();
            let made: Vec<Condition<'a>> = nodes()
                .filter(|(_, node)| {
                    let caller = node.op().and_then(|op| op.caller.as_ref());
                    caller.and_then(|caller| caller.pid) == Some(listener.pid) && is_here(node)
                })
                .map(|(node, _)| Condition {
                    targets: vec![edge(node, self.begun(node))],
                    needs: Needs::All,
                    has_way_out: false,
                    resource: None,
                })
                .collect();
            for node in asks {
                let target = edge(number, self.begun(node));
                self.graph.nodes[node].waits.push(Condition {
                    targets: vec![target],
                    needs: Needs::Any,
                    has_way_out: false,
                    resource: None,
                });
            }
            self.graph.nodes.push(Node {
                who: Who::Process(listener),
                process: 0,
                waits: made,
            });
        }
    }

    fn begun(&self, node: usize) -> f64 {
        let node = &self.graph.nodes[node];
        let age = match node.who {
            Who::Op(op) => op.age_ms,
            Who::Thread(thread) => thread.since_ms,
            Who::Process(_) => 0.0,
        };
        self.clocks[node.process] - age
    }
}

fn needs(wait: &Wait) -> Needs {
    match wait.all {
        true => Needs::All,
        false => Needs::Any,
    }
}

// Begins with one that holds what another member waits for, then follows the waits.
fn in_order(first: usize, is_member: impl Fn(usize) -> bool, edges: &[Vec<&Target>]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    let mut stack = vec![first];
    while let Some(node) = stack.pop() {
        if seen.insert(node) {
            order.push(node);
            let next = edges[node].iter().rev().map(|target| target.node);
            stack.extend(next.filter(|node| is_member(*node)));
        }
    }
    order
}

// Tarjan's algorithm, with a stack of its own: a chain may be as long as there are ops.
fn components(edges: &[Vec<&Target>]) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    let mut seen_at = vec![UNSEEN; edges.len()];
    let mut low = vec![0; edges.len()];
    let mut is_open = vec![false; edges.len()];
    let mut open = Vec::new();
    let mut found = Vec::new();
    let mut next = 0;
    for root in 0..edges.len() {
        if seen_at[root] != UNSEEN {
            continue;
        }
        let mut calls = vec![(root, 0)];
        while let Some((node, edge)) = calls.pop() {
            if edge == 0 {
                seen_at[node] = next;
                low[node] = next;
                next += 1;
                open.push(node);
                is_open[node] = true;
            }
            if let Some(target) = edges[node].get(edge) {
                calls.push((node, edge + 1));
                if seen_at[target.node] == UNSEEN {
                    calls.push((target.node, 0));
                } else if is_open[target.node] {
                    low[node] = low[node].min(seen_at[target.node]);
                }
                continue;
            }
            if let Some((caller, _)) = calls.last() {
                low[*caller] = low[*caller].min(low[node]);
            }
            if low[node] == seen_at[node] {
                let mut members = Vec::new();
                while let Some(member) = open.pop() {
                    is_open[member] = false;
                    members.push(member);
                    if member == node {
                        break;
                    }
                }
                members.sort_unstable();
                found.push(members);
            }
        }
    }
    found
}
