//! What an op takes of memory: allocations while it passes, bytes while it is in flight.
//!
//! A bench of its own, as the allocator that counts makes whoever allocates slower.
#![allow(clippy::print_stdout)]

mod harness;
#[path = "harness/subjects.rs"]
mod subjects;

use std::process::ExitCode;

use allocation_counter::measure;

use harness::{Bench, Limit, number};
use subjects::{COMPARED, Inflight, Map, OP, PHASE, Registered, Subject, Telemetry, Tree, tracker};

const BAR: f64 = 1024.0;
const HOPE: f64 = 512.0;

/// So many ops, that what grows by doubling is counted with its average.
const OPS: usize = 24_000;

fn main() -> ExitCode {
    let mut compared = vec!["allocation-counter"];
    compared.extend(COMPARED);
    let mut bench = Bench::start("memory", &compared);

    println!(
        "{:<44} {:>12} {:>12} {:>14}",
        "", "allocations", "bytes", "bytes, while"
    );
    println!(
        "{:<44} {:>12} {:>12} {:>14}",
        "", "of one op", "of one op", "in flight"
    );
    let in_flight = show(Inflight::default());
    show(Map::default());
    show(Tree::default());
    show(Registered::default());
    show(Telemetry::default());
    let moved = bytes_each(&tracker(), |tracker, number| {
        let op = tracker.begin(OP);
        op.target(format!("/conversation/{number:08}/send"));
        for phase in ["lookup", "read", "parse", PHASE] {
            op.phase(phase);
        }
        op
    });
    println!(
        "  {:<42} {:>12} {:>12} {:>14}\n",
        "inflight, with a target and four phases",
        "",
        "",
        number(moved)
    );
    bench.bar(
        "bytes of an op in flight",
        in_flight,
        Limit::AtMost(BAR),
        Some(Limit::AtMost(HOPE)),
    );
    bench.bar(
        "bytes of an op in flight, with a target and four phases",
        moved,
        Limit::AtMost(BAR),
        Some(Limit::AtMost(HOPE)),
    );
    bench.finish()
}

fn show<S: Subject>(subject: S) -> f64 {
    let _thread = subject.thread();
    // History and pools are full when it is measured.
    (0..1_000).for_each(|_| subject.one());
    let passing = measure(|| (0..1_000).for_each(|_| subject.one()));
    let in_flight = bytes_each(&subject, |subject, _| subject.hold());
    println!(
        "  {:<42} {:>12} {:>12} {:>14}",
        S::NAME,
        number(passing.count_total as f64 / 1_000.0),
        number(passing.bytes_total as f64 / 1_000.0),
        number(in_flight)
    );
    in_flight
}

// What is still allocated while so many ops are in flight, for each of them.
fn bytes_each<S, T>(subject: &S, hold: impl Fn(&S, usize) -> T) -> f64 {
    let mut held = Vec::with_capacity(OPS);
    let grown = measure(|| held.extend((0..OPS).map(|number| hold(subject, number))));
    drop(held);
    grown.bytes_current as f64 / OPS as f64
}
