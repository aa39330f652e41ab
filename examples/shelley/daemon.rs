//! How a daemon says that it is up, and how it learns that it shall end.

use std::io::Write;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;

/// What was said of it on the command line.
pub(crate) struct Life {
    ready_fd: Option<i32>,
    stop_at_eof: bool,
}

impl Life {
    pub(crate) fn from(args: &mut Args) -> Result<Self, String> {
        Ok(Self {
            ready_fd: args.parsed("--ready-fd")?,
            stop_at_eof: args.flag("--stop-at-eof"),
        })
    }

    pub(crate) fn ready(&self, line: &str) {
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
    pub(crate) async fn end(&self) {
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
