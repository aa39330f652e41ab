//! What people would use instead, each doing the job of an op: known while it lasts, with its phase and since when.
#![allow(dead_code, reason = "each bench uses its part")]

use std::{
    collections::HashMap,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use await_tree::{InstrumentAwait, Registry};
use dashmap::DashMap;
use inflight::{Op, Tracker, snapshot::LiveOp};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor},
};
use tracing::{Dispatch, Span, dispatcher, span};
use tracing_subscriber::{Layer, layer::SubscriberExt, registry::LookupSpan};

pub(crate) const OP: &str = "flush";
pub(crate) const PHASE: &str = "open index";
const DEEPER: [&str; 3] = ["list", "read", "parse"];

/// The crates compared with, whose versions are shown.
pub(crate) const COMPARED: &[&str] = &[
    "await-tree",
    "tracing",
    "tracing-subscriber",
    "tracing-opentelemetry",
    "opentelemetry_sdk",
];

/// Something that knows the ops of a process.
pub(crate) trait Subject: Sync {
    const NAME: &'static str;
    /// An op in flight.
    type Held: Send;
    /// What a thread needs to have while it does the job.
    type Thread;

    fn thread(&self) -> Self::Thread;

    /// Begins an op, gives it a phase, ends it.
    fn one(&self);

    /// The same with three more phases, each nested in the one before.
    fn nested(&self);

    /// Begins an op, gives it a phase, and keeps it.
    fn hold(&self) -> Self::Held;

    /// Reads back what it recorded: so many are in flight, in that phase, and others have ended.
    fn shows(&self, in_flight: usize) -> bool;
}

/// What is done again and again.
#[derive(Clone, Copy)]
pub(crate) enum Job {
    One,
    Nested,
}

pub(crate) struct Inflight(pub(crate) Tracker);

/// The least that anything with times can cost: one read at begin, one at the phase.
pub(crate) struct Clocks;

/// A map behind a lock: the tracker one writes in an afternoon.
#[derive(Default)]
pub(crate) struct Map {
    ops: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    node: &'static str,
    method: &'static str,
    detail: String,
    start: Instant,
    phase: &'static str,
    since: Instant,
}

/// A tree of spans for each op, in a registry of its own.
pub(crate) struct Tree(pub(crate) Registry);

/// Spans of `tracing` in a registry, with a layer that can list what is in flight.
pub(crate) struct Registered {
    dispatch: Dispatch,
    live: Arc<DashMap<u64, Arc<Mutex<Noted>>>>,
}

#[derive(Clone)]
struct Noted {
    name: &'static str,
    start: Instant,
    phase: String,
    since: Instant,
}

struct Lister(Arc<DashMap<u64, Arc<Mutex<Noted>>>>);

/// Spans of `tracing` for OpenTelemetry, which nobody sends away.
pub(crate) struct Telemetry {
    dispatch: Dispatch,
    ended: Arc<AtomicU64>,
    _provider: SdkTracerProvider,
}

#[derive(Debug)]
struct Ended(Arc<AtomicU64>);

pub(crate) fn tracker() -> Tracker {
    // Room for the largest number of live ops that is measured.
    Tracker::builder("bench").capacity(200_000).build()
}

impl Default for Inflight {
    fn default() -> Self {
        Self(tracker())
    }
}

impl Subject for Inflight {
    const NAME: &'static str = "inflight";
    type Held = Op;
    type Thread = ();

    fn thread(&self) {}

    fn one(&self) {
        let op = self.0.begin(OP);
        op.phase(PHASE);
    }

    fn nested(&self) {
        let op = self.0.begin(OP);
        op.phase(PHASE);
        let _a = op.nested(DEEPER[0]);
        let _b = op.nested(DEEPER[1]);
        let _c = op.nested(DEEPER[2]);
    }

    fn hold(&self) -> Op {
        let op = self.0.begin(OP);
        op.phase(PHASE);
        op
    }

    fn shows(&self, in_flight: usize) -> bool {
        let now = self.0.snapshot();
        let as_left = |op: &&LiveOp| op.name == OP && op.phase.path == [PHASE];
        now.ops.iter().filter(as_left).count() == in_flight && now.totals.ended > 0
    }
}

impl Subject for Clocks {
    const NAME: &'static str = "two clock reads";
    type Held = (Instant, Instant);
    type Thread = ();

    fn thread(&self) {}

    fn one(&self) {
        black_box(self.hold());
    }

    fn nested(&self) {
        self.one();
    }

    fn hold(&self) -> (Instant, Instant) {
        (black_box(Instant::now()), black_box(Instant::now()))
    }

    fn shows(&self, _: usize) -> bool {
        let (begun, phase) = self.hold();
        begun <= phase
    }
}

impl Map {
    fn begin(&self) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        let start = Instant::now();
        let entry = Entry {
            node: "ConversationFile",
            method: OP,
            detail: String::new(),
            start,
            phase: "",
            since: start,
        };
        self.ops().insert(id, entry);
        id
    }

    fn phase(&self, id: u64, phase: &'static str) {
        let since = Instant::now();
        if let Some(entry) = self.ops().get_mut(&id) {
            entry.phase = phase;
            entry.since = since;
        }
    }

    fn ops(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject for Map {
    const NAME: &'static str = "Mutex<HashMap>";
    type Held = u64;
    type Thread = ();

    fn thread(&self) {}

    fn one(&self) {
        let id = self.hold();
        self.ops().remove(&id);
    }

    // It knows one phase only, so nested ones replace it, and are set back.
    fn nested(&self) {
        let id = self.hold();
        for phase in DEEPER {
            self.phase(id, phase);
        }
        for phase in [DEEPER[1], DEEPER[0], PHASE] {
            self.phase(id, phase);
        }
        self.ops().remove(&id);
    }

    fn hold(&self) -> u64 {
        let id = self.begin();
        self.phase(id, PHASE);
        id
    }

    fn shows(&self, in_flight: usize) -> bool {
        let ops: Vec<Entry> = self.ops().values().cloned().collect();
        let as_left = ops.iter().filter(|op| {
            (op.node, op.method, op.phase) == ("ConversationFile", OP, PHASE)
                && op.detail.is_empty()
                && op.start <= op.since
        });
        as_left.count() == in_flight
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self(Registry::new(await_tree::Config::default()))
    }
}

impl Subject for Tree {
    const NAME: &'static str = "await-tree";
    type Held = Pin<Box<dyn Future<Output = ()> + Send>>;
    type Thread = ();

    fn thread(&self) {}

    fn one(&self) {
        let root = self.0.register_anonymous(OP);
        let op = root.instrument(async {}.instrument_await(PHASE));
        let _ = poll(pin!(op));
    }

    fn nested(&self) {
        let root = self.0.register_anonymous(OP);
        let op = async {}
            .instrument_await(DEEPER[2])
            .instrument_await(DEEPER[1])
            .instrument_await(DEEPER[0])
            .instrument_await(PHASE);
        let op = root.instrument(op);
        let _ = poll(pin!(op));
    }

    fn hold(&self) -> Self::Held {
        let root = self.0.register_anonymous(OP);
        let mut op = Box::pin(root.instrument(std::future::pending().instrument_await(PHASE)));
        let _ = poll(op.as_mut());
        op
    }

    fn shows(&self, in_flight: usize) -> bool {
        let trees = self.0.collect_all();
        let shown = trees.iter().map(|(_, tree)| tree.to_string());
        shown
            .filter(|tree| tree.contains(OP) && tree.contains(PHASE))
            .count()
            == in_flight
    }
}

impl Default for Registered {
    fn default() -> Self {
        let live = Arc::new(DashMap::new());
        let registry = tracing_subscriber::registry().with(Lister(Arc::clone(&live)));
        Self {
            dispatch: Dispatch::new(registry),
            live,
        }
    }
}

impl Subject for Registered {
    const NAME: &'static str = "tracing + registry";
    type Held = Span;
    type Thread = dispatcher::DefaultGuard;

    fn thread(&self) -> Self::Thread {
        dispatcher::set_default(&self.dispatch)
    }

    fn one(&self) {
        black_box(self.hold());
    }

    fn nested(&self) {
        let span = self.hold();
        let a = tracing::info_span!(parent: &span, "list", phase = "");
        let b = tracing::info_span!(parent: &a, "read", phase = "");
        black_box(tracing::info_span!(parent: &b, "parse", phase = ""));
    }

    fn hold(&self) -> Span {
        let span = tracing::info_span!(parent: None, "flush", phase = tracing::field::Empty);
        span.record("phase", PHASE);
        span
    }

    fn shows(&self, in_flight: usize) -> bool {
        let ops: Vec<_> = self.live.iter().map(|op| Arc::clone(op.value())).collect();
        let ops = ops
            .iter()
            .map(|op| op.lock().unwrap_or_else(PoisonError::into_inner).clone());
        ops.filter(|op| op.name == OP && op.phase == PHASE && op.start <= op.since)
            .count()
            == in_flight
    }
}

impl<S> Layer<S> for Lister
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        ctx: tracing_subscriber::layer::Context<'_, S>,
    ) {
        let Some(span) = ctx.span(id) else { return };
        let now = Instant::now();
        let noted = Arc::new(Mutex::new(Noted {
            name: attributes.metadata().name(),
            start: now,
            phase: String::new(),
            since: now,
        }));
        self.0.insert(id.into_u64(), Arc::clone(&noted));
        span.extensions_mut().insert(noted);
    }

    fn on_record(
        &self,
        id: &span::Id,
        values: &span::Record<'_>,
        ctx: tracing_subscriber::layer::Context<'_, S>,
    ) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(noted) = span.extensions().get::<Arc<Mutex<Noted>>>() {
            values.record(&mut *noted.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn on_close(&self, id: span::Id, _: tracing_subscriber::layer::Context<'_, S>) {
        self.0.remove(&id.into_u64());
    }
}

impl tracing::field::Visit for Noted {
    fn record_str(&mut self, _: &tracing::field::Field, value: &str) {
        self.since = Instant::now();
        value.clone_into(&mut self.phase);
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}

impl Default for Telemetry {
    fn default() -> Self {
        let ended = Arc::new(AtomicU64::new(0));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Ended(Arc::clone(&ended)))
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
        Self {
            dispatch: Dispatch::new(tracing_subscriber::registry().with(layer)),
            ended,
            _provider: provider,
        }
    }
}

impl Subject for Telemetry {
    const NAME: &'static str = "tracing-opentelemetry";
    type Held = Span;
    type Thread = dispatcher::DefaultGuard;

    fn thread(&self) -> Self::Thread {
        dispatcher::set_default(&self.dispatch)
    }

    fn one(&self) {
        black_box(self.hold());
    }

    fn nested(&self) {
        let span = self.hold();
        let a = tracing::info_span!(parent: &span, "list");
        let b = tracing::info_span!(parent: &a, "read");
        black_box(tracing::info_span!(parent: &b, "parse"));
    }

    fn hold(&self) -> Span {
        let span = tracing::info_span!(parent: None, "flush");
        tracing::info!(parent: &span, "open index");
        span
    }

    // What is in flight it cannot tell: only what has ended.
    fn shows(&self, _: usize) -> bool {
        self.ended.load(Relaxed) > 0
    }
}

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        let as_left = span.name == OP && span.events.iter().any(|event| event.name == PHASE);
        self.0.fetch_add(u64::from(as_left), Relaxed);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Polls a future once.
pub(crate) fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
