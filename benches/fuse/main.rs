//! What the wrapper costs a file system, and how long `.diag` takes while all is stuck, on real mounts.
#![allow(clippy::panic, clippy::print_stdout, missing_docs, reason = "a bench")]

mod caller;
#[path = "../child/mod.rs"]
mod child;
mod daemon;
#[path = "../harness/mod.rs"]
mod harness;
mod null;
mod rates;
mod served;
mod stuck;

use std::process::ExitCode;

use crate::harness::Bench;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("serve") => daemon::serve(&args[1..]),
        Some("call") => caller::run(args.get(1)),
        _ => return bench(),
    }
    ExitCode::SUCCESS
}

fn bench() -> ExitCode {
    let mut bench = Bench::start("fuse", &["fuser"]);
    served::mount_fusectl();
    rates::measure(&mut bench);
    stuck::measure(&mut bench);
    bench.finish()
}
