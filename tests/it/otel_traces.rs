//! Whose trace an op is part of: of the application's own spans, of a request's origin, and what these did not sample.

use std::{convert::Infallible, time::Duration};

use axum::http::HeaderMap;
use inflight::{Tracker, http::ServerLayer, otel::Exporter};
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use tower::{Layer as _, Service as _};

use crate::{
    receiver::{Receiver, attribute, id, soon_stuck},
    stage::DEADLINE,
};

#[test]
fn an_op_under_a_span_of_the_application_joins_its_trace() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("app");
    let exporter = receiver.exporter(&tracker);
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let span = provider.tracer("app").start("theirs");
    let theirs = opentelemetry::Context::new().with_span(span);
    let context = theirs.span().span_context().clone();

    let op = {
        let _active = theirs.attach();
        tracker.begin("ours")
    };
    let child = {
        let _in = op.enter();
        tracker.begin("child")
    };
    let op_id = op.id().unwrap();
    assert_eq!(
        op.context().unwrap().trace.to_string(),
        context.trace_id().to_string()
    );
    drop((child, op));
    drop(tracker.begin("after"));
    exporter.shutdown();

    let taken = receiver.taken();
    let named = |name: &str| taken.spans.iter().find(|span| span.name == name).unwrap();
    let trace = context.trace_id().to_bytes();
    assert_eq!(named("ours").trace_id, trace);
    assert_eq!(named("ours").parent_span_id, context.span_id().to_bytes());
    assert_eq!(named("child").trace_id, trace);
    assert_eq!(named("child").parent_span_id, id(op_id));
    assert_ne!(named("after").trace_id, trace);
}

#[test]
fn an_op_under_a_tracing_span_joins_its_trace() {
    use tracing_subscriber::layer::SubscriberExt as _;

    let receiver = Receiver::start();
    let tracker = Tracker::new("app");
    let exporter = receiver.exporter(&tracker);
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("app"));
    let subscriber = tracing_subscriber::registry().with(layer);

    let (theirs, ours) = tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!("theirs");
        let _in = span.enter();
        let op = tracker.begin("ours");
        let active = opentelemetry::Context::current();
        let theirs = active.span().span_context().clone();
        (theirs, op.context().unwrap())
    });
    exporter.shutdown();

    assert!(theirs.is_valid());
    assert_eq!(ours.trace.to_string(), theirs.trace_id().to_string());
    let taken = receiver.taken();
    assert_eq!(taken.spans[0].parent_span_id, theirs.span_id().to_bytes());
}

#[test]
fn requests_carry_a_traceparent_while_an_exporter_runs() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("app");
    let exporter = receiver.exporter(&tracker);
    let call = tracker.call("GET", "http://api/x");
    let mut headers = HeaderMap::new();

    call.inject(&mut headers);

    let op = call.op().context().unwrap();
    assert_eq!(
        headers["traceparent"],
        format!("00-{}-{}-01", op.trace, op.op)
    );
    // As one does who sends the request once more.
    call.inject(&mut headers);
    drop(call);
    let again = receiver.wait_for(|taken| !taken.spans.is_empty());
    assert!(again.spans[0].parent_span_id.is_empty());
    drop(again);
    let call = tracker.call("GET", "http://api/x");
    drop(exporter);
    let mut headers = HeaderMap::new();
    call.inject(&mut headers);
    assert!(!headers.contains_key("traceparent"));
}

#[test]
fn what_others_did_not_sample_is_not_sent_unless_it_is_wanted_and_failed() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    for wanted in [false, true] {
        let receiver = Receiver::start();
        let tracker = Tracker::new("app");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .unsampled_trouble(wanted)
            .flush_within(DEADLINE)
            .start();
        let never = tower::service_fn(|_: axum::http::Request<_>| {
            std::future::pending::<Result<axum::response::Response, Infallible>>()
        });
        let mut server = ServerLayer::new(&tracker).layer(never);

        for flags in ["00", "01"] {
            let request = axum::http::Request::get("/x")
                .header(
                    "traceparent",
                    format!("00-{TRACE}-00f067aa0ba902b7-{flags}"),
                )
                .body(axum::body::Body::empty())
                .unwrap();
            drop(server.call(request));
        }
        let theirs = opentelemetry::Context::new().with_remote_span_context(unsampled());
        let _active = theirs.attach();
        drop(tracker.begin("well"));
        exporter.shutdown();

        let taken = receiver.taken();
        let names: Vec<&str> = taken.spans.iter().map(|span| span.name.as_str()).collect();
        let gets = names.iter().filter(|name| **name == "GET").count();
        assert_eq!(gets, if wanted { 2 } else { 1 }, "{names:?}");
        assert!(!names.contains(&"well"));
        assert_eq!(
            tracker.snapshot().totals.spans_dropped,
            0,
            "not wanted is not lost"
        );
    }
}

#[test]
fn a_stuck_op_that_others_did_not_sample_has_a_partial_span_and_its_own_only_if_it_is_wanted() {
    for wanted in [false, true] {
        let receiver = Receiver::start();
        let tracker = soon_stuck("app");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .every(Duration::from_millis(10))
            .unsampled_trouble(wanted)
            .flush_within(DEADLINE)
            .start();
        let theirs = opentelemetry::Context::new().with_remote_span_context(unsampled());
        let hidden = {
            let _active = theirs.attach();
            tracker.begin("hidden")
        };
        let shown = tracker.begin("shown");

        // The older one comes first, if it comes.
        let taken = receiver.wait_for(|taken| !taken.spans.is_empty());
        let hidden_id = hidden.id().unwrap();
        let found = attribute(&taken.spans, "inflight.op.id", &hidden_id.to_string());
        assert_eq!(!found.is_empty(), wanted, "{:#?}", taken.spans);
        drop(taken);

        // It ends well after all; that it was stuck is remembered.
        let shown_id = shown.id().unwrap();
        drop((hidden, shown));
        exporter.shutdown();
        let taken = receiver.taken();
        let has = |op| taken.spans.iter().any(|span| span.span_id == id(op));
        assert!(has(shown_id));
        assert_eq!(has(hidden_id), wanted, "{:#?}", taken.spans);
    }
}

fn unsampled() -> opentelemetry::trace::SpanContext {
    opentelemetry::trace::SpanContext::new(
        opentelemetry::TraceId::from(7_u128),
        opentelemetry::SpanId::from(7_u64),
        opentelemetry::TraceFlags::default(),
        false,
        opentelemetry::trace::TraceState::NONE,
    )
}
