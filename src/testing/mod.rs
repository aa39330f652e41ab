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
#[cfg(feature = "fuse")]
mod kernel;

pub use self::assertions::{assert_idle, assert_no_stuck};
#[cfg(feature = "tokio")]
pub use self::assertions::{assert_idle_async, assert_no_stuck_async};
#[cfg(feature = "fuse")]
pub use self::kernel::{FakeKernel, Reply, Request};
