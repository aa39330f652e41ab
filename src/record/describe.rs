//! How an op is told: as plain data, its times as of one moment.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use smallvec::SmallVec;

use super::{Detail, Inner, LEVELS, Record, Runner, Step, Target, Waiting, WaitsFor};
use crate::{
    clock::Stamp,
    id::OpId,
    snapshot::{Caller, Event, Fuse, Http, Kind, LiveOp, On, Phase, State, Thread, Wait, millis},
    text,
};

const GAP: &str = "..";

/// Tells ops as plain data. What an op is doing is copied, into memory that the op before has left, and formatted
/// when its lock is free again: nobody who moves an op waits for that.
#[derive(Debug)]
pub(crate) struct Teller {
    slow: Duration,
    stuck: Duration,
    copy: Option<Inner>,
}

impl Teller {
    /// After how long without progress an op is slow, and stuck.
    pub(crate) fn new(slow: Duration, stuck: Duration) -> Self {
        Self {
            slow,
            stuck,
            copy: None,
        }
    }

    /// The op as plain data, its times as of `now`: one that ends meanwhile is told as it was.
    pub(crate) fn tell(&mut self, record: &Record, now: Stamp) -> LiveOp {
        let inner = record.lock().copy_to(&mut self.copy);
        record.describe(inner, now, self.slow, self.stuck)
    }
}

impl Record {
    fn describe(&self, inner: &Inner, now: Stamp, slow: Duration, stuck: Duration) -> LiveOp {
        let since = |stamp: Stamp| millis(now.since(stamp));
        let progress = now.since(Stamp(self.progress.load(Relaxed)));
        let mut runners: SmallVec<[Runner; 2]> =
            self.running.runner(self.begun).into_iter().collect();
        runners.extend_from_slice(inner.more_runners());
        runners.sort_by_key(|runner| (runner.since, runner.tid));
        // A thread that entered the op twice is one thread, since its first entry.
        let mut threads: SmallVec<[Thread; 1]> = SmallVec::new();
        for runner in runners {
            if threads.iter().all(|thread| thread.tid != runner.tid) {
                threads.push(Thread {
                    tid: runner.tid,
                    since_ms: since(runner.since),
                    ..Thread::default()
                });
            }
        }
        let mut threads = threads.into_iter();
        let (mut caller, mut fuse, mut http) = (None, None, None);
        match &inner.detail {
            Detail::None => {}
            Detail::Fuse {
                unique,
                inode,
                tid,
                uid,
                mount,
            } => {
                caller = Some(Box::new(Caller {
                    tid: *tid,
                    uid: *uid,
                    ..Caller::default()
                }));
                fuse = Some(Box::new(Fuse {
                    unique: unique.to_string(),
                    inode: inode.to_string(),
                    mount: text::visible(mount),
                }));
            }
            Detail::Http { peer, status } => {
                http = Some(Box::new(Http {
                    peer: match (peer, inner.subject.target()) {
                        (Some(peer), _) => Some(peer.to_string()),
                        (None, Target::Url(url)) if *self.kind == Kind::HttpClient => {
                            text::peer_of(&url)
                        }
                        (None, _) => None,
                    },
                    status: *status,
                    route: inner.subject.route().map(text::visible),
                    sent_bytes: self.sent.load(Relaxed),
                    received_bytes: self.received.load(Relaxed),
                }));
            }
        }
        let queued = inner
            .waits
            .iter()
            .any(|wait| matches!(wait.what, WaitsFor::Slot));
        let state = match inner.levels.last() {
            _ if queued => State::Queued,
            Some(level) if level.idle => State::Idle,
            _ => state_of(progress, slow, stuck),
        };
        let levels = inner.shown_levels();
        let mut path = with_gaps(
            inner.levels.len(),
            levels.map(|(depth, l)| (depth, text::clean(&l.name))),
        );
        if let (Some(step), Some(innermost)) = (self.owed(), path.last_mut()) {
            innermost.push_str(step);
        }
        LiveOp {
            id: self.id,
            trace_id: self.trace(),
            parent_id: self.parent,
            parent_from: self.parent_from.cloned(),
            kind: self.kind.clone(),
            name: text::clean(&self.name),
            target: match inner.subject.target() {
                Target::Unknown => fuse
                    .as_ref()
                    .map(|fuse| format!("inode {}", fuse.inode))
                    .unwrap_or_default(),
                Target::Text(text) => text::clean(&text),
                Target::Url(url) => text::clean_url(&url),
            },
            age_ms: since(self.begun),
            progress_ms: millis(progress),
            state,
            phase: Phase {
                path,
                age_ms: since(inner.levels.last().map_or(self.begun, |level| level.since)),
                wait: wait_of(&inner.waits, now),
            },
            events: self.events(inner),
            events_dropped: inner.trail.dropped + inner.hidden_levels().len() as u64,
            error: inner.failure().map(text::clean),
            thread: threads.next().map(Box::new),
            more_threads: threads.collect(),
            caller,
            fuse,
            http,
        }
    }

    // The next step and who owes it, to be put behind the innermost phase.
    fn owed(&self) -> Option<&'static str> {
        const TEXTS: [(Step, &str); 6] = [
            (Step::Handler, ": waiting for the handler's next chunk"),
            (Step::Client, ": waiting for the client to read"),
            (Step::Server, ": waiting for the server's next chunk"),
            (Step::Reader, ": waiting for the caller to read"),
            (Step::Writer, ": waiting for the caller's next chunk"),
            (Step::ServerReads, ": waiting for the server to read"),
        ];
        let step = self.step.load(Relaxed);
        let text = TEXTS.iter().find(|(of, _)| *of as u8 == step)?.1;
        (!self.has_ended()).then_some(text)
    }

    // Past phases and the present ones, in the order they began, each with the names above it.
    fn events(&self, inner: &Inner) -> Vec<Event> {
        let past = inner.trail.past.iter().map(|past| {
            let waited = past.is_wait.then(|| millis(past.until.since(past.at)));
            (past.at, past.depth as usize, &past.name, waited)
        });
        let levels = inner.shown_levels();
        let now = levels.map(|(depth, level)| (level.since, depth, &level.name, None));
        // No allocation for those that have not gone far, which most have not.
        let mut all: SmallVec<[_; 4]> = past.chain(now).collect();
        all.sort_by_key(|(at, depth, ..)| (*at, *depth));
        let mut path: SmallVec<[(usize, &str); 4]> = SmallVec::new();
        all.into_iter()
            .map(|(at, depth, name, for_ms)| {
                let phase = if for_ms.is_some() {
                    format!("waited for {}", text::clean(name))
                } else {
                    path.retain(|(above, _)| *above < depth);
                    path.push((depth, name));
                    match &path[..] {
                        [(0, only)] => text::clean(only),
                        path => {
                            let names =
                                path.iter().map(|(depth, name)| (*depth, text::clean(name)));
                            text::visible(&with_gaps(path.len(), names).join(" > "))
                        }
                    }
                };
                Event {
                    at_ms: millis(at.since(self.begun)),
                    phase,
                    for_ms,
                }
            })
            .collect()
    }
}

// The names, about so many, with a mark where the depth jumps.
fn with_gaps(about: usize, path: impl Iterator<Item = (usize, String)>) -> Vec<String> {
    // Not more than there is: a vector that grows by itself takes room for four, which nearly none needs.
    let mut names = Vec::with_capacity(about.min(2 * LEVELS + 1));
    let mut next = 0;
    for (depth, name) in path {
        if depth != next {
            names.push(GAP.to_owned());
        }
        names.push(name);
        next = depth + 1;
    }
    names
}

/// Judges by progress alone.
pub(crate) fn state_of(progress: Duration, slow: Duration, stuck: Duration) -> State {
    if progress >= stuck {
        State::Stuck
    } else if progress >= slow {
        State::Slow
    } else {
        State::Running
    }
}

// The last wait names the kind. Waits for ops go together, whatever their kind: any one may free the op.
fn wait_of(waits: &[Waiting], now: Stamp) -> Option<Box<Wait>> {
    let last = waits.last()?;
    let op_of = |waiting: &Waiting| match waiting.what {
        WaitsFor::Call(op) | WaitsFor::Op(op) => Some(op),
        WaitsFor::Resource { .. } | WaitsFor::Slot => None,
    };
    let mut ops: Vec<OpId> = waits.iter().filter_map(op_of).collect();
    ops.dedup();
    let (on, resource) = match &last.what {
        WaitsFor::Call(_) => (On::Call, None),
        WaitsFor::Op(_) => (On::Op, None),
        WaitsFor::Resource { id, .. } => (On::Resource, Some(id.to_string())),
        WaitsFor::Slot => (On::Queue, None),
    };
    let others = if op_of(last).is_some() {
        waits.len() - waits.iter().filter_map(op_of).count()
    } else {
        // The holders, or the ops in the slots, are filled in by whoever knows them.
        ops.clear();
        waits.len() - 1
    };
    Some(Box::new(Wait {
        on,
        all: waits.len() == 1,
        ops,
        since_ms: millis(now.since(last.since)),
        resource,
        others: others as u64,
    }))
}
