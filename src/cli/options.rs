//! The command line: verbs, options, and a help that teaches.

use std::{ffi::OsString, time::Duration};

use clap::{Args, Parser, Subcommand};
use inflight::{Kind, debug};

const ABOUT: &str = "Shows why a system of FUSE file systems and HTTP services is stuck.

Without a SOURCE it asks all processes of this machine that serve a report (inflight::debug::serve),
joins what they say, and lists all FUSE mounts, with what to do about each.";

const EXAMPLES: &str = "Examples:
  inflight                       what is stuck on this machine, and why
  inflight /mnt/s                what one mount has to do with
  inflight 443 --json            what one process does, as data
  inflight check                 for scripts: 0 nothing is stuck, 1 something is, 2 could not tell
  inflight abort /mnt/s          frees all who wait for a mount; they get an error
  inflight run -t 60s -- make    runs a command, and shows the report if it hangs

Exit codes: 0 printed a report, 2 had none or was called wrongly. Of `run`: 124 timed out, 125 own failure,
126 and 127 as env(1), else the command's. See https://docs.rs/inflight for what the report says.";

#[derive(Parser)]
#[command(name = "inflight", version, about = "Shows why a system of FUSE file systems and HTTP services is stuck", long_about = ABOUT, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    #[command(flatten)]
    pub(crate) show: Show,
}

#[derive(Args)]
pub(crate) struct Show {
    /// A process id, the path of a debug socket, the URL of a report, or the path of a FUSE mount
    /// [default: all of this machine]
    pub(super) source: Vec<String>,
    /// Prints the report as JSON, schema inflight/1
    #[arg(long)]
    pub(super) json: bool,
    /// Keeps ops of one kind: fuse, http.client, http.server or task
    #[arg(long, value_parser = kind)]
    pub(super) kind: Option<Kind>,
    /// Keeps ops that are at least so old: 500ms, 2s, 1m
    #[arg(long, value_parser = duration)]
    pub(super) min_age: Option<Duration>,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Says by its exit code whether something is stuck: 0 no, 1 yes, 2 could not tell
    Check {
        /// A process id, the path of a debug socket, or the path of a FUSE mount [default: all]
        source: Vec<String>,
        /// Without progress for so long an op is stuck [default: what its process says, 10s]
        #[arg(long, value_parser = duration)]
        stuck_after: Option<Duration>,
    },
    /// Fails all requests of one FUSE connection, which frees all who wait for them
    Abort {
        /// The path of a mount, or the number of a connection: a mount that was detached has no path
        mount: String,
        /// Does not ask first
        #[arg(long)]
        yes: bool,
        /// Detaches the mount as well
        #[arg(long)]
        detach: bool,
    },
    /// Runs a command with a deadline; if it hangs, shows the report and its threads, and ends it
    Run {
        /// How long it may take: 500ms, 2s, 1m
        #[arg(short, long, value_parser = duration, default_value = "60s")]
        timeout: Duration,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn kind(text: &str) -> Result<Kind, String> {
    match serde_json::from_value(text.into()) {
        Ok(Kind::Other(_)) | Err(_) => {
            Err("it is fuse, http.client, http.server or task".to_owned())
        }
        Ok(kind) => Ok(kind),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    debug::parse_duration(text).ok_or_else(|| "a time is written 500ms, 2s or 1m".to_owned())
}
