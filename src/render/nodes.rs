//! What is said of one op, and the names of processes and callers.

use super::{
    Text,
    words::{age, bytes, kind_of, short, what},
};
use crate::{
    graph::Who,
    snapshot::{Kind, Listener, LiveOp, State},
};

impl<'a> Text<'a> {
    pub(super) fn details(&self, node: usize) -> Vec<String> {
        let mut details = self.plain_details(node);
        if let (Some(caller), Some(_)) = (self.caller(node), self.op(node)) {
            details.insert(0, format!("for {caller}"));
        }
        details.extend(self.open_file(node));
        details
    }

    // Which thread of a process without a tracker calls, and what it has open: as `lsof` would show.
    fn open_file(&self, node: usize) -> Option<String> {
        let caller = self.op(node)?.caller.as_ref()?;
        let nodes = &self.analysis.graph.nodes;
        let mut waiters = self.analysis.graph.waiters[node].iter();
        if !waiters.any(|from| matches!(nodes[*from].who, Who::Process(_))) {
            return None;
        }
        let target = self.op(node)?.target.trim_start_matches('~');
        let mut files = caller.files.iter();
        let file = files.find(|file| file.path.ends_with(target));
        let file = file.or(caller.files.first());
        let open = file.map_or_else(String::new, |file| {
            let fd = format!(" has fd {} open on {}", file.fd, short(&file.path, 40));
            let closes = if file.closes_on_exec {
                ", close-on-exec"
            } else {
                ""
            };
            let detached = if file.is_detached { ", detached" } else { "" };
            format!("{fd}{closes}{detached}")
        });
        Some(format!("thread {}{open}", caller.tid))
    }

    // What the op says of itself.
    pub(super) fn plain_details(&self, node: usize) -> Vec<String> {
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
    pub(super) fn held_by(&self, node: usize) -> Vec<String> {
        let entry = &self.analysis.graph.nodes[node];
        let snapshot = self.analysis.snapshots[entry.process];
        let holds = |resource: &&crate::snapshot::Resource| {
            resource.holders.iter().any(|holder| match entry.who {
                Who::Op(op) => holder.op == Some(op.id),
                Who::Process(_) => false,
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

    pub(super) fn op(&self, node: usize) -> Option<&'a LiveOp> {
        self.analysis.graph.nodes[node].op()
    }

    /// The process without a tracker that a node stands for.
    pub(super) fn listener(&self, node: usize) -> Option<&'a Listener> {
        match self.analysis.graph.nodes[node].who {
            Who::Process(listener) => Some(listener),
            _ => None,
        }
    }

    pub(super) fn in_scope(&self) -> Vec<usize> {
        let nodes = 0..self.analysis.graph.nodes.len();
        nodes
            .filter(|node| self.analysis.is_in_scope[*node])
            .collect()
    }

    pub(super) fn age(&self, node: usize) -> f64 {
        match self.analysis.graph.nodes[node].who {
            Who::Op(op) => op.age_ms,
            Who::Thread(thread) => thread.since_ms,
            // Of its requests nothing is known.
            Who::Process(_) => f64::NAN,
        }
    }

    pub(super) fn number(&self, node: usize) -> String {
        match self.numbers.get(&node) {
            Some(number) => format!("[{number}]"),
            None => self.what(node),
        }
    }

    pub(super) fn what(&self, node: usize) -> String {
        match self.analysis.graph.nodes[node].who {
            Who::Op(op) => what(op),
            Who::Thread(thread) => format!("thread {} {}", thread.tid, thread.name),
            Who::Process(process) => format!("listens at {}", process.peer),
        }
    }

    pub(super) fn process(&self, process: usize) -> String {
        let process = &self.analysis.snapshots[process].process;
        format!("{}[{}]", short(&process.service, 30), process.pid)
    }

    pub(super) fn process_of(&self, node: usize) -> String {
        if let Some(listener) = self.listener(node) {
            return format!("{}[{}]", listener.comm, listener.pid);
        }
        self.process(self.analysis.graph.nodes[node].process)
    }

    pub(super) fn is_of_one_process(&self, one: usize, other: usize) -> bool {
        let nodes = &self.analysis.graph.nodes;
        nodes[one].process == nodes[other].process
    }

    // Who made a FUSE call: by the name of its service, if it reports.
    pub(super) fn caller(&self, node: usize) -> Option<String> {
        let caller = self.op(node)?.caller.as_ref()?;
        let pid = caller.pid.unwrap_or(caller.tid);
        if let Some(parent) = &caller.child_of {
            return Some(format!(
                "child of {}[{}], before exec",
                parent.comm, parent.pid
            ));
        }
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
}
