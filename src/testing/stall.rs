//! Hangs on purpose: a gate that services, bodies, file systems and plain code stand at until told to go on.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// How long [`Stall::arrived`] waits for somebody to come.
const DEADLINE: Duration = Duration::from_secs(10);

/// A gate that is shut until [`go_on`](Self::go_on): it forces an order where a sleep would only make it likely.
///
/// Whoever stands at it goes on as well when this is dropped, so that a test that fails hangs nobody.
///
/// ```
/// use inflight::testing::Stall;
///
/// let stall = Stall::new();
/// let gate = stall.gate();
/// let worker = std::thread::spawn(move || gate.pass());
///
/// assert_eq!(stall.arrived(1), 1); // it stands there, however long that takes
/// stall.go_on();
/// worker.join().unwrap();
/// ```
#[must_use = "dropped at once, it stalls nobody"]
#[derive(Debug, Default)]
pub struct Stall {
    shared: Arc<Shared>,
}

/// The way through a [`Stall`]. As a tower layer it makes every request wait before the service gets it.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_open: bool,
    arrived: usize,
    wakers: Vec<Waker>,
}

impl Stall {
    /// Makes one that is shut.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a way through, for a service, a body, a file system or a thread to stand at.
    #[must_use]
    pub fn gate(&self) -> Gate {
        Gate {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Lets all go on, now and from now on.
    pub fn go_on(&self) {
        self.shared.open();
    }

    /// Waits until so many have come, and returns how many have: fewer only after 10 s.
    #[must_use]
    pub fn arrived(&self, wanted: usize) -> usize {
        let until = Instant::now() + DEADLINE;
        let mut state = self.shared.lock();
        while state.arrived < wanted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.arrived
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.shared.open();
    }
}

impl Gate {
    /// Blocks this thread until it is told to go on.
    pub fn pass(&self) {
        let mut state = self.shared.lock();
        state.arrived += 1;
        self.shared.changed.notify_all();
        while !state.is_open {
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// [`pass`](Self::pass) for async code.
    pub async fn pass_async(&self) {
        Passing::new(self).await;
    }

    /// Makes every frame of a body wait.
    pub fn body<B>(&self, inner: B) -> StalledBody<B> {
        StalledBody {
            inner,
            passing: Passing::new(self),
        }
    }
}

impl Shared {
    fn open(&self) {
        let wakers = {
            let mut state = self.lock();
            state.is_open = true;
            std::mem::take(&mut state.wakers)
        };
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Shared")
            .field("is_open", &state.is_open)
            .field("arrived", &state.arrived)
            .finish_non_exhaustive()
    }
}

/// One that comes to the gate, and stands there.
#[derive(Debug)]
struct Passing {
    gate: Gate,
    has_come: bool,
}

impl Passing {
    fn new(gate: &Gate) -> Self {
        Self {
            gate: gate.clone(),
            has_come: false,
        }
    }
}

impl Future for Passing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let comes = !std::mem::replace(&mut self.has_come, true);
        let mut state = self.gate.shared.lock();
        state.arrived += usize::from(comes);
        self.gate.shared.changed.notify_all();
        if state.is_open {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// A service whose requests wait at a [`Gate`] before the inner one gets them.
#[derive(Clone, Debug)]
pub struct StalledService<S> {
    inner: S,
    gate: Gate,
}

impl<S> Layer<S> for Gate {
    type Service = StalledService<S>;

    fn layer(&self, inner: S) -> StalledService<S> {
        StalledService {
            inner,
            gate: self.clone(),
        }
    }
}

impl<S, R> Service<R> for StalledService<S>
where
    S: Service<R> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = StalledFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> StalledFuture<S, R> {
        // The one that was found ready is the one to be called.
        let ready = self.inner.clone();
        StalledFuture {
            passing: Passing::new(&self.gate),
            service: std::mem::replace(&mut self.inner, ready),
            request: Some(request),
            answer: None,
        }
    }
}

pin_project! {
    /// Future of [`StalledService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct StalledFuture<S: Service<R>, R> {
        passing: Passing,
        service: S,
        request: Option<R>,
        #[pin]
        answer: Option<S::Future>,
    }
}

impl<S: Service<R>, R> Future for StalledFuture<S, R> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(request) = this.request.take() {
            if Pin::new(&mut *this.passing).poll(cx).is_pending() {
                *this.request = Some(request);
                return Poll::Pending;
            }
            this.answer.set(Some(this.service.call(request)));
        }
        match this.answer.as_pin_mut() {
            Some(answer) => answer.poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<S: Service<R>, R> fmt::Debug for StalledFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StalledFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// A body whose frames wait at a [`Gate`].
    #[derive(Debug)]
    pub struct StalledBody<B> {
        #[pin]
        inner: B,
        passing: Passing,
    }
}

impl<B: Body> Body for StalledBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        ready!(Pin::new(this.passing).poll(cx));
        this.inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
