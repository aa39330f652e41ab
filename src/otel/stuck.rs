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
    record::Record,
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
    was_stuck: bool,
    /// How many partial spans it has had, and when it gets the next.
    sent: u32,
    next: Option<Instant>,
    /// When its caller is asked for, and how long after that again.
    ask: (Instant, Duration),
    caller: Option<Context>,
}

impl Watch {
    /// Looks once, and returns the partial spans that are due of ops that are wanted.
    pub(super) fn look(
        &mut self,
        tracker: &Tracker,
        clock: Clock,
        is_wanted: impl Fn(&Record) -> bool,
    ) -> Vec<SpanData> {
        self.look += 1;
        let old = Filter::new().min_age(tracker.slow_after());
        let snapshot = tracker.snapshot_of(&old);
        let now = Instant::now();
        for op in &snapshot.ops {
            let seen = self.ops.entry(op.id).or_insert_with(|| Seen {
                at_look: 0,
                was_stuck: false,
                sent: 0,
                next: None,
                ask: (now, ASK[0]),
                caller: None,
            });
            seen.at_look = self.look;
            seen.was_stuck |= op.state == State::Stuck;
        }
        let look = self.look;
        self.ops.retain(|_, seen| look - seen.at_look < KEPT);
        self.find_callers(tracker, &snapshot, now);
        self.partial(tracker, &snapshot, clock, is_wanted)
    }

    /// The request that certainly made this FUSE op.
    pub(super) fn caller(&self, op: OpId) -> Option<Context> {
        self.ops.get(&op)?.caller
    }

    /// Whether the op was seen stuck.
    pub(super) fn was_stuck(&self, op: OpId) -> bool {
        self.ops.get(&op).is_some_and(|seen| seen.was_stuck)
    }

    fn partial(
        &mut self,
        tracker: &Tracker,
        snapshot: &Snapshot,
        clock: Clock,
        is_wanted: impl Fn(&Record) -> bool,
    ) -> Vec<SpanData> {
        let now = Instant::now();
        let stamp = Stamp::now();
        let mut due = Vec::new();
        let mut live = None;
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
            let live = live.get_or_insert_with(|| tracker.by_id());
            let Some(record) = live.get(&op.id).filter(|record| is_wanted(record)) else {
                continue;
            };
            let pause = 2_u32.saturating_pow(seen.sent);
            let pause = tracker.stuck_after().saturating_mul(pause).min(SELDOM);
            due.push(spans::partial(
                &Partial {
                    op,
                    record,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::callers;
    use crate::{report::Report, snapshot::Snapshot};

    const POST: &str = "00000000000000a1";
    const READDIR: &str = "00000000000000b2";

    // A server whose thread 7 works for a POST, and a daemon whose readdir thread 7 has called.
    fn report(wchan: &str) -> Report {
        let trace = |digit: &str| digit.repeat(32);
        let snapshot = |pid: u32, op: serde_json::Value| {
            let read = json!({
                "schema": "inflight/1", "clock_ms": 9000.0, "ops": [op],
                "process": {"service": "x", "pid": pid, "boot_id": "b", "pid_ns": "p", "time_ns": "t"},
            });
            serde_json::from_value::<Snapshot>(read).unwrap()
        };
        let server = snapshot(
            1,
            json!({"id": POST, "trace_id": trace("1"), "kind": "http.server", "name": "POST", "age_ms": 5000.0,
                "thread": {"tid": 7, "name": "w", "since_ms": 4000.0, "wchan": wchan}}),
        );
        let daemon = snapshot(
            2,
            json!({"id": READDIR, "trace_id": trace("2"), "kind": "fuse", "name": "readdir", "age_ms": 3000.0,
                "caller": {"tid": 7, "pid": 1}}),
        );
        Report::from_snapshots(vec![daemon, server])
    }

    #[test]
    fn a_fuse_op_is_linked_to_the_request_whose_thread_has_certainly_called_it() {
        let found = callers(&report("request_wait_answer"));

        let [(called, caller)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(called.to_string(), READDIR);
        assert_eq!(caller.to_string(), format!("{}-{POST}", "1".repeat(32)));
    }

    #[test]
    fn a_caller_that_is_only_likely_is_not_linked() {
        assert!(callers(&report("futex_wait")).is_empty());
    }
}
