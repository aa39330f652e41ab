//! Locks and pools: who holds them, who waits for them, since when, and what is left of it in a trail.

use std::{
    fmt,
    future::{pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Mutex as StdMutex,
        mpsc::{Receiver, channel},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use inflight::{
    FutureExt as _, Op, OpId, Report, Tracker,
    resource::{Mutex, Resource},
    snapshot::{self, LiveOp, On},
};

/// Frees a test that hangs; nothing is judged by it.
const DEADLINE: Duration = Duration::from_secs(20);

/// Asks the tracker when it is formatted and when it is dropped.
struct Asks(Tracker);

impl Asks {
    fn ask(&self) {
        let op = self.0.begin("asks");
        let _in = op.enter();
        assert!(!self.0.snapshot().ops.is_empty());
    }
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ask();
        f.write_str("Asks")
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        self.ask();
    }
}

fn only(tracker: &Tracker) -> snapshot::Resource {
    let mut resources = tracker.snapshot().resources;
    assert_eq!(resources.len(), 1);
    resources.remove(0)
}

fn show(tracker: &Tracker, op: &Op) -> LiveOp {
    tracker.snapshot().op(op.id().unwrap()).unwrap().clone()
}

fn ops(parties: &[snapshot::Party]) -> Vec<Option<OpId>> {
    parties.iter().map(|party| party.op).collect()
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn receive<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(DEADLINE).unwrap()
}

// Lets the clock go on, so that two moments differ.
fn pass(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        thread::yield_now();
    }
}

#[test]
fn who_waits_for_a_lock_and_who_holds_it_are_shown_with_their_times() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table");
    let lock = StdMutex::new(7);
    let (holder, waiter) = (tracker.begin("holder"), tracker.begin("waiter"));
    let (waiting, waits) = channel();

    let held = {
        let _in = holder.enter();
        resource.wait(|| lock.lock().unwrap())
    };
    pass(Duration::from_millis(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _in = waiter.enter();
            let held = resource.wait(|| {
                waiting.send(()).unwrap();
                lock.lock().unwrap()
            });
            assert_eq!(**held, 7);
            assert_eq!(ops(&only(&tracker).holders), [waiter.id()]);
        });
        receive(&waits);
        pass(Duration::from_millis(2));
        let hung = tracker.snapshot();
        let report = Report::local(&tracker);
        drop(held);

        let table = &hung.resources[0];
        assert_eq!((table.name.as_str(), table.capacity), ("table", 1));
        assert_eq!(ops(&table.holders), [holder.id()]);
        assert_eq!(ops(&table.waiters), [waiter.id()]);
        assert!(table.holders[0].since_ms >= table.waiters[0].since_ms + 2.0);
        assert!(table.waiters[0].since_ms >= 2.0);
        assert_eq!(
            (&table.holders[0].thread, &table.waiters[0].thread),
            (&None, &None)
        );
        let wait = hung.op(waiter.id().unwrap()).unwrap().phase.wait.clone();
        let wait = wait.unwrap();
        assert_eq!((wait.on, wait.all), (On::Resource, true));
        assert_eq!(wait.resource.as_ref(), Some(&table.id));
        assert_eq!(wait.ops, [holder.id().unwrap()]);
        assert!(wait.since_ms >= 2.0);
        let edges = report
            .edges
            .iter()
            .map(|edge| (edge.why.as_str(), edge.certainty.as_str()));
        assert!(edges.clone().any(|edge| edge == ("holds", "certain")));
        assert!(edges.clone().any(|edge| edge == ("waits", "certain")));
    });

    let free = only(&tracker);
    assert!(free.holders.is_empty() && free.waiters.is_empty());
    let waited = show(&tracker, &waiter);
    assert_eq!(waited.phase.wait, None);
    assert_eq!(waited.events[0].phase, "waited for table");
    assert!(waited.events[0].for_ms.unwrap() >= 2.0);
}

#[test]
fn a_wait_under_a_millisecond_leaves_no_trace() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table");
    let wait = |time| {
        let op = tracker.begin("x");
        let _in = op.enter();
        drop(resource.wait(|| pass(time)));
        show(&tracker, &op).events.len()
    };

    // A busy machine may stretch one, but not a thousand in a row.
    assert!((0..1000).any(|_| wait(Duration::ZERO) == 0));
    assert_eq!(wait(Duration::from_millis(1)), 1);
}

#[test]
fn without_an_op_the_thread_holds_and_waits() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table");
    let lock = StdMutex::new(());
    let (waiting, waits) = channel();

    let held = resource.wait(|| lock.lock().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _held = resource.wait(|| {
                waiting.send(tid()).unwrap();
                lock.lock().unwrap()
            });
        });
        let other = receive(&waits);
        let hung = only(&tracker);
        drop(held);

        assert_eq!(
            (ops(&hung.holders), ops(&hung.waiters)),
            (vec![None], vec![None])
        );
        assert_eq!(hung.holders[0].thread.as_ref().unwrap().tid, tid());
        assert_eq!(hung.waiters[0].thread.as_ref().unwrap().tid, other);
    });
}

// A worker polls others meanwhile: what these do says nothing of the task.
#[test]
fn without_an_op_an_async_holder_or_waiter_is_no_thread() {
    let tracker = Tracker::new("test");
    let mutex = Mutex::new(&tracker, "conversations", ());
    let is_nobody = |party: &snapshot::Party| party.op.is_none() && party.thread.is_none();

    let tried = mutex.try_lock().unwrap();
    let mut waiting = Box::pin(mutex.lock());
    assert!(poll(waiting.as_mut()).is_pending());
    let hung = only(&tracker);
    drop(tried);
    let Poll::Ready(locked) = poll(waiting.as_mut()) else {
        panic!()
    };
    let after = only(&tracker);
    drop(locked);

    assert_eq!((hung.holders.len(), hung.waiters.len()), (1, 1));
    assert!(is_nobody(&hung.holders[0]) && is_nobody(&hung.waiters[0]));
    assert!(after.holders.len() == 1 && is_nobody(&after.holders[0]));
}

#[test]
fn two_threads_without_an_op_that_wait_for_each_others_locks_are_drawn() {
    let tracker = Tracker::new("test");
    let locks = ["left", "right"].map(|name| Resource::new(&tracker, name));
    let (waiting, waits) = channel();

    thread::scope(|scope| {
        let crosswise = [[0, 1], [1, 0]].map(|[first, second]| {
            let (locks, waiting) = (&locks, waiting.clone());
            let (free, freed) = channel::<()>();
            scope.spawn(move || {
                let _first = locks[first].wait(|| ());
                let _second = locks[second].wait(|| {
                    waiting.send(tid()).unwrap();
                    let _ = freed.recv_timeout(DEADLINE);
                });
            });
            free
        });
        let tids = [receive(&waits), receive(&waits)];
        let edges = Report::local(&tracker).edges;
        drop(crosswise);

        for tid in tids {
            let name = format!("thread:{}:{tid}", std::process::id());
            let waits = edges.iter().find(|edge| edge.from == name).unwrap();
            let holds = edges.iter().find(|edge| edge.from == waits.to).unwrap();
            assert_eq!((waits.why.as_str(), holds.why.as_str()), ("waits", "holds"));
            assert_ne!(holds.to, name);
        }
    });
}

#[test]
fn who_gives_a_lock_back_holds_it_no_more_when_the_next_one_gets_it() {
    struct Seen<'a>(&'a Tracker);
    impl Drop for Seen<'_> {
        fn drop(&mut self) {
            assert!(only(self.0).holders.is_empty());
        }
    }
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table");

    let held = resource.wait(|| Seen(&tracker));
    assert_eq!(only(&tracker).holders.len(), 1);

    drop(held);
}

#[test]
fn a_waiter_for_a_pool_waits_for_any_of_its_holders() {
    let tracker = Tracker::new("test");
    let pool = Resource::new(&tracker, "connections").capacity(2);
    let holders = [tracker.begin("a"), tracker.begin("b")];
    let held = holders.each_ref().map(|op| {
        let _in = op.enter();
        pool.wait(|| ())
    });
    let waiter = tracker.begin("waiter");
    let mut wait = {
        let _in = waiter.enter();
        let mut wait = Box::pin(pool.wait_async(pending::<()>()));
        assert!(poll(wait.as_mut()).is_pending());
        wait
    };

    let shown = only(&tracker);
    assert_eq!(shown.capacity, 2);
    let both = holders.each_ref().map(Op::id);
    assert_eq!(ops(&shown.holders), both);
    let edge = show(&tracker, &waiter).phase.wait.unwrap();
    assert_eq!(edge.ops, both.map(Option::unwrap));
    assert!(!edge.all, "one that is given back is enough");
    assert!(poll(wait.as_mut()).is_pending());
    drop(held);
}

#[test]
fn a_poisoned_lock_is_given_as_it_is() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table");
    let lock = StdMutex::new(7);
    let op = tracker.begin("x");
    let _in = op.enter();
    let poisons = catch_unwind(AssertUnwindSafe(|| {
        let _held = resource.wait(|| lock.lock().unwrap());
        panic!("on purpose");
    }));
    assert!(poisons.is_err() && lock.is_poisoned());
    assert!(only(&tracker).holders.is_empty());

    let held = resource.wait(|| lock.lock());

    assert!(held.is_err());
    assert_eq!(ops(&only(&tracker).holders), [op.id()]);
    drop(held);
    let panics = catch_unwind(AssertUnwindSafe(|| {
        let _held = resource.wait(|| lock.lock().unwrap());
    }));
    assert!(panics.is_err());
    let after = only(&tracker);
    assert!(after.holders.is_empty() && after.waiters.is_empty());
    assert_eq!(show(&tracker, &op).phase.wait, None);
}

#[test]
fn what_is_ready_at_once_was_not_waited_for_and_what_is_dropped_holds_nothing() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "permits");
    let op = tracker.begin("x");
    let _in = op.enter();

    let mut at_once = pin!(resource.wait_async(async {
        assert!(only(&tracker).waiters.is_empty());
        7
    }));
    let Poll::Ready(held) = poll(at_once.as_mut()) else {
        panic!()
    };
    assert_eq!((*held, ops(&only(&tracker).holders)), (7, vec![op.id()]));
    drop(held);

    let mut never = Box::pin(resource.wait_async(pending::<()>()));
    assert!(only(&tracker).waiters.is_empty(), "not polled yet");
    assert!(poll(never.as_mut()).is_pending());
    assert!(poll(never.as_mut()).is_pending());
    assert_eq!(ops(&only(&tracker).waiters), [op.id()]);
    assert_eq!(show(&tracker, &op).phase.wait.unwrap().on, On::Resource);
    drop(never);
    let after = only(&tracker);
    assert!(after.holders.is_empty() && after.waiters.is_empty());
    assert_eq!(show(&tracker, &op).phase.wait, None);
}

#[test]
fn the_mutex_shows_its_holder_and_its_waiters_in_the_order_they_came() {
    let tracker = Tracker::new("test");
    let mutex = Mutex::new(&tracker, "conversations", vec![1]);
    let names = ["holder", "first", "second"];
    let [holder, first, second] = names.map(|name| tracker.begin(name));

    let mut guard = {
        let mut lock = pin!(mutex.lock().in_op(&holder));
        let Poll::Ready(guard) = poll(lock.as_mut()) else {
            panic!()
        };
        guard
    };
    guard.push(2);
    let mut one = Box::pin(async { mutex.lock().await.push(3) }.in_op(&first));
    let mut two = Box::pin(async { mutex.lock().await.len() }.in_op(&second));
    assert!(poll(one.as_mut()).is_pending());
    assert!(poll(two.as_mut()).is_pending());

    let hung = only(&tracker);
    assert_eq!(ops(&hung.holders), [holder.id()]);
    assert_eq!(ops(&hung.waiters), [first.id(), second.id()]);
    assert!(mutex.try_lock().is_err());
    drop(guard);
    assert!(poll(one.as_mut()).is_ready());
    assert_eq!(ops(&only(&tracker).waiters), [second.id()]);
    assert_eq!(poll(two.as_mut()), Poll::Ready(3));
    let free = mutex.try_lock().unwrap();
    assert_eq!(ops(&only(&tracker).holders), [None]);
    drop((free, one, two));
    assert!(only(&tracker).holders.is_empty());
    assert_eq!(mutex.into_inner(), [1, 2, 3]);
}

#[test]
fn two_ops_that_wait_for_each_others_locks_are_a_circle() {
    let tracker = Tracker::new("test");
    let (left, right) = (
        Mutex::new(&tracker, "left", ()),
        Mutex::new(&tracker, "right", ()),
    );
    let (one, two) = (tracker.begin("one"), tracker.begin("two"));
    let crosswise = async |a: &Mutex<()>, b: &Mutex<()>| {
        let _a = a.lock().await;
        let mut yielded = false;
        std::future::poll_fn(|_| match std::mem::replace(&mut yielded, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        let _b = b.lock().await;
    };
    let mut first = Box::pin(crosswise(&left, &right).in_op(&one));
    let mut second = Box::pin(crosswise(&right, &left).in_op(&two));
    for _ in 0..2 {
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
    }

    // Younger than a second, it is no proof yet, but its edges all stand.
    let edges = Report::local(&tracker).edges;

    let name = |op: &Op| op.id().unwrap().to_string();
    for (from, to) in [(&one, &two), (&two, &one)] {
        let waits = edges.iter().find(|edge| edge.from == name(from)).unwrap();
        let holds = edges.iter().find(|edge| edge.from == waits.to).unwrap();
        assert_eq!((waits.why.as_str(), holds.why.as_str()), ("waits", "holds"));
        assert_eq!(holds.to, name(to));
        assert_eq!(
            (waits.certainty.as_str(), holds.certainty.as_str()),
            ("certain", "certain")
        );
    }
}

#[test]
fn a_resource_is_shown_as_long_as_a_handle_lives() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "a");
    let clone = resource.clone();
    let other = Resource::new(&tracker, "a");

    let shown = tracker.snapshot().resources;
    assert_eq!(shown.len(), 2);
    assert_ne!(shown[0].id, shown[1].id, "two of one name are told apart");
    drop(resource);
    let held = clone.wait(|| ());
    drop((clone, other));
    assert_eq!(only(&tracker).holders.len(), 1, "still held");
    drop(held);

    assert!(tracker.snapshot().resources.is_empty());
}

#[test]
fn user_code_inside_a_wait_a_guard_or_a_format_may_ask_the_tracker() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table");
    let mutex = Mutex::new(&tracker, "mutex", Asks(tracker.clone()));
    let op = tracker.begin("x");
    let _in = op.enter();

    let held = resource.wait(|| {
        let asks = Asks(tracker.clone());
        asks.ask();
        // Even the same resource once more.
        drop(resource.wait(|| ()));
        asks
    });
    assert!(!format!("{held:?} {mutex:?} {resource:?}").is_empty());
    drop(held);
    let mut lock = Box::pin(mutex.lock());
    let Poll::Ready(guard) = poll(lock.as_mut()) else {
        panic!()
    };
    assert!(!format!("{guard:?} {mutex:?}").is_empty());
    drop((guard, lock));
    drop(mutex);
    let mut got = Box::pin(resource.wait_async(ready(Asks(tracker.clone()))));
    assert!(poll(got.as_mut()).is_ready());

    let after = tracker.snapshot();
    assert_eq!(after.ops.len(), 1);
    assert_eq!(after.resources.len(), 1);
    assert!(after.resources[0].holders.is_empty());
}

fn tid() -> u32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}
