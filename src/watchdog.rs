//! Notices by itself when something is slow or stuck, and says so on stderr.
//!
//! ```
//! use inflight::{Tracker, watchdog};
//!
//! let tracker = Tracker::new("indexer");
//! let _watchdog = watchdog::spawn(&tracker).on_stuck(|report| {
//!     // A metric, an alert; the report itself goes to stderr.
//!     let _stuck = report.stuck().len();
//! });
//! ```

use std::{
    collections::HashMap,
    fmt,
    io::Write,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    id::OpId,
    report::{Report, Verdict},
    snapshot::{EndedOp, Filter, LiveOp, Outcome},
    tracker::Tracker,
};

/// How often it looks while something is slow, and how often while nothing is.
const LOOK: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// However soon an op is slow: to look all the time would take a processor.
const LEAST: Duration = Duration::from_millis(10);

/// From one report to the next; doubled each time while the trouble is the same, up to the second.
const AGAIN: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(600)];

type Callback = Arc<dyn Fn(&Report) + Send + Sync>;

/// Looks after a tracker; dropped, it stops.
#[must_use = "dropped at once, it stops at once"]
pub struct Watchdog {
    shared: Arc<Shared>,
    problem: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
    on_slow: Option<Callback>,
    on_stuck: Option<Callback>,
}

/// What it has told so far of the trouble of the moment.
#[derive(Default)]
struct Told {
    level: Level,
    // When it says so again, and how long it will be silent then.
    again: Option<(Instant, Duration)>,
    said_at: Option<Instant>,
    ops: HashMap<OpId, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    #[default]
    Well,
    Slow,
    Stuck,
    LikelyDeadlock,
    Deadlock,
}

/// Starts to look after a tracker, on a thread of its own.
///
/// What is slow it says in a line; what is stuck in a whole report, again after 20 s, 40 s and so on up to
/// every 10 minutes while it stays so; and in a line when a stuck op has ended after all. Others that get stuck
/// beside it are said after 20 s at most, and a worse verdict at once. Never fails: [`Watchdog::problem`] says why
/// it does not run.
pub fn spawn(tracker: &Tracker) -> Watchdog {
    let shared = Arc::new(Shared::default());
    let thread = thread::Builder::new().name("inflight-watchdog".to_owned());
    let spawned = thread.spawn({
        let (shared, tracker) = (Arc::clone(&shared), tracker.clone());
        move || shared.watch(&tracker)
    });
    Watchdog {
        shared,
        problem: spawned.err().map(|error| error.to_string()),
    }
}

impl Watchdog {
    /// Calls `f` with the report when something is stuck, each time that it says so. Default: nothing.
    ///
    /// It runs on the watchdog's thread. A panic in it is caught.
    pub fn on_stuck(self, f: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        self.shared.lock().on_stuck = Some(Arc::new(f));
        self
    }

    /// Calls `f` with the report when something becomes slow. Default: nothing.
    pub fn on_slow(self, f: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        self.shared.lock().on_slow = Some(Arc::new(f));
        self
    }

    /// Why it does not run, if it does not.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Lets it run as long as the process does.
    pub fn forever(self) {
        std::mem::forget(self);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.stopped.notify_all();
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("problem", &self.problem)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn watch(&self, tracker: &Tracker) {
        let mut told = Told::default();
        loop {
            let soon = told.level > Level::Well || !told.ops.is_empty();
            let pause = LOOK[usize::from(!soon)]
                .min(tracker.slow_after())
                .max(LEAST);
            let state = self.lock();
            let waited = self
                .stopped
                .wait_timeout_while(state, pause, |state| !state.is_over);
            let state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.is_over {
                return;
            }
            let callbacks = [state.on_slow.clone(), state.on_stuck.clone()];
            drop(state);
            // Whatever goes wrong in here must not end the looking.
            let _panicked = catch_unwind(AssertUnwindSafe(|| told.look(tracker, &callbacks)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn look(&mut self, tracker: &Tracker, [on_slow, on_stuck]: &[Option<Callback>; 2]) {
        let old = Filter::new().min_age(tracker.slow_after());
        let seen = tracker.snapshot_of(&old);
        for ended in &seen.recent {
            if let Some(what) = self.ops.remove(&ended.op.id) {
                say(&ended_line(&what, ended));
            }
        }
        // Those that were pushed out of the history are gone as well.
        self.ops.retain(|id, _| seen.op(*id).is_some());
        if seen.ops.is_empty() {
            return self.is_well();
        }
        let report = Report::local(tracker);
        let level = level(&report);
        if level == Level::Well {
            return self.is_well();
        }
        let is_worse = level > mem::replace(&mut self.level, level);
        if level == Level::Slow && !is_worse {
            return self.again = None;
        }
        if level == Level::Slow {
            let text = report.to_string();
            say(text.lines().next().unwrap_or_default());
            call(on_slow.as_ref(), &report);
            return;
        }
        let now = Instant::now();
        let stuck = report.stuck();
        // One that was not said yet: at once if nothing of what was said is left, else not more often than this.
        let is_new = stuck.iter().any(|op| !self.ops.contains_key(&op.id));
        let is_due = self.said_at.is_none_or(|at| now >= at + AGAIN[0]);
        let pause = match self.again {
            _ if is_worse || (is_new && (is_due || self.ops.is_empty())) => AGAIN[0],
            Some((at, pause)) if now >= at => (pause * 2).min(AGAIN[1]),
            Some(_) => return,
            None => AGAIN[0],
        };
        self.again = Some((now + pause, pause));
        self.said_at = Some(now);
        self.ops
            .extend(stuck.into_iter().map(|op| (op.id, what(op))));
        // The peers may know more, and asking them takes time: now it is worth it.
        #[cfg(feature = "debug")]
        let report = Report::collect(tracker);
        say(report.to_string().trim_end());
        call(on_stuck.as_ref(), &report);
    }

    fn is_well(&mut self) {
        self.level = Level::Well;
        self.again = None;
    }
}

fn level(report: &Report) -> Level {
    match report.verdict() {
        Verdict::Deadlock => Level::Deadlock,
        Verdict::LikelyDeadlock => Level::LikelyDeadlock,
        Verdict::Stuck => Level::Stuck,
        Verdict::Slow => Level::Slow,
        _ => Level::Well,
    }
}

fn what(op: &LiveOp) -> String {
    format!("{} {}", op.name, op.target).trim_end().to_owned()
}

fn ended_line(what: &str, ended: &EndedOp) -> String {
    let how = match (&ended.op.error, &ended.outcome) {
        (Some(error), _) => format!(", {error}"),
        (None, Outcome::Completed | Outcome::Returned) => String::new(),
        (None, Outcome::Panicked) => ", panicked".to_owned(),
        (None, _) => ", given up".to_owned(),
    };
    let age = crate::render::age(ended.duration_ms);
    format!("ENDED after all: {what} after {age}{how}")
}

fn call(callback: Option<&Callback>, report: &Report) {
    if let Some(callback) = callback {
        let _panicked = catch_unwind(AssertUnwindSafe(|| callback(report)));
    }
}

// Through the handle: what eprintln! writes, tests swallow.
fn say(text: &str) {
    let mut lines = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        lines.push_str("inflight: ");
        lines.push_str(line);
        lines.push('\n');
    }
    // Nobody reads it: nothing to be done.
    let _ = std::io::stderr().lock().write_all(lines.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        thread,
        time::{Duration, Instant},
    };

    use super::{Callback, Told};
    use crate::{op::Op, snapshot::State, tracker::Tracker};

    fn tracker() -> Tracker {
        let soon = Duration::from_millis(1);
        let builder = Tracker::builder("test").slow_after(soon);
        builder.stuck_after(2 * soon).build()
    }

    fn stuck(tracker: &Tracker) -> Op {
        let op = tracker.begin("reindex");
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_stuck = || {
            let seen = tracker.snapshot();
            let of = op
                .id()
                .and_then(|id| seen.op(id).map(|op| op.state.clone()));
            of == Some(State::Stuck)
        };
        while !is_stuck() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        op
    }

    #[test]
    fn a_new_hang_is_said_though_an_old_one_was_just_before() {
        let tracker = tracker();
        let said = Arc::new(AtomicUsize::new(0));
        let on_stuck: Callback = Arc::new({
            let said = Arc::clone(&said);
            move |_| {
                said.fetch_add(1, SeqCst);
            }
        });
        let callbacks = [None, Some(on_stuck)];
        let mut told = Told::default();
        let mut look = || {
            told.look(&tracker, &callbacks);
            said.load(SeqCst)
        };

        let first = stuck(&tracker);
        assert_eq!((look(), look()), (1, 1), "once");
        let second = stuck(&tracker);
        assert_eq!(look(), 1, "the report showed that there is trouble");
        drop(first);
        assert_eq!(look(), 2, "nobody was told of this one");
        drop(second);
        assert_eq!(look(), 2);
        let _third = stuck(&tracker);
        assert_eq!(look(), 3);
    }
}
