//! What is said of one op, and the names of processes and callers.

use super::{
    Text,
    words::{age, and, bytes, count, resource, short, what},
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
        if let Some(op) = self.op(node) {
            self.op_details(node, op, &mut details);
        }
        let held = self.held_by(node);
        details.extend(held.iter().map(|held| format!("HOLDS {held}")));
        let wanted = self.wanted_by(node);
        details.extend(wanted.map(|wanted| format!("WAITS for {wanted}")));
        details
    }

    fn op_details(&self, node: usize, op: &LiveOp, details: &mut Vec<String>) {
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
    }

    // The resource that a node waits for, and who holds it.
    pub(super) fn wanted_by(&self, node: usize) -> Option<String> {
        let waits = &self.analysis.graph.nodes[node].waits;
        let condition = waits.iter().find(|wait| wait.resource.is_some())?;
        let wanted = condition.resource?;
        let known = condition.targets.iter().take(4);
        let mut holders: Vec<String> = known.map(|target| self.number(target.node)).collect();
        match wanted.holders.len().saturating_sub(holders.len()) {
            0 => {}
            n if condition.targets.len() > holders.len() => holders.push(format!("{n} more")),
            1 => holders.push("one that is not known".to_owned()),
            n => holders.push(format!("{n} that are not known")),
        }
        let held = match holders.is_empty() {
            true => ", which nobody holds now".to_owned(),
            false => format!(", held by {}", and(&holders)),
        };
        Some(format!("{}{held}", resource(wanted)))
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
        held.map(resource).collect()
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
            Who::Thread(thread) => format!("thread {} {}", thread.tid, short(&thread.name, 30)),
            Who::Process(process) => format!("listens at {}", process.peer),
        }
    }

    /// How many they are, ops and threads apart.
    pub(super) fn counted(&self, nodes: &[usize]) -> String {
        let of = |node: &&usize| matches!(self.analysis.graph.nodes[**node].who, Who::Thread(_));
        let threads = nodes.iter().filter(of).count();
        match nodes.len() - threads {
            ops if threads == 0 => count(ops, "op"),
            0 => count(threads, "thread"),
            ops => format!("{} and {}", count(ops, "op"), count(threads, "thread")),
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

    /// The process of this number, as the process of the node counts, if it reports.
    pub(super) fn reporter(&self, node: usize, pid: u32) -> Option<usize> {
        let snapshots = &self.analysis.snapshots;
        let here = &snapshots[self.analysis.graph.nodes[node].process].process;
        // What was not told tells nothing apart.
        let may_be = |one: &str, other: &str| one.is_empty() || other.is_empty() || one == other;
        snapshots.iter().position(|snapshot| {
            let process = &snapshot.process;
            process.pid == pid
                && may_be(&process.boot_id, &here.boot_id)
                && may_be(&process.pid_ns, &here.pid_ns)
        })
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
        if let Some(process) = self.reporter(node, pid) {
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
