//! The founding system: an HTTP server that keeps conversations, a file system over it, and the story of their hang.
//!
//! ```text
//! cargo run --example shelley                              tells the story, leaves nothing behind
//! cargo run --example shelley -- --only hang --keep        a part of it, kept until Enter
//! cargo run --example shelley -- serve [options]           the server alone
//! cargo run --example shelley -- mount DIR --server URL    the file system alone
//! ```
//!
//! It is a user of `inflight` like any other, and a crate of its own where these files are its `src/` and its dependencies
//! are `inflight` (feature `full`), axum, futures-util, jiff, reqwest (`json`), rustix (`fs`, `process`), serde (`derive`),
//! `serde_json`, tempfile and tokio (`full`). What happens where:
//!
//! ```text
//! server.rs  the endpoints            fs.rs      the callbacks        story.rs  what is told
//! store.rs   the conversations        tree.rs    inodes, open files   stage.rs  the processes it is played with
//! model.rs   what is answered         lookup.rs  which names there are
//! walk.rs    the search as it was     content.rs what files hold      fetch.rs  one request for all who wait
//! careful.rs and repaired             files.rs   what is asked for    client.rs how
//! ```
#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

mod api;
mod args;
mod careful;
mod client;
mod content;
mod daemon;
mod fetch;
mod files;
mod fs;
mod gate;
mod known;
mod lookup;
mod model;
mod needs;
mod node;
mod server;
mod stage;
mod store;
mod story;
mod stream;
mod tree;
mod walk;

use std::{path::PathBuf, process::ExitCode, sync::OnceLock, time::Duration};

use inflight::{Tracker, otel::Exporter};
use tokio::runtime::{Builder, Runtime};

use self::args::Args;
use self::daemon::Life;

const USAGE: &str = "\
usage: shelley [--only PART] [--keep]   tells the story, or a part of it: normal, hang, foreign or repaired
       shelley serve [--listen 127.0.0.1:0] [--walk naive|unlocked|repaired] [--walk-deadline 5]
                     [--threads 4] [--require-header NAME] [--no-inflight]
                     [--gate POINT=SOCKET]..    POINT is locked, list, one, chat, dir or accepted
       shelley mount DIR --server URL [--cwd DIR] [--header NAME=VALUE] [--slots 1] [--inline] [--fresh]
                     [--http-timeout 120]
       both: [--ready-fd N] writes READY there; [--stop-at-eof] ends when stdin does;
             [--otlp URL] sends spans there, as http://127.0.0.1:4318
";

/// As the first client of this protocol had it.
const HTTP_TIMEOUT: Duration = Duration::from_secs(120);

const WALK_DEADLINE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "-h" || arg == "--help") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let ran = match args.first().map(String::as_str) {
        Some("serve") => serve(Args(args[1..].to_vec())),
        Some("mount") => mount(Args(args[1..].to_vec())),
        None | Some("--only" | "--keep") => return story::tell(Args(args)),
        Some(other) => Err(format!("no such command: {other}\n{USAGE}")),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("shelley: {why}");
            ExitCode::FAILURE
        }
    }
}

fn serve(mut args: Args) -> Result<(), String> {
    let threads = args.threads("--threads", 4)?;
    let mut options = server::Options {
        listen: args
            .parsed("--listen")?
            .unwrap_or(([127, 0, 0, 1], 0).into()),
        walk: args.parsed("--walk")?.unwrap_or(walk::Walk::Repaired),
        walk_deadline: args.seconds("--walk-deadline")?.unwrap_or(WALK_DEADLINE),
        required: args.value("--require-header")?,
        gates: gate::Gates::default(),
        inflight: !args.flag("--no-inflight"),
    };
    while let Some(gate) = args.value("--gate")? {
        options.gates.add(&gate)?;
    }
    otlp(&mut args)?;
    let life = Life::from(&mut args)?;
    args.nothing_left()?;

    let runtime = runtime(threads)?;
    let result = runtime.block_on(async {
        let serving = server::start(options)
            .await
            .map_err(|e| format!("cannot serve: {e}"))?;
        life.ready(&format!("serving http://{}", serving.address));
        life.end().await;
        Ok(())
    });
    // A request may be blocked in a file system that nobody answers any more.
    runtime.shutdown_background();
    result
}

fn mount(mut args: Args) -> Result<(), String> {
    let server = args.url("--server")?.ok_or("mount needs --server URL")?;
    let cwd: Option<PathBuf> = args.parsed("--cwd")?;
    let slots = args.threads("--slots", 1)?;
    let inline = args.flag("--inline");
    let fresh = args.flag("--fresh");
    let timeout = args.seconds("--http-timeout")?.unwrap_or(HTTP_TIMEOUT);
    let header = args.value("--header")?;
    let header = header
        .map(|header| match header.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("--header {header}: not NAME=VALUE")),
        })
        .transpose()?;
    otlp(&mut args)?;
    let life = Life::from(&mut args)?;
    let dir = PathBuf::from(args.next().ok_or("mount needs a directory")?);
    args.nothing_left()?;

    // The last time this process touches the directory: from here on it serves it.
    let dir = dir
        .canonicalize()
        .map_err(|e| format!("{}: {e}", dir.display()))?;
    // The kernel would mount it on a file too, where nothing in it can be reached.
    if !dir.is_dir() {
        return Err(format!("{}: not a directory", dir.display()));
    }
    let cwd = cwd
        .or_else(|| dir.parent().map(PathBuf::from))
        .unwrap_or_else(|| dir.clone());
    let runtime = runtime(2)?;
    let options = fs::Options {
        server,
        cwd,
        slots,
        inline,
        fresh,
        timeout,
        header,
    };
    let mounted = fs::mount(&dir, options, runtime.handle())
        .map_err(|e| format!("cannot mount {}: {e}", dir.display()))?;
    life.ready(&format!("mounted {}", dir.display()));
    runtime.block_on(life.end());
    let ended = mounted
        .mount
        .umount_and_join()
        .map_err(|e| format!("cannot unmount {}: {e}", dir.display()));
    runtime.shutdown_background();
    ended
}

/// Where spans go; nowhere unless it was said.
static OTLP: OnceLock<String> = OnceLock::new();

fn otlp(args: &mut Args) -> Result<(), String> {
    args.url("--otlp")?.map(|url| OTLP.set(url));
    Ok(())
}

fn spans(tracker: &Tracker) -> Option<Exporter> {
    let exporter = Exporter::builder(tracker).endpoint(OTLP.get()?).start();
    if let Some(why) = exporter.problem() {
        eprintln!("shelley: sends no spans: {why}");
    }
    Some(exporter)
}

fn runtime(threads: usize) -> Result<Runtime, String> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))
}
