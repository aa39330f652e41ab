//! What a snapshot costs, whom it holds up, and how it grows with the ops in flight.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod harness;

use std::process::ExitCode;

use harness::Bench;

fn main() -> ExitCode {
    Bench::start("snapshot", &[]).finish()
}
