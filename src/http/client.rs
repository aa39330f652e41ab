//! The layer for clients.

use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, request::Parts};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    CONNECTING, CONNECTING_OR_AWAITING, headers,
    request::{Counted, Counter, Plain, RequestBodies, Upload},
    response::{self, Exchange, ResponseBody, ResponseFuture, Side},
    target,
};
use crate::{
    record::Detail,
    snapshot::Kind,
    tracker::{Parent, Start, Tracker},
};

type Propagate = dyn Fn(&Parts) -> bool + Send + Sync;

/// Layer that keeps each request that is sent in flight until the body of its response ends.
///
/// See the [module](super) for an example.
pub struct ClientLayer<M = Counted> {
    tracker: Tracker,
    traceparent: bool,
    propagate: Option<Arc<Propagate>>,
    bodies: PhantomData<fn() -> M>,
}

/// Middleware that keeps each request that is sent in flight until the body of its response ends.
///
/// The op that is current when a request is sent waits for it.
pub struct Client<S, M = Counted> {
    inner: S,
    layer: ClientLayer<M>,
}

impl ClientLayer {
    /// Makes a layer whose ops go to this tracker.
    #[must_use]
    pub fn new(tracker: &Tracker) -> Self {
        tracker.begins_to_serve();
        Self {
            tracker: tracker.clone(),
            traceparent: false,
            propagate: None,
            bodies: PhantomData,
        }
    }

    /// Hands request bodies on as they are, for an inner service that takes one type of body only.
    /// Default: they are wrapped; their bytes are counted, and connecting, sending and waiting for the
    /// answer are told apart by them.
    ///
    /// An inner service that takes one type of body which others can be made into needs no such loss:
    /// tower's `map_request`, put between, makes it of a [`RequestBody`](super::RequestBody).
    #[must_use]
    pub fn plain_request_bodies(self) -> ClientLayer<Plain> {
        ClientLayer {
            tracker: self.tracker,
            traceparent: self.traceparent,
            propagate: self.propagate,
            bodies: PhantomData,
        }
    }
}

impl<M> ClientLayer<M> {
    /// Sets whether a request without a `traceparent` gets one. Default: only while an exporter of spans
    /// runs.
    ///
    /// Its flags are those that came with the request being served; without one, not sampled.
    #[must_use]
    pub fn traceparent(mut self, add: bool) -> Self {
        self.traceparent = add;
        self
    }

    /// Sets which requests get headers at all. Default: all.
    ///
    /// Say no to those that leave for third parties. An `inflight-op` that such a request already has,
    /// as one that is passed on, is taken out.
    #[must_use]
    pub fn propagate(mut self, to: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.propagate = Some(Arc::new(to));
        self
    }
}

impl<S, M> Layer<S> for ClientLayer<M> {
    type Service = Client<S, M>;

    fn layer(&self, inner: S) -> Client<S, M> {
        Client {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, M, B, R> Service<Request<B>> for Client<S, M>
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
        let layer = &self.layer;
        let (mut parts, body) = request.into_parts();
        let propagate = layer.propagate.as_ref().is_none_or(|to| to(&parts));
        let op = layer.tracker.start(Start {
            kind: Kind::HttpClient,
            name: target::method(&parts.method),
            target: target::of_uri(&parts.uri),
            route: "",
            detail: Detail::Http {
                peer: None,
                status: None,
            },
            parent: Parent::Current,
            phase: Some(if M::COUNTED {
                CONNECTING
            } else {
                CONNECTING_OR_AWAITING
            }),
        });
        headers::take_over(&layer.tracker, &op, &parts.headers);
        if propagate {
            headers::add(&layer.tracker, &op, &mut parts.headers, layer.traceparent);
        } else {
            headers::remove(&mut parts.headers);
        }
        let upload = Upload::new(&op).filter(|_| M::COUNTED);
        let body = M::wrap(body, Counter::sent(upload.as_ref()));
        let mut exchange = Some(Exchange::new(op, Side::Client(upload), &parts.method));
        let request = Request::from_parts(parts, body);
        let inner = response::within(&mut exchange, || self.inner.call(request));
        ResponseFuture::new(inner, exchange)
    }
}

impl<M> Clone for ClientLayer<M> {
    fn clone(&self) -> Self {
        Self {
            tracker: self.tracker.clone(),
            traceparent: self.traceparent,
            propagate: self.propagate.clone(),
            bodies: PhantomData,
        }
    }
}

impl<S: Clone, M> Clone for Client<S, M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<M> fmt::Debug for ClientLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayer")
            .field("tracker", &self.tracker)
            .field("traceparent", &self.traceparent)
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, M> fmt::Debug for Client<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}
