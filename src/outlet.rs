//! Where ended ops leave the tracker: a bounded queue that an exporter empties, off the op path.

use std::{
    fmt,
    panic::catch_unwind,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use crossbeam_queue::SegQueue;

use crate::{
    id::{OpId, TraceId},
    record::Record,
};

/// The span of another tracing that a thread works under.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Active {
    pub(crate) trace: TraceId,
    pub(crate) span: OpId,
    pub(crate) flags: u8,
}

/// Looks up the active span of another tracing.
pub(crate) type FindActive = fn() -> Option<Active>;

/// The way out of ended ops; closed until an exporter opens it.
pub(crate) struct Outlet {
    /// An exporter has it, open or about to be.
    is_taken: AtomicBool,
    is_open: AtomicBool,
    queue: SegQueue<Arc<Record>>,
    // SegQueue::len is not exact, and the bound is.
    queued: AtomicUsize,
    capacity: AtomicUsize,
    /// So many in the queue wake the exporter before its time.
    wake_at: AtomicUsize,
    lost: AtomicU64,
    reader: Mutex<Option<Waker>>,
    problem: Mutex<Option<String>>,
    find_active: OnceLock<FindActive>,
}

impl Outlet {
    pub(crate) fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            queue: SegQueue::new(),
            queued: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            wake_at: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            reader: Mutex::new(None),
            problem: Mutex::new(None),
            find_active: OnceLock::new(),
        }
    }

    /// Lets ended ops in; false if an exporter has done so already.
    pub(crate) fn open(&self, capacity: usize, wake_at: usize, find_active: FindActive) -> bool {
        if self.is_taken.swap(true, AcqRel) {
            return false;
        }
        let _ = self.find_active.set(find_active);
        self.capacity.store(capacity, Relaxed);
        self.wake_at.store(wake_at.min(capacity).max(1), Relaxed);
        self.is_open.store(true, Release);
        true
    }

    /// Lets no more in. What is still in the queue is lost.
    pub(crate) fn close(&self) {
        self.is_open.store(false, Release);
        *lock(&self.reader) = None;
        while self.pop().is_some() {
            self.lose(1);
        }
        self.is_taken.store(false, Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// Takes an ended op in. Over capacity it is counted, and its span lost.
    pub(crate) fn push(&self, record: &Arc<Record>) {
        if !self.is_open.load(Relaxed) {
            return;
        }
        let before = self.queued.fetch_add(1, AcqRel);
        if before >= self.capacity.load(Relaxed) {
            self.queued.fetch_sub(1, AcqRel);
            self.lose(1);
            return;
        }
        self.queue.push(Arc::clone(record));
        if before + 1 == self.wake_at.load(Relaxed) {
            self.wake();
        }
    }

    pub(crate) fn pop(&self) -> Option<Arc<Record>> {
        let record = self.queue.pop()?;
        self.queued.fetch_sub(1, AcqRel);
        Some(record)
    }

    /// Ready when there is a batch to fetch; the waker is woken when there is.
    pub(crate) fn poll_full(&self, cx: &Context<'_>) -> Poll<()> {
        *lock(&self.reader) = Some(cx.waker().clone());
        match self.queued.load(Acquire) >= self.wake_at.load(Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Counts ops whose spans never arrive.
    pub(crate) fn lose(&self, ops: u64) {
        self.lost.fetch_add(ops, Relaxed);
    }

    /// The ops whose spans never arrive.
    pub(crate) fn lost(&self) -> u64 {
        let left = match self.is_open() {
            true => 0,
            // Those that came in while the exporter closed.
            false => self.queued.load(Relaxed) as u64,
        };
        self.lost.load(Relaxed) + left
    }

    /// Says why spans do not arrive; `None` when they do again.
    pub(crate) fn set_problem(&self, problem: Option<String>) {
        *lock(&self.problem) = problem;
    }

    pub(crate) fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// The span of another tracing that this thread works under; looked for only while an exporter is attached.
    pub(crate) fn active(&self) -> Option<Active> {
        if !self.is_open.load(Relaxed) {
            return None;
        }
        let find = *self.find_active.get()?;
        // It reads a thread-local of another crate, which may be gone or in use.
        catch_unwind(find).ok().flatten()
    }

    // Runs at the end of an op: it waits for nobody, and the exporter comes in its own time anyway.
    fn wake(&self) {
        if let Ok(reader) = self.reader.try_lock()
            && let Some(waker) = &*reader
        {
            waker.wake_by_ref();
        }
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet")
            .field("is_open", &self.is_open())
            .field("queued", &self.queued.load(Relaxed))
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
