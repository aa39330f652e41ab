//! The layer for servers.

use std::{
    fmt,
    marker::PhantomData,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    headers,
    request::{Counted, Counter, Plain, RequestBodies},
    response::{self, Exchange, ResponseBody, ResponseFuture, Side},
    target,
};
use crate::{
    record::Detail,
    snapshot::Kind,
    tracker::{Start, Tracker},
};

// Where the reports are read.
const OWN_PATH: &str = "/debug/inflight";

/// Layer that keeps each request in flight until the body of its response ends.
///
/// See the [module](super) for an example. With axum put it on with `Router::layer`, last, so that it is
/// outermost: the routes' templates are known there.
///
/// A `GET` whose path ends in `/debug/inflight` is never an op, wherever the report is mounted and
/// whoever answers it.
pub struct ServerLayer<M = Counted> {
    tracker: Tracker,
    bodies: PhantomData<fn() -> M>,
}

/// Middleware that keeps each request in flight until the body of its response ends.
pub struct Server<S, M = Counted> {
    inner: S,
    layer: ServerLayer<M>,
}

impl ServerLayer {
    /// Makes a layer whose ops go to this tracker.
    #[must_use]
    pub fn new(tracker: &Tracker) -> Self {
        tracker.begins_to_serve();
        Self {
            tracker: tracker.clone(),
            bodies: PhantomData,
        }
    }

    /// Hands request bodies on as they are, for an inner service that takes one type of body only.
    /// Default: they are wrapped, and their bytes are counted.
    #[must_use]
    pub fn plain_request_bodies(self) -> ServerLayer<Plain> {
        ServerLayer {
            tracker: self.tracker,
            bodies: PhantomData,
        }
    }
}

impl<M> ServerLayer<M> {
    fn begin<B>(&self, request: &Request<B>) -> Option<Exchange> {
        let asks = matches!(*request.method(), Method::GET | Method::HEAD);
        if asks && request.uri().path().ends_with(OWN_PATH) {
            return None;
        }
        let op = self.tracker.start(Start {
            kind: Kind::HttpServer,
            name: target::method(request.method()),
            target: target::of_path(request.uri()),
            route: route(request.extensions()),
            detail: Detail::Http {
                peer: peer(request.extensions()),
                status: None,
            },
            parent: headers::parent(&self.tracker, request.headers()),
            phase: Some("handler"),
        });
        Some(Exchange::new(op, Side::Server, request.method()))
    }
}

impl<S, M> Layer<S> for ServerLayer<M> {
    type Service = Server<S, M>;

    fn layer(&self, inner: S) -> Server<S, M> {
        Server {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, M, B, R> Service<Request<B>> for Server<S, M>
where
    S: Service<Request<M::Body<B>>, Response = Response<R>>,
    S::Error: fmt::Display + 'static,
    M: RequestBodies,
    R: Body,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut exchange = self.layer.begin(&request);
        let counter = match &exchange {
            Some(exchange) if M::COUNTED => exchange.received(),
            _ => Counter::off(),
        };
        let request = request.map(|body| M::wrap(body, counter));
        let inner = response::within(&mut exchange, || self.inner.call(request));
        ResponseFuture::new(inner, exchange)
    }
}

impl<M> Clone for ServerLayer<M> {
    fn clone(&self) -> Self {
        Self {
            tracker: self.tracker.clone(),
            bodies: PhantomData,
        }
    }
}

impl<S: Clone, M> Clone for Server<S, M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<M> fmt::Debug for ServerLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLayer")
            .field("tracker", &self.tracker)
            .finish()
    }
}

impl<S: fmt::Debug, M> fmt::Debug for Server<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

#[cfg(feature = "debug")]
fn route(extensions: &http::Extensions) -> &str {
    let matched = extensions.get::<axum::extract::MatchedPath>();
    matched.map_or("", axum::extract::MatchedPath::as_str)
}

#[cfg(feature = "debug")]
fn peer(extensions: &http::Extensions) -> Option<std::net::SocketAddr> {
    use axum::extract::ConnectInfo;

    let info = extensions.get::<ConnectInfo<std::net::SocketAddr>>()?;
    Some(info.0)
}

#[cfg(not(feature = "debug"))]
fn route(_: &http::Extensions) -> &str {
    ""
}

#[cfg(not(feature = "debug"))]
fn peer(_: &http::Extensions) -> Option<std::net::SocketAddr> {
    None
}
