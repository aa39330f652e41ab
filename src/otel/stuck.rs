//! What the exporter knows of ops that are in flight for long: which are stuck, and which request made a FUSE op.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use opentelemetry_sdk::trace::SpanData;

use super::spans::{self, Clock, Partial};
use crate::{
    clock::Stamp,
    graph::Why,
    id::{Context, OpId},
    report::Report,
    snapshot::{Filter, Kind, Snapshot, State},
    tracker::Tracker,
};

/// From one partial span of an op to the next, at most.
const SELDOM: Duration = Duration::from_secs(600);

/// So many partial spans at most come of one look, the oldest ops first.
const MOST: usize = 256;

/// From one question to the peers to the next: at first, and at most.
const ASK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// What is remembered of an op that has gone is forgotten after so many looks: it may wait in the queue.
const KEPT: u64 = 3;

/// The memory of the looks so far.
#[derive(Default)]
pub(super) struct Watch {
    ops: HashMap<OpId, Seen>,
    look: u64,
}

struct Seen {
    at_look: u64,
    /// How many partial spans it has had, and when it gets the next.
    sent: u32,
    next: Option<Instant>,
    /// When its caller is asked for, and how long after that again.
    ask: (Instant, Duration),
    caller: Option<Context>,
}

impl Watch {
    /// Looks once, and returns the partial spans that are due. With `partial` off it only looks for callers.
    pub(super) fn look(&mut self, tracker: &Tracker, clock: Clock, partial: bool) -> Vec<SpanData> {
        self.look += 1;
        let old = Filter::new().min_age(tracker.slow_after());
        let snapshot = tracker.snapshot_of(&old);
        let now = Instant::now();
        for op in &snapshot.ops {
            let seen = self.ops.entry(op.id).or_insert_with(|| Seen {
                at_look: 0,
                sent: 0,
                next: None,
                ask: (now, ASK[0]),
                caller: None,
            });
            seen.at_look = self.look;
        }
        let look = self.look;
        self.ops.retain(|_, seen| look - seen.at_look < KEPT);
        self.find_callers(tracker, &snapshot, now);
        match partial {
            true => self.partial(tracker, &snapshot, clock, now),
            false => Vec::new(),
        }
    }

    /// The request that certainly made this FUSE op.
    pub(super) fn caller(&self, op: OpId) -> Option<Context> {
        self.ops.get(&op)?.caller
    }

    /// Whether the op was seen stuck.
    pub(super) fn was_stuck(&self, op: OpId) -> bool {
        self.ops.get(&op).is_some_and(|seen| seen.next.is_some())
    }

    fn partial(
        &mut self,
        tracker: &Tracker,
        snapshot: &Snapshot,
        clock: Clock,
        now: Instant,
    ) -> Vec<SpanData> {
        let stamp = Stamp::now();
        let mut due = Vec::new();
        for op in &snapshot.ops {
            let Some(seen) = self.ops.get_mut(&op.id) else {
                continue;
            };
            if op.state != State::Stuck {
                continue;
            }
            if due.len() == MOST || seen.next.is_some_and(|next| now < next) {
                continue;
            }
            // One that ended meanwhile sends its own.
            let Some(record) = tracker.find(op.id) else {
                continue;
            };
            let pause = 2_u32.saturating_pow(seen.sent);
            let pause = tracker.stuck_after().saturating_mul(pause).min(SELDOM);
            due.push(spans::partial(
                &Partial {
                    op,
                    record: &record,
                    snapshot,
                    sequence: seen.sent,
                    now: stamp,
                    link: seen.caller,
                },
                clock,
            ));
            seen.sent += 1;
            seen.next = Some(now + pause);
        }
        due
    }

    fn find_callers(&mut self, tracker: &Tracker, snapshot: &Snapshot, now: Instant) {
        let fuse = snapshot.ops.iter().filter(|op| op.kind == Kind::Fuse);
        let mut asks = false;
        for op in fuse {
            if let Some(seen) = self.ops.get_mut(&op.id)
                && seen.caller.is_none()
                && now >= seen.ask.0
            {
                asks = true;
                let pause = seen.ask.1;
                seen.ask = (now + pause, (pause * 2).min(ASK[1]));
            }
        }
        if !asks {
            return;
        }
        #[cfg(feature = "debug")]
        let report = Report::collect(tracker);
        #[cfg(not(feature = "debug"))]
        let report = Report::local(tracker);
        for (called, caller) in callers(&report) {
            if let Some(seen) = self.ops.get_mut(&called) {
                seen.caller = Some(caller);
            }
        }
    }
}

// The FUSE ops that a thread has certainly made for a request, with that request.
fn callers(report: &Report) -> Vec<(OpId, Context)> {
    let edges = report.edges.iter();
    let certain =
        edges.filter(|edge| edge.why == Why::Thread.word() && edge.certainty == "certain");
    let found = certain.filter_map(|edge| {
        let (caller, called): (OpId, OpId) = (edge.from.parse().ok()?, edge.to.parse().ok()?);
        let trace = report.snapshots().find_map(|snapshot| snapshot.op(caller));
        let context = Context {
            trace: trace?.trace_id,
            op: caller,
        };
        Some((called, context))
    });
    found.collect()
}
