//! Spans as a receiver gets them: ids, parents, phases, names, partial ones of stuck ops, and those of the founding hang.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use inflight::{
    Kind, Tracker, http::ServerLayer, otel::Exporter, report::Verdict, resource::Resource,
    snapshot::LiveOp,
};
use opentelemetry_proto::tonic::{common::v1::KeyValue, trace::v1::Span};
use tower::{Layer as _, Service as _};

use crate::{
    receiver::{Receiver, STUCK, Taken, attribute, id, is_partial, soon_stuck, text},
    stage::{DEADLINE, Hung, Stage, only, until},
};

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
        let report = stage.report();
        (report.verdict() == &Verdict::Deadlock).then_some(report)
    });
    let (here, there) = (&report.local, &report.peers[0]);
    let flush = only(here, Kind::Fuse, "flush");
    let readdir = only(here, Kind::Fuse, "readdir");
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
