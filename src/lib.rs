//! Shows why a system of FUSE file systems and HTTP services is stuck.
//!
//! Each process keeps one [`Tracker`]. All it is in the middle of (a FUSE request, an HTTP request it
//! sent, one it serves, a named task) is an op with a phase. Layers for tower services and a wrapper
//! around a FUSE file system begin and end ops by themselves; [`phase`], [`waiting_for`] and
//! [`resource`] say what they cannot know. A [`Report`] joins the snapshots of several processes and
//! says who waits for whom, who holds the lock, and whether the whole is a circle. Read it with
//! `cat mnt/.diag`, with `curl .../debug/inflight`, or in code:
//!
//! ```
//! use inflight::{Report, Tracker};
//!
//! let tracker = Tracker::new("indexer");
//! let op = tracker.begin("reindex");
//! op.phase("open index");
//!
//! println!("{}", Report::local(&tracker));
//! # drop(op);
//! ```
//!
//! # Features
//!
//! None is on by default.
//!
//! - `http`: [`http`], tower layers for HTTP servers and clients, and `Tracker::call` for other clients.
//! - `tokio`: `resource::Mutex` over tokio's, and `spawn_blocking` that carries the op.
//! - `debug`: [`debug`], `/debug/inflight` as a router for your axum app and as a server of its own,
//!   and `Report::collect`, which asks the other processes of the machine.
//! - `fuse`: [`fuse`], a wrapper around any `fuser::Filesystem` (Linux), with `.diag` in the mount.
//! - `otel`: [`otel`], every ended op as an OpenTelemetry span, and stuck ones while they are stuck.
//! - `full`: all of these.
//! - `cli`: the program `inflight`, for `cargo install inflight --features cli`.
//! - `testing`: [`testing`], for tests that cannot hang silently: assertions, a guard with a deadline, daemons and
//!   commands under test, and a kernel made of a socket pair for testing file systems.
//!
//! # What it promises
//!
//! Beginning, changing and ending an op cannot fail, panic or block; above its capacity a tracker
//! counts instead of recording. `INFLIGHT=off` in the environment turns it off. No report shows
//! passwords, query values, header values or bodies.

#[cfg(any(feature = "debug", feature = "fuse"))]
mod bounded;
mod clock;
pub mod context;
#[cfg(feature = "debug")]
pub mod debug;
mod evidence;
#[cfg(feature = "fuse")]
pub mod fuse;
mod graph;
mod held_up;
#[cfg(feature = "http")]
pub mod http;
pub mod id;
mod listeners;
mod live;
pub mod machine;
mod mountinfo;
mod op;
#[cfg(feature = "otel")]
pub mod otel;
#[cfg(feature = "otel")]
mod outlet;
#[cfg(any(feature = "fuse", feature = "testing"))]
mod place;
mod proc;
mod process;
mod record;
mod render;
pub mod report;
pub mod resource;
pub mod snapshot;
#[cfg(feature = "testing")]
pub mod testing;
mod text;
mod tracker;
pub mod watchdog;

#[cfg(feature = "tokio")]
#[doc(inline)]
pub use context::spawn_blocking;
#[doc(inline)]
pub use context::{FutureExt, fail, idle_phase, nested, phase, target, waiting_for};
#[doc(inline)]
pub use id::{OpId, TraceId};
pub use op::{Entered, Nested, Op, WaitingFor};
#[doc(inline)]
pub use report::Report;
#[doc(inline)]
pub use snapshot::{Filter, Kind, Outcome, Snapshot, State};
pub use tracker::{Builder, Tracker};

// The recipes of the README are compiled and run with the doc tests.
#[cfg(all(doctest, feature = "full", feature = "testing"))]
#[doc = include_str!("../README.md")]
mod readme {}
