//! Named locks and pools: who holds them, who waits for them, and since when.
//!
//! ```
//! use std::sync::Mutex;
//!
//! use inflight::{Tracker, resource::Resource};
//!
//! let tracker = Tracker::new("example");
//! let table = Mutex::new(vec![1, 2, 3]);
//! let resource = Resource::new(&tracker, "table");
//!
//! let op = tracker.begin("count");
//! let _in = op.enter();
//! let held = resource.wait(|| table.lock().unwrap());
//! assert_eq!(held.len(), 3);
//! assert_eq!(tracker.snapshot().resources[0].holders[0].op, op.id());
//!
//! drop(held);
//! assert!(tracker.snapshot().resources[0].holders.is_empty());
//! ```

use std::{
    borrow::Cow,
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex as StdMutex, MutexGuard as StdMutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
};

use crate::{
    clock::Stamp,
    id::OpId,
    live::{Listed, Source},
    op::{WaitingFor, with_current},
    process,
    record::{Record, WaitsFor},
    snapshot::{self, Party, Snapshot, Thread, millis},
    text,
    tracker::Tracker,
};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A lock or pool of any make, by name.
///
/// A clone is another handle to the same resource. Snapshots show it as long as one lives.
#[derive(Clone)]
pub struct Resource {
    state: Arc<State>,
}

/// What was got from a resource; holds it until dropped.
#[must_use = "dropped at once, the resource is given back at once"]
pub struct Held<T> {
    // Before the value: who gives a lock back holds it no more when the next one gets it.
    _holding: Holding,
    value: T,
}

/// tokio's mutex, with its holder and its waiters shown.
#[cfg(feature = "tokio")]
pub struct Mutex<T: ?Sized> {
    resource: Resource,
    inner: tokio::sync::Mutex<T>,
}

/// Guard of [`Mutex::lock`].
#[cfg(feature = "tokio")]
#[must_use = "dropped at once, the mutex is unlocked at once"]
pub struct MutexGuard<'a, T: ?Sized> {
    _holding: Holding,
    inner: tokio::sync::MutexGuard<'a, T>,
}

struct State {
    id: u64,
    name: Cow<'static, str>,
    capacity: AtomicU64,
    parties: StdMutex<Parties>,
}

#[derive(Default)]
struct Parties {
    holders: Vec<Entry>,
    waiters: Vec<Entry>,
    next: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    number: u64,
    op: Option<OpId>,
    // 0 if it is not known.
    tid: u32,
    since: Stamp,
}

// Removes its entry when dropped.
struct Holding {
    state: Arc<State>,
    number: u64,
}

struct Waits {
    state: Arc<State>,
    number: u64,
    _op: Option<WaitingFor>,
}

impl Resource {
    /// Names a resource that one may hold at a time.
    #[must_use]
    pub fn new(tracker: &Tracker, name: impl Into<Cow<'static, str>>) -> Self {
        let state = Arc::new(State {
            id: NEXT_ID.fetch_add(1, Relaxed),
            name: text::bounded(name, text::MAX_NAME),
            capacity: AtomicU64::new(1),
            parties: StdMutex::new(Parties::default()),
        });
        tracker.add_source(&state);
        Self { state }
    }

    /// Sets how many may hold it at once. Default: 1.
    #[must_use]
    pub fn capacity(self, holders: usize) -> Self {
        self.state.capacity.store(holders as u64, Relaxed);
        self
    }

    /// Calls `get`, which may block; the current op, else this thread, waits for it meanwhile and
    /// holds what it gives.
    pub fn wait<T>(&self, get: impl FnOnce() -> T) -> Held<T> {
        let (record, entry) = me();
        let waits = self.state.wait(record, entry);
        let value = get();
        drop(waits);
        self.held(entry, value)
    }

    /// Awaits `get`; the op that is current when this is first polled waits for it meanwhile and holds
    /// what it gives. What is ready at once was not waited for. Without an op somebody is shown to hold
    /// it, and nobody knows who: a task goes from thread to thread.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is done, it no longer waits and holds nothing.
    pub async fn wait_async<F: Future>(&self, get: F) -> Held<F::Output> {
        let (record, entry) = me();
        let entry = entry.without_thread();
        let mut get = std::pin::pin!(get);
        let mut record = Some(record);
        let mut waits = None;
        let value = std::future::poll_fn(|cx| {
            let value = get.as_mut().poll(cx);
            match &value {
                Poll::Ready(_) => waits = None,
                Poll::Pending => {
                    if let Some(record) = record.take() {
                        waits = Some(self.state.wait(record, Entry::now(entry)));
                    }
                }
            }
            value
        })
        .await;
        self.held(entry, value)
    }

    fn held<T>(&self, entry: Entry, value: T) -> Held<T> {
        Held {
            _holding: self.state.hold(entry),
            value,
        }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("name", &self.state.name)
            .finish_non_exhaustive()
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.value).finish()
    }
}

#[cfg(feature = "tokio")]
impl<T> Mutex<T> {
    /// Makes an unlocked mutex.
    #[must_use]
    pub fn new(tracker: &Tracker, name: impl Into<Cow<'static, str>>, value: T) -> Self {
        Self {
            resource: Resource::new(tracker, name),
            inner: tokio::sync::Mutex::new(value),
        }
    }

    /// Returns the value.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

#[cfg(feature = "tokio")]
impl<T: ?Sized> Mutex<T> {
    /// Locks it. The holder is the op that is current when this is first polled; without one it is
    /// not known, as a task goes from thread to thread.
    ///
    /// # Cancel safety
    ///
    /// As tokio's: dropped before it is done, it loses its place in the queue.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let Held { _holding, value } = self.resource.wait_async(self.inner.lock()).await;
        MutexGuard {
            _holding,
            inner: value,
        }
    }

    /// Locks it if it is free. The holder is the current op, as for [`Mutex::lock`].
    ///
    /// # Errors
    ///
    /// If it is locked.
    pub fn try_lock(&self) -> Result<MutexGuard<'_, T>, tokio::sync::TryLockError> {
        let inner = self.inner.try_lock()?;
        let (_, entry) = me();
        Ok(MutexGuard {
            // The guard may go to another thread.
            _holding: self.resource.state.hold(entry.without_thread()),
            inner,
        })
    }

    /// Returns the value, which nobody else can hold now.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

#[cfg(feature = "tokio")]
impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex")
            .field("name", &self.resource.state.name)
            .field("inner", &&self.inner)
            .finish()
    }
}

#[cfg(feature = "tokio")]
impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

#[cfg(feature = "tokio")]
impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(feature = "tokio")]
impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}

impl State {
    fn wait(self: &Arc<Self>, record: Option<Arc<Record>>, entry: Entry) -> Waits {
        let op = record.map(|record| {
            let what = WaitsFor::Resource {
                id: self.id,
                name: self.name.clone(),
            };
            WaitingFor::start(record, what)
        });
        let number = self.add(|parties| &mut parties.waiters, entry);
        Waits {
            state: Arc::clone(self),
            number,
            _op: op,
        }
    }

    fn hold(self: &Arc<Self>, entry: Entry) -> Holding {
        let number = self.add(|parties| &mut parties.holders, Entry::now(entry));
        Holding {
            state: Arc::clone(self),
            number,
        }
    }

    fn add(&self, list: impl FnOnce(&mut Parties) -> &mut Vec<Entry>, entry: Entry) -> u64 {
        let mut parties = self.lock();
        parties.next += 1;
        let number = parties.next;
        list(&mut parties).push(Entry { number, ..entry });
        number
    }

    fn lock(&self) -> StdMutexGuard<'_, Parties> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for State {
    fn describe(&self, snapshot: &mut Snapshot, listed: &Listed, now: Stamp) {
        let (holders, waiters) = {
            let parties = self.lock();
            (parties.holders.clone(), parties.waiters.clone())
        };
        let party = |entry: &Entry| Party {
            op: entry.op,
            thread: entry.tid().map(|tid| Thread {
                tid,
                since_ms: millis(now.since(entry.since)),
                ..Thread::default()
            }),
            since_ms: millis(now.since(entry.since)),
        };
        let id = self.id.to_string();
        let capacity = self.capacity.load(Relaxed);
        for place in listed.waiting_for(&id) {
            let op = snapshot.ops.get_mut(*place);
            if let Some(wait) = op.and_then(|op| op.phase.wait.as_mut()) {
                wait.ops = holders.iter().filter_map(|holder| holder.op).collect();
                // One that is given back frees a waiter: all of them only where there is one.
                wait.all = wait.others == 0 && capacity == 1;
            }
        }
        snapshot.resources.push(snapshot::Resource {
            name: text::clean(&self.name),
            capacity,
            holders: holders.iter().map(party).collect(),
            waiters: waiters.iter().map(party).collect(),
            id,
        });
    }
}

impl Entry {
    fn now(entry: Self) -> Self {
        Self {
            since: Stamp::now(),
            ..entry
        }
    }

    fn without_thread(self) -> Self {
        Self { tid: 0, ..self }
    }

    // Which thread it is, where no op stands for it.
    fn tid(&self) -> Option<u32> {
        (self.op.is_none() && self.tid != 0).then_some(self.tid)
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").finish_non_exhaustive()
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let number = self.number;
        self.state
            .lock()
            .holders
            .retain(|entry| entry.number != number);
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let number = self.number;
        self.state
            .lock()
            .waiters
            .retain(|entry| entry.number != number);
    }
}

// The current op, else this thread.
fn me() -> (Option<Arc<Record>>, Entry) {
    let record = with_current(|op| op.record().map(Arc::clone)).flatten();
    let entry = Entry {
        number: 0,
        op: record.as_ref().map(|record| record.id),
        tid: process::tid(),
        since: Stamp::now(),
    };
    (record, entry)
}
