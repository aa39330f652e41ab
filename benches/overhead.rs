//! What an op costs: to begin, to move and to end one, beside two clock reads and what people would use instead.
#![allow(clippy::print_stdout)]

mod harness;
#[path = "harness/subjects.rs"]
mod subjects;

use std::{
    cell::Cell,
    future::{pending, ready},
    hint::black_box,
    pin::pin,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
};

use await_tree::InstrumentAwait as _;
use inflight::{FutureExt as _, Op, resource::Resource};
use opentelemetry::Context;
use tracing::Instrument as _;

use harness::{Bench, Limit, Turns, Unit, cores, nanos_each, nanos_each_on, number};
use subjects::{
    COMPARED, Clocks, Inflight, Job, Map, OP, PHASE, Registered, Subject, Telemetry, Tree, poll,
};

/// Of the design's table: begin + phase + end over two clock reads.
const BAR: f64 = 4.0;
const HOPE: f64 = 2.5;

thread_local! {
    static BARE: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let mut bench = Bench::start("overhead", COMPARED);

    let alone = beside(&bench, "begin + phase + end", Job::One, 1, 0);
    bars(&mut bench, &alone);
    beside(&bench, "with three nested phases", Job::Nested, 1, 0);
    with_a_resource(&bench);
    current_op(&bench);
    future_in_op(&bench);

    let mut growth = vec![("1 thread, nothing else live".to_owned(), alone)];
    let most = if bench.is_quick() { 10_000 } else { 100_000 };
    for live in [1_000, most] {
        let title = format!("under {live} live ops");
        growth.push((title.clone(), beside(&bench, &title, Job::One, 1, live)));
    }
    for threads in [2, 4, 8] {
        let title = format!("on {threads} threads of {} cores", cores());
        growth.push((title.clone(), beside(&bench, &title, Job::One, threads, 0)));
    }
    show_growth(&growth);
    bench.finish()
}

fn bars(bench: &mut Bench, turns: &Turns) {
    let over = |over| turns.ratio(Inflight::NAME, over).median;
    bench.bar(
        "begin + phase + end, over two clock reads",
        over(Clocks::NAME),
        Limit::AtMost(BAR),
        Some(Limit::AtMost(HOPE)),
    );
    for other in [Tree::NAME, Registered::NAME] {
        let what = format!("begin + phase + end, over {other}");
        bench.bar(&what, over(other), Limit::AtMost(1.0), None);
    }
}

// Everyone at the same job, on so many threads, with so many ops in flight besides.
fn beside(bench: &Bench, title: &str, job: Job, threads: usize, live: usize) -> Turns {
    let (clocks, map, inflight) = (Clocks, Map::default(), Inflight::default());
    let (tree, registered) = (Tree::default(), Registered::default());
    let telemetry = Telemetry::default();
    bench
        .group(title, Unit::Nanos)
        .subject(Clocks::NAME, job_of(bench, &clocks, job, threads, live))
        .subject(Inflight::NAME, job_of(bench, &inflight, job, threads, live))
        .subject(Map::NAME, job_of(bench, &map, job, threads, live))
        .subject(Tree::NAME, job_of(bench, &tree, job, threads, live))
        .subject(
            Registered::NAME,
            job_of(bench, &registered, job, threads, live),
        )
        .subject(
            Telemetry::NAME,
            job_of(bench, &telemetry, job, threads, live),
        )
        .run()
}

// Does the job for a while, then has the subject tell what it recorded: one that did nothing is found out.
fn job_of<'a, S: Subject>(
    bench: &'a Bench,
    subject: &'a S,
    job: Job,
    threads: usize,
    live: usize,
) -> impl FnMut() -> f64 + 'a {
    let mut held = Vec::new();
    move || {
        let _thread = subject.thread();
        if held.is_empty() {
            held = (0..=live).map(|_| subject.hold()).collect();
        }
        let work = |thread: S::Thread| {
            move || {
                let _ = &thread;
                match job {
                    Job::One => subject.one(),
                    Job::Nested => subject.nested(),
                }
            }
        };

        let nanos = match threads {
            1 => nanos_each(bench.sample(), work(subject.thread())),
            _ => nanos_each_on(threads, bench.sample(), |_| work(subject.thread())),
        };

        assert!(subject.shows(held.len()), "{} does not show it", S::NAME);
        nanos
    }
}

fn with_a_resource(bench: &Bench) {
    let Inflight(tracker) = Inflight::default();
    let (table, resource) = (Mutex::new(0_u64), Resource::new(&tracker, "table"));
    let op = tracker.begin(OP);
    let by_op = || {
        let _in = op.enter();
        nanos_each(bench.sample(), || **resource.wait(|| lock(&table)) += 1)
    };
    bench
        .group("a lock taken and given back", Unit::Nanos)
        .subject("std's Mutex", || {
            nanos_each(bench.sample(), || *lock(&table) += 1)
        })
        .subject("as a resource, by a thread", || {
            nanos_each(bench.sample(), || **resource.wait(|| lock(&table)) += 1)
        })
        .subject("as a resource, by an op", by_op)
        .run();

    let held = resource.wait(|| lock(&table));
    assert!(**held > 0 || !bench.wants("a lock taken and given back"));
    assert_eq!(tracker.snapshot().resources[0].holders.len(), 1);
}

fn current_op(bench: &Bench) {
    let Inflight(tracker) = Inflight::default();
    let (registered, op) = (Registered::default(), tracker.begin(OP));
    let inflight = || {
        let _in = op.enter();
        let nanos = nanos_each(bench.sample(), || drop(black_box(Op::current())));
        assert_eq!(Op::current().and_then(|op| op.id()), op.id());
        nanos
    };
    let phase = || {
        let _in = op.enter();
        nanos_each(bench.sample(), || inflight::phase(PHASE))
    };
    let span = || {
        let _thread = registered.thread();
        let span = registered.hold();
        let _in = span.enter();
        let nanos = nanos_each(bench.sample(), || drop(black_box(tracing::Span::current())));
        assert_eq!(tracing::Span::current().id(), span.id());
        nanos
    };
    bench
        .group("the current op, looked up", Unit::Nanos)
        .subject("a thread-local", || {
            nanos_each(bench.sample(), || {
                black_box(BARE.get());
            })
        })
        .subject("inflight: Op::current()", inflight)
        .subject("inflight: phase() on it", phase)
        .subject("tracing: Span::current()", span)
        .subject("opentelemetry: Context::current()", || {
            nanos_each(bench.sample(), || drop(black_box(Context::current())))
        })
        .run();
    if bench.wants("current op") {
        assert_eq!(tracker.snapshot().ops[0].phase.path, [PHASE]);
    }
}

fn future_in_op(bench: &Bench) {
    let Inflight(tracker) = Inflight::default();
    let (registered, tree, op) = (Registered::default(), Tree::default(), tracker.begin(OP));
    let span = || {
        let _thread = registered.thread();
        let span = registered.hold();
        nanos_each(bench.sample(), || {
            let _ = poll(pin!(ready(()).instrument(span.clone())));
        })
    };
    let spans = || {
        let mut each = f64::NAN;
        let work = async {
            each = nanos_each(bench.sample(), || {
                let _ = poll(pin!(ready(()).instrument_await(PHASE)));
            });
            pending::<()>().await;
        };
        let _ = poll(pin!(tree.0.register_anonymous(OP).instrument(work)));
        each
    };
    bench
        .group("a future made, and polled to its end", Unit::Nanos)
        .subject("alone", || {
            nanos_each(bench.sample(), || {
                let _ = black_box(poll(pin!(black_box(ready(())))));
            })
        })
        .subject("inflight: in_op", || {
            nanos_each(bench.sample(), || {
                let _ = poll(pin!(ready(()).in_op(&op)));
            })
        })
        .subject("await-tree: instrument_await", spans)
        .subject("tracing: instrument", span)
        .run();
    assert_eq!(tracker.snapshot().ops.len(), 1);
}

fn show_growth(growth: &[(String, Turns)]) {
    println!("begin + phase + end of inflight, as its surroundings grow");
    for (title, turns) in growth {
        let median = turns.median(Inflight::NAME);
        if !median.is_nan() {
            let over = |other| number(turns.ratio(Inflight::NAME, other).median);
            println!(
                "  {title:<42} {:>12}   {} x two clock reads, {} x {}",
                Unit::Nanos.show(median),
                over(Clocks::NAME),
                over(Map::NAME),
                Map::NAME
            );
        }
    }
    println!();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
