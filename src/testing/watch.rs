//! A guard for one test: before its deadline it says what hangs, frees it, and ends the process.

use std::{
    panic::Location,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, kill_process};

use super::{
    assertions::assert_idle,
    clear::clear,
    registry::{self, Guarded},
    run_id::RunId,
    scene, test_name,
};
use crate::{bounded::within, debug::parse_duration, place::Place, process, tracker::Tracker};

const VARIABLE: &str = "INFLIGHT_TEST_DEADLINE";

const DEFAULT: Duration = Duration::from_secs(60);

/// Before the deadline, at most; of a short one a quarter.
const MARGIN: Duration = Duration::from_secs(5);

/// What each step of the end may take: what is to be said must be said, and what hangs must not hang that.
const STEP: Duration = Duration::from_millis(1500);

/// As libtest's own, when a test has failed.
const FAILURE: i32 = 101;

// Whoever has it ends the process: nobody else needs to.
static ENDING: Mutex<()> = Mutex::new(());

/// A test under a guard, until this is dropped.
///
/// Dropped, it asserts that the tracker is idle, as [`assert_idle`] does; in a test that panics already it
/// prints the report instead, so that the panic is not hidden.
#[must_use = "dropped at once, it guards nothing"]
#[derive(Debug)]
pub struct Watch {
    armed: Armed,
}

#[derive(Debug)]
struct Armed {
    guarded: Arc<Guarded>,
    // Closing it ends the thread.
    told: Sender<()>,
}

/// Guards the test that calls it against hanging for ever.
///
/// Before the deadline (5 s before, or a quarter of one that is shorter than 20 s) it prints the report of the
/// tracker joined with those of all processes that serve one, the test's [`Daemon`](super::Daemon)s among them,
/// and the threads of this process. Then it fails all requests of the tracker's mounts, ends what the tests of
/// this process have started, and ends the process as failed: a test that hangs cannot be ended alone. It names
/// the test, and the others under a guard, which end with it.
///
/// The deadline counts from here. Default: `INFLIGHT_TEST_DEADLINE` (`90s`, `2m`; a bare number is seconds), else 60 s.
///
/// # Panics
///
/// If `INFLIGHT_TEST_DEADLINE` is no time, or there is no thread to be had.
#[track_caller]
pub fn watch(tracker: &Tracker) -> Watch {
    let guarded = Arc::new(Guarded {
        test: test_name::current(Location::caller()),
        at: Location::caller(),
        tid: process::tid(),
        began: Instant::now(),
        deadline: Mutex::new(deadline()),
        tracker: tracker.clone(),
        is_over: AtomicBool::new(false),
    });
    let (told, changed) = mpsc::channel();
    let thread = thread::Builder::new().name("inflight-watch".to_owned());
    let spawned = thread.spawn({
        let guarded = Arc::clone(&guarded);
        move || guarded.look_after(&changed)
    });
    spawned.expect("a thread to guard the test with");
    registry::arm(&guarded);
    Watch {
        armed: Armed { guarded, told },
    }
}

#[track_caller]
#[expect(
    clippy::panic,
    reason = "a test that asked for a deadline must not run without"
)]
fn deadline() -> Duration {
    let Ok(text) = std::env::var(VARIABLE) else {
        return DEFAULT;
    };
    match parse_duration(&text) {
        Some(deadline) => deadline,
        None => panic!("{VARIABLE} is a time such as 90s or 2m, not {text:?}"),
    }
}

impl Watch {
    /// Sets the deadline, which counts from the call of [`watch`]. Default: `INFLIGHT_TEST_DEADLINE`, else 60 s.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.armed.guarded.set_deadline(deadline);
        // The thread ends only with the guard.
        let _ = self.armed.told.send(());
        self
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let guarded = &self.armed.guarded;
        if thread::panicking() {
            scene::print(&guarded.panicked());
        } else {
            assert_idle(&guarded.tracker);
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        // A test that goes on only since what it hung in was failed has not passed: the process ends, as it said.
        while self.guarded.is_over.load(SeqCst) {
            thread::park();
        }
        registry::disarm(&self.guarded);
    }
}

impl Guarded {
    fn deadline(&self) -> Duration {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_deadline(&self, deadline: Duration) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    fn look_after(self: &Arc<Self>, changed: &mpsc::Receiver<()>) {
        loop {
            let deadline = self.deadline();
            let at = self.began + deadline - MARGIN.min(deadline / 4);
            let left = at.saturating_duration_since(Instant::now());
            match changed.recv_timeout(left) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => return self.end(),
            }
        }
    }

    // Whatever of it hangs is left behind: the process ends.
    fn end(self: &Arc<Self>) {
        self.is_over.store(true, SeqCst);
        let _for_ever = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
        let step = || Instant::now() + STEP;
        let this = Arc::clone(self);
        let text = within(step(), STEP, move || this.hangs());
        let text = text.unwrap_or_else(|| {
            let what = self.first_line();
            format!("\n{what}\nThe report could not be made within {STEP:?}.\n")
        });
        within(step(), STEP, move || scene::print(&text));
        let this = Arc::clone(self);
        let freed = within(step(), STEP, move || this.free());
        let freed = freed.unwrap_or_else(|| "Not all could be ended in time.\n".to_owned());
        within(step(), STEP, move || scene::print(&freed));
        // What runs at the exit of a process may hang as well.
        within(step(), STEP / 3, || std::process::exit(FAILURE));
        let _no_way_back = kill_process(getpid(), Signal::KILL);
    }

    fn first_line(&self) -> String {
        format!(
            "HUNG: test {} ({}) has not ended after {:.1} s, its deadline is {:.1} s",
            self.test,
            self.at,
            self.began.elapsed().as_secs_f64(),
            self.deadline().as_secs_f64()
        )
    }

    fn hangs(self: &Arc<Self>) -> String {
        let report = scene::report(Some(&self.tracker), Some(&self.test));
        let report = scene::judged(report, self.deadline());
        let mut text = format!("\n{}\n", self.first_line());
        for other in registry::others(self) {
            let age = other.began.elapsed().as_secs_f64();
            text += &format!(
                "Ends with it, under a guard too: test {} ({age:.1} s)\n",
                other.test
            );
        }
        text += &format!("\n{report}");
        let pid = std::process::id();
        let threads = scene::threads(pid, Some(self.tid));
        text += &scene::section(&format!("Threads of this process, {pid}"), &threads);
        let way_in = scene::way_in(&registry::directories(Some(&self.test)));
        text + &format!("\nTo look at it while it hangs, with a longer {VARIABLE}: {way_in}\n\n")
    }

    fn panicked(&self) -> String {
        let report = scene::report(Some(&self.tracker), Some(&self.test));
        format!(
            "\ntest {} panicked; then was in flight\n\n{report}\n",
            self.test
        )
    }

    // A process of which a thread waits in its own mount cannot exit, not even when it is killed.
    fn free(&self) -> String {
        let until = Instant::now() + STEP / 2;
        let mut text = String::new();
        for mount in self.tracker.snapshot().mounts {
            let Some(connection) = mount.connection else {
                continue;
            };
            for place in Place::of_connection(connection) {
                place.abort(until);
                let detached = match place.unmount(until) {
                    Ok(()) => "unmounted".to_owned(),
                    Err(error) => format!("still mounted: {error}"),
                };
                text += &format!(
                    "Aborted connection {connection}, {}: {detached}\n",
                    mount.path
                );
            }
        }
        let cleared = clear(RunId::own(), Instant::now() + STEP / 2);
        for left in cleared.left {
            text += &format!("Left behind: {left}\n");
        }
        text
    }
}
