//! The founding system, small: an HTTP server that keeps conversations, a file system over it, and the story of their hang.
//!
//! ```text
//! cargo run --example shelley                              tells the story, leaves nothing behind
//! cargo run --example shelley -- serve [options]           the server alone
//! cargo run --example shelley -- mount DIR --server URL    the file system alone
//! ```
#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

mod api;
mod fs;
mod gate;
mod server;
mod story;

use std::{
    fmt::Display, io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, str::FromStr,
    sync::OnceLock, time::Duration,
};

use inflight::{Tracker, otel::Exporter};
use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
usage: shelley                       tells the story: the hang, what shows it, and its end
       shelley serve [--listen 127.0.0.1:0] [--walk naive|repaired] [--threads 4]
                     [--gate POINT=SOCKET]..      POINT is `locked`, `list` or `one`
       shelley mount DIR --server URL [--cwd DIR] [--slots 1] [--inline] [--http-timeout 120]
       both: [--ready-fd N] writes READY there; [--stop-at-eof] ends when stdin does;
             [--otlp URL] sends spans there, as http://127.0.0.1:4318
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ran = match args.first().map(String::as_str) {
        None => return story::tell(),
        Some("serve") => serve(Args(args[1..].to_vec())),
        Some("mount") => mount(Args(args[1..].to_vec())),
        Some("-h" | "--help") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
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
    let listen: SocketAddr = args
        .parsed("--listen")?
        .unwrap_or(([127, 0, 0, 1], 0).into());
    let walk = args.parsed("--walk")?.unwrap_or(server::Walk::Repaired);
    let threads = args.parsed("--threads")?.unwrap_or(4);
    let mut gates = gate::Gates::default();
    while let Some(gate) = args.value("--gate")? {
        gates.add(&gate)?;
    }
    otlp(&mut args)?;
    let life = Life::from(&mut args)?;
    args.nothing_left()?;

    let runtime = runtime(threads)?;
    let result = runtime.block_on(async {
        let serving = server::start(listen, walk, gates)
            .await
            .map_err(|e| format!("cannot serve on {listen}: {e}"))?;
        life.ready(&format!("serving http://{}", serving.address));
        life.end().await;
        Ok(())
    });
    // A request may be blocked in a file system that nobody answers any more.
    runtime.shutdown_background();
    result
}

fn mount(mut args: Args) -> Result<(), String> {
    let server: String = args.parsed("--server")?.ok_or("mount needs --server URL")?;
    let cwd: Option<PathBuf> = args.parsed("--cwd")?;
    let slots: usize = args.parsed("--slots")?.unwrap_or(1);
    let inline = args.flag("--inline");
    let timeout = Duration::from_secs(args.parsed("--http-timeout")?.unwrap_or(120));
    otlp(&mut args)?;
    let life = Life::from(&mut args)?;
    let dir = PathBuf::from(args.next().ok_or("mount needs a directory")?);
    args.nothing_left()?;

    // The last time this process touches the directory: from here on it serves it.
    let dir = dir
        .canonicalize()
        .map_err(|e| format!("{}: {e}", dir.display()))?;
    let cwd = cwd
        .or_else(|| dir.parent().map(PathBuf::from))
        .unwrap_or_else(|| dir.clone());
    let runtime = runtime(2)?;
    let options = fs::Options {
        server,
        cwd,
        slots,
        inline,
        timeout,
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
    args.value("--otlp")?.map(|url| OTLP.set(url));
    Ok(())
}

fn spans(tracker: &Tracker) -> Option<Exporter> {
    Some(Exporter::builder(tracker).endpoint(OTLP.get()?).start())
}

fn runtime(threads: usize) -> Result<Runtime, String> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))
}

/// How a daemon says that it is up, and how it learns that it shall end.
struct Life {
    ready_fd: Option<i32>,
    stop_at_eof: bool,
}

impl Life {
    fn from(args: &mut Args) -> Result<Self, String> {
        Ok(Self {
            ready_fd: args.parsed("--ready-fd")?,
            stop_at_eof: args.flag("--stop-at-eof"),
        })
    }

    fn ready(&self, line: &str) {
        println!("{line}");
        if let Some(fd) = self.ready_fd {
            let sent = std::fs::OpenOptions::new()
                .write(true)
                .open(format!("/proc/self/fd/{fd}"))
                .and_then(|mut to| to.write_all(b"READY\n"));
            if let Err(e) = sent {
                eprintln!("shelley: cannot write to --ready-fd {fd}: {e}");
            }
        }
    }

    /// Waits for SIGTERM, for SIGINT, or for the end of stdin: whoever holds its other end is gone then.
    async fn end(&self) {
        let eof = async {
            if !self.stop_at_eof {
                std::future::pending::<()>().await;
            }
            let mut stdin = tokio::io::stdin();
            while !matches!(stdin.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
        };
        let stopped = |kind| async move {
            match signal(kind) {
                Ok(mut signal) => drop(signal.recv().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = eof => {}
            () = stopped(SignalKind::terminate()) => {}
            () = stopped(SignalKind::interrupt()) => {}
        }
    }
}

/// What is left of the command line.
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> bool {
        let found = self.0.iter().position(|arg| arg == name);
        found.map(|at| self.0.remove(at)).is_some()
    }

    fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.0.iter().position(|arg| arg == name) else {
            return Ok(None);
        };
        if at + 1 == self.0.len() {
            return Err(format!("{name} needs a value"));
        }
        self.0.remove(at);
        Ok(Some(self.0.remove(at)))
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, String> {
        self.value(name)?
            .map(|value| value.parse().map_err(|e| format!("{name} {value}: {e}")))
            .transpose()
    }

    fn next(&mut self) -> Option<String> {
        let at = self.0.iter().position(|arg| !arg.starts_with("--"))?;
        Some(self.0.remove(at))
    }

    fn nothing_left(&self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some(arg) => Err(format!("what is {arg}?\n{USAGE}")),
        }
    }
}
