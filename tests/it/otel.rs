//! Spans as a receiver gets them: ids, parents, phases, partial ones of stuck ops, and what becomes of them when nobody takes them.

use std::{
    convert::Infallible,
    io::Write,
    net::TcpListener,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use inflight::{
    Kind, OpId, Report, Snapshot, Tracker,
    http::ServerLayer,
    otel::{Exporter, Protocol},
    resource::Resource,
    snapshot::LiveOp,
};
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_proto::tonic::{common::v1::KeyValue, trace::v1::Span};
use tower::{Layer as _, Service as _};

use crate::{
    receiver::{Receiver, Taken, text},
    stage::{DEADLINE, Hung, Stage, only, output, until},
};

const STUCK: Duration = Duration::from_millis(40);

/// Its ops are stuck after so little time.
fn soon_stuck(service: &str) -> Tracker {
    Tracker::builder(service)
        .slow_after(STUCK / 4)
        .stuck_after(STUCK)
        .build()
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
    for (left, next) in [("stat", "list"), ("walk", "list"), ("handler", "write")] {
        let (left, next) = (named(left), named(next));
        assert!(
            left.end_time_unix_nano <= next.start_time_unix_nano,
            "it ends when it is left: {left:#?}"
        );
    }
    let mut ids: Vec<_> = taken.spans.iter().map(|span| &span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

#[test]
fn a_stuck_op_is_there_while_it_is_stuck_and_once_more_when_it_has_ended() {
    let receiver = Receiver::start();
    let tracker = soon_stuck("indexer");
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
            of_op.len() >= 3
                && !attribute(&taken.spans, "inflight.op.id", &holder_id.to_string()).is_empty()
        });
        let partial = attribute(&taken.spans, "inflight.op.id", &shown);
        for (n, span) in partial.iter().enumerate() {
            assert!(is_partial(span));
            assert_eq!(span.parent_span_id, id(op_id));
            assert_ne!(span.span_id, id(op_id));
            // Each as long as the op had lasted by then: when it was stuck, and after twice that time, and so on.
            let lasted = Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano);
            assert!(lasted >= STUCK * 2_u32.pow(n as u32), "{n}: {lasted:?}");
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

#[test]
fn a_burst_arrives_or_is_counted() {
    const OPS: u64 = 100_000;
    for queue in [OPS as usize, 500] {
        let receiver = Receiver::start();
        let tracker = Tracker::new("burst");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .queue(queue)
            .flush_within(Duration::from_secs(120))
            .start();

        for _ in 0..OPS {
            drop(tracker.begin("x"));
        }
        exporter.shutdown();

        let taken = receiver.taken();
        let dropped = tracker.snapshot().totals.spans_dropped;
        assert_eq!(taken.spans.len() as u64 + dropped, OPS);
        let mut ids: Vec<_> = taken.spans.iter().map(|span| &span.span_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), taken.spans.len(), "none came twice");
        if queue as u64 == OPS {
            assert_eq!(dropped, 0);
        }
    }
}

#[test]
fn an_endpoint_that_is_silent_holds_up_nothing_and_is_said() {
    // The kernel takes the connection, and nobody ever reads.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tracker = Tracker::new("silent");
    let exporter = Exporter::builder(&tracker)
        .endpoint(format!("http://{}", listener.local_addr().unwrap()))
        .every(Duration::from_millis(10))
        .queue(1000)
        .start();
    drop(tracker.begin("first"));
    let _connected = listener.accept().unwrap();

    for _ in 0..5000 {
        drop(tracker.begin("x"));
    }
    let while_silent = tracker.snapshot().totals.spans_dropped;
    exporter.shutdown();

    assert!(
        while_silent >= 3500,
        "{while_silent} of 5001 with room for 1000"
    );
    let totals = tracker.snapshot().totals;
    assert_eq!(totals.spans_dropped, 5001);
    let report = Report::local(&tracker).to_string();
    let said = report.lines().find(|line| line.starts_with("Spans of "));
    let said = said.unwrap_or_else(|| panic!("{report}"));
    assert!(said.contains("5001 ended ops not sent"), "{said}");
    assert!(said.contains("takes no spans"), "{report}");
}

#[test]
fn an_endpoint_that_is_absent_is_said_while_the_exporter_runs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tracker = Tracker::new("absent");
        let exporter = Exporter::builder(&tracker)
            .endpoint(format!("http://user:secret@{address}"))
            .protocol(protocol)
            .every(Duration::from_millis(10))
            .start();
        assert_eq!(exporter.problem(), None);

        drop(tracker.begin("x"));

        let until = Instant::now() + DEADLINE;
        let problem = loop {
            match tracker.snapshot().totals.spans_problem {
                Some(problem) => break problem,
                None => assert!(Instant::now() < until),
            }
            std::thread::yield_now();
        };
        assert!(problem.contains(&address.to_string()), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
        exporter.shutdown();
        assert_eq!(tracker.snapshot().totals.spans_dropped, 1);
    }
}

#[test]
fn what_was_refused_is_sent_again_and_counted_once_given_up() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("refused");
    receiver.got.status.store(400, Relaxed);
    let exporter = receiver.exporter(&tracker);

    drop(tracker.begin("x"));
    drop(receiver.wait_for(|taken| taken.requests == 1));
    receiver.got.status.store(0, Relaxed);
    drop(receiver.wait_for(|taken| taken.spans.len() == 1));
    receiver.got.status.store(400, Relaxed);
    drop(tracker.begin("y"));
    drop(receiver.wait_for(|taken| taken.requests == 5));
    exporter.shutdown();

    assert_eq!(receiver.taken().spans.len(), 1);
    assert_eq!(tracker.snapshot().totals.spans_dropped, 1);
}

#[test]
fn nothing_is_kept_and_nothing_is_counted_without_an_exporter() {
    let tracker = Tracker::new("none");

    drop(tracker.begin("x"));

    let totals = tracker.snapshot().totals;
    assert_eq!((totals.ended, totals.spans_dropped), (1, 0));
    assert!(!Report::local(&tracker).to_string().contains("Spans of"));
}

#[test]
fn a_tracker_has_one_exporter_at_a_time() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("one");
    let first = receiver.exporter(&tracker);

    let second = Exporter::builder(&tracker).endpoint(&receiver.url).start();
    assert_eq!(
        second.problem(),
        Some("another exporter is attached to this tracker")
    );
    drop(second);
    drop(tracker.begin("still sent"));
    first.shutdown();
    assert_eq!(receiver.taken().spans.len(), 1);

    let third = receiver.exporter(&tracker);
    drop(tracker.begin("sent by the third"));
    third.shutdown();
    assert_eq!(receiver.taken().spans.len(), 2);
}

const FLOOD: &str = "INFLIGHT_TEST_FLOOD";

/// Ends a hundred thousand ops whose spans nobody takes, and says by how many KiB that made this process larger.
#[test]
fn ends_many_ops_if_told_to() {
    let Ok(endpoint) = std::env::var(FLOOD) else {
        return;
    };
    let tracker = Tracker::new("flood");
    let exporter = Exporter::builder(&tracker)
        .endpoint(endpoint)
        .queue(1000)
        .start();
    let flood = |ops: u64| (0..ops).for_each(|_| drop(tracker.begin("x")));
    // What is allocated once is there then.
    flood(5000);

    let before = peak();
    flood(100_000);
    let grown = peak() - before;

    exporter.shutdown();
    assert_eq!(tracker.snapshot().totals.spans_dropped, 105_000);
    writeln!(std::io::stdout(), "grown by {grown} KiB").unwrap();
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

#[test]
fn a_burst_that_nobody_takes_needs_the_memory_of_the_queue_and_no_more() {
    // The kernel takes the connection, and nobody ever reads.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());

    let said = child("ends_many_ops_if_told_to", &[(FLOOD, &endpoint)]);

    let grown = said.split_once("grown by ").and_then(|(_, rest)| {
        let (number, _) = rest.split_once(' ')?;
        number.parse::<u64>().ok()
    });
    let grown = grown.unwrap_or_else(|| panic!("{said}"));
    // All of them would be 50 MiB.
    assert!(grown < 10 << 10, "{grown} KiB");
}

const CHILD: &str = "INFLIGHT_TEST_OTEL";

/// Ends one op, where the environment says.
#[test]
fn sends_a_span_if_told_to() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let tracker = Tracker::new("from the code");
    let exporter = Exporter::builder(&tracker).flush_within(DEADLINE).start();
    drop(tracker.begin("x"));
    exporter.shutdown();
    let totals = tracker.snapshot().totals;
    let said = (totals.spans_dropped, totals.spans_problem);
    writeln!(std::io::stdout(), "{} {:?}", said.0, said.1).unwrap();
}

fn with_variables(variables: &[(&str, &str)]) -> String {
    let told = [(CHILD, "1")];
    child(
        "sends_a_span_if_told_to",
        &[told.as_slice(), variables].concat(),
    )
}

/// What a test of this file says in a process of its own.
fn child(test: &str, variables: &[(&str, &str)]) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("otel::{test}"), "--nocapture"])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = output(child.unwrap(), 3 * DEADLINE);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    said.into_owned()
}

#[test]
fn the_standard_variables_say_where_how_and_as_whom() {
    let receiver = Receiver::start();
    let traces = format!("{}/v1/traces", receiver.url);
    let all = [
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_SERVICE_NAME", "from-env"),
        ],
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str()),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-env,x=y"),
        ],
        vec![
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", traces.as_str()),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_SERVICE_NAME", "from-env"),
        ],
    ];
    for mut variables in all {
        variables.push(("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=42"));

        let said = with_variables(&variables);

        assert!(said.contains("0 None"), "{said}");
        let mut taken = receiver.taken();
        assert_eq!(taken.spans.len(), 1, "{variables:?}");
        assert_eq!(taken.services, ["from-env"]);
        let kind = taken.headers[0]["content-type"].to_str().unwrap();
        let wanted = variables.contains(&("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"));
        assert_eq!(kind == "application/grpc", wanted, "{kind}");
        assert_eq!(taken.headers[0]["x-tenant"], "42");
        *taken = Taken::default();
    }
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ] {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str());

        let said = with_variables(&[endpoint, (name, value)]);

        assert!(said.contains(&format!("Some(\"{name}={value}")), "{said}");
        assert_eq!(receiver.taken().requests, 0);
    }
}

#[test]
fn settings_in_code_go_before_the_variables_and_headers_travel_both_ways() {
    let receiver = Receiver::start();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tracker = Tracker::new("tracker");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .protocol(protocol)
            .header("X-Tenant", "42")
            .service_name("named")
            .flush_within(DEADLINE)
            .start();

        drop(tracker.begin("x"));
        exporter.shutdown();

        let mut taken = receiver.taken();
        assert_eq!((taken.spans.len(), taken.services.len()), (1, 1));
        assert_eq!(taken.services, ["named"]);
        let kind = taken.headers[0]["content-type"].to_str().unwrap();
        assert_eq!(
            kind == "application/grpc",
            protocol == Protocol::Grpc,
            "{kind}"
        );
        assert_eq!(taken.headers[0]["x-tenant"], "42");
        *taken = Taken::default();
    }
}

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
fn http_ops_have_the_names_of_the_semantic_conventions_and_no_secret() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("app");
    let exporter = receiver.exporter(&tracker);

    let call = tracker.call("POST", "http://me:hunter2@api:81/x?token=s3cret#fragment");
    call.sent(5);
    call.response(503_u16);
    drop(call);
    let answer = tower::service_fn(|_: axum::http::Request<_>| async {
        Ok::<_, Infallible>(axum::response::Response::new(axum::body::Body::empty()))
    });
    let request = axum::http::Request::get("/y?token=s3cret")
        .body(axum::body::Body::empty())
        .unwrap();
    let mut server = ServerLayer::new(&tracker).layer(answer);
    let answered = receiver.runtime.block_on(server.call(request)).unwrap();
    drop(answered);
    exporter.shutdown();

    let taken = receiver.taken();
    let lines = |kind: &str| {
        let spans = attribute(&taken.spans, "inflight.kind", kind);
        assert_eq!(spans.len(), 1);
        let of_op = |key: &KeyValue| !key.key.starts_with("inflight.");
        let keys = spans[0].attributes.iter().filter(|key| of_op(key));
        let keys = keys.map(|key| key.key.as_str());
        let shown = keys.map(|key| format!("{key}={}", text(&spans[0].attributes, key).unwrap()));
        let mut lines = vec![format!("{} {:?}", spans[0].name, spans[0].kind())];
        lines.extend(shown);
        lines
    };
    assert_eq!(
        lines("http.client"),
        [
            "POST Client",
            "http.request.method=POST",
            "url.full=http://api:81/x?token=..",
            "server.address=api",
            "server.port=81",
            "http.response.status_code=503",
            "http.request.body.size=5",
            "error.type=503",
        ]
    );
    assert_eq!(
        lines("http.server"),
        [
            "GET Server",
            "http.request.method=GET",
            "url.path=/y",
            "url.query=token=..",
            "http.response.status_code=200",
        ]
    );
    let all = format!("{:?}", taken.spans);
    for secret in ["hunter2", "s3cret", "fragment"] {
        assert!(!all.contains(secret), "{all}");
    }
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

#[tokio::test]
async fn one_may_be_started_and_stopped_within_a_runtime_of_the_application() {
    let receiver = tokio::task::spawn_blocking(Receiver::start).await.unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tracker = Tracker::new("async");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .protocol(protocol)
            .flush_within(Duration::MAX)
            .every(Duration::MAX)
            .start();
        drop(tracker.begin("x"));

        exporter.shutdown();

        assert_eq!(tracker.snapshot().totals.spans_dropped, 0);
    }
    assert_eq!(receiver.taken().spans.len(), 2);
    tokio::task::spawn_blocking(|| drop(receiver))
        .await
        .unwrap();
}

#[test]
fn a_stuck_op_is_told_of_in_the_middle_of_a_flood() {
    let receiver = Receiver::start();
    let tracker = soon_stuck("flood");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                drop(tracker.begin("x"));
            }
        });
        let exporter = Exporter::builder(&tracker).endpoint(&receiver.url).start();
        let _stuck = tracker.begin("stuck");

        let has_partial = |taken: &Taken| taken.spans.iter().any(is_partial);
        let found = receiver
            .got
            .changed
            .wait_timeout_while(receiver.taken(), DEADLINE, |taken| !has_partial(taken));
        is_over.store(true, Relaxed);

        assert!(has_partial(&found.unwrap().0));
        drop(exporter);
    });
}

#[test]
fn the_readdir_of_the_hang_links_to_the_request_whose_thread_made_it() {
    let receiver = Receiver::start();
    let otlp = ["--otlp", receiver.url.as_str()];
    let server = [&["--walk", "naive"], otlp.as_slice()].concat();
    let Some(mut stage) = Stage::set(&server, &otlp) else {
        return;
    };
    let send = stage.mnt().join("conversation/1b9b/send");
    let mut shell = Hung::start(&format!("echo hello > {}", send.display()));
    let report = until(|| {
        let report: serde_json::Value = serde_json::from_str(&stage.diag(".diag.json")).unwrap();
        (report["verdict"] == "deadlock").then_some(report)
    });
    let here: Snapshot = serde_json::from_value(report["local"].clone()).unwrap();
    let peers: Vec<Snapshot> = serde_json::from_value(report["peers"].clone()).unwrap();
    let is_server = |peer: &&Snapshot| peer.process.pid == stage.server.0.id();
    let there = peers.iter().find(is_server).unwrap();
    let flush = only(&here, Kind::Fuse, "flush");
    let readdir = only(&here, Kind::Fuse, "readdir");
    let post = only(there, Kind::HttpServer, "POST");

    // The client gives up after some seconds, which ends the hang.
    shell.ended();
    stage.mount.end();
    let all = || here.ops.iter().chain(&there.ops);
    let has = |taken: &Taken, op: &LiveOp| {
        let mut spans = taken.spans.iter();
        spans.any(|span| span.span_id == id(op.id))
    };
    drop(receiver.wait_for(|taken| all().all(|op| has(taken, op))));
    stage.server.end();

    let taken = receiver.taken();
    let spans_of = |op: &LiveOp| {
        let spans = taken.spans.iter().filter(|span| span.span_id == id(op.id));
        spans.collect::<Vec<&Span>>()
    };
    for op in all() {
        let [span] = spans_of(op)[..] else {
            panic!("{op:#?}\n{:#?}", taken.spans);
        };
        assert_eq!(span.trace_id, op.trace_id.value().to_be_bytes());
        let parent = op.parent_id.map(id).unwrap_or_default();
        assert_eq!(span.parent_span_id, parent, "{op:#?}");
    }
    let links = &spans_of(readdir)[0].links;
    let [link] = links.as_slice() else {
        panic!("{links:#?}");
    };
    assert_eq!(link.span_id, id(post.id));
    assert_eq!(link.trace_id, post.trace_id.value().to_be_bytes());
    assert!(spans_of(flush)[0].links.is_empty());
    assert_ne!(flush.trace_id, readdir.trace_id);
    assert_eq!(flush.trace_id, post.trace_id);
}
