//! Places where the server stops until someone outside lets it go on: this is how story and tests force an order.

use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix,
    path::PathBuf,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const POINTS: [&str; 6] = ["locked", "list", "one", "chat", "dir", "accepted"];

/// The gates that were asked for; every other point is open.
///
/// Who comes to a closed gate connects to its unix socket, says `POINT DETAIL` in a line and waits for an answer or for the
/// end of the connection. A socket that nobody listens on is an open gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates(HashMap<String, PathBuf>);

impl Gates {
    /// Takes one `POINT=SOCKET`.
    pub(crate) fn add(&mut self, gate: &str) -> Result<(), String> {
        let (point, socket) = gate
            .split_once('=')
            .ok_or(format!("--gate {gate}: not POINT=SOCKET"))?;
        if !POINTS.contains(&point) {
            return Err(format!("--gate {gate}: not one of {}", POINTS.join(", ")));
        }
        self.0.insert(point.to_owned(), socket.into());
        Ok(())
    }

    /// Waits until the gate at `point` is opened for this caller.
    pub(crate) async fn pass(&self, point: &str, detail: &str) {
        let Some(socket) = self.0.get(point) else {
            return;
        };
        let _phase = inflight::nested(format!("gate {point}"));
        if let Ok(mut stream) = UnixStream::connect(socket).await
            && stream
                .write_all(format!("{point} {detail}\n").as_bytes())
                .await
                .is_ok()
        {
            // A byte, the end and an error all mean: go on.
            let _ = stream.read(&mut [0]).await;
        }
    }

    /// The same for a thread, which sleeps in a system call meanwhile.
    pub(crate) fn pass_blocking(&self, point: &str, detail: &str) {
        if let Some(socket) = self.0.get(point)
            && let Ok(mut stream) = unix::net::UnixStream::connect(socket)
            && stream
                .write_all(format!("{point} {detail}\n").as_bytes())
                .is_ok()
        {
            let _ = stream.read(&mut [0]);
        }
    }
}
