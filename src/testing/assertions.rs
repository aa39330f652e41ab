//! Assertions on what is in flight; the failure text is the whole report.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    report::{Report, Verdict},
    tracker::Tracker,
};

/// How long a condition may take to come true.
const SETTLE: Duration = Duration::from_secs(2);

const LOOK: Duration = Duration::from_millis(2);

#[derive(Clone, Copy)]
enum Wanted {
    Idle,
    NothingStuck,
}

/// Asserts that nothing is in flight, and that the kernel waits for nothing on the tracker's mounts.
///
/// What is just ending gets up to 2 s; it returns as soon as nothing is left.
///
/// # Panics
///
/// If something is left, with the whole report. Also at once if something is in flight and it was called
/// on a current-thread runtime, whose tasks could not end meanwhile: there use `assert_idle_async`.
#[track_caller]
pub fn assert_idle(tracker: &Tracker) {
    settle(tracker, Wanted::Idle);
}

/// Asserts that nothing has gone without progress for the stuck threshold, and that nothing waits in a
/// circle.
///
/// What is just ending gets up to 2 s.
///
/// # Panics
///
/// As [`assert_idle`].
#[track_caller]
pub fn assert_no_stuck(tracker: &Tracker) {
    settle(tracker, Wanted::NothingStuck);
}

/// [`assert_idle`] for async code.
///
/// # Panics
///
/// If something is left, with the whole report.
#[cfg(feature = "tokio")]
pub async fn assert_idle_async(tracker: &Tracker) {
    settle_async(tracker, Wanted::Idle).await;
}

/// [`assert_no_stuck`] for async code.
///
/// # Panics
///
/// If something is stuck, with the whole report.
#[cfg(feature = "tokio")]
pub async fn assert_no_stuck_async(tracker: &Tracker) {
    settle_async(tracker, Wanted::NothingStuck).await;
}

#[track_caller]
fn settle(tracker: &Tracker, wanted: Wanted) {
    let until = Instant::now() + SETTLE;
    while let Some(report) = wanted.is_missed(tracker) {
        if blocks_its_own_tasks() {
            fail(
                wanted,
                &report,
                "; on a current-thread runtime use the async twin",
            );
        }
        if Instant::now() > until {
            fail(wanted, &report, "");
        }
        thread::sleep(LOOK);
    }
}

#[cfg(feature = "tokio")]
async fn settle_async(tracker: &Tracker, wanted: Wanted) {
    let until = Instant::now() + SETTLE;
    while let Some(report) = wanted.is_missed(tracker) {
        if Instant::now() > until {
            fail(wanted, &report, "");
        }
        // Not tokio's clock: a test may have paused it.
        tokio::task::yield_now().await;
        thread::sleep(Duration::from_micros(200));
    }
}

#[cfg(feature = "tokio")]
fn blocks_its_own_tasks() -> bool {
    use tokio::runtime::{Handle, RuntimeFlavor};

    Handle::try_current().is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

#[cfg(not(feature = "tokio"))]
fn blocks_its_own_tasks() -> bool {
    false
}

#[track_caller]
#[expect(clippy::panic, reason = "an assertion that fails")]
fn fail(wanted: Wanted, report: &Report, advice: &str) -> ! {
    let what = match wanted {
        Wanted::Idle => "something is in flight",
        Wanted::NothingStuck => "something is stuck",
    };
    panic!("{what}{advice}\n\n{report}");
}

impl Wanted {
    fn is_missed(self, tracker: &Tracker) -> Option<Report> {
        let report = Report::local(tracker);
        let missed = match self {
            Self::Idle => {
                let mounts = &report.local.mounts;
                let is_waiting = |waiting: u64| waiting > 0;
                !report.local.ops.is_empty()
                    || mounts
                        .iter()
                        .any(|mount| is_waiting(mount.kernel_waiting.unwrap_or(0) + mount.queued))
            }
            Self::NothingStuck => matches!(
                report.verdict(),
                Verdict::Deadlock | Verdict::LikelyDeadlock | Verdict::Stuck
            ),
        };
        missed.then_some(report)
    }
}
