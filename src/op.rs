//! One op as its owners hold it, and which op a thread works for.

use std::{borrow::Cow, cell::RefCell, fmt, marker::PhantomData, mem, sync::Arc};

use crate::{
    clock::Stamp,
    id::{Context, OpId},
    live::{Shard, release, retain},
    process,
    record::{Detail, Record, Target, WaitsFor},
    snapshot::{Kind, Outcome},
    text,
};

/// Keeps one op in flight.
///
/// The op ends when its last handle drops, or at [`Op::end`]; what is said of it after that changes
/// nothing. A tracker that is off or full gives ops that are not recorded and cost nothing.
#[must_use = "an unused op ends at once"]
pub struct Op {
    handle: Option<Handle>,
}

/// Pops a nested phase when dropped.
///
/// It does not keep the op in flight.
#[must_use = "dropped at once, the phase ends at once"]
#[derive(Debug)]
pub struct Nested {
    level: Option<(Arc<Record>, u32)>,
}

/// Ends a stated wait when dropped.
///
/// It does not keep either op in flight.
#[must_use = "dropped at once, the wait ends at once"]
#[derive(Debug)]
pub struct WaitingFor {
    wait: Option<(Arc<Record>, u32)>,
}

/// While it lives, this thread works for the op.
#[must_use = "dropped at once, the thread no longer works for the op"]
pub struct Entered {
    token: u64,
    // What the record said when it was entered.
    is_first: bool,
    // Where there is no stack any more: the thread is being torn down.
    kept: Option<Op>,
    // The thread that entered is the one that leaves.
    _not_send: PhantomData<*const ()>,
}

struct Handle {
    record: Arc<Record>,
    // Not the tracker: threads that begin and end ops would pass its count of handles to and fro.
    shard: Arc<Shard>,
}

// The ops this thread works for, innermost last.
struct Stack {
    entries: Vec<(u64, Op)>,
    next: u64,
}

thread_local! {
    static STACK: RefCell<Stack> = const {
        RefCell::new(Stack { entries: Vec::new(), next: 0 })
    };
}

impl Op {
    pub(crate) fn new(record: Arc<Record>, shard: &Arc<Shard>) -> Self {
        let shard = Arc::clone(shard);
        Self {
            handle: Some(Handle { record, shard }),
        }
    }

    pub(crate) fn unrecorded() -> Self {
        Self { handle: None }
    }

    /// Returns the op this thread works for, if there is one that is recorded.
    #[must_use]
    pub fn current() -> Option<Self> {
        let op = with_current(Self::clone)?;
        op.handle.is_some().then_some(op)
    }

    /// Returns the op's id; `None` if it is not recorded.
    #[must_use]
    pub fn id(&self) -> Option<OpId> {
        self.record().map(|record| record.id)
    }

    /// Returns what the `inflight-op` header of a request under this op carries.
    #[must_use]
    pub fn context(&self) -> Option<Context> {
        self.record().map(|record| Context {
            trace: record.trace(),
            op: record.id,
        })
    }

    /// Replaces the innermost phase.
    pub fn phase(&self, name: impl Into<Cow<'static, str>>) {
        if let Some(record) = self.record() {
            record.phase(Stamp::now(), name.into(), false);
        }
    }

    /// Replaces the innermost phase by one that is long by design: never stuck by age.
    ///
    /// What the op holds meanwhile it still holds in the graph.
    pub fn idle_phase(&self, name: impl Into<Cow<'static, str>>) {
        if let Some(record) = self.record() {
            record.phase(Stamp::now(), name.into(), true);
        }
    }

    /// Goes one phase deeper until the guard drops, which also pops what was left above it.
    pub fn nested(&self, name: impl Into<Cow<'static, str>>) -> Nested {
        let level = self.record().map(|record| {
            let number = record.nested(Stamp::now(), name.into());
            (Arc::clone(record), number)
        });
        Nested { level }
    }

    /// Says what the op works on: a path, a URL.
    pub fn target(&self, target: impl Into<Cow<'static, str>>) {
        if let Some(record) = self.record() {
            record.set_target(&Target::Text(text::bounded(target, text::MAX_TEXT)));
        }
    }

    /// Says what went wrong; the op's outcome will be `failed`.
    pub fn fail(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(record) = self.record() {
            record.fail(why.into());
        }
    }

    /// Ends the op, though other handles may live on. Twice is as once.
    pub fn end(&self) {
        if let Some(handle) = &self.handle {
            handle.end(handle.usual_outcome());
        }
    }

    /// Makes this thread work for the op until the guard drops.
    ///
    /// Ops begun meanwhile have it as their parent, and a FUSE call this thread is blocked in is
    /// joined to it.
    pub fn enter(&self) -> Entered {
        Entered::with(self.clone())
    }

    /// Changes what only this kind of op has.
    #[cfg(feature = "http")]
    pub(crate) fn detail(&self, change: impl FnOnce(&mut Detail)) {
        if let Some(record) = self.record() {
            record.detail(change);
        }
    }

    /// Notes body bytes that left.
    #[cfg(feature = "http")]
    pub(crate) fn sent(&self, bytes: u64) {
        if let Some(record) = self.record() {
            record.sent(bytes, Stamp::now());
        }
    }

    /// Notes body bytes that came in.
    #[cfg(feature = "http")]
    pub(crate) fn received(&self, bytes: u64) {
        if let Some(record) = self.record() {
            record.received(bytes, Stamp::now());
        }
    }

    /// Ends the op with what is known of its end. Only the first end counts.
    #[cfg(any(feature = "fuse", feature = "http"))]
    pub(crate) fn finish(&self, outcome: Outcome) {
        if let Some(handle) = &self.handle {
            handle.end(outcome);
        }
    }

    /// The same, at a moment that is known.
    #[cfg(feature = "http")]
    pub(crate) fn finish_at(&self, now: Stamp, outcome: Outcome) {
        if let Some(handle) = &self.handle {
            handle.shard.end(&handle.record, now, outcome);
        }
    }

    /// Has this op wait for something until the guard drops.
    pub(crate) fn wait_for(&self, what: WaitsFor) -> WaitingFor {
        match self.record() {
            Some(record) => WaitingFor::start(Arc::clone(record), what),
            None => WaitingFor::none(),
        }
    }

    pub(crate) fn record(&self) -> Option<&Arc<Record>> {
        self.handle.as_ref().map(|handle| &handle.record)
    }
}

impl Clone for Op {
    fn clone(&self) -> Self {
        let handle = self.handle.as_ref().map(|handle| {
            retain(&handle.record);
            Handle {
                record: Arc::clone(&handle.record),
                shard: Arc::clone(&handle.shard),
            }
        });
        Self { handle }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Op");
        if let Some(record) = self.record() {
            out.field("id", &record.id)
                .field("name", &text::clean(&record.name));
        }
        out.finish_non_exhaustive()
    }
}

impl Handle {
    fn end(&self, outcome: Outcome) {
        self.shard.end(&self.record, Stamp::now(), outcome);
    }

    // What an end means that nobody explained.
    fn usual_outcome(&self) -> Outcome {
        match self.record.kind {
            Kind::Fuse => Outcome::Returned,
            Kind::HttpClient | Kind::HttpServer => {
                let mut outcome = Outcome::Completed;
                self.record.detail(|detail| {
                    if matches!(detail, Detail::Http { status: None, .. }) {
                        outcome = Outcome::DroppedBeforeResponse;
                    }
                });
                outcome
            }
            _ => Outcome::Completed,
        }
    }
}

impl Drop for Handle {
    // Runs while unwinding too: nothing here may panic or block on user code.
    fn drop(&mut self) {
        if !release(&self.record) || self.record.has_ended() {
            return;
        }
        self.end(if std::thread::panicking() {
            Outcome::Panicked
        } else {
            self.usual_outcome()
        });
    }
}

impl Nested {
    pub(crate) fn none() -> Self {
        Self { level: None }
    }
}

impl WaitingFor {
    pub(crate) fn none() -> Self {
        Self { wait: None }
    }

    pub(crate) fn start(waiter: Arc<Record>, what: WaitsFor) -> Self {
        let number = waiter.start_waiting(Stamp::now(), what);
        Self {
            wait: Some((waiter, number)),
        }
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        if let Some((record, number)) = self.level.take() {
            record.leave(Stamp::now(), number);
        }
    }
}

impl Drop for WaitingFor {
    fn drop(&mut self) {
        if let Some((record, number)) = self.wait.take() {
            record.stop_waiting(Stamp::now(), number);
        }
    }
}

impl Entered {
    /// Moves the op onto this thread's stack.
    #[inline]
    pub(crate) fn with(op: Op) -> Self {
        let is_first = op
            .record()
            .is_some_and(|record| record.run_on(process::tid()));
        let mut kept = Some(op);
        let token = STACK.try_with(|stack| {
            let mut stack = stack.try_borrow_mut().ok()?;
            let op = kept.take()?;
            stack.next += 1;
            let token = stack.next;
            stack.entries.push((token, op));
            Some(token)
        });
        Self {
            token: token.ok().flatten().unwrap_or(0),
            is_first,
            kept,
            _not_send: PhantomData,
        }
    }

    /// Takes the op back from the stack.
    #[inline]
    pub(crate) fn leave(mut self) -> Option<Op> {
        let op = self.take();
        mem::forget(self);
        op
    }

    #[inline]
    fn take(&mut self) -> Option<Op> {
        let op = STACK.try_with(|stack| {
            let mut stack = stack.try_borrow_mut().ok()?;
            let is_mine = |entry: &mut (u64, Op)| entry.0 == self.token;
            if let Some((_, op)) = stack.entries.pop_if(is_mine) {
                return Some(op);
            }
            let mut entries = stack.entries.iter();
            let at = entries.rposition(|(token, _)| *token == self.token)?;
            Some(stack.entries.remove(at).1)
        });
        let op = op.ok().flatten().or_else(|| self.kept.take())?;
        if let Some(record) = op.record() {
            record.run_off(process::tid(), self.is_first);
        }
        Some(op)
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Calls `f` on the innermost op of this thread. `f` is our own code and enters nothing.
pub(crate) fn with_current<T>(f: impl FnOnce(&Op) -> T) -> Option<T> {
    STACK
        .try_with(|stack| {
            let stack = stack.try_borrow().ok()?;
            stack.entries.last().map(|(_, op)| f(op))
        })
        .ok()
        .flatten()
}
