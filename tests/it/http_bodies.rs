//! When an op of the HTTP layers ends: every way out of a response, on both sides, polled by hand.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use inflight::{
    Outcome, Snapshot, State, Tracker,
    http::{ClientLayer, ResponseBody, ResponseFuture, ServerLayer},
};
use tower::{Layer, Service};

/// A body that does as it is told, and says of its length what it is told.
#[derive(Default)]
struct Told {
    steps: VecDeque<Step>,
    length: Option<u64>,
    knows_its_end: bool,
}

enum Step {
    Data(&'static str),
    Trailers,
    Wait,
    Fail(&'static str),
}

/// Answers any request with one response.
struct Answers(Option<Result<Response<Told>, String>>);

/// Answers no request.
struct Silent;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Server,
    Client,
}

const SIDES: [Side; 2] = [Side::Server, Side::Client];

fn told(steps: impl IntoIterator<Item = Step>) -> Response<Told> {
    Response::new(Told {
        steps: steps.into_iter().collect(),
        ..Told::default()
    })
}

fn get() -> Request<Told> {
    Request::get("http://api:80/x")
        .body(Told::default())
        .unwrap()
}

fn send(
    side: Side,
    tracker: &Tracker,
    request: Request<Told>,
    answer: Result<Response<Told>, String>,
) -> ResponseFuture<Ready<Result<Response<Told>, String>>> {
    let inner = Answers(Some(answer));
    match side {
        Side::Server => ServerLayer::new(tracker).layer(inner).call(request),
        Side::Client => ClientLayer::new(tracker).layer(inner).call(request),
    }
}

fn answered(
    side: Side,
    tracker: &Tracker,
    request: Request<Told>,
    response: Response<Told>,
) -> ResponseBody<Told> {
    let mut future = Box::pin(send(side, tracker, request, Ok(response)));
    let Poll::Ready(Ok(response)) = poll(future.as_mut()) else {
        panic!("no response");
    };
    response.into_body()
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn frame(body: &mut ResponseBody<Told>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn tracker() -> Tracker {
    Tracker::new("test")
}

/// How the one op has ended.
fn outcome(tracker: &Tracker) -> Outcome {
    let Snapshot { ops, recent, .. } = tracker.snapshot();
    assert!(ops.is_empty(), "still in flight: {ops:?}");
    assert_eq!(recent.len(), 1);
    recent[0].outcome.clone()
}

fn phase(tracker: &Tracker) -> String {
    let ops = tracker.snapshot().ops;
    assert_eq!(ops.len(), 1);
    ops[0].phase.path.join(" > ")
}

#[test]
fn a_body_that_is_empty_when_made_has_ended() {
    for side in SIDES {
        let tracker = tracker();
        let mut response = told([]);
        response.body_mut().knows_its_end = true;

        let _kept = answered(side, &tracker, get(), response);

        assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?}");
    }
}

#[test]
fn a_body_ends_at_its_end() {
    for side in SIDES {
        let tracker = tracker();
        let mut body = answered(side, &tracker, get(), told([Step::Data("x")]));
        assert!(frame(&mut body).is_ready());
        assert_eq!(tracker.snapshot().ops.len(), 1, "the end is still owed");

        assert!(matches!(frame(&mut body), Poll::Ready(None)));

        assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?}");
        assert!(matches!(frame(&mut body), Poll::Ready(None)), "polled on");
    }
}

#[test]
fn a_body_ends_at_an_error() {
    for side in SIDES {
        let tracker = tracker();
        let why = "reset by http://bob:s3cret@peer/?token=s3cret";
        let mut body = answered(side, &tracker, get(), told([Step::Fail(why)]));

        assert!(matches!(frame(&mut body), Poll::Ready(Some(Err(_)))));

        assert_eq!(outcome(&tracker), Outcome::Failed, "{side:?}");
        let error = tracker.snapshot().recent[0].op.error.clone();
        assert_eq!(error.as_deref(), Some("reset by http://peer/?token=.."));
    }
}

#[test]
fn a_body_ends_at_the_last_frame_of_a_known_length_even_if_it_is_kept() {
    for side in SIDES {
        let tracker = tracker();
        let mut response = told([Step::Data("x"), Step::Data("y")]);
        response.body_mut().knows_its_end = true;
        let mut body = answered(side, &tracker, get(), response);
        assert!(frame(&mut body).is_ready());
        assert_eq!(tracker.snapshot().ops.len(), 1, "a frame is still owed");

        assert!(frame(&mut body).is_ready());

        assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?}");
    }
}

#[test]
fn a_body_ends_when_content_length_is_reached() {
    for side in SIDES {
        let tracker = tracker();
        let mut response = told([Step::Data("abc"), Step::Data("de"), Step::Wait]);
        response.headers_mut().insert("content-length", 5.into());
        let mut body = answered(side, &tracker, get(), response);
        assert!(frame(&mut body).is_ready());
        assert_eq!(tracker.snapshot().ops.len(), 1, "two bytes are still owed");

        assert!(frame(&mut body).is_ready());

        assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?}");
    }
}

#[test]
fn a_body_ends_when_the_length_it_told_is_reached() {
    for side in SIDES {
        let tracker = tracker();
        let mut response = told([Step::Data("abc"), Step::Wait]);
        response.body_mut().length = Some(3);
        let mut body = answered(side, &tracker, get(), response);

        assert!(frame(&mut body).is_ready());

        assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?}");
    }
}

#[test]
fn a_content_length_that_is_none_ends_nothing() {
    for (name, values) in [
        ("content-length", &["1", "2"][..]),
        ("content-length", &["-1"]),
        ("transfer-encoding", &["chunked"]),
    ] {
        let tracker = tracker();
        let mut response = told([Step::Data("a"), Step::Data("b")]);
        if name == "transfer-encoding" {
            response.headers_mut().insert("content-length", 1.into());
        }
        for value in values {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        let mut body = answered(Side::Client, &tracker, get(), response);

        assert!(frame(&mut body).is_ready());

        assert_eq!(tracker.snapshot().ops.len(), 1, "{name} {values:?}");
    }
}

#[test]
fn a_body_ends_at_its_trailers() {
    for side in SIDES {
        let tracker = tracker();
        let response = told([Step::Data("x"), Step::Trailers, Step::Wait]);
        let mut body = answered(side, &tracker, get(), response);
        assert!(frame(&mut body).is_ready());

        assert!(frame(&mut body).is_ready());

        assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?}");
    }
}

#[test]
fn a_request_given_up_before_its_response_says_so() {
    for side in SIDES {
        let tracker = tracker();
        let future = match side {
            Side::Server => ServerLayer::new(&tracker).layer(Silent).call(get()),
            Side::Client => ClientLayer::new(&tracker).layer(Silent).call(get()),
        };
        let mut future = Box::pin(future);
        assert!(poll(future.as_mut()).is_pending());
        assert_eq!(tracker.snapshot().ops.len(), 1);

        drop(future);

        assert_eq!(outcome(&tracker), Outcome::DroppedBeforeResponse);
    }
}

#[test]
fn a_request_given_up_in_its_body_says_so() {
    for side in SIDES {
        let tracker = tracker();
        let mut body = answered(side, &tracker, get(), told([Step::Data("x"), Step::Wait]));
        assert!(frame(&mut body).is_ready());
        assert!(frame(&mut body).is_pending());

        drop(body);

        assert_eq!(outcome(&tracker), Outcome::DroppedInBody, "{side:?}");
    }
}

#[test]
fn a_body_that_is_never_sent_may_be_dropped() {
    let head = || {
        let mut request = get();
        *request.method_mut() = Method::HEAD;
        request
    };
    for side in SIDES {
        for (request, status) in [
            (head(), StatusCode::OK),
            (get(), StatusCode::NO_CONTENT),
            (get(), StatusCode::NOT_MODIFIED),
            (get(), StatusCode::EARLY_HINTS),
        ] {
            let tracker = tracker();
            let mut response = told([Step::Data("x")]);
            response.headers_mut().insert("content-length", 1.into());
            *response.status_mut() = status;
            let body = answered(side, &tracker, request, response);
            assert_eq!(tracker.snapshot().ops.len(), 1, "{side:?} {status}");

            drop(body);

            assert_eq!(outcome(&tracker), Outcome::Completed, "{side:?} {status}");
        }
    }
}

#[test]
fn an_upgrade_ends_its_op() {
    let mut connect = Request::new(Told::default());
    *connect.method_mut() = Method::CONNECT;
    *connect.uri_mut() = "api:443".parse().unwrap();
    let mut switching = told([Step::Wait]);
    *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (request, response) in [(get(), switching), (connect, told([Step::Wait]))] {
        let tracker = tracker();

        let _kept = answered(Side::Server, &tracker, request, response);

        assert_eq!(outcome(&tracker), Outcome::Completed);
    }
}

#[test]
fn an_error_instead_of_a_response_is_a_failure() {
    for side in SIDES {
        let tracker = tracker();
        let mut future = Box::pin(send(side, &tracker, get(), Err("refused".to_owned())));

        let result = poll(future.as_mut());

        assert!(matches!(result, Poll::Ready(Err(error)) if error == "refused"));
        assert_eq!(outcome(&tracker), Outcome::Failed, "{side:?}");
        assert_eq!(
            tracker.snapshot().recent[0].op.error.as_deref(),
            Some("refused")
        );
    }
}

#[test]
fn a_body_dropped_while_its_thread_panics_says_so() {
    for side in SIDES {
        let tracker = tracker();
        let body = answered(side, &tracker, get(), told([Step::Wait]));

        let caught = catch_unwind(AssertUnwindSafe(move || {
            let _body = body;
            panic!("on purpose");
        }));

        assert!(caught.is_err());
        assert_eq!(outcome(&tracker), Outcome::Panicked, "{side:?}");
    }
}

#[test]
fn a_handler_that_panics_ends_its_op_though_others_hold_it() {
    let tracker = tracker();
    let mut held = None;
    let mut server = ServerLayer::new(&tracker).layer(tower::service_fn(|_: Request<_>| {
        held = inflight::Op::current();
        async {
            if true {
                panic!("on purpose")
            } else {
                Ok::<_, Infallible>(told([]))
            }
        }
    }));
    let mut future = Box::pin(server.call(get()));

    let caught = catch_unwind(AssertUnwindSafe(|| poll(future.as_mut())));

    assert!(caught.is_err());
    assert_eq!(outcome(&tracker), Outcome::Panicked);
    drop((future, server));
    assert!(held.is_some());
    assert!(inflight::Op::current().is_none());
}

#[test]
fn an_event_stream_is_idle_and_shows_the_age_of_its_last_frame() {
    for side in SIDES {
        let tracker = Tracker::builder("test")
            .slow_after(Duration::ZERO)
            .stuck_after(Duration::ZERO)
            .build();
        let mut response = told([Step::Data("data: x\n\n"), Step::Wait]);
        let kind = "Text/Event-Stream;charset=utf-8".parse().unwrap();
        response.headers_mut().insert("content-type", kind);
        let mut body = answered(side, &tracker, get(), response);
        let before = tracker.snapshot().ops[0].clone();
        assert!(frame(&mut body).is_ready());
        assert!(frame(&mut body).is_pending());

        let after = tracker.snapshot().ops[0].clone();

        assert_eq!(after.state, State::Idle, "{side:?}");
        assert!(after.progress_ms < after.age_ms, "{after:?}");
        assert!(after.phase.age_ms - after.progress_ms >= before.phase.age_ms - before.progress_ms);
        let owes = match side {
            Side::Server => "sending events: waiting for the handler's next chunk",
            Side::Client => "receiving events: waiting for the server's next chunk",
        };
        assert_eq!(after.phase.path, [owes]);
    }
}

#[test]
fn a_download_that_stopped_is_stuck_and_says_which_side_owes() {
    for (side, source, sink) in [
        (
            Side::Server,
            "sending: waiting for the handler's next chunk",
            "sending: waiting for the client to read",
        ),
        (
            Side::Client,
            "receiving: waiting for the server's next chunk",
            "receiving: waiting for the caller to read",
        ),
    ] {
        let tracker = Tracker::builder("test").stuck_after(Duration::ZERO).build();
        let response = told([Step::Data("ab"), Step::Wait]);
        let mut body = answered(side, &tracker, get(), response);
        assert_eq!(phase(&tracker), sink, "nothing is polled yet");

        assert!(frame(&mut body).is_ready());
        assert_eq!(phase(&tracker), sink);
        assert!(frame(&mut body).is_pending());
        assert_eq!(phase(&tracker), source);

        let op = tracker.snapshot().ops[0].clone();
        assert_eq!(op.state, State::Stuck);
        let http = op.http.unwrap();
        let bytes = [http.sent_bytes, http.received_bytes];
        assert_eq!(bytes, if side == Side::Server { [2, 0] } else { [0, 2] });
        drop(body);
        let ended = &tracker.snapshot().recent[0];
        assert_eq!(ended.op.phase.path, [source.split(':').next().unwrap()]);
    }
}

#[test]
fn hints_are_passed_on() {
    for side in SIDES {
        let tracker = tracker();
        let mut response = told([Step::Data("abc")]);
        response.body_mut().length = Some(3);
        response.body_mut().knows_its_end = true;

        let mut body = answered(side, &tracker, get(), response);

        assert_eq!(body.size_hint().exact(), Some(3));
        assert!(!body.is_end_stream());
        assert!(frame(&mut body).is_ready());
        assert!(body.is_end_stream());
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => {
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(data.as_bytes())))))
            }
            Some(Step::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
            Some(Step::Wait) => Poll::Pending,
            Some(Step::Fail(why)) => Poll::Ready(Some(Err(why.to_owned()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl<B> Service<Request<B>> for Answers {
    type Response = Response<Told>;
    type Error = String;
    type Future = Ready<Result<Response<Told>, String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), String>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(self.0.take().unwrap())
    }
}

impl<B> Service<Request<B>> for Silent {
    type Response = Response<Told>;
    type Error = String;
    type Future = std::future::Pending<Result<Response<Told>, String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), String>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        pending()
    }
}
