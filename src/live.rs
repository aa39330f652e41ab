//! The shared state of a tracker: the live set, the ended ops worth keeping, and the counts.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    hint,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

#[cfg(feature = "otel")]
use crate::outlet::Outlet;
use crate::{
    clock::Stamp,
    id::{IdMap, OpId, TraceId},
    process,
    record::{Lineage, Record, Start},
    snapshot::{Off, Outcome, Process, Snapshot},
};

// A thread begins its ops in one shard, so that two threads seldom touch the same memory.
const SHARDS: usize = 16;

// How many records a reader takes at a time. Few: a writer that wants the lock meanwhile spins for about so
// long before it sleeps.
const CHUNK: usize = 64;

// Spins between two chunks: half a microsecond.
const PAUSE: usize = 32;

// How much of the capacity a shard takes at a time.
const CLAIM: usize = 64;

// How many records nobody knows any more a shard keeps for new ops.
const SPARE: usize = 64;

/// One in so many ops that are kept is kept for being slow.
const SLOWEST: usize = 8;

/// What adds its own part to a snapshot: resources and mounts.
pub(crate) trait Source: Send + Sync {
    fn describe(&self, snapshot: &mut Snapshot, listed: &Listed, now: Stamp);
}

/// The records of the ops in a snapshot, each at the place that the op has there.
#[cfg_attr(not(feature = "fuse"), expect(dead_code))]
pub(crate) struct Listed {
    pub(crate) ops: Vec<Arc<Record>>,
    pub(crate) recent: Vec<Arc<Record>>,
    // The places of the ops that wait for a resource, by its number.
    waiting: HashMap<String, Vec<usize>>,
}

/// What all handles of one tracker share.
pub(crate) struct Shared {
    pub(crate) service: String,
    pub(crate) slow_after: Duration,
    pub(crate) stuck_after: Duration,
    #[cfg_attr(not(feature = "debug"), expect(dead_code))]
    pub(crate) peers: Vec<String>,
    shards: Vec<Arc<Shard>>,
    // What no shard has taken yet of the capacity.
    room: AtomicUsize,
    seed: AtomicU64,
    not_recorded: AtomicU64,
    malformed: AtomicU64,
    ended: Arc<Ended>,
    enabled: AtomicBool,
    off: Mutex<Option<Off>>,
    // The process that the seed is for.
    seeded_in: AtomicU32,
    process: Mutex<Option<Process>>,
    sources: Mutex<Vec<Weak<dyn Source>>>,
}

/// A part of the live set, and of the last ended ops: all that begin and end of an op touch.
// Two cache lines, as processors fetch them in pairs: what one shard writes takes nothing from another.
#[repr(align(128))]
pub(crate) struct Shard {
    number: u64,
    ended: Arc<Ended>,
    ops: Mutex<Ops>,
}

#[derive(Default)]
struct Ops {
    // An op keeps its slot, so that a reader who comes back for more sees each op once.
    slots: Vec<Option<Arc<Record>>>,
    vacant: Vec<u32>,
    live: usize,
    begun: u64,
    // So many may begin before more of the capacity must be taken.
    credit: usize,
    last: VecDeque<Arc<Record>>,
    // Taken out of `last`. An op begins in one of these for half of what an allocation costs.
    spare: Vec<Arc<Record>>,
}

/// What becomes of the ended ops of all shards.
struct Ended {
    // How many of the last are kept.
    kept: usize,
    slowest: Mutex<Vec<Arc<Record>>>,
    slowest_kept: usize,
    // In nanoseconds; what took no longer is not among the slowest.
    slow_enough: AtomicU64,
    #[cfg(feature = "otel")]
    outlet: Outlet,
}

impl Shared {
    pub(crate) fn new(
        service: String,
        slow_after: Duration,
        stuck_after: Duration,
        capacity: usize,
        history: usize,
        peers: Vec<String>,
    ) -> Self {
        process::notice_fork();
        let ended = Arc::new(Ended::new(history));
        Self {
            service,
            slow_after,
            stuck_after,
            peers,
            shards: (0..SHARDS as u64)
                .map(|number| Arc::new(Shard::new(number, Arc::clone(&ended))))
                .collect(),
            room: AtomicUsize::new(capacity),
            seed: AtomicU64::new(random()),
            not_recorded: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            ended,
            enabled: AtomicBool::new(true),
            off: Mutex::new(None),
            seeded_in: AtomicU32::new(std::process::id()),
            process: Mutex::new(None),
            sources: Mutex::new(Vec::new()),
        }
    }

    /// Records an op, unless the tracker is off or full. `lineage` is our own code and takes no lock.
    // `start` is emptied: to pass it on by value would copy 160 bytes each time.
    pub(crate) fn insert(
        &self,
        begun: Stamp,
        start: &mut Start<'_>,
        lineage: impl FnOnce(OpId) -> Lineage,
    ) -> Option<(Arc<Record>, &Arc<Shard>)> {
        if !self.enabled.load(Relaxed) {
            return None;
        }
        let shard = &self.shards[process::tid() as usize % SHARDS];
        let mut ops = shard.lock();
        if ops.credit == 0 {
            drop(ops);
            let claimed = self.claim();
            if claimed == 0 {
                self.not_recorded.fetch_add(1, Relaxed);
                return None;
            }
            ops = shard.lock();
            ops.credit += claimed;
        }
        ops.credit -= 1;
        let number = ops.begun * SHARDS as u64 + shard.number;
        let id = OpId::mixed(self.seed.load(Relaxed).wrapping_add(number));
        let record = ops.begin(begun, start, lineage(id));
        Some((record, shard))
    }

    // A part of the capacity; 0 if all of it is in use.
    fn claim(&self) -> usize {
        let take = |room: usize| room.checked_sub(room.clamp(1, CLAIM));
        if let Ok(room) = self.room.fetch_update(Relaxed, Relaxed, take) {
            return room.min(CLAIM);
        }
        let mut others = self.shards.iter().map(|shard| shard.lock());
        let credit = others.find_map(|mut ops| (ops.credit > 0).then(|| ops.credit -= 1));
        usize::from(credit.is_some())
    }

    /// A trace for an op without a parent.
    pub(crate) fn new_trace(&self, root: OpId) -> TraceId {
        TraceId::mixed(self.seed.load(Relaxed).rotate_left(32), root.value())
    }

    /// The live ops, in no order. No lock is held when this returns.
    pub(crate) fn live(&self) -> Vec<Arc<Record>> {
        let mut records = Vec::with_capacity(self.count());
        for shard in &self.shards {
            let mut from = 0;
            while let Some(to) = shard.read(from, &mut records) {
                from = to;
                // Without a pause a writer that was woken for the lock would find it taken again. No
                // yield: where all processors are busy, each would cost a time slice.
                (0..PAUSE).for_each(|_| hint::spin_loop());
            }
        }
        records
    }

    /// The live ops by their ids.
    pub(crate) fn by_id(&self) -> IdMap<Arc<Record>> {
        let live = self.live().into_iter();
        live.map(|record| (record.id, record)).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().live).sum()
    }

    /// The ended ops that are kept, in the order they ended.
    pub(crate) fn ended(&self) -> Vec<Arc<Record>> {
        let mut kept: Vec<Arc<Record>> = Vec::new();
        for shard in &self.shards {
            kept.extend(shard.lock().last.iter().map(Arc::clone));
        }
        sort_by_end(&mut kept);
        kept.drain(..kept.len().saturating_sub(self.ended.kept));
        kept.extend(lock(&self.ended.slowest).iter().map(Arc::clone));
        sort_by_end(&mut kept);
        kept.dedup_by_key(|record| record.id);
        kept
    }

    pub(crate) fn begun(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().begun).sum()
    }

    /// Where ended ops leave.
    #[cfg(feature = "otel")]
    pub(crate) fn outlet(&self) -> &Outlet {
        &self.ended.outlet
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
        process::notice_fork();
        let pid = std::process::id();
        if self.seeded_in.swap(pid, Relaxed) != pid {
            self.seed.store(random(), Relaxed);
        }
        match &*known {
            Some(process) if process.pid == pid => process.clone(),
            _ => known.insert(process::identify(&self.service)).clone(),
        }
    }

    pub(crate) fn add_source(&self, source: Weak<dyn Source>) {
        let mut sources = lock(&self.sources);
        // Not each time: whoever has a lock for each of his files would look at all of them for each.
        if sources.len() == sources.capacity() {
            sources.retain(|source| source.strong_count() > 0);
            let left = sources.len();
            sources.reserve(left + 1);
        }
        sources.push(source);
    }

    pub(crate) fn sources(&self) -> Vec<Arc<dyn Source>> {
        lock(&self.sources)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl Listed {
    pub(crate) fn new(
        ops: Vec<Arc<Record>>,
        recent: Vec<Arc<Record>>,
        snapshot: &Snapshot,
    ) -> Self {
        let mut waiting: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, op) in snapshot.ops.iter().enumerate() {
            let wait = op.phase.wait.as_ref();
            if let Some(resource) = wait.and_then(|wait| wait.resource.as_ref()) {
                waiting.entry(resource.clone()).or_default().push(place);
            }
        }
        Self {
            ops,
            recent,
            waiting,
        }
    }

    /// The places of the ops that wait for a resource.
    pub(crate) fn waiting_for(&self, resource: &str) -> &[usize] {
        self.waiting.get(resource).map_or(&[], Vec::as_slice)
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

impl Shard {
    fn new(number: u64, ended: Arc<Ended>) -> Self {
        Self {
            number,
            ended,
            ops: Mutex::default(),
        }
    }

    /// Ends an op that was begun here, once.
    pub(crate) fn end(&self, record: &Arc<Record>, now: Stamp, outcome: Outcome) {
        if !record.end(now, outcome) {
            return;
        }
        let unknown = self.lock().end(record, self.ended.kept);
        // Its memory is freed with no lock held.
        drop(unknown);
        self.ended.consider(record);
    }

    // Takes a few of the live ops, and says where to go on.
    fn read(&self, from: usize, records: &mut Vec<Arc<Record>>) -> Option<usize> {
        let ops = self.lock();
        let to = ops.slots.len().min(from + CHUNK);
        let slots = ops.slots.get(from..to)?;
        records.extend(slots.iter().flatten().map(Arc::clone));
        (to < ops.slots.len()).then_some(to)
    }

    fn lock(&self) -> MutexGuard<'_, Ops> {
        lock(&self.ops)
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Ops {
    fn begin(&mut self, begun: Stamp, start: &mut Start<'_>, lineage: Lineage) -> Arc<Record> {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let record = match self.spare.pop() {
            Some(spare) => Record::renewed(spare, begun, start, lineage, slot),
            None => Arc::new(Record::new(begun, start, lineage, slot)),
        };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Arc::clone(&record));
        }
        self.begun += 1;
        self.live += 1;
        record
    }

    // Returns what is known to nobody any more, if there is no use for it.
    fn end(&mut self, record: &Record, kept: usize) -> Option<Arc<Record>> {
        let ended = self.slots.get_mut(record.slot as usize)?.take()?;
        self.vacant.push(record.slot);
        self.live -= 1;
        self.credit += 1;
        self.last.push_back(ended);
        if self.last.len() <= kept {
            return None;
        }
        let unknown = self.last.pop_front()?;
        // At most by the op that just ends, if none are kept. To look at it here also fetches the memory of the
        // next op: `Arc::get_mut` in the next begin waited for it, a twelfth of begin + phase + end.
        if Arc::strong_count(&unknown) <= 2 && self.spare.len() < SPARE {
            self.spare.push(unknown);
            return None;
        }
        Some(unknown)
    }
}

impl Ended {
    fn new(kept: usize) -> Self {
        Self {
            kept,
            slowest: Mutex::default(),
            slowest_kept: kept.div_ceil(SLOWEST),
            slow_enough: AtomicU64::new(if kept == 0 { u64::MAX } else { 0 }),
            #[cfg(feature = "otel")]
            outlet: Outlet::new(),
        }
    }

    fn consider(&self, record: &Arc<Record>) {
        let took = record.nanos();
        if took > self.slow_enough.load(Relaxed) && !record.is_idle() {
            self.keep_slow(record, took);
        }
        #[cfg(feature = "otel")]
        self.outlet.push(record);
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
}

/// One handle less; true for the last.
pub(crate) fn release(record: &Record) -> bool {
    // Whoever has the last handle is alone: it needs no locked instruction.
    if record.handles.load(Acquire) == 1 {
        return true;
    }
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

fn sort_by_end(records: &mut [Arc<Record>]) {
    records.sort_by_key(|record| (record.ended_at(), record.id));
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
