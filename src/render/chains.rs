//! The ops, a line each: the proof, who waits behind it, and what ended not long ago.

use std::collections::{BTreeSet, HashSet};

use super::{
    MOST_ENDED, MOST_LISTED, PROCESS, Text, WHAT, WIDTH,
    words::{age, count, short, what, width},
};
use crate::{
    graph::{Condition, Needs, Target, Who, Why},
    report::Verdict,
    snapshot::{Outcome, State},
};

/// Of what a wait is for, so many are named.
const MOST_NAMED: usize = 8;

impl<'a> Text<'a> {
    // The circles; without one, from each cause a chain to the one that has waited for it the longest.
    pub(super) fn chains(&self) -> Vec<Vec<usize>> {
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
            let mut out = self.analysis.graph.out(cause).map(|target| target.node);
            chain.extend(out.find(|node| self.listener(*node).is_some()));
            known.extend(chain.iter().copied());
            chains.push(chain);
            if known.len() >= MOST_LISTED {
                break;
            }
        }
        chains
    }

    // What is stuck and waits for nothing else that is, the one with the most behind it first. One that is not
    // judged by its age is a cause by those who wait for it.
    fn causes(&self, state: &State) -> Vec<usize> {
        let graph = &self.analysis.graph;
        let mut causes = self.analysis.nodes_that_are(state);
        let waited_for = causes.iter().flat_map(|node| graph.out(*node));
        let ageless: BTreeSet<usize> = waited_for
            .map(|target| target.node)
            .filter(|node| self.is_ageless(*node))
            .collect();
        causes.extend(ageless);
        let known: HashSet<usize> = causes.iter().copied().collect();
        // Through a process without a tracker to what it waits for itself.
        let leads_on = |node: usize| {
            let mut further = graph.out(node).filter(|_| self.listener(node).is_some());
            known.contains(&node) || further.any(|target| known.contains(&target.node))
        };
        causes.retain(|node| !graph.out(*node).any(|target| leads_on(target.node)));
        if causes.is_empty() {
            // A circle too young or too open to be called one.
            causes = self.analysis.nodes_that_are(state);
            causes.truncate(1);
        }
        causes.sort_by(|a, b| self.age(*b).total_cmp(&self.age(*a)));
        causes.truncate(MOST_LISTED);
        causes.sort_by_cached_key(|node| std::cmp::Reverse(graph.behind(&[*node]).len()));
        causes
    }

    fn is_ageless(&self, node: usize) -> bool {
        let entry = &self.analysis.graph.nodes[node];
        entry.is_idle() || (matches!(entry.who, Who::Thread(_)) && entry.waits.is_empty())
    }

    fn oldest_waiter(&self, node: usize, chain: &[usize], known: &HashSet<usize>) -> Option<usize> {
        let waiters = self.analysis.graph.waiters[node].iter().copied();
        let waiters = waiters.filter(|from| !chain.contains(from) && !known.contains(from));
        waiters.max_by(|a, b| self.age(*a).total_cmp(&self.age(*b)))
    }

    // A line for each, and between them how one leads to the next.
    pub(super) fn chain(&mut self, chain: &[usize]) {
        for (at, node) in chain.iter().enumerate() {
            if at == MOST_LISTED {
                let left = count(chain.len() - at, "more op");
                self.line(&format!("     and {left}, each waiting for the next"));
                self.shown.extend(&chain[at..]);
                break;
            }
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
            // Of one that is longer than a line the rest follows below.
            for (n, word) in detail.split(' ').enumerate() {
                if n > 0 && width(&line) + 1 + width(word) > WIDTH {
                    self.line(&line);
                    line = " ".repeat(12);
                } else if n > 0 {
                    line.push(' ');
                }
                line.push_str(word);
            }
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
            let mut units = vec![format!("       {what}")];
            if !to_next {
                units.extend(self.named(&condition.targets));
            }
            self.filled(units.iter().map(String::as_str));
        }
    }

    // As a list to be broken after each.
    fn named(&self, targets: &[Target]) -> Vec<String> {
        let named = targets.iter().take(MOST_NAMED);
        let mut list: Vec<String> = named.map(|target| self.number(target.node)).collect();
        let left = targets.len() - list.len();
        list.extend((left > 0).then(|| format!("{left} more")));
        let last = list.len().saturating_sub(1);
        list[..last].iter_mut().for_each(|name| name.push(','));
        list
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
                    Who::Process(_) => 0,
                };
                match self.is_of_one_process(node, target.node) {
                    true => format!("its thread {tid} calls into its own mount{likely}"),
                    false => format!("its thread {tid} is in a file-system call{likely}"),
                }
            }
            Why::Process if self.listener(target.node).is_some() => {
                "which waits for the process that listens there".to_owned()
            }
            Why::Process => match self.listener(node) {
                Some(listener) => {
                    let why = self.why_unknown(listener);
                    format!("{why}; a thread of it is in a file-system call")
                }
                None => {
                    "a thread of its process is in a file-system call, likely for it".to_owned()
                }
            },
            Why::Slot if condition.needs == Needs::Any && condition.targets.len() > 1 => {
                "which waits for any of the slots, in which are".to_owned()
            }
            Why::Slot => "which waits for the slot of".to_owned(),
            Why::Holds => String::new(),
        }
    }

    // Callers of the kernel that no op stands for.
    pub(super) fn held_up(&mut self) {
        if self.report.held_up.is_empty() {
            return;
        }
        self.line("");
        self.line("Held up in the kernel, with no request of their own that is known");
        for held_up in self.report.held_up.iter().take(MOST_LISTED) {
            let name = format!("{}[{}]", held_up.comm, held_up.pid);
            let thread = match held_up.tid == held_up.pid {
                true => String::new(),
                false => format!("thread {}   ", held_up.tid),
            };
            let on = match (&held_up.file, &held_up.mount) {
                (Some(file), _) => format!("on {}", short(file, 50)),
                (None, Some(mount)) => format!("on {}", short(mount, 50)),
                (None, None) => "on a FUSE mount, which is not known".to_owned(),
            };
            let likely = match held_up.is_likely && held_up.mount.is_some() {
                true => " (likely)",
                false => "",
            };
            let wchan = short(&held_up.wchan, 40);
            let head = format!("      {name}  {thread}state {} in {wchan}", held_up.state);
            self.with_details(&head, &[format!("{on}{likely}")]);
        }
        let left = self.report.held_up.len().saturating_sub(MOST_LISTED);
        if left > 0 {
            self.line(&format!("      and {left} more"));
        }
    }

    // Whoever waits for one that has a number, or for no one: a line each, with what is between.
    pub(super) fn behind(&mut self, title: &str) {
        let roots: Vec<usize> = self.roots();
        let mut lines = Vec::new();
        for root in roots {
            if self.listed + lines.len() >= MOST_LISTED {
                break;
            }
            if self.shown.contains(&root) {
                continue;
            }
            self.shown.insert(root);
            let mut details = self.hops(root);
            details.extend(self.plain_details(root));
            let who = self.caller(root).unwrap_or_else(|| self.process_of(root));
            let head = self.columns("", &who, &self.what(root), self.age(root));
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

    // What it waits for, and what that waits for, up to one that has a line.
    fn hops(&mut self, root: usize) -> Vec<String> {
        let analysis = self.analysis;
        let mut hops = Vec::new();
        let mut chain = vec![root];
        loop {
            let node = chain[chain.len() - 1];
            let mut out = analysis.graph.out(node);
            let numbered = out.find(|target| self.numbers.contains_key(&target.node));
            let Some(target) = numbered.or_else(|| analysis.graph.out(node).next()) else {
                return hops;
            };
            let next = target.node;
            if let Some(number) = self.numbers.get(&next) {
                hops.push(format!("-> [{number}]"));
                return hops;
            }
            let slots = analysis.graph.out(node).count();
            if target.why == Why::Slot && slots > 1 {
                hops.push(format!("-> any of {slots} slots"));
                return hops;
            }
            if chain.contains(&next) {
                return hops;
            }
            let slot = if target.why == Why::Slot {
                "the slot of "
            } else {
                ""
            };
            // Told once; those who come later name it alone.
            let said = match self.shown.insert(next) {
                true => {
                    let phase = self.op(next).and_then(|op| op.phase.path.last());
                    let phase = phase.filter(|_| slot.is_empty());
                    let phase = phase.map(|phase| format!(", {}", short(phase, 36)));
                    format!(" ({}{})", age(self.age(next)), phase.unwrap_or_default())
                }
                false => String::new(),
            };
            hops.push(format!("-> {slot}{}{said}", self.what(next)));
            chain.push(next);
        }
    }

    // Those without a line: first whom nobody waits for, oldest first, then those that no chain led to.
    fn roots(&self) -> Vec<usize> {
        let graph = &self.analysis.graph;
        let is_waited_for = |node: &usize| {
            let waiters = graph.waiters[*node].iter();
            waiters.filter(|waiter| *waiter != node).count() > 0
        };
        let rest = self.in_scope().into_iter();
        let is_left = |node: &usize| !self.shown.contains(node) && self.listener(*node).is_none();
        let mut roots: Vec<usize> = rest.filter(is_left).collect();
        roots.sort_by(|a, b| {
            let first = is_waited_for(a).cmp(&is_waited_for(b));
            first.then(self.age(*b).total_cmp(&self.age(*a)))
        });
        roots
    }

    pub(super) fn rest(&mut self) {
        let mut left = self.in_scope();
        left.retain(|node| !self.shown.contains(node));
        if !left.is_empty() {
            let left_out = self.counted(&left);
            self.line(&format!("     and {left_out} more; all stand in the JSON"));
        }
    }

    // The end of a hang is silent: nothing but this tells that there was one.
    pub(super) fn ended(&mut self) {
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

    pub(super) fn columns(&self, number: &str, who: &str, what: &str, ms: f64) -> String {
        let (process, column) = self.columns;
        let age = if ms.is_nan() { String::new() } else { age(ms) };
        format!(" {number:<4} {who:<process$}  {what:<column$} {age:>9}")
    }

    // As wide as what is likely to be listed, so that lines stay short.
    pub(super) fn widths(&self) -> (usize, usize) {
        let nodes = self.in_scope().into_iter().take(4 * MOST_LISTED);
        let widest = nodes.fold((0, 0), |(process, column), node| {
            let caller = self.caller(node).unwrap_or_default();
            let who = width(&self.process_of(node)).max(width(&caller));
            (process.max(who), column.max(width(&self.what(node))))
        });
        (widest.0.min(PROCESS), widest.1.min(WHAT))
    }
}
