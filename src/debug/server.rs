//! The stand-alone debug server: a thread and a runtime of its own behind a Unix socket.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    thread,
};

use axum::{
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use tokio::{runtime::Handle, sync::oneshot};

use super::{connections, directory, router::router};
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
    // Where it runs, and for whom: for what is added later.
    runs: Option<(Handle, Tracker)>,
    address: Option<SocketAddr>,
}

/// Serves `/debug/inflight` on a Unix socket, from a thread of its own.
///
/// Never fails: if it cannot be reached, [`Server::problem`] says why. Call it after a daemon has
/// forked. The socket is `DIR/PID.sock`, mode 0600 in a directory of mode 0700; DIR is the first that
/// serves of `$INFLIGHT_DIR`, `$RUNTIME_DIRECTORY/inflight`, `$XDG_RUNTIME_DIR/inflight`,
/// `/run/user/UID/inflight` and `/tmp/inflight-UID`. The reports of other processes find it there.
///
/// One request is answered on each connection, on 32 at once; a head must come within 5 s, and all be over
/// within 30 s.
pub fn serve(tracker: &Tracker) -> Server {
    tracker.begins_to_serve();
    let mut server = Server {
        path: None,
        problem: None,
        pid: std::process::id(),
        stop: None,
        runs: None,
        address: None,
    };
    let started = directory::listen(&directory::all()).and_then(|(listener, path)| {
        server.path = Some(path);
        start(tracker, listener).map_err(|error| error.to_string())
    });
    match started {
        Ok((stop, handle)) => {
            server.stop = Some(stop);
            server.runs = Some((handle, tracker.clone()));
        }
        Err(why) => {
            server.remove();
            server.problem = Some(why);
        }
    }
    server
}

// A name that an attacker's page goes by may lead here, too: such a page must not read this.
async fn only_addresses(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if name == "localhost" || name.parse::<IpAddr>().is_ok() {
        return next.run(request).await;
    }
    let why = "ask by address, or as localhost: the Host of this request is neither\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

fn start(tracker: &Tracker, listener: UnixListener) -> io::Result<(oneshot::Sender<()>, Handle)> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let app = router(tracker);
    let (stop, stopped) = oneshot::channel();
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("inflight-debug".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::UnixListener::from_std(listener) else {
                    return;
                };
                tokio::select! {
                    () = connections::serve(listener, app) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
    Ok((stop, handle))
}

impl Server {
    /// Listens on TCP as well. Default: only on the socket.
    ///
    /// **It has no access control**: whoever reaches the address may read. Give a loopback address such as
    /// `127.0.0.1:9911`, or know who is on the other side. Only requests whose `Host` is an address or
    /// `localhost` are answered, so that no page in a browser can read it under a name of its own. If it
    /// cannot listen there, [`problem`](Self::problem) says why.
    pub fn tcp(mut self, address: SocketAddr) -> Self {
        let Some((handle, tracker)) = &self.runs else {
            return self;
        };
        let app = router(tracker).layer(middleware::from_fn(only_addresses));
        let listening = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            self.address = Some(listener.local_addr()?);
            let _in = handle.enter();
            tokio::net::TcpListener::from_std(listener)
        });
        match listening {
            Ok(listener) => {
                handle.spawn(connections::serve(listener, app));
            }
            Err(error) => self.problem = Some(format!("{address}: {error}")),
        }
        self
    }

    /// Where it listens on TCP, if it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

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
