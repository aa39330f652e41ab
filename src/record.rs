//! The record of one op: what it is, what it does now, and the bounded trail of what it did before.

mod describe;
mod running;
mod start;
mod subject;

use std::{
    borrow::Cow,
    mem,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use smallvec::SmallVec;

use crate::{
    clock::Stamp,
    id::{OpId, TraceId},
    snapshot::{Kind, Outcome, ParentFrom},
    text,
};

pub(crate) use self::{
    describe::{Teller, state_of},
    start::{Lineage, Parent, Start},
    subject::Target,
};
use self::{
    running::{Runner, Running},
    subject::Subject,
};

/// A wait shorter than this leaves no event in the trail.
const NOTED_WAIT: Duration = Duration::from_millis(1);

// Events kept from the start of an op; as many again and twice more are kept from its end.
const FIRST_EVENTS: usize = 4;
const LAST_EVENTS: usize = 12;

// Phases shown from either end where more are nested.
const LEVELS: usize = 8;

// No byte of trace flags: nobody has said yet whether the trace is sampled.
const UNDECIDED: u16 = 0x100;

/// One op. The tracker's live set and the op's handles share it.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: OpId,
    trace: TraceId,
    /// The trace that another tracing chose for it, and the span it hangs under there.
    retraced: OnceLock<Box<(TraceId, OpId)>>,
    /// W3C trace flags as they came, or [`UNDECIDED`].
    trace_flags: AtomicU16,
    pub(crate) parent: Option<OpId>,
    // References, here and in `outcome`: 48 bytes less for each op, and nothing to drop.
    pub(crate) parent_from: Option<&'static ParentFrom>,
    pub(crate) kind: &'static Kind,
    pub(crate) name: Cow<'static, str>,
    pub(crate) begun: Stamp,
    /// Its place in its shard of the live set.
    pub(crate) slot: u32,
    /// How many [`Op`](crate::Op)s there are.
    pub(crate) handles: AtomicUsize,
    /// Zero while it is live.
    ended: AtomicU64,
    progress: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// A [`Step`].
    step: AtomicU8,
    running: Running,
    inner: Mutex<Inner>,
}

/// What only one kind of op has.
#[derive(Clone, Debug, Default)]
pub(crate) enum Detail {
    #[default]
    None,
    #[cfg_attr(not(feature = "fuse"), expect(dead_code))]
    Fuse {
        unique: u64,
        inode: u64,
        tid: u32,
        uid: u32,
        mount: Arc<str>,
    },
    #[cfg_attr(not(feature = "http"), expect(dead_code))]
    Http {
        /// Without one, that of the target is shown.
        peer: Option<SocketAddr>,
        status: Option<u16>,
    },
}

/// Who owes the next step while a body is under way. It changes with each frame, so the text is made
/// when it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    None,
    /// A server's handler has not given its next chunk.
    Handler,
    /// A client has not taken what there is for it.
    Client,
    /// A server has not sent its next chunk.
    Server,
    /// A caller in this process has not read what there is for it.
    Reader,
    /// A caller in this process has not given the next chunk of its request.
    Writer,
    /// A server has not taken what there is for it.
    ServerReads,
}

/// What an op waits for.
#[derive(Clone, Debug)]
pub(crate) enum WaitsFor {
    Call(OpId),
    Op(OpId),
    Resource {
        id: u64,
        name: Cow<'static, str>,
    },
    #[cfg_attr(not(feature = "fuse"), expect(dead_code))]
    Slot,
}

#[derive(Clone, Debug)]
struct Inner {
    subject: Subject,
    detail: Detail,
    levels: SmallVec<[Level; 1]>,
    trail: Trail,
    waits: Vec<Waiting>,
    /// Gives levels and waits their numbers.
    next: u32,
    rare: Option<Box<Rare>>,
    outcome: &'static Outcome,
    /// The op that waits for this call.
    waited_by: Option<(Arc<Record>, u32)>,
}

/// What few ops have. Each cache line of a record is fetched anew, as 256 ops ended since it was used: the fewer
/// the better.
#[derive(Clone, Debug, Default)]
struct Rare {
    failure: Option<Box<str>>,
    /// The threads beside the first.
    runners: Vec<Runner>,
}

#[derive(Clone, Debug)]
struct Level {
    name: Cow<'static, str>,
    since: Stamp,
    number: u32,
    idle: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    what: WaitsFor,
    since: Stamp,
    number: u32,
}

/// What is past: the first and last few events, the middle counted.
#[derive(Clone, Debug, Default)]
struct Trail {
    past: Vec<Past>,
    dropped: u64,
}

#[derive(Clone, Debug)]
struct Past {
    at: Stamp,
    until: Stamp,
    name: Cow<'static, str>,
    depth: u32,
    is_wait: bool,
}

/// A phase or a wait, as long as it lasted.
#[cfg(feature = "otel")]
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    /// How many phases it was nested in.
    pub(crate) depth: u32,
    pub(crate) from: Stamp,
    pub(crate) until: Stamp,
    pub(crate) is_wait: bool,
}

impl Record {
    pub(crate) fn new(begun: Stamp, start: &mut Start<'_>, lineage: Lineage, slot: u32) -> Self {
        Self {
            id: lineage.id,
            trace: lineage.trace,
            retraced: OnceLock::new(),
            trace_flags: AtomicU16::new(lineage.trace_flags.map_or(UNDECIDED, u16::from)),
            parent: lineage.parent,
            parent_from: lineage.parent_from.map(lasting_origin),
            kind: lasting_kind(&start.kind),
            name: text::bounded(mem::take(&mut start.name), text::MAX_NAME),
            begun,
            slot,
            handles: AtomicUsize::new(1),
            ended: AtomicU64::new(0),
            progress: AtomicU64::new(begun.0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            step: AtomicU8::new(Step::None as u8),
            running: Running::default(),
            inner: Mutex::new(Inner {
                subject: Subject::new(&start.target, start.route),
                detail: mem::take(&mut start.detail),
                levels: start
                    .phase
                    .map(|name| Level::first(name, begun))
                    .into_iter()
                    .collect(),
                trail: Trail::default(),
                waits: Vec::new(),
                next: FIRST,
                rare: None,
                outcome: &Outcome::Completed,
                waited_by: None,
            }),
        }
    }

    /// A new record in the memory of one that nobody else knows; elsewhere, if somebody does.
    #[inline]
    pub(crate) fn renewed(
        mut spare: Arc<Self>,
        begun: Stamp,
        start: &mut Start<'_>,
        lineage: Lineage,
        slot: u32,
    ) -> Arc<Self> {
        match Arc::get_mut(&mut spare) {
            Some(record) => {
                record.renew(begun, start, lineage, slot);
                spare
            }
            None => Arc::new(Self::new(begun, start, lineage, slot)),
        }
    }

    // In place: to make a record elsewhere and to move it here took a tenth of begin + phase + end. Every field
    // is named, since one that is left out would tell of another op.
    #[inline]
    fn renew(&mut self, begun: Stamp, start: &mut Start<'_>, lineage: Lineage, slot: u32) {
        let Self {
            id,
            trace,
            retraced,
            trace_flags,
            parent,
            parent_from,
            kind,
            name,
            begun: begins,
            slot: place,
            handles,
            ended,
            progress,
            sent,
            received,
            step,
            running,
            inner,
        } = self;
        let Inner {
            subject,
            detail,
            levels,
            trail: Trail { past, dropped },
            waits,
            next,
            rare,
            outcome,
            waited_by,
        } = inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        *id = lineage.id;
        *trace = lineage.trace;
        retraced.take();
        *trace_flags.get_mut() = lineage.trace_flags.map_or(UNDECIDED, u16::from);
        *parent = lineage.parent;
        *parent_from = lineage.parent_from.map(lasting_origin);
        *kind = lasting_kind(&start.kind);
        *name = text::bounded(mem::take(&mut start.name), text::MAX_NAME);
        *begins = begun;
        *place = slot;
        *handles.get_mut() = 1;
        *ended.get_mut() = 0;
        *progress.get_mut() = begun.0;
        *sent.get_mut() = 0;
        *received.get_mut() = 0;
        *step.get_mut() = Step::None as u8;
        running.clear();
        subject.renew(&start.target, start.route);
        *detail = mem::take(&mut start.detail);
        // What they have allocated stays for the next, within bounds: the trail has its own.
        levels.clear();
        if levels.capacity() > 2 * LEVELS {
            levels.shrink_to_fit();
        }
        if let Some(name) = start.phase {
            levels.push(Level::first(name, begun));
        }
        past.clear();
        *dropped = 0;
        waits.clear();
        waits.shrink_to(2 * LEVELS);
        *next = FIRST;
        *rare = None;
        *outcome = &Outcome::Completed;
        *waited_by = None;
    }

    /// Ends the op; false if it had ended before. What it waited for no longer counts.
    pub(crate) fn end(&self, now: Stamp, outcome: Outcome) -> bool {
        let mut inner = self.lock();
        if self.ended.load(Relaxed) != 0 {
            return false;
        }
        self.ended.store(now.0.max(1), Relaxed);
        inner.outcome = match outcome {
            Outcome::Completed | Outcome::Returned if inner.failure().is_some() => &Outcome::Failed,
            outcome => lasting_outcome(&outcome),
        };
        inner.waits.clear();
        if let Some(rare) = &mut inner.rare {
            rare.runners.clear();
        }
        self.running.clear();
        let waited_by = inner.waited_by.take();
        drop(inner);
        if let Some((waiter, number)) = waited_by {
            waiter.stop_waiting(now, number);
        }
        true
    }

    /// From begin to end; 0 while it is live.
    pub(crate) fn nanos(&self) -> u64 {
        self.ended.load(Relaxed).saturating_sub(self.begun.0)
    }

    /// 0 while it is live.
    pub(crate) fn ended_at(&self) -> Stamp {
        Stamp(self.ended.load(Relaxed))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed) != 0
    }

    pub(crate) fn trace(&self) -> TraceId {
        self.retraced.get().map_or(self.trace, |of| of.0)
    }

    /// The W3C trace flags; `None` while nobody has decided whether the trace is sampled.
    pub(crate) fn trace_flags(&self) -> Option<u8> {
        u8::try_from(self.trace_flags.load(Relaxed)).ok()
    }

    /// Puts the op into the trace that another tracing chose, under a span of it.
    #[cfg(any(feature = "http", feature = "otel"))]
    pub(crate) fn take_trace(&self, trace: TraceId, under: OpId, flags: u8) {
        let _ = self.retraced.set(Box::new((trace, under)));
        self.trace_flags.store(u16::from(flags), Relaxed);
    }

    /// The span it hangs under in its trace.
    #[cfg(feature = "otel")]
    pub(crate) fn parent_span(&self) -> Option<OpId> {
        match self.retraced.get().map(|of| **of) {
            Some((trace, under)) if trace != self.trace || self.parent.is_none() => Some(under),
            _ => self.parent,
        }
    }

    /// The phases and noted waits of an op, in the order they began; what goes on ends with the op, or now.
    #[cfg(feature = "otel")]
    pub(crate) fn bars(&self, now: Stamp) -> Vec<Bar> {
        let end = match self.has_ended() {
            true => self.ended_at(),
            false => now,
        };
        let inner = self.lock().clone();
        let past = inner.trail.past.iter().map(|past| Bar {
            name: text::clean(&past.name),
            depth: past.depth,
            from: past.at,
            until: past.until,
            is_wait: past.is_wait,
        });
        let levels = inner.shown_levels().map(|(depth, level)| Bar {
            name: text::clean(&level.name),
            depth: u32::try_from(depth).unwrap_or(u32::MAX),
            from: level.since,
            until: end,
            is_wait: false,
        });
        let mut bars: Vec<Bar> = past.chain(levels).collect();
        bars.sort_by_key(|bar| (bar.from, bar.depth));
        bars
    }

    /// Says who owes the next step.
    #[cfg(feature = "http")]
    pub(crate) fn step(&self, step: Step) {
        self.step.store(step as u8, Relaxed);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.lock().levels.last().is_some_and(|level| level.idle)
    }

    /// Notes that the op moved.
    pub(crate) fn moved(&self, now: Stamp) {
        self.progress.fetch_max(now.0, Relaxed);
    }

    #[cfg(feature = "http")]
    pub(crate) fn sent(&self, bytes: u64, now: Stamp) {
        self.sent.fetch_add(bytes, Relaxed);
        self.moved(now);
    }

    #[cfg(feature = "http")]
    pub(crate) fn received(&self, bytes: u64, now: Stamp) {
        self.received.fetch_add(bytes, Relaxed);
        self.moved(now);
    }

    /// Replaces the innermost phase.
    pub(crate) fn phase(&self, now: Stamp, name: Cow<'static, str>, idle: bool) {
        let name = text::bounded(name, text::MAX_NAME);
        self.replace_phase(self.lock(), now, name, idle);
    }

    /// The same, and changes what only this kind of op has: both under one lock.
    #[cfg(feature = "http")]
    pub(crate) fn phase_and_detail(
        &self,
        now: Stamp,
        name: &'static str,
        idle: bool,
        change: impl FnOnce(&mut Detail),
    ) {
        let mut inner = self.lock();
        change(&mut inner.detail);
        self.replace_phase(inner, now, name.into(), idle);
    }

    #[inline]
    fn replace_phase(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        now: Stamp,
        name: Cow<'static, str>,
        idle: bool,
    ) {
        if self.has_ended() {
            return;
        }
        let old = inner.levels.pop();
        // A guard of nested() keeps its level when the phase in it is replaced.
        let number = match &old {
            Some(level) => level.number,
            None => inner.number(),
        };
        if let Some(level) = old {
            let depth = inner.levels.len();
            inner.trail.push(level.past(depth, now));
        }
        inner.levels.push(Level {
            name,
            since: now,
            number,
            idle,
        });
        drop(inner);
        self.moved(now);
    }

    /// Goes one level deeper, and returns the level's number.
    pub(crate) fn nested(&self, now: Stamp, name: Cow<'static, str>) -> u32 {
        let name = text::bounded(name, text::MAX_NAME);
        let mut inner = self.lock();
        let number = inner.number();
        if self.has_ended() {
            return number;
        }
        inner.levels.push(Level {
            name,
            since: now,
            number,
            idle: false,
        });
        drop(inner);
        self.moved(now);
        number
    }

    /// Leaves a level and what was left above it.
    pub(crate) fn leave(&self, now: Stamp, number: u32) {
        let mut inner = self.lock();
        let level = inner.levels.iter().position(|l| l.number == number);
        let Some(depth) = level.filter(|_| !self.has_ended()) else {
            return;
        };
        while inner.levels.len() > depth {
            if let Some(level) = inner.levels.pop() {
                let depth = inner.levels.len();
                inner.trail.push(level.past(depth, now));
            }
        }
        drop(inner);
        self.moved(now);
    }

    /// Notes a wait, and returns its number.
    pub(crate) fn start_waiting(&self, now: Stamp, what: WaitsFor) -> u32 {
        let mut inner = self.lock();
        let number = inner.number();
        if !self.has_ended() {
            inner.waits.push(Waiting {
                what,
                since: now,
                number,
            });
        }
        number
    }

    /// Ends a wait; one that was long enough leaves an event.
    pub(crate) fn stop_waiting(&self, now: Stamp, number: u32) {
        let mut inner = self.lock();
        let Some(at) = inner.waits.iter().position(|w| w.number == number) else {
            return;
        };
        let wait = inner.waits.remove(at);
        let waited = now.since(wait.since);
        let name = match wait.what {
            WaitsFor::Resource { name, .. } => Some(name),
            WaitsFor::Slot => Some(Cow::Borrowed("a slot")),
            WaitsFor::Call(_) | WaitsFor::Op(_) => None,
        };
        if let Some(name) = name.filter(|_| waited >= NOTED_WAIT) {
            let depth = u32::try_from(inner.levels.len()).unwrap_or(u32::MAX);
            inner.trail.push(Past {
                at: wait.since,
                until: now,
                name,
                depth,
                is_wait: true,
            });
        }
        drop(inner);
        self.moved(now);
    }

    /// Has `waiter` wait for this op until it ends.
    pub(crate) fn waited_by(&self, now: Stamp, waiter: Arc<Record>) {
        let number = waiter.start_waiting(now, WaitsFor::Call(self.id));
        self.lock().waited_by = Some((waiter, number));
    }

    /// This thread works for it from now on. Says what [`Record::run_off`] is to be told.
    #[inline]
    pub(crate) fn run_on(&self, tid: u32) -> bool {
        if self.has_ended() {
            return false;
        }
        let since = Stamp::coarse().max(self.begun);
        let runner = Runner { tid, since };
        let is_first = self.running.enter(runner, self.begun);
        if !is_first {
            self.lock().rare().runners.push(runner);
        }
        is_first
    }

    /// This thread no longer works for it.
    #[inline]
    pub(crate) fn run_off(&self, tid: u32, is_first: bool) {
        if is_first {
            self.running.clear();
            return;
        }
        let mut inner = self.lock();
        let Some(rare) = &mut inner.rare else { return };
        if let Some(at) = rare.runners.iter().rposition(|r| r.tid == tid) {
            rare.runners.remove(at);
        }
    }

    pub(crate) fn set_target(&self, target: &Target<'_>) {
        let mut inner = self.lock();
        if !self.has_ended() {
            inner.subject.set_target(target);
        }
    }

    /// What was said that the op works on.
    #[cfg(feature = "fuse")]
    pub(crate) fn told(&self) -> Option<String> {
        match self.lock().subject.target() {
            Target::Text(text) => Some(text.into_owned()),
            _ => None,
        }
    }

    pub(crate) fn fail(&self, failure: Cow<'static, str>) {
        let failure = text::bounded(failure, text::MAX_TEXT);
        let mut inner = self.lock();
        if !self.has_ended() {
            inner.rare().failure = Some(failure.into());
        }
    }

    /// Changes what only this kind of op has. `change` is our own code and takes no lock.
    pub(crate) fn detail(&self, change: impl FnOnce(&mut Detail)) {
        change(&mut self.lock().detail);
    }

    /// How it ended; meaningless before.
    pub(crate) fn outcome(&self) -> Outcome {
        self.lock().outcome.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Levels and waits are numbered from 2: that of the phase an op begins in is 1.
const FIRST: u32 = 1;

// Kinds, origins and outcomes this version does not know are read from others, never recorded.

fn lasting_kind(kind: &Kind) -> &'static Kind {
    match kind {
        Kind::Fuse => &Kind::Fuse,
        Kind::HttpClient => &Kind::HttpClient,
        Kind::HttpServer => &Kind::HttpServer,
        Kind::Task | Kind::Other(_) => &Kind::Task,
    }
}

fn lasting_origin(from: ParentFrom) -> &'static ParentFrom {
    match from {
        ParentFrom::InflightOp => &ParentFrom::InflightOp,
        ParentFrom::TraceParent | ParentFrom::Other(_) => &ParentFrom::TraceParent,
    }
}

fn lasting_outcome(outcome: &Outcome) -> &'static Outcome {
    match outcome {
        Outcome::Completed | Outcome::Other(_) => &Outcome::Completed,
        Outcome::Failed => &Outcome::Failed,
        Outcome::DroppedBeforeResponse => &Outcome::DroppedBeforeResponse,
        Outcome::DroppedInBody => &Outcome::DroppedInBody,
        Outcome::Returned => &Outcome::Returned,
        Outcome::Panicked => &Outcome::Panicked,
    }
}

impl Inner {
    /// Copies all that a description needs into memory that may be there from another op: then nothing is allocated.
    fn copy_to<'a>(&self, copy: &'a mut Option<Self>) -> &'a Self {
        let copy = match copy {
            Some(copy) => copy,
            none => return none.insert(self.clone()),
        };
        let Self {
            subject,
            detail,
            levels,
            trail,
            waits,
            next,
            rare,
            outcome,
            waited_by: _,
        } = self;
        copy.subject.clone_from(subject);
        copy.detail.clone_from(detail);
        copy.levels.clone_from(levels);
        copy.trail.past.clone_from(&trail.past);
        copy.trail.dropped = trail.dropped;
        copy.waits.clone_from(waits);
        copy.next = *next;
        copy.rare.clone_from(rare);
        copy.outcome = outcome;
        copy.waited_by = None;
        copy
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn failure(&self) -> Option<&str> {
        self.rare.as_ref()?.failure.as_deref()
    }

    /// The threads that work for it beside the first.
    fn more_runners(&self) -> &[Runner] {
        self.rare.as_ref().map_or(&[], |rare| &rare.runners)
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn hidden_levels(&self) -> Range<usize> {
        LEVELS..self.levels.len().saturating_sub(LEVELS).max(LEVELS)
    }

    // The levels with their depths; of very many the first and the last.
    fn shown_levels(&self) -> impl Iterator<Item = (usize, &Level)> {
        let hidden = self.hidden_levels();
        let levels = self.levels.iter().enumerate();
        levels.filter(move |(depth, _)| !hidden.contains(depth))
    }
}

impl Level {
    fn first(name: &'static str, begun: Stamp) -> Self {
        Self {
            name: name.into(),
            since: begun,
            number: FIRST,
            idle: false,
        }
    }

    fn past(self, depth: usize, until: Stamp) -> Past {
        Past {
            at: self.since,
            until,
            name: self.name,
            depth: u32::try_from(depth).unwrap_or(u32::MAX),
            is_wait: false,
        }
    }
}

impl Trail {
    fn push(&mut self, past: Past) {
        if self.past.len() == FIRST_EVENTS + LAST_EVENTS {
            self.past.remove(FIRST_EVENTS);
            self.dropped += 1;
        }
        self.past.push(past);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        Detail, FIRST_EVENTS, LAST_EVENTS, Lineage, Parent, Record, Start, Target, Teller, WaitsFor,
    };
    use crate::{
        clock::Stamp,
        id::{OpId, TraceId},
        snapshot::{Kind, LiveOp, Outcome},
    };

    fn record() -> Record {
        let mut start = Start {
            kind: Kind::Task,
            name: "x".into(),
            target: Target::Unknown,
            route: "",
            detail: Detail::None,
            parent: Parent::Root,
            phase: None,
        };
        let lineage = Lineage {
            id: OpId::mixed(1),
            trace: TraceId::mixed(1, 2),
            trace_flags: None,
            parent: None,
            parent_from: None,
        };
        Record::new(ms(0), &mut start, lineage, 0)
    }

    fn ms(n: u64) -> Stamp {
        Stamp(n * 1_000_000)
    }

    fn at(record: &Record, n: u64) -> LiveOp {
        Teller::new(Duration::from_secs(1), Duration::from_secs(10)).tell(record, ms(n))
    }

    fn trail(op: &LiveOp) -> Vec<(f64, &str)> {
        op.events
            .iter()
            .map(|event| (event.at_ms, event.phase.as_str()))
            .collect()
    }

    #[test]
    fn a_guard_pops_its_level_and_what_was_left_above_it() {
        let record = record();
        record.phase(ms(1), "handler".into(), false);
        let walk = record.nested(ms(2), "walk".into());
        let _left = record.nested(ms(3), "stat".into());
        record.phase(ms(4), "read".into(), false);

        assert_eq!(at(&record, 5).phase.path, ["handler", "walk", "read"]);
        record.leave(ms(6), walk);

        let op = at(&record, 7);
        assert_eq!(op.phase.path, ["handler"]);
        assert_eq!(op.phase.age_ms, 6.0);
        assert_eq!(
            trail(&op),
            [
                (1.0, "handler"),
                (2.0, "handler > walk"),
                (3.0, "handler > walk > stat"),
                (4.0, "handler > walk > read")
            ]
        );
    }

    #[test]
    fn a_guard_dropped_late_pops_nothing_of_others() {
        let record = record();
        let a = record.nested(ms(1), "a".into());
        let b = record.nested(ms(2), "b".into());
        record.leave(ms(3), a);
        record.nested(ms(4), "c".into());
        record.nested(ms(4), "d".into());

        record.leave(ms(5), b);

        assert_eq!(at(&record, 6).phase.path, ["c", "d"]);
    }

    #[test]
    fn the_trail_keeps_first_and_last_and_counts_the_middle() {
        let record = record();
        for n in 0..1000 {
            record.phase(ms(n), n.to_string().into(), false);
        }

        let op = at(&record, 1000);

        assert_eq!(op.events.len(), FIRST_EVENTS + LAST_EVENTS + 1);
        assert_eq!(op.events_dropped, 999 - (FIRST_EVENTS + LAST_EVENTS) as u64);
        assert_eq!(op.events[FIRST_EVENTS - 1].phase, "3");
        assert_eq!(op.events[FIRST_EVENTS].phase, "987");
        assert_eq!(op.events.last().unwrap().phase, "999");
    }

    #[test]
    fn a_wait_under_a_millisecond_leaves_no_trace() {
        let lock = || WaitsFor::Resource {
            id: 1,
            name: "table".into(),
        };
        let record = record();
        let short = record.start_waiting(Stamp(0), lock());
        record.stop_waiting(Stamp(999_999), short);
        assert_eq!(trail(&at(&record, 2)), []);

        let long = record.start_waiting(ms(2), lock());
        record.stop_waiting(ms(5), long);

        let op = at(&record, 6);
        assert_eq!(trail(&op), [(2.0, "waited for table")]);
        assert_eq!(op.events[0].for_ms, Some(3.0));
        assert!(op.phase.wait.is_none());
    }

    // Its begin would seem to lie further back, before threads came to it that came later.
    #[test]
    fn an_op_that_ends_while_it_is_described_is_told_as_it_was() {
        let record = record();
        record.run_on(7);
        record.end(ms(9), Outcome::Completed);

        let op = at(&record, 5);

        assert_eq!((op.age_ms, op.progress_ms), (5.0, 5.0));
    }

    // A field that is forgotten where the copy is used again would tell of another op.
    #[test]
    fn whoever_tells_of_many_ops_tells_of_each_alone() {
        let (full, empty) = (record(), record());
        full.set_target(&Target::Text("/a".into()));
        full.detail(|detail| {
            *detail = Detail::Http {
                peer: None,
                status: Some(200),
            }
        });
        full.phase(ms(1), "x".into(), false);
        full.phase(ms(2), "y".into(), true);
        full.nested(ms(3), "z".into());
        full.start_waiting(ms(3), WaitsFor::Call(OpId::mixed(5)));
        full.fail("because".into());
        assert!(full.run_on(7));
        assert!(!full.run_on(8));

        let mut teller = Teller::new(Duration::from_secs(1), Duration::from_secs(10));
        for record in [&full, &empty, &full] {
            assert_eq!(teller.tell(record, ms(9)), at(record, 9));
        }
        assert_ne!(at(&full, 9), at(&empty, 9));
    }

    #[test]
    fn several_open_calls_are_a_wait_for_any() {
        let record = record();
        record.start_waiting(ms(1), WaitsFor::Call(OpId::mixed(5)));
        assert!(at(&record, 9).phase.wait.unwrap().all);

        record.start_waiting(ms(3), WaitsFor::Call(OpId::mixed(6)));

        let wait = at(&record, 9).phase.wait.unwrap();
        assert_eq!(wait.ops, [OpId::mixed(5), OpId::mixed(6)]);
        assert!(!wait.all);
        assert_eq!(wait.since_ms, 6.0, "of the youngest");
    }
}
