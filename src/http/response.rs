//! What holds the op of a request: the future of its response, then the body of it.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    error,
    request::{Counter, Upload},
};
use crate::{
    clock::Stamp,
    op::{Entered, Op},
    record::{Detail, Step},
    snapshot::Outcome,
};

pin_project! {
    /// Future of [`Server`](super::Server) and [`Client`](super::Client).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        // None once it is dropped.
        #[pin]
        inner: Option<F>,
        exchange: Option<Exchange>,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // What a handler closes as it is given up may block as well.
            within(this.exchange, || this.inner.set(None));
        }
    }
}

pin_project! {
    /// Body of a response; holds its op until it ended, failed or is dropped.
    pub struct ResponseBody<B> {
        // None once it is dropped.
        #[pin]
        inner: Option<B>,
        exchange: Option<Exchange>,
    }

    impl<B> PinnedDrop for ResponseBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            within(this.exchange, || this.inner.set(None));
        }
    }
}

/// One request and its response, from begin to end. Dropped earlier, it was given up.
pub(super) struct Exchange {
    // None only while a thread has entered it.
    op: Option<Op>,
    side: Side,
    is_connect: bool,
    /// The response has no body on the wire, whatever its type has.
    bodiless: bool,
    answered: bool,
    /// Bytes that Content-Length still promises.
    left: Option<u64>,
}

/// Which end of the connection this process is.
pub(super) enum Side {
    Server,
    Client(Option<Arc<Upload>>),
}

// Takes the op back from the thread's stack; if that is by unwinding, the op has panicked.
struct Running<'a> {
    entered: Option<Entered>,
    op: &'a mut Option<Op>,
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(inner: F, exchange: Option<Exchange>) -> Self {
        Self {
            inner: Some(inner),
            exchange,
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: fmt::Display + 'static,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let result = ready!(within(this.exchange, || inner.poll(cx)));
        let exchange = this.exchange.take();
        Poll::Ready(match result {
            Ok(response) => {
                let (parts, inner) = response.into_parts();
                let exchange = exchange.and_then(|exchange| {
                    exchange.answer(parts.status, &parts.headers, &parts.extensions, &inner)
                });
                let body = ResponseBody {
                    inner: Some(inner),
                    exchange,
                };
                Ok(Response::from_parts(parts, body))
            }
            Err(error) => {
                if let Some(exchange) = exchange {
                    exchange.fail(&error);
                }
                Err(error)
            }
        })
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: fmt::Display + 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(mut inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let Some(exchange) = this.exchange.as_ref() else {
            return inner.poll_frame(cx);
        };
        exchange.owed(Exchange::BY_SOURCE);
        let frame = ready!(within(this.exchange, || inner.as_mut().poll_frame(cx)));
        match &frame {
            None => complete(this.exchange, Stamp::now()),
            Some(Err(error)) => {
                if let Some(exchange) = this.exchange.take() {
                    exchange.fail(error);
                }
            }
            Some(Ok(data)) => {
                let now = Stamp::now();
                let last = this
                    .exchange
                    .as_mut()
                    .is_some_and(|exchange| exchange.moved(super::bytes_of(data), now));
                // The last poll of a body whose length was announced; trailers are the last of any.
                if last || data.is_trailers() || inner.is_end_stream() {
                    complete(this.exchange, now);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(SizeHint::default, B::size_hint)
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<B: fmt::Debug> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ResponseBody").field(&self.inner).finish()
    }
}

impl Exchange {
    // Indices into what `owed` says of either side.
    const BY_SOURCE: usize = 0;
    const BY_SINK: usize = 1;

    pub(super) fn new(op: Op, side: Side, method: &Method) -> Self {
        Self {
            op: Some(op),
            side,
            is_connect: method == Method::CONNECT,
            bodiless: method == Method::HEAD,
            answered: false,
            left: None,
        }
    }

    /// Counts what a server receives.
    pub(super) fn received(&self) -> Counter {
        self.op
            .as_ref()
            .map_or_else(Counter::off, Counter::received)
    }

    // A server's op has this thread work for it meanwhile; of a client's its thread is the caller's.
    fn run<T>(&mut self, f: impl FnOnce() -> T) -> T {
        match &self.side {
            Side::Server => {
                let Some(op) = self.op.take() else {
                    return f();
                };
                let mut running = Running {
                    entered: Some(Entered::with(op)),
                    op: &mut self.op,
                };
                let output = f();
                running.leave();
                output
            }
            Side::Client(Some(upload)) if !self.answered => {
                let _inside = upload.enter();
                f()
            }
            Side::Client(_) => f(),
        }
    }

    // What the response says of its body; None if there is nothing to wait for.
    fn answer(
        mut self,
        status: StatusCode,
        headers: &HeaderMap,
        extensions: &http::Extensions,
        body: &impl Body,
    ) -> Option<Self> {
        let op = self.op.as_ref()?;
        let is_client = matches!(self.side, Side::Client(_));
        let learn = |detail: &mut Detail| {
            if let Detail::Http {
                status: known,
                peer,
            } = detail
            {
                *known = Some(status.as_u16());
                if is_client {
                    *peer = remote_addr(extensions).or(*peer);
                }
            }
        };
        if let Side::Client(Some(upload)) = &self.side {
            upload.answered();
        }
        self.answered = true;
        self.bodiless |= status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        // Who takes the connection over is no longer seen from here.
        let upgraded =
            status == StatusCode::SWITCHING_PROTOCOLS || (self.is_connect && status.is_success());
        if !self.bodiless {
            let exact = body.size_hint().exact();
            self.left = exact.or_else(|| content_length(headers));
        }
        if upgraded || body.is_end_stream() || self.left == Some(0) {
            op.detail(learn);
            self.end(Stamp::now(), Outcome::Completed);
            return None;
        }
        // What has a length does not go on for ever.
        let goes_on = self.left.is_none() && is_event_stream(headers);
        let (phase, idle) = match (is_client, goes_on) {
            (false, false) => ("sending", false),
            (false, true) => ("sending events", true),
            (true, false) => ("receiving", false),
            (true, true) => ("receiving events", true),
        };
        if let Some(record) = op.record() {
            record.phase_and_detail(Stamp::now(), phase, idle, learn);
        }
        self.owed(Self::BY_SINK);
        Some(self)
    }

    fn owed(&self, by: usize) {
        let owed = match self.side {
            Side::Server => [Step::Handler, Step::Client],
            Side::Client(_) => [Step::Server, Step::Reader],
        };
        if let Some(record) = self.op.as_ref().and_then(Op::record) {
            record.step(owed[by]);
        }
    }

    // A frame of the body; true if as many bytes have come as were announced.
    fn moved(&mut self, bytes: u64, now: Stamp) -> bool {
        if let Some(record) = self.op.as_ref().and_then(Op::record) {
            match self.side {
                Side::Server => record.sent(bytes, now),
                Side::Client(_) => record.received(bytes, now),
            }
        }
        self.owed(Self::BY_SINK);
        let Some(left) = &mut self.left else {
            return false;
        };
        *left = left.saturating_sub(bytes);
        *left == 0
    }

    fn fail(self, error: &(impl fmt::Display + 'static)) {
        if let Some(op) = &self.op
            && op.id().is_some()
        {
            op.fail(error::text(error));
        }
        self.end(Stamp::now(), Outcome::Failed);
    }

    fn end(mut self, now: Stamp, outcome: Outcome) {
        if let Some(op) = self.op.take() {
            op.finish_at(now, outcome);
        }
    }
}

impl Drop for Exchange {
    // Runs while unwinding too: nothing here may panic or block on user code.
    fn drop(&mut self) {
        let Some(op) = self.op.take() else {
            return;
        };
        op.finish(if std::thread::panicking() {
            Outcome::Panicked
        } else if !self.answered {
            Outcome::DroppedBeforeResponse
        } else if self.bodiless {
            Outcome::Completed
        } else {
            Outcome::DroppedInBody
        });
    }
}

impl Running<'_> {
    fn leave(&mut self) {
        if let Some(entered) = self.entered.take() {
            *self.op = entered.leave();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.entered.is_none() {
            return;
        }
        self.leave();
        // Now: who caught the panic may drop the rest much later, and not while unwinding.
        if let Some(op) = self.op.take() {
            op.finish(Outcome::Panicked);
        }
    }
}

/// Calls `f` for the exchange.
pub(super) fn within<T>(exchange: &mut Option<Exchange>, f: impl FnOnce() -> T) -> T {
    match exchange {
        Some(exchange) => exchange.run(f),
        None => f(),
    }
}

fn complete(exchange: &mut Option<Exchange>, now: Stamp) {
    if let Some(exchange) = exchange.take() {
        exchange.end(now, Outcome::Completed);
    }
}

// RFC 9112, 6.3: Transfer-Encoding overrides Content-Length. Several that differ are no length.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next()?;
    if lengths.any(|other| other != length) || headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    length.to_str().ok()?.trim().parse().ok()
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes())
        .and_then(|value| value.split_at_checked(EVENT_STREAM.len()))
        .is_some_and(|(kind, rest)| {
            kind.eq_ignore_ascii_case(EVENT_STREAM)
                && matches!(rest.first(), None | Some(b';' | b' '))
        })
}

#[cfg(feature = "debug")]
fn remote_addr(extensions: &http::Extensions) -> Option<std::net::SocketAddr> {
    use hyper_util::client::legacy::connect::HttpInfo;

    extensions.get::<HttpInfo>().map(HttpInfo::remote_addr)
}

#[cfg(not(feature = "debug"))]
fn remote_addr(_: &http::Extensions) -> Option<std::net::SocketAddr> {
    None
}
