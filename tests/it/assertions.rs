//! Assertions on what is in flight: they wait for what is just ending, and name what does not end.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    pin::pin,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};

use futures_util::FutureExt as _;
use inflight::{
    Tracker,
    fuse::{Options, Tracked, fuser::Config},
    testing::{
        FakeKernel, Request, Stall, assert_idle, assert_idle_async, assert_no_stuck,
        assert_no_stuck_async,
    },
};
use tokio::sync::oneshot;

use crate::mounted::until;

const DEADLINE: Duration = Duration::from_secs(20);

const AT_ONCE: Duration = Duration::ZERO;

/// What a failing assertion says.
fn said(assertion: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).expect_err("it did not fail");
    *panic.downcast::<String>().unwrap()
}

async fn said_async(assertion: impl Future<Output = ()>) -> String {
    let panic = AssertUnwindSafe(assertion).catch_unwind().await;
    let panic = panic.expect_err("it did not fail");
    *panic.downcast::<String>().unwrap()
}

/// A tracker to which everything is stuck at once, and what is in it.
fn with_reindex() -> (Tracker, inflight::Op) {
    let tracker = Tracker::builder("test").stuck_after(AT_ONCE).build();
    let op = tracker.begin("reindex");
    op.phase("open index");
    (tracker, op)
}

fn assert_names_the_op(text: &str, begin: &str) {
    assert!(text.starts_with(begin), "{text}");
    assert!(text.contains("\n\nSTUCK for"), "{text}");
    assert!(text.contains("reindex"), "{text}");
    assert!(text.contains("open index"), "{text}");
}

#[test]
fn an_op_that_is_left_over_is_named_in_the_failure() {
    let (tracker, op) = with_reindex();

    let idle = said(|| assert_idle(&tracker));
    let no_stuck = said(|| assert_no_stuck(&tracker));
    drop(op);

    assert_names_the_op(&idle, "something is in flight\n\n");
    assert_names_the_op(&no_stuck, "something is stuck\n\n");
    assert_idle(&tracker);
    assert_no_stuck(&tracker);
}

#[tokio::test]
async fn the_async_twins_say_the_same_and_where_they_were_called() {
    let (tracker, op) = with_reindex();

    let idle = said_async(assert_idle_async(&tracker)).await;
    let no_stuck = said_async(assert_no_stuck_async(&tracker)).await;
    drop(op);

    assert_names_the_op(&idle, "something is in flight, at tests/it/assertions.rs:");
    assert_names_the_op(&no_stuck, "something is stuck, at tests/it/assertions.rs:");
    assert_idle_async(&tracker).await;
    assert_no_stuck_async(&tracker).await;
}

#[test]
fn what_is_in_flight_and_moves_is_not_stuck() {
    let tracker = Tracker::new("test");
    let _op = tracker.begin("reindex");

    assert_no_stuck(&tracker);
}

#[test]
fn what_is_just_ending_is_waited_for() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("reindex");
    let (says, said) = channel();
    let asserting = thread::spawn({
        let tracker = tracker.clone();
        move || {
            says.send(fs::read_link("/proc/thread-self").unwrap())
                .unwrap();
            assert_idle(&tracker);
        }
    });
    // Asleep, it has looked in vain.
    let stat = Path::new("/proc").join(said.recv_timeout(DEADLINE).unwrap());
    until(|| fs::read_to_string(stat.join("stat")).is_ok_and(|stat| stat.contains(") S ")));

    drop(op);

    asserting.join().unwrap();
}

/// Tells when its task is to be polled again.
struct Woken(Sender<()>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

#[test]
fn the_first_look_at_which_nothing_is_left_is_the_last() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("reindex");
    let (woken, is_woken) = channel();
    let waker = Waker::from(Arc::new(Woken(woken)));
    let mut context = Context::from_waker(&waker);
    let mut assertion = pin!(assert_idle_async(&tracker));
    assert!(assertion.as_mut().poll(&mut context).is_pending());

    drop(op);

    is_woken.recv_timeout(DEADLINE).unwrap();
    assert!(assertion.as_mut().poll(&mut context).is_ready());
    let at_once = pin!(assert_idle_async(&tracker)).poll(&mut context);
    assert!(at_once.is_ready(), "nothing to wait for");
}

#[tokio::test]
async fn the_async_twin_lets_the_tasks_it_waits_for_go_on() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("reindex");
    let (asked, is_asked) = oneshot::channel::<()>();
    // On this very thread, and only after the assertion has looked.
    tokio::spawn(async move {
        let _ = is_asked.await;
        drop(op);
    });
    let mut assertion = pin!(assert_idle_async(&tracker));
    assert!(assertion.as_mut().now_or_never().is_none());

    asked.send(()).unwrap();

    assertion.await;
    assert!(tracker.snapshot().ops.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_async_twin_does_not_hold_up_a_paused_clock() {
    let tracker = Tracker::new("test");
    let op = tracker.begin("reindex");
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop(op);
    });

    assert_idle_async(&tracker).await;
}

#[tokio::test]
async fn on_a_current_thread_runtime_the_blocking_one_fails_at_once_and_names_its_twin() {
    let tracker = Tracker::new("test");
    assert_idle(&tracker);
    let op = tracker.begin("reindex");
    let task = tokio::spawn(async move { drop(op) });

    let text = said(|| assert_idle(&tracker));

    assert!(text.contains("use the async twin"), "{text}");
    assert!(text.contains("reindex"), "{text}");
    task.await.unwrap();
    assert_idle(&tracker);
}

#[tokio::test]
async fn a_tracker_that_is_off_is_not_taken_for_an_idle_one() {
    let tracker = Tracker::new("test");
    tracker.set_enabled(false);
    let _unseen = tracker.begin("reindex");

    for text in [
        said(|| assert_idle(&tracker)),
        said(|| assert_no_stuck(&tracker)),
        said_async(assert_idle_async(&tracker)).await,
        said_async(assert_no_stuck_async(&tracker)).await,
    ] {
        assert!(text.starts_with("the tracker is off"), "{text}");
        assert!(text.contains("\n\nOFF: "), "{text}");
        assert!(!text.contains("async twin"), "{text}");
    }
}

#[test]
fn callers_and_parked_ops_of_the_trackers_mounts_are_counted() {
    const READ: u32 = 15;
    // The inode of the file whose reads stand at the gate.
    const FILE: u64 = 3;
    let tracker = Tracker::new("test");
    let stall = Stall::new();
    let files = Tracked::with(stall.gate().files(), &tracker, Options::new().slots(1));
    let mut config = Config::default();
    config.n_threads = Some(2);
    let kernel = FakeKernel::start(files, config).unwrap();
    let read = |caller| kernel.send(Request::new(READ, FILE).pid(caller).body([0; 40]));
    let first = read(101).unwrap();
    assert_eq!(stall.arrived(1), 1);
    let second = read(102).unwrap();
    until(|| tracker.snapshot().mounts[0].queued == 1);

    let text = said(|| assert_idle(&tracker));

    let counts = "the kernel has 0 waiting, of 2 callers, 1 parked";
    assert!(text.contains(counts), "{text}");
    stall.go_on();
    kernel.reply(first).unwrap();
    kernel.reply(second).unwrap();
    assert_idle(&tracker);
}
