<<<<<<< HEAD
//! Locks and pools: who holds them, who waits, and since when.

use std::{
    sync::{Arc, Mutex as StdMutex, PoisonError, mpsc::channel},
    thread,
    time::Duration,
};

use inflight::{
    FutureExt, Tracker,
    resource::{Mutex, Resource},
    snapshot::{self, On},
};

const DEADLINE: Duration = Duration::from_secs(20);

=======
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

>>>>>>> 6d160a0 (Test the tracker, the current op and resources through the public API)
fn only(tracker: &Tracker) -> snapshot::Resource {
    let mut resources = tracker.snapshot().resources;
    assert_eq!(resources.len(), 1);
    resources.remove(0)
}

<<<<<<< HEAD
fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !is_so() {
        assert!(
            std::time::Instant::now() < deadline,
            "it did not come to that"
        );
        thread::sleep(Duration::from_millis(1));
=======
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
>>>>>>> 6d160a0 (Test the tracker, the current op and resources through the public API)
    }
}

#[test]
<<<<<<< HEAD
fn a_lock_shows_the_op_that_holds_it_and_those_that_wait() {
    let tracker = Tracker::new("test");
    let resource = Arc::new(Resource::new(&tracker, "the list"));
    let mutex = Arc::new(StdMutex::new(()));
    let holder = tracker.begin("holder");
    let entered = holder.enter();
    let held = resource.wait(|| mutex.lock().unwrap());
    drop(entered);
    let waiter = tracker.begin("waiter");
    let thread = thread::spawn({
        let (waiter, resource, mutex) = (waiter.clone(), Arc::clone(&resource), Arc::clone(&mutex));
        move || {
            let _in = waiter.enter();
            let _held = resource.wait(|| mutex.lock().unwrap());
        }
    });
    until(|| !only(&tracker).waiters.is_empty());

    let seen = only(&tracker);
    assert_eq!(seen.name, "the list");
    assert_eq!(seen.holders[0].op, holder.id());
    assert_eq!(seen.waiters[0].op, waiter.id());
    assert!(seen.holders[0].since_ms >= seen.waiters[0].since_ms);
    let snapshot = tracker.snapshot();
    let wait = &snapshot.op(waiter.id().unwrap()).unwrap().phase.wait;
    let wait = wait.as_ref().unwrap();
    assert_eq!(wait.on, On::Resource);
    assert_eq!(wait.ops, [holder.id().unwrap()]);
    drop(held);
    thread.join().unwrap();
    assert!(only(&tracker).holders.is_empty());
}

#[test]
fn without_an_op_it_is_the_thread_that_holds() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "cache");
    let _held = resource.wait(|| ());

    let holder = only(&tracker).holders.remove(0);

    let tid = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs();
    assert_eq!(holder.op, None);
    assert_eq!(holder.thread.unwrap().tid, tid);
}

#[test]
fn a_pool_has_as_many_holders_as_it_gave_out() {
    let tracker = Tracker::new("test");
    let pool = Resource::new(&tracker, "pool").capacity(3);
    let (first, second) = (pool.wait(|| 1), pool.wait(|| 2));

    let seen = only(&tracker);

    assert_eq!((seen.capacity, seen.holders.len()), (3, 2));
    assert_eq!(*first + *second, 3);
}

#[test]
fn a_wait_for_nothing_leaves_no_trace_and_a_long_one_an_event() {
    let tracker = Tracker::new("test");
    let resource = Arc::new(Resource::new(&tracker, "cache"));
    let op = tracker.begin("x");
    let _in = op.enter();
    for _ in 0..10 {
        drop(resource.wait(|| ()));
    }
    assert!(tracker.snapshot().ops[0].events.is_empty());

    // More than the millisecond from which on a wait is worth an event.
    drop(resource.wait(|| thread::sleep(Duration::from_millis(3))));

    let events = tracker.snapshot().ops[0].events.clone();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].phase, "waited for cache");
    assert!(events[0].for_ms.unwrap() >= 3.0);
}

#[test]
fn a_poisoned_lock_and_a_panic_while_waiting_leave_nothing_behind() {
    let tracker = Tracker::new("test");
    let resource = Arc::new(Resource::new(&tracker, "cache"));
    let mutex = Arc::new(StdMutex::new(()));
    let panicked = thread::spawn({
        let (resource, mutex) = (Arc::clone(&resource), Arc::clone(&mutex));
        move || {
            let _held = resource.wait(|| mutex.lock().unwrap());
            panic!("on purpose");
        }
    });
    assert!(panicked.join().is_err());
    let in_wait = thread::spawn({
        let resource = Arc::clone(&resource);
        move || drop(resource.wait(|| panic!("on purpose")))
    });
    assert!(in_wait.join().is_err());

    let _held = resource.wait(|| mutex.lock().unwrap_or_else(PoisonError::into_inner));

    let seen = only(&tracker);
    assert_eq!((seen.holders.len(), seen.waiters.len()), (1, 0));
}

#[tokio::test]
async fn the_mutex_shows_its_holder_and_hands_over() {
    let tracker = Tracker::new("test");
    let mutex = Arc::new(Mutex::new(&tracker, "jobs", vec![1]));
    let (holder, waiter) = (tracker.begin("holder"), tracker.begin("waiter"));
    let mut guard = mutex.lock().in_op(&holder).await;
    guard.push(2);
    let waits = tokio::spawn({
        let mutex = Arc::clone(&mutex);
        async move { mutex.lock().await.len() }.in_op(&waiter)
    });
    while only(&tracker).waiters.is_empty() {
        tokio::task::yield_now().await;
    }

    let seen = only(&tracker);
    assert_eq!(seen.holders[0].op, holder.id());
    assert_eq!(seen.waiters[0].op, waiter.id());
    assert!(mutex.try_lock().is_err());
    drop(guard);

    assert_eq!(waits.await.unwrap(), 2);
    assert!(only(&tracker).holders.is_empty());
}

#[tokio::test]
async fn a_wait_that_is_given_up_is_over() {
    let tracker = Tracker::new("test");
    let mutex = Mutex::new(&tracker, "jobs", ());
    let guard = mutex.lock().await;
    let mut waits = Box::pin(mutex.lock());
    let pending =
        std::future::poll_fn(|cx| std::task::Poll::Ready(waits.as_mut().poll(cx).is_pending()));
    assert!(pending.await);
    assert_eq!(only(&tracker).waiters.len(), 1);

    drop(waits);

    assert!(only(&tracker).waiters.is_empty());
    drop(guard);
}

#[test]
fn a_resource_that_is_gone_is_not_shown() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "cache");
    assert_eq!(tracker.snapshot().resources.len(), 1);

    drop(resource);
=======
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
    assert_eq!(
        only(&tracker).holders[0].thread.as_ref().unwrap().tid,
        tid()
    );
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
>>>>>>> 6d160a0 (Test the tracker, the current op and resources through the public API)

    assert!(tracker.snapshot().resources.is_empty());
}

#[test]
<<<<<<< HEAD
fn two_of_one_name_are_told_apart() {
    let tracker = Tracker::new("test");
    let (_one, two) = (
        Resource::new(&tracker, "same"),
        Resource::new(&tracker, "same"),
    );
    let (send, receive) = channel::<()>();
    let waiter = tracker.begin("waiter");
    let thread = thread::spawn({
        let waiter = waiter.clone();
        move || {
            let _in = waiter.enter();
            drop(two.wait(|| receive.recv_timeout(DEADLINE)));
        }
    });
    let wait = || tracker.snapshot().ops[0].phase.wait.clone();
    until(|| wait().is_some());

    let resources = tracker.snapshot().resources;
    let waited = wait().unwrap().resource.unwrap();
    let of_id = resources.iter().find(|resource| resource.id == waited);
    assert_ne!(resources[0].id, resources[1].id);
    assert_eq!(of_id.unwrap().waiters.len(), 1);
    drop(send);
    thread.join().unwrap();
=======
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
>>>>>>> 6d160a0 (Test the tracker, the current op and resources through the public API)
}
