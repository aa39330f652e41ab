//! The tracker of a process: it begins ops and shows what is in flight.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt, mem,
    sync::{Arc, Weak},
    time::Duration,
};

#[cfg(feature = "otel")]
use crate::outlet::Outlet;
use crate::{
    clock::Stamp,
    id::{IdMap, OpId},
    live::{Listed, Shared, Source},
    op::{Op, with_current},
    record::{Detail, Lineage, Record, Target, Teller, state_of},
    snapshot::{
        EndedOp, Filter, Kind, LiveOp, Off, On, Process, SCHEMA, Snapshot, State, Totals,
        from_millis, millis,
    },
    text,
};

pub(crate) use crate::record::{Parent, Start};

/// Knows every op its process is in the middle of.
///
/// A clone is another handle to the same tracker. One a process is enough, and is what the reports
/// expect. `INFLIGHT=off` in the environment turns it off.
///
/// ```
/// use inflight::Tracker;
///
/// let tracker = Tracker::new("indexer");
/// let op = tracker.begin("reindex");
/// op.phase("open index");
///
/// let now = tracker.snapshot();
/// assert_eq!(now.ops[0].name, "reindex");
/// assert_eq!(now.ops[0].phase.path, ["open index"]);
///
/// drop(op);
/// assert!(tracker.snapshot().ops.is_empty());
/// ```
#[derive(Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
}

/// Settings of a [`Tracker`].
#[derive(Clone)]
pub struct Builder {
    service: String,
    slow_after: Duration,
    stuck_after: Duration,
    capacity: usize,
    history: usize,
    peers: Vec<String>,
}

impl Tracker {
    /// Makes a tracker with default settings; `service` is the name reports show.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self::builder(service).build()
    }

    /// Makes a tracker with settings of its own.
    #[must_use]
    pub fn builder(service: impl Into<String>) -> Builder {
        Builder {
            service: service.into(),
            slow_after: Duration::from_secs(1),
            stuck_after: Duration::from_secs(10),
            capacity: 65_536,
            history: 256,
            peers: Vec::new(),
        }
    }

    /// Begins a task, under the current op if there is one.
    ///
    /// It is not current until [`Op::enter`] or [`in_op`](crate::FutureExt::in_op) makes it so, and
    /// nobody waits for it until someone says [`waiting_for`](crate::waiting_for).
    pub fn begin(&self, name: impl Into<Cow<'static, str>>) -> Op {
        self.start(Start {
            kind: Kind::Task,
            name: name.into(),
            target: Target::Unknown,
            route: "",
            detail: Detail::None,
            parent: Parent::Current,
            phase: None,
        })
    }

    /// Turns recording on or off. Ops in flight stay as they are.
    pub fn set_enabled(&self, enabled: bool) {
        let off = (!enabled).then(|| Off {
            since: utc_now(),
            why: "set_enabled(false)".to_owned(),
        });
        self.shared.set_enabled(off);
    }

    /// Notices, where a process begins to serve, that it is not the one that made the tracker: from then on its
    /// ops have ids of their own.
    #[cfg(any(feature = "debug", feature = "fuse", feature = "http"))]
    pub(crate) fn begins_to_serve(&self) {
        self.shared.process();
    }

    /// Says whether new ops are recorded.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.is_enabled()
    }

    /// Returns all that is in flight now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_of(&Filter::new())
    }

    /// Returns what is in flight now and passes the filter; the rest is counted.
    ///
    /// Ops that begin, move or end meanwhile are not held up.
    #[must_use]
    pub fn snapshot_of(&self, filter: &Filter) -> Snapshot {
        let shared = &self.shared;
        // Before the ops are listed: what begins meanwhile must not pass for ended.
        let begun = shared.begun();
        let live = shared.live().into_iter();
        let now = Stamp::now();
        // The keys beside each other: to sort by what the records say would fetch each many times. They come in
        // runs that are sorted already, of which the stable sort makes use.
        let mut live: Vec<_> = live
            .map(|record| (record.begun, record.id, record))
            .collect();
        live.sort_by_key(|(begun, id, _)| (*begun, *id));
        let in_flight = live.len();
        let ended = begun.saturating_sub(in_flight as u64);
        live.retain(|(begun, _, record)| filter.keeps(record.kind, now.since(*begun)));
        live.truncate(filter.most());
        let live: Vec<_> = live.into_iter().map(|(.., record)| record).collect();
        let recent = shared.ended();

        let mut teller = Teller::new(shared.slow_after, shared.stuck_after);
        let mut snapshot = Snapshot {
            schema: SCHEMA.to_owned(),
            taken_at: utc_now(),
            clock_ms: millis(Duration::from_nanos(now.0)),
            process: shared.process(),
            off: shared.off(),
            slow_after_ms: millis(shared.slow_after),
            stuck_after_ms: millis(shared.stuck_after),
            ops: live.iter().map(|record| teller.tell(record, now)).collect(),
            recent: recent
                .iter()
                .map(|record| EndedOp {
                    op: teller.tell(record, record.ended_at()),
                    duration_ms: millis(Duration::from_nanos(record.nanos())),
                    ended_ms: millis(now.since(record.ended_at())),
                    outcome: record.outcome(),
                })
                .collect(),
            totals: Totals {
                begun: ended + in_flight as u64,
                ended,
                not_recorded: shared.not_recorded(),
                left_out: (in_flight - live.len()) as u64,
                malformed_headers: shared.malformed(),
                spans_dropped: self.spans_dropped(),
                spans_problem: self.spans_problem(),
            },
            ..Snapshot::default()
        };
        let listed = Listed::new(live, recent, &snapshot);
        for source in shared.sources() {
            source.describe(&mut snapshot, &listed, now);
        }
        snapshot
            .resources
            .sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        let kept = snapshot.ops.len();
        if kept < in_flight {
            self.add_waited_for(&mut snapshot.ops, |record| teller.tell(record, now));
        }
        share_progress(&mut snapshot.ops, shared.slow_after, shared.stuck_after);
        snapshot.ops.truncate(kept);
        snapshot
    }

    // What an op waits for counts for its progress, shown or not.
    fn add_waited_for(&self, ops: &mut Vec<LiveOp>, mut describe: impl FnMut(&Record) -> LiveOp) {
        if ops.iter().all(|op| waited_for(op).next().is_none()) {
            return;
        }
        let live = self.shared.by_id();
        let mut known: HashSet<OpId> = ops.iter().map(|op| op.id).collect();
        let mut at = 0;
        while let Some(op) = ops.get(at) {
            let ids = waited_for(op).filter(|id| known.insert(*id));
            let found: Vec<_> = ids.filter_map(|id| live.get(&id)).collect();
            ops.extend(found.iter().map(|record| describe(record)));
            at += 1;
        }
    }

    /// Begins an op of any kind.
    pub(crate) fn start(&self, mut start: Start<'_>) -> Op {
        let now = Stamp::now();
        let parent = mem::replace(&mut start.parent, Parent::Root);
        #[cfg(feature = "otel")]
        let active = match parent {
            Parent::Current => self.shared.outlet().active(),
            Parent::Root | Parent::Remote(..) => None,
        };
        let mut waiter = None;
        let recorded = self.shared.insert(now, &mut start, |id| {
            let root = || (self.shared.new_trace(id), None, None, None);
            let (trace, trace_flags, parent, parent_from) = match parent {
                Parent::Remote(context, from, flags) => {
                    (context.trace, flags, Some(context.op), Some(from))
                }
                Parent::Root => root(),
                Parent::Current => match current() {
                    Some(parent) => {
                        let ids = (parent.trace(), parent.trace_flags(), Some(parent.id), None);
                        waiter = Some(parent);
                        ids
                    }
                    None => root(),
                },
            };
            Lineage {
                id,
                trace,
                trace_flags,
                parent,
                parent_from,
            }
        });
        let Some((record, shard)) = recorded else {
            return Op::unrecorded();
        };
        // Another tracing goes its own way: whoever works under its span joins its trace.
        #[cfg(feature = "otel")]
        if let Some(active) = active
            && (record.parent.is_none() || record.trace() != active.trace)
        {
            record.take_trace(active.trace, active.span, active.flags);
        }
        // A call is waited for by the op that is current when it begins; of a task that is not known.
        if let Some(waiter) = waiter
            && *record.kind == Kind::HttpClient
        {
            record.waited_by(now, waiter);
        }
        Op::new(record, shard)
    }

    /// Has a resource or a mount add its part to every snapshot, as long as it lives.
    pub(crate) fn add_source(&self, source: &Arc<impl Source + 'static>) {
        let source: Weak<dyn Source> = Arc::downgrade(source) as Weak<dyn Source>;
        self.shared.add_source(source);
    }

    /// How many ops in flight pass the filter, whatever its limit.
    #[cfg(feature = "debug")]
    pub(crate) fn count(&self, filter: &Filter) -> usize {
        let now = Stamp::now();
        let live = self.shared.live().into_iter();
        let kept = live.filter(|record| filter.keeps(record.kind, now.since(record.begun)));
        kept.count()
    }

    /// How many ops in flight are so. `is` is our own code and takes no lock.
    #[cfg(feature = "fuse")]
    pub(crate) fn count_live(&self, is: impl Fn(&Detail) -> bool) -> u64 {
        let live = self.shared.live();
        let counts = live.iter().filter(|record| {
            let mut counts = false;
            record.detail(|detail| counts = is(detail));
            counts
        });
        counts.count() as u64
    }

    /// Says whether ended ops leave as spans.
    #[cfg(feature = "http")]
    pub(crate) fn is_exported(&self) -> bool {
        #[cfg(feature = "otel")]
        return self.shared.outlet().is_open();
        #[cfg(not(feature = "otel"))]
        false
    }

    /// Where ended ops leave.
    #[cfg(feature = "otel")]
    pub(crate) fn outlet(&self) -> &Outlet {
        self.shared.outlet()
    }

    /// The ops in flight, by their ids.
    #[cfg(feature = "otel")]
    pub(crate) fn by_id(&self) -> IdMap<Arc<Record>> {
        self.shared.by_id()
    }

    fn spans_dropped(&self) -> u64 {
        #[cfg(feature = "otel")]
        return self.shared.outlet().lost();
        #[cfg(not(feature = "otel"))]
        0
    }

    fn spans_problem(&self) -> Option<String> {
        #[cfg(feature = "otel")]
        return self.shared.outlet().problem();
        #[cfg(not(feature = "otel"))]
        None
    }

    /// Who this process is now.
    #[must_use]
    pub fn process(&self) -> Process {
        self.shared.process()
    }

    /// The URLs of the processes that reports ask besides those of this machine.
    #[cfg(feature = "debug")]
    pub(crate) fn peers(&self) -> &[String] {
        &self.shared.peers
    }

    /// After how long without progress an op is slow.
    pub(crate) fn slow_after(&self) -> Duration {
        self.shared.slow_after
    }

    /// After how long without progress an op is stuck.
    #[cfg(feature = "otel")]
    pub(crate) fn stuck_after(&self) -> Duration {
        self.shared.stuck_after
    }

    /// Counts a header that was ignored.
    #[cfg(feature = "http")]
    pub(crate) fn count_malformed(&self) {
        self.shared.count_malformed();
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("service", &self.shared.service)
            .field("in_flight", &self.shared.count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<String> = self.peers.iter().map(|url| text::clean_url(url)).collect();
        f.debug_struct("Builder")
            .field("service", &self.service)
            .field("slow_after", &self.slow_after)
            .field("stuck_after", &self.stuck_after)
            .field("capacity", &self.capacity)
            .field("history", &self.history)
            .field("peers", &peers)
            .finish()
    }
}

impl Builder {
    /// Sets after how long without progress an op is slow. Default: 1 s.
    #[must_use]
    pub fn slow_after(mut self, after: Duration) -> Self {
        self.slow_after = after;
        self
    }

    /// Sets after how long without progress an op is stuck. Default: 10 s.
    #[must_use]
    pub fn stuck_after(mut self, after: Duration) -> Self {
        self.stuck_after = after;
        self
    }

    /// Sets how many ops may be in flight at once; what comes above is counted, not recorded.
    /// Default: 65,536.
    #[must_use]
    pub fn capacity(mut self, ops: usize) -> Self {
        self.capacity = ops;
        self
    }

    /// Sets how many of the last ended ops are kept, and an eighth as many of the slowest.
    /// Default: 256; 0 keeps none.
    #[must_use]
    pub fn history(mut self, ops: usize) -> Self {
        self.history = ops;
        self
    }

    /// Adds a process whose snapshot every report is to ask for, by the URL of its report. Default: those
    /// in `INFLIGHT_PEERS`, separated by commas; and always the processes of this machine.
    ///
    /// No name is resolved on the way to a report: the host is an address, or `localhost`.
    #[must_use]
    pub fn peer(mut self, url: impl Into<String>) -> Self {
        self.peers.push(url.into());
        self
    }

    /// Makes the tracker.
    #[must_use]
    pub fn build(mut self) -> Tracker {
        let named = std::env::var("INFLIGHT_PEERS").unwrap_or_default();
        let named = named.split(',').map(str::trim);
        let named = named.filter(|url| !url.is_empty());
        self.peers.extend(named.map(str::to_owned));
        let shared = Shared::new(
            text::clean(&self.service),
            self.slow_after,
            self.stuck_after,
            self.capacity,
            self.history,
            self.peers,
        );
        let wanted_off = std::env::var("INFLIGHT")
            .is_ok_and(|value| matches!(value.as_str(), "off" | "0" | "false"));
        if wanted_off {
            shared.set_enabled(Some(Off {
                since: utc_now(),
                why: "INFLIGHT=off".to_owned(),
            }));
        }
        Tracker {
            shared: Arc::new(shared),
        }
    }
}

/// The time of day, UTC, RFC 3339 with milliseconds.
fn utc_now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn current() -> Option<Arc<Record>> {
    with_current(|op| op.record().map(Arc::clone)).flatten()
}

// The ops whose end would free this one.
fn waited_for(op: &LiveOp) -> impl Iterator<Item = OpId> {
    let wait = op.phase.wait.iter();
    let ops = wait.filter(|wait| matches!(wait.on, On::Call | On::Op));
    ops.flat_map(|wait| wait.ops.iter().copied())
}

// What moves the op that is waited for moves the one that waits.
fn share_progress(ops: &mut [LiveOp], slow: Duration, stuck: Duration) {
    if ops.iter().all(|op| waited_for(op).next().is_none()) {
        return;
    }
    let index: IdMap<usize> = ops.iter().enumerate().map(|(n, op)| (op.id, n)).collect();
    let waits = |op| waited_for(op).filter_map(|id| index.get(&id).copied());
    let edges: Vec<Vec<usize>> = ops.iter().map(|op| waits(op).collect()).collect();
    // The most recently moved first: each gives its progress to all that wait for it, once.
    let mut waited_by: Vec<Vec<usize>> = vec![Vec::new(); ops.len()];
    for (waiter, waited) in edges.iter().enumerate() {
        for &op in waited {
            waited_by[op].push(waiter);
        }
    }
    let mut order: Vec<usize> = (0..ops.len()).collect();
    order.sort_by(|a, b| ops[*a].progress_ms.total_cmp(&ops[*b].progress_ms));
    let mut done = vec![false; ops.len()];
    for first in order {
        let progress = ops[first].progress_ms;
        let mut todo = vec![first];
        while let Some(op) = todo.pop() {
            if mem::replace(&mut done[op], true) {
                continue;
            }
            if ops[op].progress_ms > progress {
                ops[op].progress_ms = progress;
                let since = from_millis(progress);
                if !matches!(ops[op].state, State::Idle | State::Queued) {
                    ops[op].state = state_of(since, slow, stuck);
                }
            }
            todo.extend(&waited_by[op]);
        }
    }
}
