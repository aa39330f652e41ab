//! A call by a client that is no tower service.

use std::{borrow::Cow, net::SocketAddr};

use http::HeaderMap;

use super::{CONNECTING_OR_AWAITING, headers, target};
use crate::{
    op::Op,
    record::Detail,
    snapshot::{Kind, Outcome},
    tracker::{Parent, Start, Tracker},
};

/// Keeps a request in flight that a client of any make sends, until it is dropped.
///
/// The op that is current when it begins waits for it. Keep it until the body of the response is read.
/// Its outcome is `completed` if it was dropped after [`response`](Self::response), `failed` after
/// [`fail`](Self::fail), else `dropped_before_response`.
///
/// See the [module](super) for an example.
#[must_use = "dropped at once, the call ends at once"]
#[derive(Debug)]
pub struct Call {
    op: Op,
    tracker: Tracker,
    traceparent: bool,
}

impl Tracker {
    /// Begins a call, for clients that [`ClientLayer`](super::ClientLayer) does not fit (reqwest, ureq).
    ///
    /// Of the URL neither userinfo nor query values are ever shown.
    pub fn call(&self, method: impl AsRef<str>, url: impl AsRef<str>) -> Call {
        let op = self.start(Start {
            kind: Kind::HttpClient,
            name: target::method_text(method.as_ref()),
            target: target::of_text(url.as_ref()),
            route: "",
            detail: Detail::Http {
                peer: None,
                status: None,
            },
            parent: Parent::Current,
            phase: Some(CONNECTING_OR_AWAITING),
        });
        Call {
            op,
            tracker: self.clone(),
            traceparent: false,
        }
    }
}

impl Call {
    /// Sets whether [`inject`](Self::inject) adds a `traceparent` where there is none. Default: only
    /// while an exporter of spans runs.
    pub fn traceparent(mut self, add: bool) -> Self {
        self.traceparent = add;
        self
    }

    /// Adds the header that tells the server which call it serves.
    ///
    /// The call joins the trace of a `traceparent` that is there; none is ever overwritten.
    pub fn inject(&self, headers: &mut HeaderMap) {
        headers::take_over(&self.tracker, &self.op, headers);
        headers::add(&self.tracker, &self.op, headers, self.traceparent);
    }

    /// Replaces the innermost phase. At first it is `connecting or waiting for the answer`.
    pub fn phase(&self, name: impl Into<Cow<'static, str>>) {
        self.op.phase(name);
    }

    /// Says that the head of the response is there; the phase is `receiving` from here on.
    pub fn response(&self, status: impl Into<u16>) {
        let code = status.into();
        self.op.detail(|detail| {
            if let Detail::Http { status, .. } = detail {
                *status = Some(code);
            }
        });
        self.op.phase("receiving");
    }

    /// Says whom the client is connected to. Without it the URL's host and port are shown.
    pub fn peer(&self, address: SocketAddr) {
        self.op.detail(|detail| {
            if let Detail::Http { peer, .. } = detail {
                *peer = Some(address);
            }
        });
    }

    /// Counts body bytes that came in.
    pub fn received(&self, bytes: u64) {
        self.op.received(bytes);
    }

    /// Counts body bytes that left.
    pub fn sent(&self, bytes: u64) {
        self.op.sent(bytes);
    }

    /// Says what went wrong; the outcome will be `failed`.
    pub fn fail(&self, why: impl Into<Cow<'static, str>>) {
        self.op.fail(why);
    }

    /// Returns the call's op: who shares its answer is [`waiting_for`](crate::waiting_for) it.
    pub fn op(&self) -> &Op {
        &self.op
    }
}

impl Drop for Call {
    // Handles that others took with op() do not keep it in flight.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.op.finish(Outcome::Panicked);
        } else {
            self.op.end();
        }
    }
}
