//! The program `inflight`: what is stuck on this machine, why, and the way out.
#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use inflight::Tracker;

use self::cli::{
    abort,
    options::{Options, Verb},
    run, show,
};

fn main() -> ExitCode {
    let options = Options::parse();
    let tracker = Tracker::new("inflight");
    // What the environment says is for the processes that are asked about.
    tracker.set_enabled(true);
    match options.verb {
        None => show::show(&tracker, &options.show),
        Some(Verb::Check {
            source,
            stuck_after,
        }) => show::check(&tracker, &source, stuck_after),
        Some(Verb::Abort { mount, yes, detach }) => abort::abort(&tracker, &mount, yes, detach),
        Some(Verb::Run { timeout, command }) => run::run(&tracker, timeout, &command),
    }
}
