//! The op a thread or a future works for.
//!
//! ```
//! use inflight::{FutureExt as _, Tracker};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let tracker = Tracker::new("example");
//! let op = tracker.begin("sync");
//! let work = async {
//!     inflight::phase("list");
//!     assert_eq!(inflight::Op::current().and_then(|op| op.id()), op.id());
//! };
//! work.in_op(&op).await;
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::{
    id::OpId,
    op::{Entered, Nested, Op, WaitingFor, with_current},
    record::{Record, WaitsFor},
};

/// Ties a future to an op.
pub trait FutureExt: Future + Sized {
    /// Polls the future under this op, and keeps the op in flight until the future is done or
    /// dropped.
    fn in_op(self, op: &Op) -> InOp<Self> {
        InOp {
            inner: self,
            op: Some(op.clone()),
        }
    }

    /// Polls the future under the op that is current now, where this is called: the future owes the
    /// answer of that op, which stays in flight until the future is done or dropped.
    ///
    /// Without a current op the future is polled as it is.
    fn in_current_op(self) -> InOp<Self> {
        InOp {
            inner: self,
            op: Op::current(),
        }
    }

    /// Says, while the future is pending, that the op that is current now waits for `op`.
    fn waiting_for(self, op: &Op) -> Waiting<Self> {
        let waiter = with_current(|op| op.record().map(Arc::clone)).flatten();
        Waiting {
            inner: self,
            ops: waiter.zip(op.id()),
            wait: None,
        }
    }
}

impl<F: Future> FutureExt for F {}

pin_project! {
    /// Future of [`FutureExt::in_op`] and [`FutureExt::in_current_op`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct InOp<F> {
        #[pin]
        inner: F,
        op: Option<Op>,
    }
}

pin_project! {
    /// Future of [`FutureExt::waiting_for`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Waiting<F> {
        #[pin]
        inner: F,
        // Who waits for whom, until the wait is on record.
        ops: Option<(Arc<Record>, OpId)>,
        wait: Option<WaitingFor>,
    }
}

impl<F: Future> Future for InOp<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(op) = this.op.take() else {
            return this.inner.poll(cx);
        };
        let entered = Entered::with(op);
        let output = this.inner.poll(cx);
        let op = entered.leave();
        // A future that is done owes nothing any more, even if someone keeps it.
        if output.is_pending() {
            *this.op = op;
        }
        output
    }
}

impl<F: Future> Future for Waiting<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let output = this.inner.poll(cx);
        if output.is_ready() {
            *this.ops = None;
            *this.wait = None;
        } else if let Some((waiter, op)) = this.ops.take() {
            // Only now: a future that is ready at once was not waited for.
            *this.wait = Some(WaitingFor::start(waiter, WaitsFor::Op(op)));
        }
        output
    }
}

/// Replaces the innermost phase of the current op. Without one this does nothing.
pub fn phase(name: impl Into<Cow<'static, str>>) {
    let name = name.into();
    with_current(|op| op.phase(name));
}

/// Goes one phase deeper in the current op until the guard drops.
pub fn nested(name: impl Into<Cow<'static, str>>) -> Nested {
    let name = name.into();
    with_current(|op| op.nested(name)).unwrap_or_else(Nested::none)
}

/// Replaces the innermost phase of the current op by one that is long by design.
pub fn idle_phase(name: impl Into<Cow<'static, str>>) {
    let name = name.into();
    with_current(|op| op.idle_phase(name));
}

/// Says what the current op works on.
pub fn target(target: impl Into<Cow<'static, str>>) {
    let target = target.into();
    with_current(|op| op.target(target));
}

/// Says what went wrong in the current op; its outcome will be `failed`.
pub fn fail(why: impl Into<Cow<'static, str>>) {
    let why = why.into();
    with_current(|op| op.fail(why));
}

/// Says, until the guard drops, that the current op waits for `op`, a request or task that another
/// op may have started.
///
/// Without a current op this does nothing.
pub fn waiting_for(op: &Op) -> WaitingFor {
    let on = op.id().map(WaitsFor::Op);
    with_current(|waiter| on.map(|on| waiter.wait_for(on)))
        .flatten()
        .unwrap_or_else(WaitingFor::none)
}

/// Runs a closure on tokio's pool of blocking threads, under the op that is current now.
///
/// The thread is shown as one that works for the op, so that a FUSE call it is blocked in is joined
/// to it. As with tokio's own, dropping the handle does not stop the closure.
///
/// # Panics
///
/// Outside of a tokio runtime.
#[cfg(feature = "tokio")]
pub fn spawn_blocking<F, T>(f: F) -> tokio::task::JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let op = Op::current();
    tokio::task::spawn_blocking(move || {
        let _entered = op.map(Entered::with);
        f()
    })
}
