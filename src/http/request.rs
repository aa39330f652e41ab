//! The body of a request on its way: counted, never holding an op.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    clock::Stamp,
    op::Op,
    process,
    record::{Record, Step},
};

/// Request bodies are wrapped in [`RequestBody`], so that their bytes count as progress. The default.
#[derive(Clone, Copy, Debug)]
pub struct Counted(());

/// Request bodies are handed on as they are, to a service that takes one type of body only.
#[derive(Clone, Copy, Debug)]
pub struct Plain(());

/// What becomes of request bodies: [`Counted`] or [`Plain`].
pub trait RequestBodies: sealed::RequestBodies {}

impl RequestBodies for Counted {}
impl RequestBodies for Plain {}

pub(super) mod sealed {
    use super::{Counter, RequestBody};

    pub trait RequestBodies {
        type Body<B>;

        #[doc(hidden)]
        fn wrap<B>(body: B, counter: Counter) -> Self::Body<B>;

        #[doc(hidden)]
        const COUNTED: bool;
    }

    impl RequestBodies for super::Counted {
        type Body<B> = RequestBody<B>;

        fn wrap<B>(inner: B, counter: Counter) -> RequestBody<B> {
            RequestBody { inner, counter }
        }

        const COUNTED: bool = true;
    }

    impl RequestBodies for super::Plain {
        type Body<B> = B;

        fn wrap<B>(body: B, _: Counter) -> B {
            body
        }

        const COUNTED: bool = false;
    }
}

pin_project! {
    /// Body of a request, whose bytes are counted.
    ///
    /// It does not keep the op in flight: a client may keep the body long after its caller gave up.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        counter: Counter,
    }
}

/// Where the bytes of a request body are counted.
pub struct Counter(Kind);

enum Kind {
    Off,
    Received(Arc<Record>),
    Sent(Arc<Upload>),
}

/// How far a request has come that is being sent, as its body shows.
pub(super) struct Upload {
    record: Arc<Record>,
    /// The thread that polls the response future, else 0.
    inside: AtomicU32,
    stage: Mutex<Stage>,
}

/// While it lives, this thread polls the response future.
pub(super) struct Inside<'a>(&'a Upload);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// Something between us and the connection took the body: from it nothing can be told.
    Unknown,
    Sending,
    Sent,
    Answered,
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        this.counter.polled();
        let frame = this.inner.as_mut().poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(data))) => {
                let ended = this.inner.is_end_stream();
                this.counter.frame(super::bytes_of(data), ended);
            }
            Poll::Ready(_) => this.counter.frame(0, true),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.inner.is_end_stream();
        if ended {
            self.counter.gone();
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Counter {
    pub(super) fn off() -> Self {
        Self(Kind::Off)
    }

    /// Counts what a server's handler reads.
    pub(super) fn received(op: &Op) -> Self {
        Self(
            op.record()
                .map_or(Kind::Off, |record| Kind::Received(Arc::clone(record))),
        )
    }

    /// Counts what a client sends.
    pub(super) fn sent(upload: Option<&Arc<Upload>>) -> Self {
        Self(upload.map_or(Kind::Off, |upload| Kind::Sent(Arc::clone(upload))))
    }

    fn polled(&self) {
        if let Kind::Sent(upload) = &self.0 {
            upload.at(Stage::Sending, Step::Writer);
        }
    }

    fn frame(&self, bytes: u64, ended: bool) {
        match &self.0 {
            Kind::Off => {}
            Kind::Received(record) => {
                if !record.has_ended() {
                    record.received(bytes, Stamp::now());
                }
            }
            Kind::Sent(upload) => {
                if !upload.record.has_ended() {
                    upload.record.sent(bytes, Stamp::now());
                }
                if ended {
                    upload.at(Stage::Sent, Step::None);
                } else {
                    upload.at(Stage::Sending, Step::ServerReads);
                }
            }
        }
    }

    // Asked whether anything follows, hyper writes the head; it never polls a body that is empty.
    fn gone(&self) {
        if let Kind::Sent(upload) = &self.0 {
            upload.at(Stage::Sent, Step::None);
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").finish_non_exhaustive()
    }
}

impl Drop for Counter {
    // Whoever sends the request has done with its body.
    fn drop(&mut self) {
        self.gone();
    }
}

impl Upload {
    pub(super) fn new(op: &Op) -> Option<Arc<Self>> {
        let record = Arc::clone(op.record()?);
        Some(Arc::new(Self {
            record,
            inside: AtomicU32::new(0),
            stage: Mutex::new(Stage::Connecting),
        }))
    }

    /// Marks this thread as polling the response future.
    pub(super) fn enter(&self) -> Inside<'_> {
        self.inside.store(process::tid(), Relaxed);
        Inside(self)
    }

    /// From here on the response says what the op does.
    pub(super) fn answered(&self) {
        *self.lock() = Stage::Answered;
    }

    // A connection reads the body on a task of its own. Within a poll of our own future it is something
    // in between that does, and the connection is yet to come.
    fn at(&self, stage: Stage, step: Step) {
        let inside = self.inside.load(Relaxed) == process::tid();
        let stage = if inside { Stage::Unknown } else { stage };
        let mut now = self.lock();
        match (*now, stage) {
            (Stage::Connecting | Stage::Unknown, _) | (Stage::Sending, Stage::Sent) => {}
            (Stage::Sending, Stage::Sending) => {
                self.record.step(step);
                return;
            }
            _ => return,
        }
        if self.record.has_ended() || *now == stage {
            return;
        }
        *now = stage;
        let (phase, step) = match stage {
            Stage::Sending => ("sending", step),
            Stage::Sent => (super::AWAITING, Step::None),
            Stage::Connecting | Stage::Unknown | Stage::Answered => {
                (super::CONNECTING_OR_AWAITING, Step::None)
            }
        };
        self.record.step(step);
        self.record.phase(Stamp::now(), phase.into(), false);
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.store(0, Relaxed);
    }
}
