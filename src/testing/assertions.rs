//! Assertions on what is in flight; the failure text is the whole report.

use std::{
    collections::HashSet,
    panic::Location,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

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

struct Missed {
    what: &'static str,
    // It will not come true by waiting.
    is_final: bool,
    report: Report,
}

/// Asserts that nothing is in flight, and that the kernel waits for nothing on the tracker's mounts.
///
/// What is just ending gets up to 2 s; it returns as soon as nothing is left.
///
/// # Panics
///
/// If something is left, with the whole report. At once if the tracker is off, since then nobody knows;
/// and at once if something is in flight and it was called on a current-thread runtime, whose tasks could
/// not end meanwhile: there use `assert_idle_async`.
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

/// [`assert_idle`] for async code: the runtime goes on meanwhile, and so does tokio's clock if it is paused.
///
/// # Panics
///
/// If something is left, or at once if the tracker is off, with the whole report.
#[track_caller]
pub fn assert_idle_async(tracker: &Tracker) -> impl Future<Output = ()> + Send + use<> {
    settle_async(tracker.clone(), Wanted::Idle, Location::caller())
}

/// [`assert_no_stuck`] for async code.
///
/// # Panics
///
/// If something is stuck, or at once if the tracker is off, with the whole report.
#[track_caller]
pub fn assert_no_stuck_async(tracker: &Tracker) -> impl Future<Output = ()> + Send + use<> {
    settle_async(tracker.clone(), Wanted::NothingStuck, Location::caller())
}

#[track_caller]
fn settle(tracker: &Tracker, wanted: Wanted) {
    let until = Instant::now() + SETTLE;
    while let Some(missed) = wanted.is_missed(tracker) {
        if missed.is_final || blocks_its_own_tasks() || Instant::now() > until {
            let advice = match !missed.is_final && blocks_its_own_tasks() {
                true => "; on a current-thread runtime use the async twin",
                false => "",
            };
            fail(&missed, advice);
        }
        thread::sleep(LOOK);
    }
}

async fn settle_async(tracker: Tracker, wanted: Wanted, caller: &'static Location<'static>) {
    let until = Instant::now() + SETTLE;
    let mut ticks = None;
    while let Some(missed) = wanted.is_missed(&tracker) {
        if missed.is_final || Instant::now() > until {
            // An async function has no caller to show.
            fail(&missed, &format!(", at {caller}"));
        }
        ticks.get_or_insert_with(ticks_of_its_own).notified().await;
    }
}

// From a thread, since a runtime that sleeps is what a paused clock waits for to go on.
fn ticks_of_its_own() -> Arc<Notify> {
    let ticks = Arc::new(Notify::new());
    let wanted = Arc::downgrade(&ticks);
    thread::spawn(move || {
        while let Some(ticks) = wanted.upgrade() {
            ticks.notify_one();
            drop(ticks);
            thread::sleep(LOOK);
        }
    });
    ticks
}

fn blocks_its_own_tasks() -> bool {
    use tokio::runtime::{Handle, RuntimeFlavor};

    Handle::try_current().is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

#[track_caller]
#[expect(clippy::panic, reason = "an assertion that fails")]
fn fail(missed: &Missed, advice: &str) -> ! {
    let Missed { what, report, .. } = missed;
    panic!("{what}{advice}{}\n\n{report}", of_mounts(report));
}

// What of it the kernel knows, and of whom.
fn of_mounts(report: &Report) -> String {
    let mounts = &report.local.mounts;
    if mounts.is_empty() {
        return String::new();
    }
    let waiting: u64 = mounts.iter().filter_map(|it| it.kernel_waiting).sum();
    let parked: u64 = mounts.iter().map(|mount| mount.queued).sum();
    let of_ops = report
        .local
        .ops
        .iter()
        .filter_map(|op| Some(op.caller.as_ref()?.tid));
    let is_here = |path: &Option<String>| mounts.iter().any(|it| Some(&it.path) == path.as_ref());
    let held_up = report.held_up.iter().filter(|it| is_here(&it.mount));
    let callers: HashSet<u32> = of_ops.chain(held_up.map(|it| it.tid)).collect();
    let callers = callers.len();
    format!(
        "; of its mounts the kernel has {waiting} waiting, of {callers} callers, {parked} parked"
    )
}

impl Wanted {
    fn is_missed(self, tracker: &Tracker) -> Option<Missed> {
        let report = Report::local(tracker);
        if report.local.off.is_some() {
            return Some(Missed {
                what: "the tracker is off, what is in flight is not known",
                is_final: true,
                report,
            });
        }
        let (what, is_so) = match self {
            Self::Idle => {
                let mut mounts = report.local.mounts.iter();
                let waiting = mounts
                    .any(|mount| mount.kernel_waiting.is_some_and(|n| n > 0) || mount.queued > 0);
                let is_so = waiting || !report.local.ops.is_empty();
                ("something is in flight", is_so)
            }
            Self::NothingStuck => {
                let is_so = matches!(
                    report.verdict(),
                    Verdict::Deadlock | Verdict::LikelyDeadlock | Verdict::Stuck
                );
                ("something is stuck", is_so)
            }
        };
        is_so.then_some(Missed {
            what,
            is_final: false,
            report,
        })
    }
}
