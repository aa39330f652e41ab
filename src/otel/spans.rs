//! Spans made by hand of ops: one for an op that has ended and one for each of its phases, or a partial one.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    Array, InstrumentationScope, KeyValue, StringValue, Value,
    trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{
    clock::Stamp,
    id::{Context, OpId, TraceId},
    record::{Bar, Record, Teller},
    snapshot::{Http, Kind, LiveOp, Outcome, Resource, Snapshot},
};

// Apart in the counter that ids are mixed from: far from each other, and from those of ops.
const PHASE_IDS: u64 = 0x9e37_79b9_7f4a_7c15;
const PARTIAL_IDS: u64 = 0xd1b5_4a32_d192_ed03;

/// Translates moments to the time of day, alike in all processes of a boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// What to add to a [`Stamp`] to get nanoseconds since 1970.
    offset: i128,
}

/// A partial span to make.
pub(super) struct Partial<'a> {
    pub(super) op: &'a LiveOp,
    pub(super) record: &'a Record,
    pub(super) snapshot: &'a Snapshot,
    /// How many came before.
    pub(super) sequence: u32,
    pub(super) now: Stamp,
    pub(super) link: Option<Context>,
}

impl Clock {
    /// Reads both clocks as close together as it gets.
    pub(super) fn read() -> Self {
        let reading = || {
            let before = Stamp::now();
            let wall = clock_gettime(ClockId::Realtime);
            let after = Stamp::now();
            let wall = i128::from(wall.tv_sec) * 1_000_000_000 + i128::from(wall.tv_nsec);
            let between = (i128::from(before.0) + i128::from(after.0)) / 2;
            (after.since(before), wall - between)
        };
        let readings = (0..5).map(|_| reading());
        let tightest = readings.min_by_key(|(apart, _)| *apart);
        Self {
            offset: tightest.map_or(0, |(_, offset)| offset),
        }
    }

    /// Reads them again if the time of day was set meanwhile.
    pub(super) fn refresh(&mut self) {
        const SET: u128 = 1_000_000;
        let now = Self::read();
        if now.offset.abs_diff(self.offset) > SET {
            *self = now;
        }
    }

    fn time(self, stamp: Stamp) -> SystemTime {
        let nanos = self.offset + i128::from(stamp.0);
        let nanos = u64::try_from(nanos).unwrap_or(0);
        UNIX_EPOCH + Duration::from_nanos(nanos)
    }
}

/// The span of an op that has ended, and one for each of its phases.
pub(super) fn ended(record: &Record, clock: Clock, link: Option<Context>) -> Vec<SpanData> {
    let end = record.ended_at();
    let op = Teller::new(Duration::MAX, Duration::MAX).tell(record, end);
    let outcome = record.outcome();
    let bars = record.bars(end);
    let mut attributes = attributes(&op);
    attributes.push(KeyValue::new("inflight.outcome", word(&outcome)));
    if let Some(error) = error_type(&op, &outcome) {
        attributes.push(KeyValue::new("error.type", error));
    }
    let waits: Vec<&Bar> = bars.iter().filter(|bar| bar.is_wait).collect();
    if !waits.is_empty() {
        let names = strings(waits.iter().map(|bar| bar.name.to_string()));
        let lasted = waits.iter().map(|bar| bar.until.since(bar.from));
        let lasted = lasted.map(crate::snapshot::millis).collect();
        attributes.push(KeyValue::new("inflight.waited_for", names));
        let lasted = Value::Array(Array::F64(lasted));
        attributes.push(KeyValue::new("inflight.waited_ms", lasted));
    }
    if op.events_dropped > 0 {
        let dropped = i64::try_from(op.events_dropped).unwrap_or(i64::MAX);
        attributes.push(KeyValue::new("inflight.phases_left_out", dropped));
    }
    let phases = phases(record, &bars, clock, end);
    let mut spans = Vec::with_capacity(1 + phases.len());
    spans.push(SpanData {
        span_context: context_of(record.trace(), record.id),
        parent_span_id: record.parent_span().map_or(SpanId::INVALID, span_id),
        parent_span_is_remote: op.parent_from.is_some(),
        span_kind: kind(&op),
        name: name(&op),
        start_time: clock.time(record.begun),
        end_time: clock.time(end),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: links(record.trace(), link),
        status: status(&op, &outcome),
        instrumentation_scope: scope(),
    });
    spans.extend(phases);
    spans
}

/// The span of an op as far as it has come.
pub(super) fn partial(partial: &Partial<'_>, clock: Clock) -> SpanData {
    let (op, record) = (partial.op, partial.record);
    let mut attributes = attributes(op);
    attributes.push(KeyValue::new("inflight.partial", true));
    let sequence = i64::from(partial.sequence);
    attributes.push(KeyValue::new("inflight.partial.sequence", sequence));
    let path = op.phase.path.join(" > ");
    attributes.push(KeyValue::new("inflight.phase", path));
    attributes.push(KeyValue::new("inflight.phase.age_ms", op.phase.age_ms));
    attributes.extend(waits_and_holds(op, &partial.snapshot.resources));
    let idle = crate::render::age(op.progress_ms);
    let id = derived(op.id, PARTIAL_IDS, u64::from(partial.sequence));
    SpanData {
        span_context: context_of(op.trace_id, id),
        parent_span_id: span_id(op.id),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: format!("still in flight: {}", name(op)).into(),
        start_time: clock.time(record.begun),
        end_time: clock.time(partial.now),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: links(op.trace_id, partial.link),
        status: Status::error(format!("stuck: no progress for {idle}")),
        instrumentation_scope: scope(),
    }
}

fn waits_and_holds(op: &LiveOp, resources: &[Resource]) -> Vec<KeyValue> {
    let mut out = Vec::new();
    if let Some(wait) = &op.phase.wait {
        out.push(KeyValue::new("inflight.wait.on", word(&wait.on)));
        let ops = wait.ops.iter().map(OpId::to_string);
        out.push(KeyValue::new("inflight.wait.ops", strings(ops)));
        let waited = wait.resource.as_ref();
        let waited = waited.and_then(|id| resources.iter().find(|resource| &resource.id == id));
        if let Some(resource) = waited {
            let name = resource.name.clone();
            out.push(KeyValue::new("inflight.wait.resource", name));
        }
    }
    let is_held = |resource: &&Resource| {
        let mut holders = resource.holders.iter();
        holders.any(|holder| holder.op == Some(op.id))
    };
    let mut held = resources.iter().filter(is_held).peekable();
    if held.peek().is_some() {
        let names = held.map(|resource| resource.name.clone());
        out.push(KeyValue::new("inflight.holds", strings(names)));
    }
    out
}

fn strings(of: impl Iterator<Item = String>) -> Value {
    Value::Array(Array::String(of.map(StringValue::from).collect()))
}

// Each under the phase it was nested in, and within it.
fn phases(record: &Record, bars: &[Bar], clock: Clock, end: Stamp) -> Vec<SpanData> {
    let mut open: Vec<(u32, Stamp, SpanId)> = Vec::new();
    let mut spans = Vec::new();
    for (number, bar) in bars.iter().enumerate() {
        if bar.is_wait {
            continue;
        }
        open.retain(|(depth, until, _)| *depth < bar.depth && *until > bar.from);
        let (until, parent) = match open.last() {
            Some((_, until, parent)) => (*until, *parent),
            None => (end, span_id(record.id)),
        };
        let id = span_id_of(record.id, number);
        let until = bar.until.min(until);
        open.push((bar.depth, until, id));
        spans.push(SpanData {
            span_context: SpanContext::new(
                trace_id(record.trace()),
                id,
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: bar.name.clone().into(),
            start_time: clock.time(bar.from),
            end_time: clock.time(until),
            attributes: vec![KeyValue::new("inflight.op.id", record.id.to_string())],
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: scope(),
        });
    }
    spans
}

fn attributes(op: &LiveOp) -> Vec<KeyValue> {
    let mut out = vec![
        KeyValue::new("inflight.op.id", op.id.to_string()),
        KeyValue::new("inflight.kind", word(&op.kind)),
    ];
    match &op.http {
        Some(http) => http_attributes(op, http, &mut out),
        None if !op.target.is_empty() => {
            out.push(KeyValue::new("inflight.target", op.target.clone()));
        }
        None => {}
    }
    if let Some(fuse) = &op.fuse {
        out.push(KeyValue::new("inflight.fuse.unique", fuse.unique.clone()));
        out.push(KeyValue::new("inflight.fuse.inode", fuse.inode.clone()));
        out.push(KeyValue::new("inflight.fuse.mount", fuse.mount.clone()));
    }
    if let Some(caller) = op.caller.as_ref().filter(|caller| caller.tid != 0) {
        out.push(KeyValue::new("inflight.caller.tid", i64::from(caller.tid)));
        out.push(KeyValue::new("inflight.caller.uid", i64::from(caller.uid)));
    }
    if let Some(thread) = &op.thread {
        out.push(KeyValue::new("thread.id", i64::from(thread.tid)));
    }
    out
}

// https://opentelemetry.io/docs/specs/semconv/http/http-spans/
fn http_attributes(op: &LiveOp, http: &Http, out: &mut Vec<KeyValue>) {
    let is_client = op.kind == Kind::HttpClient;
    out.push(KeyValue::new("http.request.method", op.name.clone()));
    if is_client {
        out.push(KeyValue::new("url.full", op.target.clone()));
    } else {
        let (path, query) = match op.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (op.target.as_str(), None),
        };
        out.push(KeyValue::new("url.path", path.to_owned()));
        if let Some(query) = query {
            out.push(KeyValue::new("url.query", query.to_owned()));
        }
        if let Some(route) = &http.route {
            out.push(KeyValue::new("http.route", route.clone()));
        }
    }
    let peer = http.peer.as_deref().and_then(|peer| peer.rsplit_once(':'));
    if let Some((host, port)) = peer {
        let (address, number) = match is_client {
            true => ("server.address", "server.port"),
            false => ("client.address", "client.port"),
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        out.push(KeyValue::new(address, host));
        if let Ok(port) = port.parse::<u16>() {
            out.push(KeyValue::new(number, i64::from(port)));
        }
    }
    if let Some(status) = http.status {
        let status = i64::from(status);
        out.push(KeyValue::new("http.response.status_code", status));
    }
    let (request, response) = match is_client {
        true => (http.sent_bytes, http.received_bytes),
        false => (http.received_bytes, http.sent_bytes),
    };
    for (name, bytes) in [
        ("http.request.body.size", request),
        ("http.response.body.size", response),
    ] {
        if bytes > 0 {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            out.push(KeyValue::new(name, bytes));
        }
    }
}

fn name(op: &LiveOp) -> Cow<'static, str> {
    let route = op.http.as_ref().and_then(|http| http.route.as_ref());
    match route.filter(|_| op.kind == Kind::HttpServer) {
        Some(route) => format!("{} {route}", op.name).into(),
        None => op.name.clone().into(),
    }
}

fn kind(op: &LiveOp) -> SpanKind {
    match op.kind {
        Kind::HttpClient => SpanKind::Client,
        Kind::HttpServer | Kind::Fuse => SpanKind::Server,
        _ => SpanKind::Internal,
    }
}

/// The word that stands for it in the schema.
fn word(of: &impl Serialize) -> String {
    match serde_json::to_value(of) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

// A client's 4xx is its error, a server's is not: the semantic conventions.
fn is_error_status(op: &LiveOp) -> Option<u16> {
    let status = op.http.as_ref()?.status?;
    let from = match op.kind {
        Kind::HttpClient => 400,
        _ => 500,
    };
    (status >= from).then_some(status)
}

fn error_type(op: &LiveOp, outcome: &Outcome) -> Option<String> {
    match (outcome, is_error_status(op)) {
        (Outcome::Completed | Outcome::Returned, status) => status.map(|status| status.to_string()),
        (outcome, _) => Some(word(outcome)),
    }
}

fn status(op: &LiveOp, outcome: &Outcome) -> Status {
    match outcome {
        Outcome::Completed | Outcome::Returned => match is_error_status(op) {
            Some(_) => Status::error(""),
            None => Status::Unset,
        },
        Outcome::Failed => Status::error(op.error.clone().unwrap_or_default()),
        Outcome::Panicked => Status::error("panicked"),
        Outcome::DroppedBeforeResponse => Status::error("given up before there was a response"),
        Outcome::DroppedInBody => Status::error("given up while a body was under way"),
        Outcome::Other(other) => Status::error(other.clone()),
    }
}

// Jaeger draws a span that links within its own trace under what it links to.
fn links(own: TraceId, link: Option<Context>) -> SpanLinks {
    let mut links = SpanLinks::default();
    if let Some(link) = link.filter(|link| link.trace != own) {
        let why = KeyValue::new("inflight.why", "called by a thread that worked for it");
        links
            .links
            .push(Link::new(context_of(link.trace, link.op), vec![why], 0));
    }
    links
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("inflight")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build()
}

fn context_of(trace: TraceId, span: OpId) -> SpanContext {
    SpanContext::new(
        trace_id(trace),
        span_id(span),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    )
}

fn trace_id(trace: TraceId) -> opentelemetry::TraceId {
    opentelemetry::TraceId::from(trace.value())
}

fn span_id(op: OpId) -> SpanId {
    SpanId::from(op.value())
}

fn span_id_of(op: OpId, phase: usize) -> SpanId {
    span_id(derived(op, PHASE_IDS, phase as u64))
}

fn derived(op: OpId, apart: u64, number: u64) -> OpId {
    let number = apart.wrapping_mul(number.wrapping_add(1));
    OpId::mixed(op.value().wrapping_add(number))
}
