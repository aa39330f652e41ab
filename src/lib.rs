//! Shows why a system of FUSE file systems and HTTP services is stuck.

mod clock;
pub mod context;
#[cfg(feature = "debug")]
pub mod debug;
mod evidence;
#[cfg(feature = "fuse")]
pub mod fuse;
mod graph;
#[cfg(feature = "http")]
pub mod http;
pub mod id;
mod live;
#[cfg(any(feature = "debug", feature = "fuse"))]
mod mountinfo;
mod op;
mod process;
mod record;
mod render;
pub mod report;
pub mod resource;
pub mod snapshot;
mod text;
mod tracker;

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
