//! The stand-alone debug server: a thread and a runtime of its own behind a Unix socket.

use std::{
    fs, io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    thread,
};

use tokio::sync::oneshot;

use super::{directory, router::router};
use crate::tracker::Tracker;

/// A running debug server; dropped, it stops, and its socket is removed.
#[must_use = "dropped at once, it stops at once"]
#[derive(Debug)]
pub struct Server {
    path: Option<PathBuf>,
    problem: Option<String>,
    pid: u32,
    // Closing it ends the thread.
    stop: Option<oneshot::Sender<()>>,
}

/// Serves `/debug/inflight` on a Unix socket, from a thread of its own.
///
/// Never fails: if it cannot be reached, [`Server::problem`] says why. Call it after a daemon has
/// forked. The socket is `DIR/PID.sock`, mode 0600 in a directory of mode 0700; DIR is the first that
/// serves of `$INFLIGHT_DIR`, `$RUNTIME_DIRECTORY/inflight`, `$XDG_RUNTIME_DIR/inflight`,
/// `/run/user/UID/inflight` and `/tmp/inflight-UID`. The reports of other processes find it there.
pub fn serve(tracker: &Tracker) -> Server {
    let mut server = Server {
        path: None,
        problem: None,
        pid: std::process::id(),
        stop: None,
    };
    let started = directory::listen(&directory::all()).and_then(|(listener, path)| {
        server.path = Some(path);
        start(tracker, listener).map_err(|error| error.to_string())
    });
    match started {
        Ok(stop) => server.stop = Some(stop),
        Err(why) => {
            server.remove();
            server.problem = Some(why);
        }
    }
    server
}

fn start(tracker: &Tracker, listener: UnixListener) -> io::Result<oneshot::Sender<()>> {
    listener.set_nonblocking(true)?;
    // Two reports at once are one too many: they share their answer.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_name("inflight-debug")
        .build()?;
    let app = router(tracker);
    let (stop, stopped) = oneshot::channel();
    thread::Builder::new()
        .name("inflight-debug".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::UnixListener::from_std(listener) else {
                    return;
                };
                tokio::select! {
                    _ = axum::serve(listener, app) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
    Ok(stop)
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Why it cannot be reached, if it cannot.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Lets it run as long as the process does.
    ///
    /// Its socket stays when the process ends; it then refuses connections, and is removed by the next
    /// server that starts in the directory.
    pub fn forever(mut self) {
        self.path = None;
        std::mem::forget(self.stop.take());
    }

    // A child that was forked has a copy of this, but the socket is not its own.
    fn remove(&mut self) {
        if let Some(path) = self.path.take()
            && self.pid == std::process::id()
        {
            // If it is gone already, so much the better.
            let _ = fs::remove_file(path);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.remove();
    }
}
