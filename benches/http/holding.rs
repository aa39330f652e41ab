//! A layer that holds an op until the body of the answer has ended, and does nothing else: the least a tracker can do.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, combinators::MapErr};
use inflight::{Op, Tracker};
use pin_project_lite::pin_project;
use tower::Service;

type Same = MapErr<Body, fn(axum::Error) -> axum::Error>;

#[derive(Clone)]
pub(crate) struct Holding<S> {
    pub(crate) inner: S,
    pub(crate) tracker: Tracker,
}

pin_project! {
    pub(crate) struct HoldingFuture<F> {
        #[pin]
        inner: F,
        op: Option<Op>,
    }
}

pub(crate) struct HoldingBody {
    inner: Body,
    _op: Option<Op>,
}

impl<S> Service<Request<Body>> for Holding<S>
where
    S: Service<Request<Same>, Response = Response<Body>>,
{
    type Response = Response<HoldingBody>;
    type Error = S::Error;
    type Future = HoldingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let op = self.tracker.begin("GET");
        op.phase("handler");
        HoldingFuture {
            inner: self.inner.call(request.map(same)),
            op: Some(op),
        }
    }
}

impl<F, E> Future for HoldingFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<HoldingBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx))?;
        let _op = this.op.take();
        Poll::Ready(Ok(answer.map(|inner| HoldingBody { inner, _op })))
    }
}

impl http_body::Body for HoldingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// As little as a layer can do to a body, and still be one.
pub(crate) fn same(body: Body) -> Same {
    body.map_err(|error| error)
}
