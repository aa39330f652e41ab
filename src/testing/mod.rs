//! For tests: assertions on what is in flight, and a kernel made of a socket pair.
//!
//! ```
//! use inflight::{Tracker, testing::assert_idle};
//!
//! let tracker = Tracker::new("test");
//! let worker = std::thread::spawn({
//!     let op = tracker.begin("work");
//!     move || drop(op)
//! });
//!
//! // Waits until the worker is done, and shows the report if it does not end.
//! assert_idle(&tracker);
//! # worker.join().unwrap();
//! ```

mod assertions;
mod clean_shell;
mod clear;
mod daemon;
#[cfg(feature = "fuse")]
mod kernel;
mod lines;
mod registry;
mod related;
mod run_id;
mod scene;
mod shell;
mod stall;
#[cfg(feature = "fuse")]
mod stall_files;
mod sweep;
mod test_name;
mod watch;

pub use self::{
    assertions::{assert_idle, assert_idle_async, assert_no_stuck, assert_no_stuck_async},
    daemon::{Daemon, DaemonBuilder, DaemonError},
    shell::{Output, RunError, Shell, run},
    stall::{Gate, Stall, StalledBody, StalledFuture, StalledService},
    sweep::{Swept, sweep},
    watch::{Watch, watch},
};
#[cfg(feature = "fuse")]
pub use self::{
    kernel::{FakeKernel, Reply, Request},
    stall_files::StalledFiles,
};
