//! The life of an op: phases, trail, progress, ends, capacity, the off switch and the history.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use inflight::{Filter, Kind, Op, Outcome, State, Tracker, report::Verdict, snapshot::LiveOp};

fn only(tracker: &Tracker) -> LiveOp {
    let mut ops = tracker.snapshot().ops;
    assert_eq!(ops.len(), 1);
    ops.remove(0)
}

#[test]
fn an_op_shows_what_it_is_doing_and_what_it_did() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("reindex");
    op.target("/index");
    op.phase("open");
    op.phase("scan");
    let walk = op.nested("walk");
    op.phase("walk deeper");

    let seen = only(&tracker);
    assert_eq!(
        (seen.name.as_str(), seen.target.as_str()),
        ("reindex", "/index")
    );
    assert_eq!(seen.phase.path, ["scan", "walk deeper"]);
    drop(walk);
    assert_eq!(only(&tracker).phase.path, ["scan"]);
    let trail: Vec<_> = only(&tracker)
        .events
        .iter()
        .map(|event| event.phase.clone())
        .collect();
    assert_eq!(trail, ["open", "scan", "scan > walk", "scan > walk deeper"]);
}

#[test]
fn a_long_trail_keeps_its_ends_and_counts_its_middle() {
    const PHASES: usize = 1000;
    let tracker = Tracker::new("test");
    let op = tracker.begin("long");
    for n in 0..PHASES {
        op.phase(format!("phase {n}"));
    }

    let seen = only(&tracker);

    assert_eq!(
        seen.events.len() as u64 + seen.events_dropped,
        PHASES as u64
    );
    assert!(seen.events.len() < 100);
    assert_eq!(seen.events[0].phase, "phase 0");
    assert_eq!(seen.events.last().unwrap().phase, "phase 999");
}

#[test]
fn an_op_ends_with_its_last_handle_and_only_once() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let other = op.clone();
    drop(op);
    assert_eq!(tracker.snapshot().ops.len(), 1, "a handle is left");

    other.end();
    other.phase("after the end");
    assert!(tracker.snapshot().ops.is_empty());
    drop(other);

    let after = tracker.snapshot();
    assert_eq!((after.totals.begun, after.totals.ended), (1, 1));
    assert_eq!(after.recent.len(), 1);
    assert_eq!(after.recent[0].outcome, Outcome::Completed);
}

#[test]
fn an_op_that_failed_says_why() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    op.fail("EIO: http://bob:s3cret@api/x?token=s3cret is gone");
    drop(op);

    let ended = tracker.snapshot().recent.remove(0);

    assert_eq!(ended.outcome, Outcome::Failed);
    assert_eq!(
        ended.op.error.as_deref(),
        Some("EIO: http://api/x?token=.. is gone")
    );
}

#[test]
fn an_op_dropped_by_a_panic_says_so() {
    let tracker = Tracker::new("test");
    let thread = thread::spawn({
        let op = tracker.begin("x");
        move || {
            let _op = op;
            panic!("on purpose");
        }
    });

    assert!(thread.join().is_err());
    assert_eq!(tracker.snapshot().recent[0].outcome, Outcome::Panicked);
}

#[test]
fn a_new_op_hangs_under_the_current_one_and_nobody_waits_for_it() {
    let tracker = Tracker::new("test");
    let parent = tracker.begin("parent");
    let entered = parent.enter();
    let child = tracker.begin("child");
    drop(entered);
    let root = tracker.begin("root");

    let snapshot = tracker.snapshot();
    let of = |op: &Op| snapshot.op(op.id().unwrap()).unwrap();
    assert_eq!(of(&child).parent_id, parent.id());
    assert_eq!(of(&child).trace_id, of(&parent).trace_id);
    assert_eq!(of(&root).parent_id, None);
    assert_ne!(of(&root).trace_id, of(&parent).trace_id);
    assert!(of(&parent).phase.wait.is_none());
}

#[test]
fn what_a_child_does_is_progress_of_the_op_that_waits_for_it() {
    // Both thresholds at nothing: whatever does not move this very moment is stuck.
    let tracker = Tracker::builder("test").slow_after(Duration::ZERO).build();
    let (waiter, bystander, worker) = (
        tracker.begin("waiter"),
        tracker.begin("bystander"),
        tracker.begin("worker"),
    );
    let entered = waiter.enter();
    let waits = inflight::waiting_for(&worker);
    worker.phase("one step further");

    let snapshot = tracker.snapshot();
    let progress = |op: &Op| snapshot.op(op.id().unwrap()).unwrap().progress_ms;
    assert!(progress(&waiter) <= progress(&worker));
    assert!(progress(&waiter) < progress(&bystander));
    drop((waits, entered));
}

#[test]
fn stuck_is_judged_by_progress_and_never_of_what_is_idle() {
    let tracker = Tracker::builder("test")
        .slow_after(Duration::ZERO)
        .stuck_after(Duration::ZERO)
        .build();
    let stuck = tracker.begin("stuck");
    let idle = tracker.begin("idle");
    idle.idle_phase("waiting for work");

    let snapshot = tracker.snapshot();
    let state = |op: &Op| snapshot.op(op.id().unwrap()).unwrap().state.clone();
    assert_eq!((state(&stuck), state(&idle)), (State::Stuck, State::Idle));
    let report = inflight::Report::local(&tracker);
    assert_eq!(report.stuck().len(), 1);
    drop(stuck);
    assert_eq!(inflight::Report::local(&tracker).verdict(), &Verdict::Ok);
}

#[test]
fn over_capacity_the_newest_is_counted_and_the_oldest_stays() {
    let tracker = Tracker::builder("test").capacity(2).build();
    let (first, second, third) = (
        tracker.begin("first"),
        tracker.begin("second"),
        tracker.begin("third"),
    );
    third.phase("recorded nowhere");
    assert!(third.id().is_none());

    let snapshot = tracker.snapshot();
    let names: Vec<_> = snapshot.ops.iter().map(|op| op.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(snapshot.totals.not_recorded, 1);
    drop((first, third));
    let fourth = tracker.begin("fourth");
    assert!(fourth.id().is_some(), "there is room again");
    assert!(
        inflight::Report::local(&tracker)
            .to_string()
            .contains("Not known: ops that were not recorded (1)")
    );
    drop(second);
}

#[test]
fn one_that_is_off_says_so_and_keeps_what_is_in_flight() {
    let tracker = Tracker::new("test");
    let before = tracker.begin("before");
    tracker.set_enabled(false);
    let after = tracker.begin("after");
    assert!(after.id().is_none());

    let report = inflight::Report::local(&tracker);
    assert_eq!(report.verdict(), &Verdict::Off);
    let text = report.to_string();
    assert!(
        text.starts_with("OFF: nothing has been recorded since "),
        "{text}"
    );
    assert!(text.contains("before"), "{text}");
    tracker.set_enabled(true);
    assert!(tracker.begin("again").id().is_some());
    drop(before);
}

#[test]
fn inflight_off_in_the_environment_turns_it_off() {
    const CHILD: &str = "INFLIGHT_TEST_OFF";
    if std::env::var_os(CHILD).is_some() {
        let tracker = Tracker::new("test");
        assert!(!tracker.is_enabled());
        let text = inflight::Report::local(&tracker).to_string();
        assert!(text.contains("(INFLIGHT=off)"), "{text}");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tracker::inflight_off_in_the_environment_turns_it_off",
        ])
        .env(CHILD, "1")
        .env("INFLIGHT", "off")
        .output()
        .unwrap();

    assert!(child.status.success());
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
}

#[test]
fn the_last_and_the_slowest_ops_that_ended_are_kept() {
    const OPS: usize = 100;
    let tracker = Tracker::builder("test").history(8).build();
    let slow = tracker.begin("slow");
    // Nothing but time makes it the slowest.
    thread::sleep(Duration::from_millis(5));
    drop(slow);
    for n in 0..OPS {
        drop(tracker.begin(format!("op {n}")));
    }

    let recent = tracker.snapshot().recent;

    let names: Vec<_> = recent.iter().map(|ended| ended.op.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "slow", "op 92", "op 93", "op 94", "op 95", "op 96", "op 97", "op 98", "op 99"
        ]
    );
}

#[test]
fn a_snapshot_says_what_it_leaves_out() {
    let tracker = Tracker::new("test");
    let ops: Vec<Op> = (0..10).map(|n| tracker.begin(format!("op {n}"))).collect();

    let some = tracker.snapshot_of(&Filter::new().limit(3));
    assert_eq!((some.ops.len(), some.totals.left_out), (3, 7));
    assert_eq!(some.ops[0].name, "op 0", "the oldest are kept");
    let old = tracker.snapshot_of(&Filter::new().min_age(Duration::from_secs(3600)));
    assert_eq!((old.ops.len(), old.totals.left_out), (0, 10));
    let fuse = tracker.snapshot_of(&Filter::new().kind(Kind::Fuse));
    assert_eq!((fuse.ops.len(), fuse.totals.left_out), (0, 10));
    drop(ops);
}

#[test]
fn threads_that_begin_and_end_ops_are_all_accounted_for_whoever_looks() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 2000;
    let tracker = Tracker::new("test");
    let start = Barrier::new(THREADS + 1);
    let is_over = AtomicBool::new(false);

    let kept: Vec<Op> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let mut kept = Vec::new();
                    for n in 0..ROUNDS {
                        let op = tracker.begin("work");
                        op.phase("half");
                        if n % 100 == 0 {
                            kept.push(op);
                        }
                    }
                    kept
                })
            })
            .collect();
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                let snapshot = tracker.snapshot();
                assert!(snapshot.totals.begun >= snapshot.totals.ended);
            }
        });
        start.wait();
        let kept = workers
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect();
        is_over.store(true, SeqCst);
        kept
    });

    let after = tracker.snapshot();
    assert_eq!(after.ops.len(), kept.len());
    assert_eq!(after.totals.begun, (THREADS * ROUNDS) as u64);
    assert_eq!(after.totals.ended, (THREADS * ROUNDS - kept.len()) as u64);
    let mut ids: Vec<_> = after.ops.iter().map(|op| op.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), kept.len(), "no id was given twice");
}

/// Looks at the tracker and begins ops of it, wherever user code may run.
struct Nosy(Tracker);

impl Drop for Nosy {
    fn drop(&mut self) {
        let _inner = self.0.begin("begun in a drop");
        let _snapshot = self.0.snapshot();
    }
}

impl From<&Nosy> for std::borrow::Cow<'static, str> {
    fn from(nosy: &Nosy) -> Self {
        let inner = nosy.0.begin("begun in a conversion");
        inner.phase("x");
        format!("{} in flight", nosy.0.snapshot().ops.len()).into()
    }
}

#[test]
fn user_code_inside_a_call_may_use_the_tracker() {
    let tracker = Tracker::new("test");
    let (done, is_done) = channel();
    thread::spawn({
        let tracker = tracker.clone();
        move || {
            let nosy = Nosy(tracker.clone());
            let op = tracker.begin(&nosy);
            let _entered = op.enter();
            op.phase(&nosy);
            op.target(&nosy);
            op.fail(&nosy);
            let _nested = inflight::nested(&nosy);
            inflight::phase(&nosy);
            let resource = inflight::resource::Resource::new(&tracker, &nosy);
            let held = resource.wait(|| Nosy(tracker.clone()));
            drop(held);
            drop(nosy);
            done.send(()).unwrap();
        }
    });

    let ended = is_done.recv_timeout(Duration::from_secs(20));

    assert!(ended.is_ok(), "it hangs");
    inflight::testing::assert_idle(&tracker);
}

#[test]
fn a_destructor_of_a_thread_local_may_use_the_tracker() {
    thread_local! {
        static LAST: std::cell::RefCell<Option<(Tracker, Op)>> = const { std::cell::RefCell::new(None) };
    }
    let tracker = Arc::new(Tracker::new("test"));
    let thread = thread::spawn({
        let tracker = Arc::clone(&tracker);
        move || {
            let op = tracker.begin("kept by a thread");
            // Entered last, so that the stack of ops may be gone before it.
            LAST.with(|last| *last.borrow_mut() = Some(((*tracker).clone(), op)));
            let _entered = tracker.begin("entered").enter();
        }
    });

    assert!(thread.join().is_ok());
    inflight::testing::assert_idle(&tracker);
}
