//! What a snapshot costs, whom it holds up, and how both grow with the ops in flight.
#![allow(clippy::print_stdout)]

mod harness;
#[path = "harness/subjects.rs"]
mod subjects;

use std::{
    fs,
    hint::black_box,
    mem,
    process::ExitCode,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use inflight::{Op, Report, Tracker};
use rustix::time::{ClockId, clock_gettime};

use harness::{Bench, Limit, Turns, Unit, number};
use subjects::{COMPARED, Map, OP, PHASE, Subject, Tree, tracker};

const SNAPSHOT: &str = "inflight: snapshot";
const READ: &str = "while snapshots are taken";

/// Of the design's table, for 100,000 live ops: the time, and how long a begin or end may be held up.
const MOST: usize = 100_000;
const MS_BAR: f64 = 100.0;
const MS_HOPE: f64 = 30.0;
const DELAY_BAR: f64 = 1.0;

fn main() -> ExitCode {
    let mut bench = Bench::start("snapshot", COMPARED);
    let mut growth = Vec::new();
    for live in [10, 100, 1_000, 10_000, MOST] {
        let times = times(&bench, live);
        let delays = delays(&bench, live);
        if live == MOST {
            bench.bar(
                "ms for a snapshot of 100,000 live ops",
                times.median(SNAPSHOT),
                Limit::AtMost(MS_BAR),
                Some(Limit::AtMost(MS_HOPE)),
            );
            bench.bar(
                "ms that an op was held up at most, by that",
                delays.median(READ),
                Limit::AtMost(DELAY_BAR),
                None,
            );
        }
        growth.push((live, times.median(SNAPSHOT), delays.median(READ)));
    }
    println!(
        "a snapshot as it grows {:>31} {:>16}",
        "ns for each op", "longest delay"
    );
    for (live, time, delay) in growth {
        if !time.is_nan() {
            let each = time * 1e6 / live as f64;
            let (time, each) = (Unit::Millis.show(time), number(each));
            println!(
                "  {live:>10} live ops {time:>12} {each:>19} {:>16}",
                Unit::Millis.show(delay)
            );
        }
    }
    println!();
    bench.finish()
}

fn times(bench: &Bench, live: usize) -> Turns {
    let (tracker, ops) = with_live(live);
    let (map, tree) = (Map::default(), Tree::default());
    let (_mapped, _trees): (Vec<_>, Vec<_>) = (0..live).map(|_| (map.hold(), tree.hold())).unzip();
    let snapshot = tracker.snapshot();
    assert_eq!(snapshot.ops.len(), ops.len());
    assert!(snapshot.ops.iter().all(|op| op.phase.path == [PHASE]));
    bench
        .group(format!("{live} live ops"), Unit::Millis)
        .subject("Mutex<HashMap>, cloned", || millis(|| map.shows(live)))
        .subject(SNAPSHOT, || millis(|| tracker.snapshot()))
        .subject("inflight: and its text", || {
            millis(|| Report::local(&tracker).to_string())
        })
        .subject("inflight: and its JSON", || {
            millis(|| serde_json::to_vec(&tracker.snapshot()))
        })
        .subject("await-tree: and its text", || millis(|| tree.shows(live)))
        .run()
}

// The longest that begin + phase + end took, in a thread that had begun all the live ops.
fn delays(bench: &Bench, live: usize) -> Turns {
    let (tracker, _ops) = with_live(live);
    let kept = tracker.snapshot();
    // A copy of it is as much work and memory for the other thread, without a lock.
    let copied = || drop(black_box(kept.clone()));
    let taken = || drop(black_box(tracker.snapshot()));
    let (tracker, for_ms) = (&tracker, if bench.is_quick() { 30 } else { 300 });
    let longest = |read: &(dyn Fn() + Sync)| longest_beside(tracker, for_ms, read);
    bench
        .group(
            format!("longest op beside a reader of {live}"),
            Unit::Millis,
        )
        .subject("while one is copied", || longest(&copied))
        .subject(READ, || longest(&taken))
        .run()
}

fn longest_beside(tracker: &Tracker, for_ms: u64, read: &(dyn Fn() + Sync)) -> f64 {
    let (start, stop) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            while !stop.load(Relaxed) {
                read();
            }
        });
        start.wait();
        let begun = Instant::now();
        let (mut longest, mut last, mut waited) = (Duration::ZERO, begun, waited_for_a_core());
        while last - begun < Duration::from_millis(for_ms) {
            let op = tracker.begin(OP);
            op.phase(PHASE);
            drop(op);
            let now = Instant::now();
            if now - last > longest {
                // Not the time in which another program had the processor.
                let waited_before = mem::replace(&mut waited, waited_for_a_core());
                longest = longest.max((now - last).saturating_sub(waited - waited_before));
                last = Instant::now();
            } else {
                last = now;
            }
        }
        stop.store(true, Relaxed);
        longest.as_nanos() as f64 / 1e6
    })
}

// How long this thread could have run and did not: the second number of proc_schedstat.
fn waited_for_a_core() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

fn with_live(live: usize) -> (Tracker, Vec<Op>) {
    let tracker = tracker();
    let ops = (0..live).map(|number| {
        let op = tracker.begin(OP);
        op.target(format!("/conversation/{number:08}/send"));
        op.phase(PHASE);
        op
    });
    let ops = ops.collect();
    (tracker, ops)
}

// Of this thread's processor time: what else ran meanwhile is not the snapshot's.
fn millis<T>(work: impl FnOnce() -> T) -> f64 {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
    };
    let begun = now();
    let made = black_box(work());
    let taken = now() - begun;
    drop(made);
    taken
}
