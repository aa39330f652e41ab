//! Requests to a router, with no connection: what a layer adds to them.

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Path},
    http::{Request, Response, Uri},
    routing::get,
};
use http_body_util::{BodyExt, Full, combinators::MapErr};
use std::{
    convert::Infallible,
    future::ready,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};
use tower::{Layer, Service, service_fn};
use tower_http::{map_request_body::MapRequestBody, map_response_body::MapResponseBody};

/// Wraps bodies, and does nothing.
#[derive(Clone, Copy)]
pub(crate) struct Bodies;

type Same = fn(Body) -> MapErr<Body, fn(axum::Error) -> axum::Error>;

impl<S> Layer<S> for Bodies {
    type Service = MapRequestBody<MapResponseBody<S, Same>, Same>;

    fn layer(&self, inner: S) -> Self::Service {
        MapRequestBody::new(MapResponseBody::new(inner, same), same)
    }
}

fn same(body: Body) -> MapErr<Body, fn(axum::Error) -> axum::Error> {
    body.map_err(|error| error)
}

pub(crate) fn router() -> Router {
    Router::new().route(
        "/small/{n}",
        get(async |Path(n): Path<u32>| format!("hello, {n}\n")),
    )
}

/// Has the router answer, and reads the answers to their ends.
pub(crate) fn requests(times: usize, mut router: Router) {
    let peer: SocketAddr = ([127, 0, 0, 1], 9999).into();
    for _ in 0..times {
        let mut request = Request::get("/small/7")
            .header("host", "bench")
            .body(Body::empty())
            .expect("a request");
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = done(pin!(router.call(request)));
        read(response.expect("no error").into_body());
    }
}

/// Answers at once, as a connection would that has nothing to wait for.
pub(crate) fn server<B: HttpBody>()
-> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Future> {
    service_fn(|_: Request<B>| ready(Ok(Response::new(Full::from("hello\n")))))
}

/// Sends requests, and reads the answers to their ends.
pub(crate) fn calls<S, B>(times: usize, mut client: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: HttpBody<Data = Bytes>,
{
    let uri: Uri = "http://127.0.0.1:9999/small/7".parse().expect("a URI");
    for _ in 0..times {
        let request = Request::get(uri.clone()).body(Full::default());
        let response = done(pin!(client.call(request.expect("a request"))));
        read(response.expect("no error").into_body());
    }
}

fn read(body: impl HttpBody) {
    let mut body = pin!(body);
    while let Some(frame) = done(pin!(body.frame())) {
        assert!(frame.is_ok());
        if body.is_end_stream() {
            break;
        }
    }
}

// Nothing here waits.
fn done<F: Future>(future: Pin<&mut F>) -> F::Output {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}
