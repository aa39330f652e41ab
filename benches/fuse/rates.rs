//! Calls a second through bare fuser and through the wrapper, over the same file system.

use std::{cell::RefCell, path::Path, time::Duration};

use crate::{
    child::Child,
    harness::{Bench, Limit, Ratio, Turns, Unit, number, quantile},
    served::Served,
};

const OPS: [&str; 7] = [
    "stat",
    "read-4k",
    "read-128k",
    "open",
    "readdir",
    "write-4k",
    "write-128k",
];

/// Those that the bars are for.
const JUDGED: [&str; 3] = ["stat", "read-4k", "read-128k"];

/// A sample is short, and so many times as many are taken.
const TURNS: usize = 3;

const BARE: &str = "fuser";
const ONE_MORE: &str = "fuser, one reader more";
const WRAPPED: &str = "wrapped";

/// A mount, and what was seen of it.
struct Subject {
    name: &'static str,
    served: Served,
    /// Of its process, for each call, turn by turn.
    nanos: Vec<f64>,
    calls: u64,
}

pub(crate) fn measure(bench: &mut Bench) {
    let slots: &[usize] = if bench.is_quick() { &[1] } else { &[1, 2, 4] };
    let ops: &[&str] = if bench.is_quick() { &JUDGED } else { &OPS };
    // Some hundred calls each. More time is better spent on more turns.
    let sample = Duration::from_millis(if bench.is_quick() { 15 } else { 30 });
    // One that serves with one thread has a processor of its own beside the first caller.
    let mut callers = [1, 0]
        .map(|processor: usize| Child::start(&["call", &processor.to_string()], Path::new("/")));
    let mut judged = Vec::new();
    for &slots in slots {
        let title = |op: &str, clients: usize| {
            let s = if clients == 1 { "" } else { "s" };
            format!("{op}, {clients} client{s}, n_threads {slots}")
        };
        let mut titles = ops.iter().flat_map(|op| [title(op, 1), title(op, 2)]);
        if !titles.any(|title| bench.wants(&title)) {
            continue;
        }
        let subjects = [
            Subject::new(BARE, "bare", slots),
            Subject::new(ONE_MORE, "bare", slots + 1),
            Subject::new(WRAPPED, "wrapped", slots),
        ];
        let subjects = subjects.map(RefCell::new);
        for &op in ops {
            let is_judged = JUDGED.contains(&op);
            for clients in [1, 2] {
                let title = title(op, clients);
                if !bench.wants(&title) {
                    continue;
                }
                for subject in &subjects {
                    subject.borrow_mut().prove(op, &mut callers[0]);
                }
                let callers = RefCell::new(&mut callers[..clients]);
                let mut group = bench.group(&title, Unit::PerSecond).turns_times(TURNS);
                for subject in &subjects {
                    let name = subject.borrow().name;
                    let callers = &callers;
                    group = group.subject(name, move || {
                        subject
                            .borrow_mut()
                            .rate(op, &mut callers.borrow_mut(), sample)
                    });
                }
                let turns = group.run();
                print_time(&subjects);
                if is_judged {
                    let Ratio { median, .. } = turns.ratio(WRAPPED, BARE);
                    let (bar, hope) = (Limit::AtLeast(0.95), Limit::AtLeast(0.99));
                    bench.bar(
                        &format!("{title}: wrapped over fuser"),
                        median,
                        bar,
                        Some(hope),
                    );
                    judged.push(turns);
                }
            }
        }
        for subject in &subjects {
            subject.borrow_mut().prove_all();
        }
    }
    print_all(&judged);
}

impl Subject {
    fn new(name: &'static str, by: &str, threads: usize) -> Self {
        Self {
            name,
            served: Served::new(by, threads, false),
            nanos: Vec::new(),
            calls: 0,
        }
    }

    /// Shows that each call comes to the file system, whatever the kernel keeps.
    fn prove(&mut self, op: &str, caller: &mut Child) {
        const CALLS: u64 = 8;
        let mount = self.served.mount();
        let server = &mut self.served.child;
        server.ask("count", "counting");
        caller.ask(&format!("times {op} {CALLS} {}", mount.display()), "times");
        let counted = server.ask("counted", "counted");
        let counted: u64 = counted.parse().expect("a number");
        assert!(counted >= CALLS, "{}: {counted} of {CALLS} {op}", self.name);
        self.calls += CALLS;
    }

    /// Shows that the wrapper has recorded each.
    fn prove_all(&mut self) {
        if self.name == WRAPPED {
            let begun = self.served.child.ask("begun", "begun");
            let begun: u64 = begun.parse().expect("a number");
            let calls = self.calls;
            assert!(begun >= calls, "{begun} ops recorded of {calls} calls");
        }
    }

    /// Calls a second by so many callers at once.
    fn rate(&mut self, op: &str, callers: &mut [Child], sample: Duration) -> f64 {
        let mount = self.served.mount();
        let line = format!("rate {op} {} {}", sample.as_millis(), mount.display());
        let before = self.served.child.cpu();
        for caller in callers.iter_mut() {
            caller.tell(&line);
        }
        let (mut calls, mut rate) = (0, 0.0);
        for caller in callers.iter_mut() {
            let said = caller.expect("rate");
            let (done, each) = said.split_once(' ').expect("two numbers");
            calls += done.parse::<u64>().expect("a number");
            rate += 1e9 / each.parse::<f64>().expect("a number");
        }
        let used = self.served.child.cpu() - before;
        self.nanos.push(used.as_nanos() as f64 / calls as f64);
        self.calls += calls;
        rate
    }
}

// Less shaken by what else runs than rates are.
fn print_time(subjects: &[RefCell<Subject>]) {
    let mut line = "  processor time of a server for each:".to_owned();
    let mut first = None;
    for subject in subjects {
        let mut subject = subject.borrow_mut();
        let nanos = quantile(&subject.nanos, 0.5);
        subject.nanos.clear();
        let ratio = nanos / *first.get_or_insert(nanos);
        let nanos = Unit::Nanos.show(nanos);
        line.push_str(&format!("  {}: {nanos} ({})", subject.name, number(ratio)));
    }
    println!("{line}\n");
}

fn print_all(judged: &[Turns]) {
    if judged.is_empty() {
        return;
    }
    for over in [BARE, ONE_MORE] {
        let ratios: Vec<f64> = judged
            .iter()
            .map(|turns| turns.ratio(WRAPPED, over).median)
            .collect();
        println!(
            "wrapped over {over}: median of {} rows {:.3}, lowest {:.3}",
            ratios.len(),
            quantile(&ratios, 0.5),
            quantile(&ratios, 0.0),
        );
    }
    println!();
}
