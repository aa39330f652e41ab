//! All that one process is in the middle of at one moment, as owned data: the schema `inflight/1`.
//!
//! Durations are milliseconds with up to three decimals, ids are lower-case hex, and numbers that may
//! pass 2^53 are strings. A reader ignores fields it does not know and keeps values it does not know
//! (`Other`). All fields but the two ids of an op may be missing.
//!
//! ```
//! use inflight::{Snapshot, Tracker};
//!
//! let tracker = Tracker::new("example");
//! let op = tracker.begin("reindex");
//! op.phase("open index");
//!
//! let json = serde_json::to_string(&tracker.snapshot())?;
//! let read: Snapshot = serde_json::from_str(&json)?;
//! assert_eq!(read.schema, "inflight/1");
//! assert_eq!(read.ops[0].phase.path, ["open index"]);
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{OpId, TraceId};

/// The version of the schema this crate writes.
pub const SCHEMA: &str = "inflight/1";

/// All live ops, resources and mounts of one process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: String,
    /// When it was taken, UTC, RFC 3339 with milliseconds.
    pub taken_at: String,
    /// The same moment on `CLOCK_MONOTONIC`, which the processes of one boot share.
    pub clock_ms: f64,
    /// Whose snapshot it is.
    pub process: Process,
    /// Set when the tracker is off: what is in flight is then not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off: Option<Off>,
    /// Without progress for this long, an op is slow; a second if it is missing.
    #[serde(default = "a_second")]
    pub slow_after_ms: f64,
    /// Without progress for this long, an op is stuck; ten seconds if it is missing.
    #[serde(default = "ten_seconds")]
    pub stuck_after_ms: f64,
    /// The ops in flight, oldest first.
    pub ops: Vec<LiveOp>,
    /// The resources, by name.
    pub resources: Vec<Resource>,
    /// The mounts this process serves.
    pub mounts: Vec<Mount>,
    /// The last and the slowest of the ops that ended, in the order they ended.
    pub recent: Vec<EndedOp>,
    /// Counts since the tracker was made.
    pub totals: Totals,
}

/// Which process a snapshot is of: boot, pid namespace, pid and start time name it for good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// The name given to the tracker.
    pub service: String,
    /// Process id, in its own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot, from /proc/self/stat.
    pub start_ticks: String,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Inode of the pid namespace.
    pub pid_ns: String,
    /// Inode of the time namespace: clocks of two processes compare only within one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time_ns: String,
    /// Host name.
    pub host: String,
    /// Path of the program.
    pub exe: String,
}

/// Since when, and why, nothing is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Off {
    /// UTC, RFC 3339.
    pub since: String,
    /// What turned it off: `INFLIGHT=off` or `set_enabled(false)`.
    pub why: String,
}

/// One op in flight.
///
/// What few ops have is boxed: of 100,000 in a snapshot each byte counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveOp {
    /// The op's id, which is its span id.
    pub id: OpId,
    /// The trace it belongs to.
    pub trace_id: TraceId,
    /// The op it was begun under, here or in the process that sent the request.
    #[serde(default)]
    pub parent_id: Option<OpId>,
    /// How the parent is known; absent for a parent in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_from: Option<ParentFrom>,
    /// What kind of op it is.
    #[serde(default)]
    pub kind: Kind,
    /// `flush`, `POST`, or the name given to a task.
    #[serde(default)]
    pub name: String,
    /// What it works on: a path, a URL. Begins with `~` when it was inferred.
    #[serde(default)]
    pub target: String,
    /// Time since it began.
    #[serde(default)]
    pub age_ms: f64,
    /// Time since it, or an op it waits for in this process, last moved.
    #[serde(default)]
    pub progress_ms: f64,
    /// Judged from progress and the thresholds.
    #[serde(default)]
    pub state: State,
    /// What it is doing now.
    #[serde(default)]
    pub phase: Phase,
    /// What it did before, first and last; the middle is counted in `events_dropped`.
    #[serde(default)]
    pub events: Vec<Event>,
    /// How many events are left out between the first and the last ones.
    #[serde(default)]
    pub events_dropped: u64,
    /// What [`fail`](crate::Op::fail) said, if the op goes on after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The thread that works for it now, the longest if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<Box<Thread>>,
    /// Further threads that work for it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_threads: Vec<Thread>,
    /// Who made the FUSE call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Box<Caller>>,
    /// What only FUSE ops have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuse: Option<Box<Fuse>>,
    /// What only HTTP ops have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Box<Http>>,
}

/// One op that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedOp {
    /// The op as it last was; its times count to its end.
    #[serde(flatten)]
    pub op: LiveOp,
    /// From begin to end.
    #[serde(default)]
    pub duration_ms: f64,
    /// Time since it ended.
    #[serde(default)]
    pub ended_ms: f64,
    /// How it ended.
    #[serde(default)]
    pub outcome: Outcome,
}

/// What an op is doing now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phase {
    /// The nested phases, outermost first.
    pub path: Vec<String>,
    /// Time since the innermost began.
    pub age_ms: f64,
    /// What the op waits for; nothing known if absent.
    pub wait: Option<Box<Wait>>,
}

/// What an op waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wait {
    /// What kind of thing it is.
    pub on: On,
    /// The ops waited for: the calls, the tasks, the holders of the resource, the ops in the slots.
    pub ops: Vec<OpId>,
    /// Whether all of them must end; if not, any one frees the op.
    pub all: bool,
    /// Since when: the youngest, where several things are waited for.
    pub since_ms: f64,
    /// The [`Resource::id`] waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// How many further waits the op has at once, of another kind: any of them may free it.
    #[serde(skip_serializing_if = "is_zero")]
    pub others: u64,
}

/// One step in the trail of an op.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Time from the op's begin.
    pub at_ms: f64,
    /// The nested phases that began, or what was waited for.
    pub phase: String,
    /// How long it was waited for, where the event is a wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<f64>,
}

/// A thread of the process the snapshot is of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thread {
    /// Thread id.
    pub tid: u32,
    /// Its name; empty until it was looked up in /proc.
    pub name: String,
    /// Since when it works for the op, up to 10 ms too long: as of the last tick of the kernel's clock.
    pub since_ms: f64,
    /// Where it sleeps in the kernel, read by its own process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
}

/// The thread that made a FUSE call, as the kernel named it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// Thread id in the daemon's pid namespace; 0 is unknown.
    pub tid: u32,
    /// Process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// User id.
    pub uid: u32,
    /// Process state letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Where it sleeps in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// The process it is a child of, and still runs the program of: it has not reached its exec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_of: Option<Parent>,
    /// What its process has open on FUSE mounts, if it has waited for long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<OpenFile>,
    /// Why the rest is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// The parent of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parent {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
}

/// A file on a FUSE mount that a process has open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenFile {
    /// The descriptor.
    pub fd: u32,
    /// The path, as the kernel shows it: of a mount that was detached, from its root.
    pub path: String,
    /// It closes on exec: the process opened it itself, and no child has it.
    pub closes_on_exec: bool,
    /// Its mount is mounted nowhere any more, as after a lazy unmount.
    pub is_detached: bool,
}

/// A thread that a FUSE mount holds up without a request of its own: it waits in the kernel behind another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeldUp {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the process.
    pub comm: String,
    /// State letter.
    pub state: String,
    /// Where it sleeps in the kernel.
    pub wchan: String,
    /// Which mount; absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// The file, if the call names it by a descriptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether the mount is only likely: the one that the directory of the process is in, or the only one where
    /// anything waits.
    pub is_likely: bool,
}

/// What only FUSE ops have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fuse {
    /// The kernel's number of the request.
    pub unique: String,
    /// The inode number.
    pub inode: String,
    /// Where the file system is mounted.
    pub mount: String,
}

/// What only HTTP ops have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// The other side: its address, else host and port.
    pub peer: Option<String>,
    /// The status of the response, once there is one.
    pub status: Option<u16>,
    /// The route template the framework matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Body bytes this side has sent.
    pub sent_bytes: u64,
    /// Body bytes this side has received.
    pub received_bytes: u64,
}

/// A named lock or pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// Tells resources of one name apart, within the process.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How many may hold it at once.
    pub capacity: u64,
    /// Who holds it, oldest first.
    pub holders: Vec<Party>,
    /// Who waits for it, oldest first.
    pub waiters: Vec<Party>,
}

/// One holder of a resource, or one that waits for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Party {
    /// The op, if one was current.
    pub op: Option<OpId>,
    /// The thread, if no op was current. An async lock that was taken without an op has neither: a task goes from
    /// thread to thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread: Option<Thread>,
    /// Since when.
    pub since_ms: f64,
}

/// A FUSE mount served by the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where it is mounted.
    pub path: String,
    /// The number of its FUSE connection, if known.
    pub connection: Option<u64>,
    /// What the kernel says is waiting; `None` if it could not be read.
    pub kernel_waiting: Option<u64>,
    /// Ops in flight here.
    pub tracked: u64,
    /// Of these, parked for want of a slot.
    pub queued: u64,
    /// Bytes of copied arguments that the parked ones keep.
    pub queued_bytes: u64,
    /// How many ops run at once.
    pub slots: u64,
    /// What else a reader must know about this mount, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A process that listens at an address which a call waits on, and that runs no tracker we know of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// The address, as the calls name it.
    pub peer: String,
    /// The processes whose calls lead there: in another network namespace the address is another's.
    pub callers: Vec<u32>,
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub comm: String,
    /// Process state letter.
    pub state: String,
}

/// Counts since the tracker was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Ops begun and recorded.
    pub begun: u64,
    /// Ops ended.
    pub ended: u64,
    /// Ops not recorded because the capacity was reached.
    pub not_recorded: u64,
    /// Live ops that this snapshot leaves out, by a [`Filter`].
    pub left_out: u64,
    /// `inflight-op` and `traceparent` headers that were ignored because they were malformed or doubled.
    pub malformed_headers: u64,
    /// Ended ops whose spans never arrive: the exporter's queue was full, or nobody took them.
    #[serde(skip_serializing_if = "is_zero")]
    pub spans_dropped: u64,
    /// Why spans do not arrive now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spans_problem: Option<String>,
}

/// Which ops a snapshot is to hold. The default is all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    limit: Option<usize>,
    min_age: Duration,
    kind: Option<Kind>,
}

/// The kinds of op.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Kind {
    /// A FUSE request being answered.
    #[serde(rename = "fuse")]
    Fuse,
    /// An HTTP request that was sent.
    #[serde(rename = "http.client")]
    HttpClient,
    /// An HTTP request being answered.
    #[serde(rename = "http.server")]
    HttpServer,
    /// A named piece of work.
    #[default]
    #[serde(rename = "task")]
    Task,
    /// A kind this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// How an op fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// It moved not long ago.
    #[default]
    Running,
    /// No progress for the slow threshold.
    Slow,
    /// No progress for the stuck threshold.
    Stuck,
    /// Long by design.
    Idle,
    /// Parked until a slot is free.
    Queued,
    /// A state this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// What kind of thing is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum On {
    /// A request the op sent.
    Call,
    /// Another op, as [`waiting_for`](crate::waiting_for) said.
    #[default]
    Op,
    /// A resource.
    Resource,
    /// A slot of the mount.
    Queue,
    /// A kind this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// How an op ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The work is done.
    #[default]
    Completed,
    /// Somebody reported an error.
    Failed,
    /// The request was given up before there was a response.
    DroppedBeforeResponse,
    /// The request was given up while a body was under way.
    DroppedInBody,
    /// The last handle is gone; whether and how it was answered cannot be seen.
    Returned,
    /// It ended in a panic.
    Panicked,
    /// An outcome this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// How a parent in another process is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ParentFrom {
    /// The `inflight-op` header: the parent is the very call.
    #[serde(rename = "inflight-op")]
    InflightOp,
    /// The `traceparent` header: the parent may be a span of something in between.
    #[serde(rename = "traceparent")]
    TraceParent,
    /// A way this version does not know.
    #[serde(untagged)]
    Other(String),
}

impl Snapshot {
    /// Returns the op of this id, if it is in flight here.
    #[must_use]
    pub fn op(&self, id: OpId) -> Option<&LiveOp> {
        self.ops.iter().find(|op| op.id == id)
    }
}

impl Filter {
    /// Keeps all ops.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps at most so many, the oldest. Default: no limit.
    #[must_use]
    pub fn limit(mut self, ops: usize) -> Self {
        self.limit = Some(ops);
        self
    }

    /// Keeps ops at least this old. Default: zero.
    #[must_use]
    pub fn min_age(mut self, age: Duration) -> Self {
        self.min_age = age;
        self
    }

    /// Keeps ops of one kind. Default: all kinds.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    pub(crate) fn keeps(&self, kind: &Kind, age: Duration) -> bool {
        age >= self.min_age && self.kind.as_ref().is_none_or(|wanted| wanted == kind)
    }

    pub(crate) fn most(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }
}

/// A duration as the schema writes it: milliseconds, three decimals.
pub(crate) fn millis(duration: Duration) -> f64 {
    // Whole microseconds below 2^53 are exact in an f64: 285 years. Not as_micros(): to make an f64 of 128 bits
    // is a call, five times for each op of a snapshot.
    let micros = duration.as_secs().saturating_mul(1_000_000);
    micros.saturating_add(duration.subsec_micros().into()) as f64 / 1000.0
}

/// The other way, of what a peer may have made up.
pub(crate) fn from_millis(ms: f64) -> Duration {
    match Duration::try_from_secs_f64(ms / 1000.0) {
        Ok(duration) => duration,
        Err(_) if ms > 0.0 => Duration::MAX,
        Err(_) => Duration::ZERO,
    }
}

fn a_second() -> f64 {
    1000.0
}

fn ten_seconds() -> f64 {
    10_000.0
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
