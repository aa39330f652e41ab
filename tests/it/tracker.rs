//! Ops, phases, progress, capacity, history and the off switch, through the public API.

use std::{
    borrow::Cow,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use inflight::{
    Filter, Op, OpId, Outcome, Report, Snapshot, State, Tracker,
    report::Verdict,
    resource::Resource,
    snapshot::{LiveOp, On},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Set for the child of the test that runs itself.
const CHILD: &str = "INFLIGHT_TEST_CHILD";

/// Asks the tracker while it is told something.
struct Asking<'a>(&'a Tracker, &'static str);

impl From<Asking<'_>> for Cow<'static, str> {
    fn from(asking: Asking<'_>) -> Self {
        let seen = asking.0.snapshot();
        let inner = asking.0.begin("inside");
        inner.phase("x");
        assert!(!seen.ops.is_empty());
        asking.1.into()
    }
}

fn show(tracker: &Tracker, op: &Op) -> LiveOp {
    find(&tracker.snapshot(), op.id().unwrap())
}

fn find(snapshot: &Snapshot, id: OpId) -> LiveOp {
    snapshot.op(id).unwrap().clone()
}

fn trail(op: &LiveOp) -> Vec<&str> {
    op.events.iter().map(|event| event.phase.as_str()).collect()
}

// Lets the clock go on, so that two moments differ.
fn pass(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        thread::yield_now();
    }
}

#[test]
fn an_op_shows_what_it_does_from_begin_to_end() {
    let tracker = Tracker::new("test");

    let op = tracker.begin("reindex");
    op.target("/var/index");
    op.phase("open");
    op.phase("read");
    let live = tracker.snapshot();
    drop(op);
    let after = tracker.snapshot();

    let [shown] = &live.ops[..] else { panic!() };
    assert_eq!(
        (shown.name.as_str(), shown.target.as_str()),
        ("reindex", "/var/index")
    );
    assert_eq!(shown.phase.path, ["read"]);
    assert_eq!(trail(shown), ["open", "read"]);
    assert_eq!(shown.state, State::Running);
    assert_eq!((shown.parent_id, &shown.phase.wait), (None, &None));
    assert!(shown.phase.age_ms <= shown.age_ms);
    assert_eq!((live.totals.begun, live.totals.ended), (1, 0));

    let [ended] = &after.recent[..] else { panic!() };
    assert!(after.ops.is_empty());
    assert_eq!(
        (ended.op.id, &ended.outcome),
        (shown.id, &Outcome::Completed)
    );
    assert_eq!(trail(&ended.op), ["open", "read"]);
    assert_eq!((after.totals.begun, after.totals.ended), (1, 1));
}

#[test]
fn phases_nest_until_their_guard_drops() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("copy");
    op.phase("handler");

    let walk = op.nested("walk");
    let stat = op.nested("stat");
    op.phase("read");
    assert_eq!(show(&tracker, &op).phase.path, ["handler", "walk", "read"]);
    drop(walk);
    assert_eq!(show(&tracker, &op).phase.path, ["handler"]);
    op.phase("reply");
    drop(stat);

    let shown = show(&tracker, &op);
    assert_eq!(shown.phase.path, ["reply"]);
    assert_eq!(
        trail(&shown),
        [
            "handler",
            "handler > walk",
            "handler > walk > stat",
            "handler > walk > read",
            "reply"
        ]
    );
}

#[test]
fn a_trail_keeps_its_first_and_last_events_and_counts_the_rest() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("loop");

    for n in 0..10_000 {
        op.phase(n.to_string());
    }

    let shown = show(&tracker, &op);
    let trail = trail(&shown);
    assert!(trail.len() <= 32, "{}", trail.len());
    assert_eq!((trail[0], trail[1]), ("0", "1"));
    assert_eq!(trail[trail.len() - 2..], ["9998", "9999"]);
    assert_eq!(shown.events_dropped + trail.len() as u64, 10_000);
}

#[test]
fn a_thousand_nested_phases_are_shown_by_their_ends() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("walk");

    let guards: Vec<_> = (0..1000).map(|n| op.nested(n.to_string())).collect();

    let shown = show(&tracker, &op);
    assert!(shown.phase.path.len() < 32);
    assert_eq!(shown.phase.path[..2], ["0", "1"]);
    assert!(shown.phase.path.ends_with(&["998".into(), "999".into()]));
    assert!(shown.phase.path.contains(&"..".into()));
    assert_eq!(shown.events_dropped + shown.events.len() as u64, 1000);
    assert!(shown.events.iter().all(|event| event.phase.len() <= 512));
    drop(guards);
    assert!(show(&tracker, &op).phase.path.is_empty());
}

#[test]
fn an_op_is_judged_by_its_thresholds_and_an_idle_one_is_not() {
    let with = |slow, stuck| {
        let builder = Tracker::builder("test");
        builder.slow_after(slow).stuck_after(stuck).build()
    };
    for (tracker, state) in [
        (with(HOUR, HOUR), State::Running),
        (with(Duration::ZERO, HOUR), State::Slow),
        (with(Duration::ZERO, Duration::ZERO), State::Stuck),
    ] {
        let op = tracker.begin("x");

        assert_eq!(show(&tracker, &op).state, state);
        let stuck = usize::from(state == State::Stuck);
        assert_eq!(Report::local(&tracker).stuck().len(), stuck);
        op.idle_phase("waiting for events");
        assert_eq!(show(&tracker, &op).state, State::Idle);
        assert_eq!(Report::local(&tracker).verdict(), &Verdict::Ok);
        op.phase("handling an event");
        assert_eq!(show(&tracker, &op).state, state);
    }
}

#[test]
fn what_moves_a_call_moves_the_op_that_waits_for_it() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("upload");
    let other = tracker.begin("other");
    let entered = op.enter();
    let call = tracker.call("POST", "http://api/x");
    drop(entered);

    pass(Duration::from_millis(20));
    call.sent(1000);
    let now = tracker.snapshot();
    // The call is the youngest: it is left out.
    let without_call = tracker.snapshot_of(&Filter::new().limit(2));

    let (op, call) = (op.id().unwrap(), call.op().id().unwrap());
    let shown = find(&now, op);
    assert_eq!(shown.phase.wait.as_ref().unwrap().ops, [call]);
    assert_eq!(shown.progress_ms, find(&now, call).progress_ms);
    assert!(shown.age_ms >= shown.progress_ms + 20.0, "{shown:?}");
    let other = find(&now, other.id().unwrap());
    assert_eq!(other.progress_ms, other.age_ms, "nobody moves this one");
    assert!(without_call.op(call).is_none());
    let shown = find(&without_call, op);
    assert!(shown.age_ms >= shown.progress_ms + 20.0, "{shown:?}");
}

#[test]
fn a_call_is_waited_for_until_it_ends_and_a_task_only_if_that_is_said() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("handler");
    let _in = op.enter();

    let child = tracker.begin("prefetch");
    assert_eq!(show(&tracker, &child).parent_id, op.id());
    assert_eq!(show(&tracker, &op).phase.wait, None);
    let call = tracker.call("GET", "http://api/x");
    let wait = show(&tracker, &op).phase.wait.unwrap();
    assert_eq!(
        (wait.on, wait.all, wait.ops.first().copied()),
        (On::Call, true, call.op().id())
    );

    drop(call);

    assert_eq!(show(&tracker, &op).phase.wait, None);
    assert_eq!(show(&tracker, &child).phase.wait, None);
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
fn a_stated_wait_is_a_certain_edge_while_its_guard_lives() {
    let tracker = Tracker::new("test");
    let fetch = tracker.begin("fetch block 7");
    let reader = tracker.begin("read");
    let entered = reader.enter();

    let waiting = inflight::waiting_for(&fetch);
    let report = Report::local(&tracker);
    let wait = show(&tracker, &reader).phase.wait.unwrap();
    drop(waiting);

    assert_eq!(
        (wait.on, wait.all, wait.ops),
        (On::Op, true, vec![fetch.id().unwrap()])
    );
    let [edge] = &report.edges[..] else {
        panic!("{:?}", report.edges)
    };
    assert_eq!(edge.from, reader.id().unwrap().to_string());
    assert_eq!(edge.to, fetch.id().unwrap().to_string());
    assert_eq!(
        (edge.why.as_str(), edge.certainty.as_str()),
        ("waiting_for", "certain")
    );
    assert_eq!(show(&tracker, &reader).phase.wait, None);
    assert!(Report::local(&tracker).edges.is_empty());
    drop(entered);
    let _nobody = inflight::waiting_for(&fetch);
}

#[test]
fn what_is_said_after_the_end_changes_nothing() {
    let tracker = Tracker::new("test");
    let other = tracker.begin("other");
    let op = tracker.begin("job");
    op.target("/a");
    let guard = op.nested("one");
    op.end();
    let ended = tracker.snapshot().recent.remove(0);

    op.phase("two");
    op.idle_phase("three");
    op.target("/b");
    op.fail("too late");
    let _deeper = op.nested("four");
    drop(guard);
    let entered = op.enter();
    let _wait = inflight::waiting_for(&other);
    let call = tracker.call("GET", "http://api/x");
    op.end();

    let after = tracker.snapshot();
    let [still] = &after.recent[..] else { panic!() };
    assert_eq!(
        (&still.op, &still.outcome),
        (&ended.op, &Outcome::Completed)
    );
    assert_eq!(find(&after, call.op().id().unwrap()).parent_id, op.id());
    assert_eq!(after.ops.len(), 2);
    drop((call, entered, other));
}

#[test]
fn an_op_ends_once_with_its_last_handle_or_early() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("shared");
    let (second, third) = (op.clone(), op.clone());

    drop(op);
    drop(second);
    assert_eq!(tracker.snapshot().ops.len(), 1);
    let elsewhere = thread::spawn(move || drop(third));
    elsewhere.join().unwrap();
    assert!(tracker.snapshot().ops.is_empty());

    let early = tracker.begin("early");
    let kept = early.clone();
    early.end();
    assert!(tracker.snapshot().ops.is_empty());
    kept.end();
    drop((early, kept));

    let after = tracker.snapshot();
    assert_eq!((after.totals.begun, after.totals.ended), (2, 2));
    assert_eq!(after.recent.len(), 2);
}

#[test]
fn the_outcome_says_how_an_op_ended() {
    let tracker = Tracker::new("test");
    let failed = tracker.begin("failed");
    failed.fail("EIO: server gone");
    assert_eq!(
        show(&tracker, &failed).error.as_deref(),
        Some("EIO: server gone")
    );
    drop(failed);

    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _op = tracker.begin("panicked");
        panic!("on purpose");
    }));

    assert!(unwound.is_err());
    let outcomes: Vec<_> = tracker
        .snapshot()
        .recent
        .into_iter()
        .map(|ended| (ended.op.name, ended.outcome))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("failed".into(), Outcome::Failed),
            ("panicked".into(), Outcome::Panicked)
        ]
    );
}

#[test]
fn over_capacity_the_newest_is_not_recorded_and_counted() {
    let tracker = Tracker::builder("test").capacity(2).build();
    let oldest = tracker.begin("oldest");
    let second = tracker.begin("second");

    let above = tracker.begin("above");
    above.phase("x");
    let _nested = above.nested("y");
    let entered = above.enter();
    inflight::phase("z");
    let child = tracker.begin("above too");
    drop((child, entered));
    let full = tracker.snapshot();
    let text = Report::local(&tracker).to_string();
    drop(second);
    let later = tracker.begin("later");

    assert_eq!((above.id(), above.context()), (None, None));
    let names: Vec<_> = full.ops.iter().map(|op| op.name.as_str()).collect();
    assert_eq!(names, ["oldest", "second"]);
    assert_eq!((full.totals.not_recorded, full.totals.begun), (2, 2));
    assert!(text.contains("not recorded (2)"), "{text}");
    assert!(later.id().is_some(), "there is room again");
    drop(above);
    assert_eq!(tracker.snapshot().ops[0].id, oldest.id().unwrap());
    assert_eq!(tracker.snapshot().ops.len(), 2);
}

#[test]
fn threads_share_the_capacity_to_the_last_op() {
    const THREADS: usize = 16;
    let tracker = Tracker::builder("test").capacity(THREADS * 3).build();
    let begin = || tracker.begin("x");

    let held: Vec<Op> = thread::scope(|scope| {
        let threads = (0..THREADS).map(|_| scope.spawn(|| [(); 4].map(|()| begin())));
        let threads: Vec<_> = threads.collect();
        let ops = threads.into_iter().map(|thread| thread.join().unwrap());
        ops.flatten().collect()
    });

    let totals = tracker.snapshot().totals;
    assert_eq!((totals.begun, totals.not_recorded), (48, 16));
    assert_eq!(held.iter().filter(|op| op.id().is_some()).count(), 48);
    drop(held);
    // What other threads gave back is room for this one.
    let again: Vec<Op> = (0..49).map(|_| begin()).collect();
    assert_eq!(again.iter().filter(|op| op.id().is_some()).count(), 48);
}

#[test]
fn an_op_tells_nothing_of_those_before_it() {
    let tracker = Tracker::builder("test").history(1).build();
    let (other, lock) = (tracker.begin("other"), Resource::new(&tracker, "lock"));
    let mut guards = Vec::new();
    let mut ids = HashSet::from([other.id()]);

    for n in 0..100 {
        let op = tracker.begin("op");
        let blank = show(&tracker, &op);
        assert_eq!(blank.events_dropped, 0);
        assert_eq!((blank.target.as_str(), blank.error), ("", None));
        assert_eq!((blank.phase.path.len(), blank.events.len()), (0, 0));
        assert_eq!((blank.phase.wait, blank.thread), (None, None));
        assert!(ids.insert(op.id()), "an id was used twice");

        let _in = op.enter();
        op.target("target");
        op.fail("failure");
        (0..40).for_each(|n| op.phase(n.to_string()));
        let held = lock.wait(|| ());
        let nested = op.nested("nested");
        let waits = inflight::waiting_for(&other);
        op.end();
        // Some outlive their op, and say later what is no longer so.
        if n % 2 == 0 {
            guards.push((held, nested, waits));
        }
        if n % 10 == 9 {
            guards.clear();
        }
    }

    let after = tracker.snapshot();
    assert_eq!((after.ops.len(), after.totals.ended), (1, 100));
    assert!(after.recent.iter().all(|ended| ended.op.target == "target"));
}

#[test]
fn a_tracker_that_is_off_says_so_and_keeps_what_is_in_flight() {
    let tracker = Tracker::new("test");
    let before = tracker.begin("before");

    tracker.set_enabled(false);
    tracker.set_enabled(false);
    let unseen = tracker.begin("unseen");
    let off = tracker.snapshot();
    let text = Report::local(&tracker).to_string();
    drop(before);
    let empty = tracker.snapshot();
    tracker.set_enabled(true);
    let seen = tracker.begin("seen");

    assert!(unseen.id().is_none());
    assert_eq!(off.ops.len(), 1);
    assert_eq!(off.off.unwrap().why, "set_enabled(false)");
    assert!(text.starts_with("OFF: nothing has been recorded since "));
    assert!(text.contains("set_enabled(false)"), "{text}");
    assert!(text.contains("before"), "{text}");
    assert!(empty.ops.is_empty() && empty.off.is_some());
    let on = tracker.snapshot();
    assert_eq!((on.off, on.ops.len()), (None, 1));
    assert_eq!(on.ops[0].id, seen.id().unwrap());
}

#[test]
fn inflight_off_in_the_environment_turns_trackers_off() {
    if std::env::var_os(CHILD).is_some() {
        let tracker = Tracker::new("test");
        let op = tracker.begin("unseen");
        let off = tracker.snapshot().off.unwrap();
        assert_eq!((off.why.as_str(), op.id()), ("INFLIGHT=off", None));
        let text = Report::local(&tracker).to_string();
        assert!(text.starts_with("OFF: "), "{text}");
        assert!(text.contains("(INFLIGHT=off)"), "{text}");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tracker::inflight_off_in_the_environment_turns_trackers_off",
        ])
        .env("INFLIGHT", "off")
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn the_last_ended_ops_are_kept_and_the_slowest_of_all() {
    let tracker = Tracker::builder("test").history(8).build();
    let slow = tracker.begin("slow");
    pass(Duration::from_millis(20));
    drop(slow);

    for n in 0..100 {
        drop(tracker.begin(n.to_string()));
    }

    let recent = tracker.snapshot().recent;
    let last: Vec<_> = recent.iter().map(|ended| ended.op.name.as_str()).collect();
    let expected: Vec<_> = (92..100).map(|n| n.to_string()).collect();
    assert_eq!(last[last.len() - 8..], expected);
    assert!(last.len() <= 9, "{last:?}");
    let slowest = recent.iter().map(|ended| ended.duration_ms);
    // A quick one may have been slower still on a busy machine: then that one is kept.
    assert!(slowest.fold(0.0, f64::max) >= 20.0);
    assert!(
        recent
            .iter()
            .all(|ended| ended.op.age_ms == ended.duration_ms)
    );
}

#[test]
fn without_history_nothing_is_kept() {
    let tracker = Tracker::builder("test").history(0).build();

    drop(tracker.begin("x"));

    let after = tracker.snapshot();
    assert!(after.recent.is_empty());
    assert_eq!(after.totals.ended, 1);
}

#[test]
fn snapshots_taken_while_sixteen_threads_begin_and_end_account_for_all() {
    const THREADS: u64 = 16;
    const ROUNDS: u64 = 500;
    let tracker = Tracker::new("test");
    let held: Vec<_> = (0..10).map(|_| tracker.begin("held")).collect();
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut read = 0;
            while !done.load(Relaxed) || read == 0 {
                let now = tracker.snapshot();
                let ids: HashSet<_> = now.ops.iter().map(|op| op.id).collect();
                assert_eq!(ids.len(), now.ops.len(), "no op twice");
                assert!(held.iter().all(|op| ids.contains(&op.id().unwrap())));
                assert!(now.ops.len() as u64 <= 10 + THREADS * 2);
                assert_eq!(now.totals.begun - now.totals.ended, now.ops.len() as u64);
                assert!(now.totals.begun <= 10 + THREADS * ROUNDS * 2);
                assert_eq!(now.totals.not_recorded, 0);
                read += 1;
            }
        });
        let writers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    for n in 0..ROUNDS {
                        let op = tracker.begin("round");
                        let _in = op.enter();
                        op.phase("one");
                        let inner = tracker.begin(n.to_string());
                        let _nested = inner.nested("two");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Relaxed);
        reader.join().unwrap();
    });

    let after = tracker.snapshot();
    assert_eq!(after.ops.len(), 10);
    assert_eq!(after.totals.begun, 10 + THREADS * ROUNDS * 2);
    assert_eq!(after.totals.ended, THREADS * ROUNDS * 2);
}

#[test]
fn an_op_that_is_in_flight_all_the_time_is_seen_once_however_many_there_are() {
    let tracker = Tracker::new("test");
    let mut held: Vec<_> = (0..2_000).map(|_| tracker.begin("held")).collect();
    // Some leave, so that later ones take their places.
    let mut n = 0;
    held.retain(|_| {
        n += 1;
        n % 3 > 0
    });
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let _one = tracker.begin("passing");
                let _two = tracker.begin("passing");
            }
        });
        for _ in 0..20 {
            let now = tracker.snapshot().ops;
            let ids: HashSet<_> = now.iter().map(|op| op.id).collect();
            assert_eq!(ids.len(), now.len(), "no op twice");
            assert!(held.iter().all(|op| ids.contains(&op.id().unwrap())));
            assert!(now.is_sorted_by(|a, b| a.age_ms >= b.age_ms));
        }
        done.store(true, Relaxed);
    });

    assert_eq!(tracker.snapshot().ops.len(), held.len());
}

#[test]
fn user_code_that_asks_the_tracker_while_it_tells_it_something_holds_up_nobody() {
    let tracker = Tracker::new("test");
    let op = tracker.begin(Cow::from("x"));
    let _in = op.enter();
    let asking = |text| Asking(&tracker, text);

    let named = tracker.begin(asking("named"));
    op.phase(asking("phase"));
    op.target(asking("target"));
    op.fail(asking("failure"));
    let _nested = op.nested(asking("nested"));
    inflight::phase(asking("current phase"));
    inflight::target(asking("current target"));
    inflight::fail(asking("current failure"));
    let _deeper = inflight::nested(asking("deeper"));
    inflight::idle_phase(asking("idle"));
    let _named = Resource::new(&tracker, asking("resource"));

    let shown = show(&tracker, &op);
    assert_eq!(shown.phase.path, ["phase", "current phase", "idle"]);
    assert_eq!(shown.target, "current target");
    assert_eq!(tracker.snapshot().ops.len(), 2);
    drop(named);
}
