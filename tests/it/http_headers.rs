//! The headers that carry ids: taken over, added, left alone, and ignored when they are bad.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Empty;
use inflight::{
    Tracker,
    http::{ClientLayer, ServerLayer},
    snapshot::{LiveOp, ParentFrom},
};
use proptest::prelude::*;
use tower::{Layer, Service};

type Nothing = Empty<bytes::Bytes>;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// The op of a request that comes in with these headers.
fn served(tracker: &Tracker, headers: &[(&'static str, &[u8])]) -> LiveOp {
    let mut request = Request::get("/x").body(Nothing::new()).unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append(*name, value);
    }
    let never = tower::service_fn(|_: Request<_>| {
        std::future::pending::<Result<Response<Nothing>, Infallible>>()
    });
    let _future = ServerLayer::new(tracker).layer(never).call(request);
    tracker.snapshot().ops.remove(0)
}

/// The headers with which a request leaves, and its op.
fn sent(
    layer: ClientLayer,
    tracker: &Tracker,
    headers: &[(&'static str, &str)],
) -> (HeaderMap, LiveOp) {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let never = tower::service_fn({
        let seen = Arc::clone(&seen);
        move |request: Request<_>| {
            *seen.lock().unwrap() = request.headers().clone();
            std::future::pending::<Result<Response<Nothing>, Infallible>>()
        }
    });
    let mut request = Request::get("http://api/x").body(Nothing::new()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    let _future = layer.layer(never).call(request);
    let op = tracker.snapshot().ops.pop().unwrap();
    let headers = seen.lock().unwrap().clone();
    (headers, op)
}

#[test]
fn an_op_that_is_named_is_the_parent() {
    let tracker = Tracker::new("test");
    let value = format!("{TRACE}-{SPAN}");

    let op = served(&tracker, &[("inflight-op", value.as_bytes())]);

    assert_eq!(op.parent_id.unwrap().to_string(), SPAN);
    assert_eq!(op.trace_id.to_string(), TRACE);
    assert_eq!(op.parent_from, Some(ParentFrom::InflightOp));
    assert_eq!(tracker.snapshot().totals.malformed_headers, 0);
}

#[test]
fn a_traceparent_names_the_trace_and_inflight_op_beats_it() {
    let tracker = Tracker::new("test");
    let trace = traceparent("01");

    let op = served(&tracker, &[("traceparent", trace.as_bytes())]);
    assert_eq!(op.parent_from, Some(ParentFrom::TraceParent));
    assert_eq!(op.trace_id.to_string(), TRACE);

    let call = "0af7651916cd43dd8448eb211c80319c-53995c3f42cd8ad8";
    let both = [
        ("traceparent", trace.as_bytes()),
        ("inflight-op", call.as_bytes()),
    ];
    let op = served(&tracker, &both);
    assert_eq!(op.parent_id.unwrap().to_string(), "53995c3f42cd8ad8");
}

// A trace that is sampled at one in a hundred would be sampled at each from here on, or never.
#[test]
fn who_decided_whether_it_is_sampled_is_heard_whichever_trace_it_was_in() {
    for flags in ["00", "01"] {
        let tracker = Tracker::new("test");
        let call = "0af7651916cd43dd8448eb211c80319c-53995c3f42cd8ad8";
        let left = Arc::new(Mutex::new(HeaderMap::new()));
        let asks = tower::service_fn({
            let (tracker, left) = (tracker.clone(), Arc::clone(&left));
            move |_: Request<_>| {
                let layer = ClientLayer::new(&tracker).traceparent(true);
                *left.lock().unwrap() = sent(layer, &tracker, &[]).0;
                std::future::pending::<Result<Response<Nothing>, Infallible>>()
            }
        });
        let mut request = Request::get("/x").body(Nothing::new()).unwrap();
        for (name, value) in [("inflight-op", call), ("traceparent", &traceparent(flags))] {
            request.headers_mut().append(name, value.parse().unwrap());
        }

        let _future = ServerLayer::new(&tracker).layer(asks).call(request);

        let left = left.lock().unwrap();
        let traceparent = left["traceparent"].to_str().unwrap();
        assert!(traceparent.ends_with(flags), "{traceparent}");
    }
}

#[test]
fn bad_headers_are_ignored_and_counted_and_never_shown() {
    let long = "a".repeat(8000);
    let good = format!("{TRACE}-{SPAN}");
    let upper = good.to_uppercase();
    let zero = format!("{}-{SPAN}", "0".repeat(32));
    let no_span = format!("{TRACE}-{}", "0".repeat(16));
    let bad_ops: [&[u8]; 9] = [
        b"",
        b"x",
        b"\xff\xfe",
        long.as_bytes(),
        upper.as_bytes(),
        zero.as_bytes(),
        no_span.as_bytes(),
        b"4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b" 4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7",
    ];
    let version_ff = traceparent("01").replacen("00-", "ff-", 1);
    let more = format!("{}-more", traceparent("01"));
    let bad_flags = traceparent("zz");
    let bad_traces: [&[u8]; 6] = [
        b"",
        b"\x80",
        version_ff.as_bytes(),
        more.as_bytes(),
        bad_flags.as_bytes(),
        long.as_bytes(),
    ];
    for (name, values) in [
        ("inflight-op", &bad_ops[..]),
        ("traceparent", &bad_traces[..]),
    ] {
        for value in values {
            let tracker = Tracker::new("test");
            let op = served(&tracker, &[(name, value)]);

            let shown = String::from_utf8_lossy(value);
            assert_eq!(op.parent_id, None, "{name}: {shown}");
            assert_eq!(
                tracker.snapshot().totals.malformed_headers,
                1,
                "{name}: {shown}"
            );
            let json = serde_json::to_string(&tracker.snapshot()).unwrap();
            assert!(shown.len() < 20 || !json.contains(&*shown));
        }
    }
}

#[test]
fn of_two_of_each_none_is_believed() {
    let tracker = Tracker::new("test");
    let (op, trace) = (format!("{TRACE}-{SPAN}"), traceparent("01"));
    let (op, trace) = (op.as_bytes(), trace.as_bytes());

    let seen = served(
        &tracker,
        &[
            ("inflight-op", op),
            ("inflight-op", op),
            ("traceparent", trace),
            ("traceparent", trace),
        ],
    );

    assert_eq!(seen.parent_id, None);
    assert_eq!(tracker.snapshot().totals.malformed_headers, 2);
}

#[test]
fn a_request_leaves_with_the_ids_of_its_op_and_no_traceparent_unless_wanted() {
    let tracker = Tracker::new("test");

    let (headers, op) = sent(ClientLayer::new(&tracker), &tracker, &[]);
    assert_eq!(headers["inflight-op"], format!("{}-{}", op.trace_id, op.id));
    assert!(!headers.contains_key("traceparent"));

    let wanted = ClientLayer::new(&tracker).traceparent(true);
    let (headers, op) = sent(wanted, &tracker, &[]);
    let expected = format!("00-{}-{}-00", op.trace_id, op.id);
    assert_eq!(
        headers["traceparent"], expected,
        "sampling is not switched on for others"
    );
}

#[test]
fn a_traceparent_that_is_there_stays_and_its_trace_is_taken_over() {
    let tracker = Tracker::new("test");
    let trace = traceparent("01");
    let layer = ClientLayer::new(&tracker).traceparent(true);

    let (headers, op) = sent(layer, &tracker, &[("traceparent", &trace)]);

    assert_eq!(headers["traceparent"], trace);
    assert_eq!(op.trace_id.to_string(), TRACE);
    assert_eq!(headers["inflight-op"], format!("{TRACE}-{}", op.id));
}

#[test]
fn third_parties_get_no_header() {
    let tracker = Tracker::new("test");
    let layer = ClientLayer::new(&tracker)
        .traceparent(true)
        .propagate(|parts| parts.uri.host() != Some("api"));

    let (headers, _) = sent(layer, &tracker, &[("inflight-op", "of another request")]);

    assert!(headers.is_empty(), "{headers:?}");
}

proptest! {
    #[test]
    fn no_header_makes_it_panic(op in proptest::collection::vec(32u8..=255, 0..80), trace in ".{0,80}") {
        let tracker = Tracker::new("test");
        let trace: Vec<u8> = trace.bytes().filter(|b| *b >= 32 && *b != 127).collect();
        let op: Vec<u8> = op.into_iter().filter(|b| *b != 127).collect();

        served(&tracker, &[("inflight-op", &op), ("traceparent", &trace)]);
    }
}
