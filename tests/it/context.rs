//! Which op is current: on threads, in futures, on tokio's threads, and where there is none any more.

use std::{
    cell::RefCell,
    future::{pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::mpsc::{Receiver, Sender, channel},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use inflight::{FutureExt as _, Op, OpId, Outcome, Tracker, snapshot::Thread};
use tokio::{runtime::Builder, sync::oneshot};

/// Frees a test that hangs; nothing is judged by it.
const DEADLINE: Duration = Duration::from_secs(20);

/// Asks the tracker and begins an op when dropped.
struct AsksOnDrop(Tracker);

/// Sees what there is when the locals of a thread are destroyed.
struct Late {
    tracker: Tracker,
    op: Op,
    seen: Sender<Seen>,
}

struct Seen {
    live_while_pending: usize,
    live_when_ready: usize,
    runners: Vec<Thread>,
}

thread_local! {
    static EARLIER: RefCell<Option<Late>> = const { RefCell::new(None) };
    static LATER: RefCell<Option<Late>> = const { RefCell::new(None) };
}

impl Drop for AsksOnDrop {
    fn drop(&mut self) {
        let op = self.0.begin("in drop");
        let _in = op.enter();
        assert!(!self.0.snapshot().ops.is_empty());
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let of_its_own = self.tracker.begin("of its own");
        let entered = of_its_own.enter();
        inflight::phase("late");
        let _ = Op::current();
        drop((entered, of_its_own));

        let (answer, answered) = oneshot::channel::<()>();
        let owed = self.tracker.begin("owed");
        let mut future = pin!(answered.in_op(&owed));
        drop(owed);
        assert!(poll(future.as_mut()).is_pending());
        let live_while_pending = self.tracker.snapshot().ops.len();
        answer.send(()).unwrap();
        assert!(poll(future.as_mut()).is_ready());
        drop(self.op.enter());

        let after = self.tracker.snapshot();
        let op = after.op(self.op.id().unwrap()).unwrap();
        let _ = self.seen.send(Seen {
            live_while_pending,
            live_when_ready: after.ops.len(),
            runners: op
                .thread
                .as_deref()
                .into_iter()
                .chain(&op.more_threads)
                .cloned()
                .collect(),
        });
    }
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn current() -> Option<OpId> {
    Op::current().and_then(|op| op.id())
}

fn receive<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(DEADLINE).unwrap()
}

#[test]
fn a_thread_works_for_the_op_it_entered_last() {
    let tracker = Tracker::new("test");
    let (outer, inner) = (tracker.begin("outer"), tracker.begin("inner"));

    assert_eq!(current(), None);
    let first = outer.enter();
    let second = inner.enter();
    assert_eq!(current(), inner.id());
    // Guards may drop in any order.
    drop(first);
    assert_eq!(current(), inner.id());
    let threads = tracker.snapshot().ops;
    assert_eq!(
        (&threads[0].thread, threads[0].more_threads.len()),
        (&None, 0)
    );
    assert!(threads[1].thread.is_some());
    drop(second);

    assert_eq!(current(), None);
}

#[test]
fn a_guard_keeps_its_op_in_flight() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");

    let entered = op.enter();
    drop(op);
    assert_eq!(tracker.snapshot().ops.len(), 1);
    drop(entered);

    assert!(tracker.snapshot().ops.is_empty());
}

#[test]
fn each_thread_that_works_for_an_op_is_shown_once() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let _in = op.enter();
    let _again = op.enter();
    let (entered, wait) = (channel(), channel::<()>());

    let other = thread::spawn({
        let op = op.clone();
        move || {
            let _in = op.enter();
            entered.0.send(()).unwrap();
            let _ = wait.1.recv_timeout(DEADLINE);
        }
    });
    receive(&entered.1);
    let both = tracker.snapshot().ops.remove(0);
    drop(wait.0);
    other.join().unwrap();
    let one = tracker.snapshot().ops.remove(0);

    let first = both.thread.unwrap();
    assert_eq!(both.more_threads.len(), 1);
    assert_ne!(first.tid, both.more_threads[0].tid);
    assert!(first.since_ms >= both.more_threads[0].since_ms);
    assert_eq!(one.thread.unwrap().tid, first.tid);
    assert!(one.more_threads.is_empty());
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
    let op = tracker.begin("of another thread");
    let _in = op.enter();

    let elsewhere = thread::spawn(|| {
        let mut future = pin!(async { current() }.in_current_op());
        poll(future.as_mut())
    });

    assert_eq!(elsewhere.join().unwrap(), Poll::Ready(None));
}

#[test]
fn what_is_said_goes_to_the_current_op() {
    let tracker = Tracker::new("test");
    let (outer, inner) = (tracker.begin("outer"), tracker.begin("inner"));
    let _outer = outer.enter();
    let entered = inner.enter();

    inflight::phase("read");
    inflight::target("/a");
    inflight::fail("EIO");
    let nested = inflight::nested("walk");
    drop(entered);
    inflight::phase("of the outer one");

    let ops = tracker.snapshot().ops;
    assert_eq!(ops[0].phase.path, ["of the outer one"]);
    assert_eq!(ops[1].phase.path, ["read", "walk"]);
    assert_eq!(
        (ops[1].target.as_str(), ops[1].error.as_deref()),
        ("/a", Some("EIO"))
    );
    drop(nested);
    assert_eq!(tracker.snapshot().ops[1].phase.path, ["read"]);
}

#[test]
fn a_future_is_polled_under_its_op_and_only_then() {
    let tracker = Tracker::new("test");
    let (op, other) = (tracker.begin("x"), tracker.begin("other"));
    let (answer, answered) = oneshot::channel::<()>();
    let work = async {
        let before = current();
        answered.await.unwrap();
        (before, current())
    };
    let mut future = pin!(work.in_op(&op));

    assert!(poll(future.as_mut()).is_pending());
    assert_eq!(current(), None);
    assert!(
        tracker.snapshot().ops[0].thread.is_none(),
        "nobody polls it"
    );
    answer.send(()).unwrap();
    let entered = other.enter();
    let seen = poll(future.as_mut());

    assert_eq!(seen, Poll::Ready((op.id(), op.id())));
    assert_eq!(current(), other.id());
    drop(entered);
}

#[test]
fn a_future_takes_the_op_that_is_current_when_it_is_made() {
    let tracker = Tracker::new("test");
    let (made, polled) = (tracker.begin("made"), tracker.begin("polled"));
    let id = made.id();
    let mut future = {
        let _in = made.enter();
        Box::pin(async { current() }.in_current_op())
    };
    drop(made);

    assert_eq!(tracker.snapshot().ops.len(), 2, "the answer is owed");
    let _in = polled.enter();

    assert_eq!(poll(future.as_mut()), Poll::Ready(id));
}

#[test]
fn a_future_that_is_done_owes_nothing_even_if_it_is_kept() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let mut future = Box::pin(ready(()).in_op(&op));
    drop(op);

    assert!(poll(future.as_mut()).is_ready());

    let after = tracker.snapshot();
    assert!(after.ops.is_empty());
    assert_eq!(after.recent[0].outcome, Outcome::Completed);
}

#[test]
fn a_future_that_is_dropped_in_the_middle_ends_its_op() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let mut future = Box::pin(
        async {
            let _asks = AsksOnDrop(tracker.clone());
            pending::<()>().await;
        }
        .in_op(&op),
    );
    drop(op);
    assert!(poll(future.as_mut()).is_pending());
    assert_eq!(tracker.snapshot().ops.len(), 1);

    drop(future);

    let after = tracker.snapshot();
    assert!(after.ops.is_empty());
    let names: Vec<_> = after.recent.iter().map(|op| op.op.name.as_str()).collect();
    assert_eq!(
        names,
        ["in drop", "x"],
        "still in flight while it is dropped"
    );
}

#[test]
fn a_future_that_panics_leaves_its_op_and_the_thread_in_order() {
    let tracker = Tracker::new("test");
    let (op, outer) = (tracker.begin("x"), tracker.begin("outer"));
    let mut future = Box::pin(
        async {
            let _asks = AsksOnDrop(tracker.clone());
            panic!("on purpose");
        }
        .in_op(&op),
    );
    drop(op);
    let _in = outer.enter();

    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _: Poll<()> = poll(future.as_mut());
    }));

    assert!(unwound.is_err());
    assert_eq!(current(), outer.id());
    let after = tracker.snapshot();
    assert_eq!(after.ops.len(), 1);
    let ended = after.recent.iter().find(|ended| ended.op.name == "x");
    assert_eq!(ended.unwrap().outcome, Outcome::Panicked);
}

#[test]
fn a_future_waits_for_an_op_while_it_is_pending() {
    let tracker = Tracker::new("test");
    let (fetch, reader) = (tracker.begin("fetch"), tracker.begin("reader"));
    let waited = || {
        let wait = tracker.snapshot().ops[1].phase.wait.clone();
        wait.map(|wait| wait.ops[0])
    };
    let entered = reader.enter();
    let (answer, answered) = oneshot::channel::<()>();
    let mut future = Box::pin(answered.waiting_for(&fetch));
    let mut dropped = Box::pin(pending::<()>().waiting_for(&fetch));
    let mut at_once = Box::pin(ready(()).waiting_for(&fetch));
    drop(entered);
    assert_eq!(waited(), None, "not polled yet");

    assert!(poll(future.as_mut()).is_pending());
    assert_eq!(waited(), fetch.id());
    answer.send(()).unwrap();
    assert!(poll(future.as_mut()).is_ready());
    assert_eq!(waited(), None);

    assert!(poll(dropped.as_mut()).is_pending());
    assert_eq!(waited(), fetch.id());
    drop(dropped);
    assert_eq!(waited(), None);

    assert!(poll(at_once.as_mut()).is_ready());
    assert_eq!(waited(), None);
}

#[test]
fn fifty_readers_each_wait_for_the_one_fetch_they_share() {
    let tracker = Tracker::new("test");
    let fetch = tracker.call("GET", "http://api:80/block/7");
    let answer = tokio::sync::Semaphore::new(0);
    let mut readers: Vec<_> = (0..50)
        .map(|_| {
            let op = tracker.begin("read");
            let _in = op.enter();
            let got = async { drop(answer.acquire().await.unwrap()) };
            Box::pin(got.waiting_for(fetch.op()).in_op(&op))
        })
        .collect();
    for reader in &mut readers {
        assert!(poll(reader.as_mut()).is_pending());
    }

    let id = fetch.op().id().unwrap();
    let hung = tracker.snapshot();
    let waiting = hung.ops.iter().filter(|op| {
        let wait = op.phase.wait.as_ref();
        wait.is_some_and(|wait| wait.ops == [id])
    });
    assert_eq!(waiting.count(), 50);
    drop(fetch);
    answer.add_permits(1);
    let mut done = 0;
    while done < 50 {
        let before = done;
        readers.retain_mut(|reader| {
            let is_done = poll(reader.as_mut()).is_ready();
            done += usize::from(is_done);
            !is_done
        });
        assert!(done > before, "{done} of 50 are done");
    }

    assert!(tracker.snapshot().ops.is_empty());
}

#[test]
fn spawn_blocking_carries_the_op_and_names_its_thread() {
    let tracker = Tracker::new("test");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let op = tracker.begin("walk");
    let (entered, wait) = (channel(), channel::<()>());

    let blocking = {
        let _rt = runtime.enter();
        let _in = op.enter();
        inflight::spawn_blocking(move || {
            inflight::phase("read_dir");
            let tid = self::tid();
            entered.0.send((current(), tid)).unwrap();
            let _ = wait.1.recv_timeout(DEADLINE);
            tid
        })
    };
    let id = op.id();
    drop(op);
    let (seen, tid) = receive(&entered.1);
    let shown = tracker.snapshot().ops.remove(0);
    drop(wait.0);
    runtime.block_on(blocking).unwrap();

    assert_eq!(seen, id);
    assert_eq!(shown.thread.unwrap().tid, tid);
    assert_eq!(shown.phase.path, ["read_dir"]);
    assert!(tracker.snapshot().ops.is_empty());
}

#[test]
fn a_blocked_task_names_the_thread_that_polls_it_now() {
    let tracker = Tracker::new("test");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let op = tracker.begin("handler");
    let (entered, wait) = (channel(), channel::<()>());

    let task = runtime.spawn(
        async move {
            tokio::task::yield_now().await;
            entered.0.send(tid()).unwrap();
            let _ = wait.1.recv_timeout(DEADLINE);
        }
        .in_op(&op),
    );
    let tid = receive(&entered.1);
    let blocked = tracker.snapshot().ops.remove(0);
    drop(wait.0);
    runtime.block_on(task).unwrap();

    assert_eq!(blocked.thread.unwrap().tid, tid);
    assert!(blocked.more_threads.is_empty());
    assert!(tracker.snapshot().ops[0].thread.is_none());
}

#[test]
fn a_task_that_is_aborted_or_panics_ends_its_op() {
    let tracker = Tracker::new("test");
    let runtime = Builder::new_current_thread().build().unwrap();
    let spawn = |panics: bool| {
        let op = tracker.begin("task");
        let work = async move {
            assert!(!panics, "on purpose");
            pending::<()>().await;
        };
        runtime.spawn(work.in_op(&op))
    };
    let (aborted, panicked) = (spawn(false), spawn(true));
    assert_eq!(tracker.snapshot().ops.len(), 2);

    aborted.abort();
    let ends = runtime.block_on(async { (aborted.await, panicked.await) });

    assert!(ends.0.unwrap_err().is_cancelled());
    assert!(ends.1.unwrap_err().is_panic());
    let after = tracker.snapshot();
    assert!(after.ops.is_empty());
    let panicked = after.recent.iter().map(|ended| &ended.outcome);
    assert_eq!(panicked.filter(|end| **end == Outcome::Panicked).count(), 1);
}

#[test]
fn ops_live_and_end_while_the_locals_of_a_thread_are_destroyed() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let (seen, sees) = channel();
    let late = || Late {
        tracker: tracker.clone(),
        op: op.clone(),
        seen: seen.clone(),
    };
    let (earlier, later) = (late(), late());

    // One of the two is destroyed when this thread has no current op any more, whichever comes first.
    let ends = thread::spawn(move || {
        EARLIER.set(Some(earlier));
        drop(op.enter());
        LATER.set(Some(later));
        op
    });
    let op = ends.join().unwrap();

    for seen in [receive(&sees), receive(&sees)] {
        assert_eq!((seen.live_while_pending, seen.live_when_ready), (2, 1));
        assert!(seen.runners.is_empty(), "{:?}", seen.runners);
    }
    assert_eq!(tracker.snapshot().ops[0].id, op.id().unwrap());
}

fn tid() -> u32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}
