//! Spans as a receiver gets them: ids, parents, phases, partial ones of stuck ops, and what becomes of them when nobody takes them.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use inflight::{OpId, Tracker, otel::Exporter, resource::Resource};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_secs(20);

/// An OTLP/HTTP endpoint in this process, with a runtime of its own.
struct Receiver {
    url: String,
    got: Arc<Got>,
    _runtime: Runtime,
}

#[derive(Default)]
struct Got {
    state: Mutex<Taken>,
    changed: Condvar,
    /// Answered instead of 200, unless 0.
    status: AtomicU16,
}

#[derive(Default)]
struct Taken {
    spans: Vec<Span>,
    services: Vec<String>,
    headers: Vec<HeaderMap>,
    requests: usize,
}

impl Receiver {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let got = Arc::new(Got::default());
        let app = axum::Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&got));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self {
            url,
            got,
            _runtime: runtime,
        }
    }

    fn exporter(&self, tracker: &Tracker) -> Exporter {
        let exporter = Exporter::builder(tracker)
            .endpoint(&self.url)
            .every(Duration::from_millis(10))
            .flush_within(DEADLINE)
            .start();
        assert_eq!(exporter.problem(), None);
        exporter
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.got.state.lock().unwrap()
    }

    fn wait_for(&self, mut is_there: impl FnMut(&Taken) -> bool) -> MutexGuard<'_, Taken> {
        let until = Instant::now() + DEADLINE;
        let waited =
            self.got
                .changed
                .wait_timeout_while(self.taken(), until - Instant::now(), |taken| {
                    !is_there(taken)
                });
        let (taken, timeout) = waited.unwrap();
        assert!(!timeout.timed_out(), "{:#?}", taken.spans);
        taken
    }
}

async fn take(State(got): State<Arc<Got>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let status = StatusCode::from_u16(got.status.load(Relaxed)).unwrap_or(StatusCode::OK);
    let mut taken = got.state.lock().unwrap();
    taken.requests += 1;
    if status.is_success() {
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            taken
                .services
                .push(text(&attributes, "service.name").unwrap());
            let spans = resource.scope_spans.into_iter();
            taken.spans.extend(spans.flat_map(|scope| scope.spans));
        }
        taken.headers.push(headers);
    }
    drop(taken);
    got.changed.notify_all();
    status
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::BoolValue(value) => Some(value.to_string()),
        Value::IntValue(value) => Some(value.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn id(op: OpId) -> Vec<u8> {
    op.value().to_be_bytes().to_vec()
}

#[test]
fn an_op_that_ended_is_one_span_with_its_own_ids() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("indexer");
    let exporter = receiver.exporter(&tracker);

    let op = tracker.begin("reindex");
    op.target("/srv");
    let context = op.context().unwrap();
    drop(op);
    exporter.shutdown();

    let taken = receiver.taken();
    let [span] = taken.spans.as_slice() else {
        panic!("{:#?}", taken.spans);
    };
    assert_eq!(span.trace_id, context.trace.value().to_be_bytes());
    assert_eq!(span.span_id, id(context.op));
    assert!(span.parent_span_id.is_empty());
    assert_eq!(span.name, "reindex");
    assert!(span.start_time_unix_nano < span.end_time_unix_nano);
    assert_eq!(
        text(&span.attributes, "inflight.target").as_deref(),
        Some("/srv")
    );
    assert_eq!(taken.services, ["indexer"]);
    assert_eq!(tracker.snapshot().totals.spans_dropped, 0);
}

fn is_partial(span: &Span) -> bool {
    text(&span.attributes, "inflight.partial").as_deref() == Some("true")
}

fn attribute<'a>(spans: &'a [Span], key: &str, value: &str) -> Vec<&'a Span> {
    let has = |span: &&Span| text(&span.attributes, key).as_deref() == Some(value);
    spans.iter().filter(has).collect()
}

fn within(inner: &Span, outer: &Span) -> bool {
    outer.start_time_unix_nano <= inner.start_time_unix_nano
        && inner.end_time_unix_nano <= outer.end_time_unix_nano
}

#[test]
fn children_hang_under_their_parents_and_lie_within_them() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("indexer");
    let exporter = receiver.exporter(&tracker);

    let op = tracker.begin("reindex");
    op.phase("handler");
    let walk = op.nested("walk");
    drop(op.nested("stat"));
    drop(walk);
    let child = {
        let _in = op.enter();
        tracker.begin("list")
    };
    let (parent_id, child_id) = (op.id().unwrap(), child.id().unwrap());
    drop(child);
    op.phase("write");
    drop(op);
    exporter.shutdown();

    let taken = receiver.taken();
    let named = |name: &str| {
        let mut found = taken.spans.iter().filter(|span| span.name == name);
        let span = found
            .next()
            .unwrap_or_else(|| panic!("no {name}: {:#?}", taken.spans));
        assert!(found.next().is_none(), "two of {name}");
        span
    };
    let op = named("reindex");
    assert_eq!(op.span_id, id(parent_id));
    assert_eq!(named("list").span_id, id(child_id));
    for (child, parent) in [
        ("list", "reindex"),
        ("handler", "reindex"),
        ("write", "reindex"),
        ("walk", "handler"),
        ("stat", "walk"),
    ] {
        let (child, parent) = (named(child), named(parent));
        assert_eq!(child.parent_span_id, parent.span_id, "{child:#?}");
        assert_eq!(child.trace_id, parent.trace_id);
        assert!(within(child, parent), "{child:#?}\n{parent:#?}");
    }
    let mut ids: Vec<_> = taken.spans.iter().map(|span| &span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

#[test]
fn a_stuck_op_is_there_while_it_is_stuck_and_once_more_when_it_has_ended() {
    let receiver = Receiver::start();
    let tracker = Tracker::builder("indexer")
        .slow_after(Duration::from_millis(10))
        .stuck_after(Duration::from_millis(40))
        .build();
    let lock = Resource::new(&tracker, "table");
    let exporter = receiver.exporter(&tracker);
    let holder = tracker.begin("holder");
    let _held = {
        let _in = holder.enter();
        lock.wait(|| ())
    };
    let op = tracker.begin("reindex");
    op.phase("open index");
    let (op_id, holder_id) = (op.id().unwrap(), holder.id().unwrap());
    let shown = op_id.to_string();

    {
        let taken = receiver.wait_for(|taken| {
            let of_op = attribute(&taken.spans, "inflight.op.id", &shown);
            of_op.len() >= 2
                && !attribute(&taken.spans, "inflight.op.id", &holder_id.to_string()).is_empty()
        });
        let partial = attribute(&taken.spans, "inflight.op.id", &shown);
        for (n, span) in partial.iter().enumerate() {
            assert!(is_partial(span));
            assert_eq!(span.parent_span_id, id(op_id));
            assert_ne!(span.span_id, id(op_id));
            assert!(span.start_time_unix_nano < span.end_time_unix_nano);
            assert_eq!(span.status.as_ref().unwrap().code, 2, "{span:#?}");
            let said = |key: &str| text(&span.attributes, key).unwrap();
            assert_eq!(said("inflight.phase"), "open index");
            assert_eq!(said("inflight.partial.sequence"), n.to_string());
        }
        assert_ne!(partial[0].span_id, partial[1].span_id);
        let holder = attribute(&taken.spans, "inflight.op.id", &holder_id.to_string());
        let holds = text(&holder[0].attributes, "inflight.holds").unwrap();
        assert!(holds.contains("table"), "{holds}");
    }
    drop(op);
    exporter.shutdown();

    let taken = receiver.taken();
    let own: Vec<&Span> = taken
        .spans
        .iter()
        .filter(|span| span.span_id == id(op_id))
        .collect();
    let [span] = own.as_slice() else {
        panic!("{own:#?}");
    };
    assert!(!is_partial(span));
    assert_eq!(span.status.as_ref().map_or(0, |status| status.code), 0);
}
