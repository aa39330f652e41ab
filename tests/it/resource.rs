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

fn only(tracker: &Tracker) -> snapshot::Resource {
    let mut resources = tracker.snapshot().resources;
    assert_eq!(resources.len(), 1);
    resources.remove(0)
}

fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !is_so() {
        assert!(
            std::time::Instant::now() < deadline,
            "it did not come to that"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
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

    assert!(tracker.snapshot().resources.is_empty());
}

#[test]
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
}
