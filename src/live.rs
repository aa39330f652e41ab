//! The shared state of a tracker: the live set, the ended ops worth keeping, and the counts.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use dashmap::DashMap;

#[cfg(feature = "otel")]
use crate::outlet::Outlet;
use crate::{
    clock::Stamp,
    id::{OpId, TraceId},
    process,
    record::{Record, Seed},
    snapshot::{Off, Outcome, Process, Snapshot},
};

// Many shards, so that a reader that holds one delays few writers and each of them briefly.
const SHARDS: usize = 256;

/// One in so many ops that are kept is kept for being slow.
const SLOWEST: usize = 8;

/// What adds its own part to a snapshot: resources and mounts.
pub(crate) trait Source: Send + Sync {
    fn describe(&self, snapshot: &mut Snapshot, now: Stamp);
}

/// What all handles of one tracker share.
pub(crate) struct Shared {
    pub(crate) service: String,
    pub(crate) slow_after: Duration,
    pub(crate) stuck_after: Duration,
    #[cfg_attr(not(feature = "debug"), expect(dead_code))]
    pub(crate) peers: Vec<String>,
    live: DashMap<OpId, Arc<Record>, BuildHasherDefault<IdHasher>>,
    // DashMap::len takes the lock of every shard.
    count: AtomicUsize,
    capacity: usize,
    seed: AtomicU64,
    begun: AtomicU64,
    not_recorded: AtomicU64,
    malformed: AtomicU64,
    history: History,
    #[cfg(feature = "otel")]
    pub(crate) outlet: Outlet,
    enabled: AtomicBool,
    off: Mutex<Option<Off>>,
    process: Mutex<Option<Process>>,
    sources: Mutex<Vec<Weak<dyn Source>>>,
}

/// The last and the slowest ended ops.
struct History {
    // The op path pushes here; a reader folds it into `last`.
    arrived: ArrayQueue<Arc<Record>>,
    last: Mutex<VecDeque<Arc<Record>>>,
    slowest: Mutex<Vec<Arc<Record>>>,
    slowest_kept: usize,
    // In nanoseconds; what took no longer is not among the slowest.
    slow_enough: AtomicU64,
}

/// Ids are mixed already: hashing them again would cost and give nothing.
#[derive(Default)]
struct IdHasher(u64);

impl Shared {
    pub(crate) fn new(
        service: String,
        slow_after: Duration,
        stuck_after: Duration,
        capacity: usize,
        history: usize,
        peers: Vec<String>,
    ) -> Self {
        process::forked();
        Self {
            service,
            slow_after,
            stuck_after,
            peers,
            live: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS),
            count: AtomicUsize::new(0),
            capacity,
            seed: AtomicU64::new(random()),
            begun: AtomicU64::new(0),
            not_recorded: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            history: History::new(history),
            #[cfg(feature = "otel")]
            outlet: Outlet::new(),
            enabled: AtomicBool::new(true),
            off: Mutex::new(None),
            process: Mutex::new(None),
            sources: Mutex::new(Vec::new()),
        }
    }

    /// Records an op, unless the tracker is off or full. `make` gets the op's id.
    pub(crate) fn insert(&self, make: impl FnOnce(OpId) -> Seed) -> Option<Arc<Record>> {
        if !self.enabled.load(Relaxed) {
            return None;
        }
        if self.count.fetch_add(1, Relaxed) >= self.capacity {
            self.count.fetch_sub(1, Relaxed);
            self.not_recorded.fetch_add(1, Relaxed);
            return None;
        }
        let number = self.begun.fetch_add(1, Relaxed);
        let id = OpId::mixed(self.seed.load(Relaxed).wrapping_add(number));
        let record = Arc::new(Record::new(make(id)));
        self.live.insert(id, Arc::clone(&record));
        Some(record)
    }

    /// A trace for an op without a parent.
    pub(crate) fn new_trace(&self, root: OpId) -> TraceId {
        TraceId::mixed(self.seed.load(Relaxed).rotate_left(32), root.value())
    }

    /// Ends an op, once.
    pub(crate) fn end(&self, record: &Arc<Record>, outcome: Outcome) {
        if !record.end(Stamp::now(), outcome) {
            return;
        }
        self.live.remove(&record.id);
        self.count.fetch_sub(1, Relaxed);
        self.history.push(record);
        #[cfg(feature = "otel")]
        self.outlet.push(record);
    }

    /// The live ops, in no order. No lock is held when this returns.
    pub(crate) fn live(&self) -> Vec<Arc<Record>> {
        let mut records = Vec::with_capacity(self.count());
        records.extend(self.live.iter().map(|entry| Arc::clone(entry.value())));
        records
    }

    pub(crate) fn find(&self, id: OpId) -> Option<Arc<Record>> {
        self.live.get(&id).map(|entry| Arc::clone(entry.value()))
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// The ended ops that are kept, in the order they ended.
    pub(crate) fn ended(&self) -> Vec<Arc<Record>> {
        self.history.read()
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    pub(crate) fn not_recorded(&self) -> u64 {
        self.not_recorded.load(Relaxed)
    }

    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Relaxed)
    }

    #[cfg(feature = "http")]
    pub(crate) fn count_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    pub(crate) fn set_enabled(&self, why: Option<Off>) {
        let enabled = why.is_none();
        let mut off = lock(&self.off);
        if self.enabled.swap(enabled, Relaxed) != enabled {
            *off = why;
        }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Relaxed)
    }

    pub(crate) fn off(&self) -> Option<Off> {
        lock(&self.off).clone()
    }

    /// Who this process is now: daemons fork after they made their tracker.
    pub(crate) fn process(&self) -> Process {
        let mut known = lock(&self.process);
        if process::forked() {
            self.seed.store(random(), Relaxed);
        }
        match &*known {
            Some(process) if process.pid == std::process::id() => process.clone(),
            _ => known.insert(process::identify(&self.service)).clone(),
        }
    }

    pub(crate) fn add_source(&self, source: Weak<dyn Source>) {
        let mut sources = lock(&self.sources);
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
    }

    pub(crate) fn sources(&self) -> Vec<Arc<dyn Source>> {
        lock(&self.sources)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("service", &self.service)
            .field("live", &self.count())
            .finish_non_exhaustive()
    }
}

impl History {
    fn new(kept: usize) -> Self {
        let slowest_kept = kept.div_ceil(SLOWEST);
        Self {
            arrived: ArrayQueue::new(kept.max(1)),
            last: Mutex::new(VecDeque::new()),
            slowest: Mutex::new(Vec::new()),
            slowest_kept,
            slow_enough: AtomicU64::new(if kept == 0 { u64::MAX } else { 0 }),
        }
    }

    fn push(&self, record: &Arc<Record>) {
        if self.slowest_kept == 0 {
            return;
        }
        self.arrived.force_push(Arc::clone(record));
        let took = record.nanos();
        if took > self.slow_enough.load(Relaxed) && !record.is_idle() {
            self.keep_slow(record, took);
        }
    }

    // Rare: the bar rises with each one kept.
    #[cold]
    fn keep_slow(&self, record: &Arc<Record>, took: u64) {
        let mut slowest = lock(&self.slowest);
        let at = slowest.partition_point(|kept| kept.nanos() >= took);
        slowest.insert(at, Arc::clone(record));
        let pushed_out = if slowest.len() > self.slowest_kept {
            slowest.pop()
        } else {
            None
        };
        if slowest.len() == self.slowest_kept
            && let Some(least) = slowest.last()
        {
            self.slow_enough.store(least.nanos(), Relaxed);
        }
        drop(slowest);
        drop(pushed_out);
    }

    fn read(&self) -> Vec<Arc<Record>> {
        let mut last = lock(&self.last);
        while let Some(record) = self.arrived.pop() {
            if last.len() == self.arrived.capacity() {
                last.pop_front();
            }
            last.push_back(record);
        }
        let mut kept: Vec<_> = last.iter().map(Arc::clone).collect();
        drop(last);
        kept.extend(lock(&self.slowest).iter().map(Arc::clone));
        kept.sort_by_key(|record| (record.ended_at(), record.id));
        kept.dedup_by_key(|record| record.id);
        kept
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// One handle less; true for the last.
pub(crate) fn release(record: &Record) -> bool {
    if record.handles.fetch_sub(1, Release) != 1 {
        return false;
    }
    record.handles.load(Acquire);
    true
}

/// One handle more.
pub(crate) fn retain(record: &Record) {
    record.handles.fetch_add(1, AcqRel);
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// The keys of a RandomState come from the system's generator.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(Stamp::now().0);
    hasher.finish()
}
