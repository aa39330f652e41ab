//! For tests that cannot hang silently: a guard with a deadline, daemons and commands under test, assertions.
//!
//! ```
//! use inflight::{Tracker, testing::{Stall, assert_idle, run, watch}};
//!
//! let tracker = Tracker::new("test");
//! let _watch = watch(&tracker); // says what hangs before the deadline, and ends the process
//! let stall = Stall::new();
//!
//! // What the test is about: here a worker, which is held up on purpose.
//! let (op, gate) = (tracker.begin("import"), stall.gate());
//! let worker = std::thread::spawn(move || {
//!     op.phase("rows");
//!     gate.pass();
//! });
//! assert_eq!(stall.arrived(1), 1);
//! assert_eq!(tracker.snapshot().ops[0].phase.path, ["rows"]);
//!
//! // A command that may hang, with a deadline: its error has the report, its threads and its open files.
//! assert_eq!(run("echo done")?.stdout, "done\n");
//!
//! stall.go_on();
//! worker.join().unwrap();
//! assert_idle(&tracker); // nothing is left; dropped, `_watch` asserts the same
//! # Ok::<(), inflight::testing::RunError>(())
//! ```
//!
//! # From a hanging test to the cause
//!
//! **1. Put the test under a guard, and its processes into [`Daemon`]s.** Each serves its report with
//! [`debug::serve`](crate::debug::serve), and says that it is ready with [`Daemon::say`].
//!
//! ```no_run
//! use std::process::Command;
//! use inflight::{Tracker, testing::{Daemon, watch}};
//!
//! let _watch = watch(&Tracker::new("test"));
//! let dir = "/tmp/mnt";
//! let server = Daemon::start(Command::new("my-server"))?;
//! let mut command = Command::new("my-files");
//! command.args([dir, server.url()]);
//! let files = Daemon::builder(command).mounts_at(dir).start()?;
//!
//! Command::new("cat").arg(files.mount().join("walk")).status().unwrap(); // hangs
//! # Ok::<(), inflight::testing::DaemonError>(())
//! ```
//!
//! **2. Run it.** `INFLIGHT_TEST_DEADLINE=20s cargo test` ends after 15 s, though nothing else would have ended it,
//! with exit code 101 and nothing left behind. This was printed:
//!
//! ```text
//! HUNG: test a_deadlock_across_processes (tests/hangs.rs:63:18) has not ended after 15.1 s, its deadline is 20.0 s
//!
//! DEADLOCK for 14.9 s (since 09:18:10 UTC): server[23188] and files[23192] wait for each other
//! Culprit: [1] holds lock "lock" while it waits for a file in /tmp/.tmp3OFOyX, and [4] needs what it holds
//! Blocked: 1 caller, cat[23212].  To free it now: inflight abort /tmp/.tmp3OFOyX
//!         or echo 1 > /sys/fs/fuse/connections/42/abort   (they get errors)
//!
//!  [1]  server[23188]  GET /walk?/tmp/.tmp3OFOyX/list                   14.9 s   handler   route /walk   HOLDS lock "lock"
//!        its thread 23213 is in a file-system call
//!  [2]  files[23192]   read /list                                       14.9 s   for server[23188]
//!        which sent, and waits for
//!  [3]  files[23192]   GET 127.0.0.1:41503/list                         14.9 s   connecting or waiting for the answer
//!        which is served by
//!  [4]  server[23188]  GET /list                                        14.9 s   handler
//!           WAITS for lock "lock", held by [1]
//!
//! Behind it, not part of it
//!       cat[23212]     read /walk                                       14.9 s
//!           -> GET 127.0.0.1:41503/walk?/tmp/.tmp3OFOyX/list (14.9 s, connecting or waiting for the answer)   -> [1]
//!
//! In flight: 2 ops in server[23188], 4 in files[23192]; nothing else is slow
//! Checked: kernel 2 waiting, 2 tracked; 2 peers asked, 2 answered
//! Not known: what 66 more threads of this machine wait for, which there was no time to read
//! Find it: trace 2b1cfa03918780ab27e297bca28100ee ([1]), trace 2b1cfa03918780abceeb4042682fe1dd ([2] [3] [4])
//! Taken 09:18:25.131 UTC by test[23182], slow after 1 s, stuck after 10 s
//!
//! Threads of this process, 23182
//!   hangs-b008a0662[23182] thread 23182, state S in futex_do_wait
//!   a_deadlock_acro[23182] thread 23183, state S in do_wait   <- the test
//!   inflight-watch[23182] thread 23187, state S in futex_do_wait   of inflight itself
//!   inflight-bounde[23182] thread 24510, state R   of inflight itself
//!
//! To look at it while it hangs, with a longer INFLIGHT_TEST_DEADLINE: INFLIGHT_DIR=/tmp/inflight-test-94d5dd0e-4026531836-23182-535921/t1 inflight
//! ```
//!
//! **3. Read the first two lines of the report.** `DEADLOCK` is said only on proof. The culprit holds something while it
//! waits for what needs it: here a request that reads a file of the mount under its lock.
//!
//! **4. Follow the numbers.** `[1]` waits for `[2]`, that for `[3]`, and so on, back to `[1]`: which request each operation of the
//! file system waits for, who serves it and what it is doing, and who made each call. "Behind it" stands who only waits,
//! such as the `cat` of the test. If the verdict is OK, nothing that is tracked hangs: then look at the threads, of which
//! the one marked as the test sleeps where the kernel says.
//!
//! **5. Look closer, and force the order.** With a longer deadline the last line can be run while it hangs, and so can
//! `cat /tmp/mnt/.diag`. When the cause is known, a [`Stall`] in its place makes the hang come every time, so that the
//! test of the repair does not depend on luck.
//!
//! # Runners
//!
//! - `cargo test` runs tests as threads of one process: a test that hangs ends it, and all that run beside it. They are
//!   named if they are under a guard.
//! - `cargo test -- --test-threads=1` runs them on the main thread, which has no name of its own: the test is found in
//!   the stack, so its name is not known in a binary that was stripped.
//! - `cargo nextest run` runs a process a test: only the one that hangs ends. For what even the guard cannot end, such as
//!   a process that is stopped, put this into `.config/nextest.toml`, with a period no shorter than the deadline:
//!
#![doc = "```toml"]
#![doc = include_str!("../../.config/nextest.toml")]
#![doc = "```"]
//!
//! What was killed before it could clean up is removed by [`sweep`] at the begin of a later run.

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
