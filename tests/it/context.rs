//! The op that a thread or a future works for.

use std::{
    future::{pending, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
};

use inflight::{FutureExt, Op, Outcome, Tracker, snapshot::On};

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn current() -> Option<inflight::OpId> {
    Op::current().and_then(|op| op.id())
}

#[test]
fn the_innermost_op_of_a_thread_is_current_until_its_guard_drops() {
    let tracker = Tracker::new("test");
    let (outer, inner) = (tracker.begin("outer"), tracker.begin("inner"));
    assert_eq!(current(), None);

    let in_outer = outer.enter();
    let in_inner = inner.enter();
    assert_eq!(current(), inner.id());
    // Out of order: what is left is still right.
    drop(in_outer);
    assert_eq!(current(), inner.id());
    drop(in_inner);
    assert_eq!(current(), None);
}

#[test]
fn another_thread_has_an_op_of_its_own() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let _in = op.enter();

    let elsewhere = thread::spawn(current).join().unwrap();

    assert_eq!(elsewhere, None);
}

#[test]
fn a_future_is_polled_under_its_op_and_leaves_none_behind() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let id = op.id();
    let mut turn = 0;
    let work = poll_fn(|_| {
        assert_eq!(current(), id);
        turn += 1;
        if turn == 2 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    let mut work = pin!(work.in_op(&op));

    assert!(poll(work.as_mut()).is_pending());
    assert_eq!(current(), None);
    assert!(
        tracker.snapshot().ops[0].thread.is_none(),
        "nobody runs it now"
    );
    assert!(poll(work).is_ready());
}

#[test]
fn a_future_keeps_its_op_in_flight_until_it_is_done() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let mut is_ready = false;
    let mut work = pin!(
        poll_fn(|_| match std::mem::replace(&mut is_ready, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .in_op(&op)
    );
    drop(op);
    assert!(poll(work.as_mut()).is_pending());
    assert_eq!(tracker.snapshot().ops.len(), 1);

    assert!(poll(work.as_mut()).is_ready());

    assert!(
        tracker.snapshot().ops.is_empty(),
        "done, even if it is kept"
    );
}

#[test]
fn a_future_dropped_in_the_middle_ends_its_op() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let mut work = Box::pin(pending::<()>().in_op(&op));
    drop(op);
    assert!(poll(work.as_mut()).is_pending());

    drop(work);

    assert!(tracker.snapshot().ops.is_empty());
}

#[test]
fn a_future_that_panics_leaves_no_current_op() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let work = async { panic!("on purpose") }.in_op(&op);
    drop(op);

    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut work = pin!(work);
        poll(work.as_mut())
    }));

    assert!(result.is_err());
    assert_eq!(current(), None);
    assert_eq!(tracker.snapshot().recent[0].outcome, Outcome::Panicked);
}

#[test]
fn the_current_op_is_taken_where_it_is_said_not_where_it_is_polled() {
    let tracker = Tracker::new("test");
    let (here, there) = (tracker.begin("here"), tracker.begin("there"));
    let work = {
        let _in = here.enter();
        async { current() }.in_current_op()
    };

    let _in = there.enter();
    let mut work = pin!(work);

    assert_eq!(poll(work.as_mut()), Poll::Ready(here.id()));
}

#[test]
fn who_waits_for_another_op_says_so_as_long_as_it_does() {
    let tracker = Tracker::new("test");
    let (reader, fetch) = (tracker.begin("reader"), tracker.begin("fetch"));
    let _in = reader.enter();
    let mut waits = Box::pin(pending::<()>().waiting_for(&fetch));
    let wait = || {
        let snapshot = tracker.snapshot();
        snapshot
            .op(reader.id().unwrap())
            .unwrap()
            .phase
            .wait
            .clone()
    };
    assert!(wait().is_none(), "not polled yet");

    assert!(poll(waits.as_mut()).is_pending());
    let now = wait().unwrap();
    assert_eq!((now.on, now.ops), (On::Op, vec![fetch.id().unwrap()]));
    drop(waits);
    assert!(wait().is_none());

    let guard = inflight::waiting_for(&fetch);
    assert!(wait().is_some());
    drop(guard);
    assert!(wait().is_none());
}

#[test]
fn a_future_that_is_ready_at_once_was_not_waited_for() {
    let tracker = Tracker::new("test");
    let (reader, fetch) = (tracker.begin("reader"), tracker.begin("fetch"));
    let _in = reader.enter();

    let mut ready = pin!(async {}.waiting_for(&fetch));

    assert!(poll(ready.as_mut()).is_ready());
    assert!(tracker.snapshot().ops[0].phase.wait.is_none());
}

#[tokio::test]
async fn a_blocking_closure_carries_the_op_and_shows_its_thread() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let (looked, look) = tokio::sync::oneshot::channel::<()>();
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let work = async {
        let work = inflight::spawn_blocking(move || {
            let tid = rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs();
            entered.send(tid).unwrap();
            look.blocking_recv().unwrap();
            current()
        });
        work.await.unwrap()
    };
    let work = tokio::spawn(work.in_op(&op));
    let tid = has_entered.await.unwrap();

    let seen = tracker.snapshot().ops.remove(0);
    looked.send(()).unwrap();

    let threads: Vec<u32> = seen
        .thread
        .iter()
        .chain(&seen.more_threads)
        .map(|thread| thread.tid)
        .collect();
    assert!(threads.contains(&tid), "{threads:?}");
    assert_eq!(work.await.unwrap(), op.id());
}

#[test]
fn without_a_current_op_nothing_happens() {
    inflight::phase("x");
    inflight::idle_phase("x");
    inflight::target("x");
    inflight::fail("x");
    drop(inflight::nested("x"));
    let tracker = Tracker::new("test");
    drop(inflight::waiting_for(&tracker.begin("x")));

    let mut future = pin!(async { current() }.in_current_op());
    assert_eq!(poll(future.as_mut()), Poll::Ready(None));
}
