//! Finds the other processes of this machine that serve a report, and asks them for their snapshots.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::oneshot,
    task::JoinSet,
    time::timeout,
};

use super::directory;
use crate::{
    report::{PeerFailed, Report, seen_from_inside},
    snapshot::Snapshot,
    tracker::Tracker,
};

/// For all peers together.
pub(super) const DEADLINE: Duration = Duration::from_millis(300);

/// No snapshot is larger.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Nor any of another user: what is made of it takes 40 times as much memory, and he may mean ill.
const MOST_OF_OTHERS: usize = 4 * 1024 * 1024;

/// Younger ops of a peer hold nobody up.
const QUERY: &str = "format=json&min_age=100ms";

const PATH: &str = "/debug/inflight";

enum Answer {
    Snapshot(Box<Snapshot>),
    Failed(PeerFailed),
    /// It is another user's.
    Denied(PathBuf),
    /// Nobody is there.
    Passed,
}

/// What came of asking.
#[derive(Default)]
struct Asked {
    snapshots: Vec<Snapshot>,
    failed: Vec<PeerFailed>,
    denied: Vec<PathBuf>,
}

/// What the sockets of other users, which this one may not ask, come to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// A line among what is not known: on a machine of many users there are always some.
    Counted,
    /// As many answers that are missing: whoever looks at the whole machine has not seen it.
    Failed,
}

impl Report {
    /// Joins what this process knows with the snapshots of all others that serve one here.
    ///
    /// Blocks until they have answered, at most 300 ms: in async code use
    /// [`collect_async`](Self::collect_async).
    #[must_use]
    pub fn collect(tracker: &Tracker) -> Self {
        Self::collect_also_in(tracker, &[])
    }

    /// [`collect`](Self::collect), with the sockets in further directories.
    pub(crate) fn collect_also_in(tracker: &Tracker, dirs: &[PathBuf]) -> Self {
        let urls = tracker.peers().to_vec();
        Self::collect_where(tracker, urls, dirs, Denied::Counted, |_| true).with_evidence(false)
    }

    /// The report that a process makes, by the path of its debug socket.
    #[cfg(feature = "testing")]
    pub(crate) fn of_process(socket: &Path, most: Duration) -> Result<Self, String> {
        let asked = async {
            let stream = UnixStream::connect(socket).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let path = format!("{PATH}?format=json&peers=1");
            fetch(stream, "localhost", &path, MOST_BYTES).await
        };
        let asked = || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            // The clock is the runtime's.
            let answer = runtime.block_on(async { timeout(most, asked).await });
            answer.map_err(|_| format!("it did not answer within {most:?}"))?
        };
        off_runtime(asked).unwrap_or_else(|error| Err(error.to_string()))
    }

    pub(super) fn collect_where(
        tracker: &Tracker,
        urls: Vec<String>,
        dirs: &[PathBuf],
        if_denied: Denied,
        wanted: impl Fn(&Path) -> bool + Send,
    ) -> Self {
        let ask = || ask_all(&urls, dirs, wanted);
        let Asked {
            snapshots,
            mut failed,
            denied,
        } = if tokio::runtime::Handle::try_current().is_ok() {
            off_runtime(ask).unwrap_or_else(|error| Asked::nobody(&error))
        } else {
            ask()
        };
        // After the peers: a thread that ran before the call it made began, and still runs, is proof.
        let (local, mut unknown) = seen_from_inside(tracker.snapshot());
        match if_denied {
            Denied::Counted if denied.is_empty() => {}
            Denied::Counted => unknown.push(format!(
                "what processes of other users do ({}), which only they and root may ask",
                denied.len()
            )),
            Denied::Failed => failed.extend(denied.iter().map(|socket| PeerFailed {
                address: crate::text::visible(&socket.to_string_lossy()),
                why: "it is another user's, needs root".to_owned(),
            })),
        }
        let mut known = vec![local.process.clone()];
        let peers = snapshots.into_iter().filter(|peer| {
            let is_new = !known.contains(&peer.process);
            known.push(peer.process.clone());
            is_new
        });
        let peers = peers.collect();
        Self::joined(local, peers, failed, unknown)
    }

    /// [`collect`](Self::collect) for async code on a tokio runtime.
    pub async fn collect_async(tracker: &Tracker) -> Self {
        let of = tracker.clone();
        let (send, collected) = oneshot::channel();
        let collect = move || drop(send.send(Self::collect(&of)));
        // Not on the runtime's pool: its threads may all be stuck, and it panics where it gets no more.
        let thread = thread::Builder::new().name("inflight-report".to_owned());
        let spawned = thread.spawn(collect).map(drop);
        match (spawned, collected.await) {
            (Ok(()), Ok(report)) => report,
            // What is known without the others is better than nothing.
            (Ok(()), Err(_)) => Self::local(tracker),
            (Err(error), _) => {
                let (local, unknown) = seen_from_inside(tracker.snapshot());
                Self::joined(local, Vec::new(), Asked::nobody(&error).failed, unknown)
            }
        }
    }
}

impl Asked {
    fn nobody(why: &io::Error) -> Self {
        let failed = PeerFailed {
            address: "all others".to_owned(),
            why: format!("they cannot be asked: {why}"),
        };
        Self {
            failed: vec![failed],
            ..Self::default()
        }
    }
}

// A thread of a runtime must not start another one.
fn off_runtime<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("inflight-report".to_owned());
        let spawned = thread.spawn_scoped(scope, f)?;
        spawned.join().map_err(|_| io::Error::other("it panicked"))
    })
}

// On a runtime of its own, so that it works wherever it is called, and without further threads.
fn ask_all(urls: &[String], dirs: &[PathBuf], wanted: impl Fn(&Path) -> bool) -> Asked {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Asked::nobody(&error),
    };
    runtime.block_on(async {
        let mut asked = JoinSet::new();
        let directory::Sockets {
            directories,
            closed,
        } = directory::sockets(dirs);
        for directory in &directories {
            for socket in directory.sockets.iter().filter(|socket| wanted(socket)) {
                asked.spawn(ask(socket.clone(), directory.way_to(socket)));
            }
        }
        for url in urls {
            asked.spawn(ask_url(url.clone()));
        }
        let mut all = Asked::default();
        all.denied
            .extend(closed.into_iter().filter(|socket| wanted(socket)));
        for answer in asked.join_all().await {
            match answer {
                Answer::Snapshot(snapshot) => all.snapshots.push(*snapshot),
                Answer::Failed(why) => all.failed.push(why),
                Answer::Denied(socket) => all.denied.push(socket),
                Answer::Passed => {}
            }
        }
        all.snapshots.sort_by_key(|snapshot| snapshot.process.pid);
        all.failed.sort_by(|a, b| a.address.cmp(&b.address));
        all.denied.sort();
        all
    })
}

// The socket is shown, and reached by another way.
async fn ask(socket: PathBuf, way: PathBuf) -> Answer {
    let failed = |why: String| {
        Answer::Failed(PeerFailed {
            address: crate::text::visible(&socket.to_string_lossy()),
            why,
        })
    };
    let stream = match UnixStream::connect(&way).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Answer::Passed,
                io::ErrorKind::PermissionDenied => Answer::Denied(socket),
                _ => failed(error.to_string()),
            };
        }
    };
    let peer = stream.peer_cred().ok();
    let ours = rustix::process::geteuid().as_raw();
    let most = match peer.map(|cred| cred.uid()) {
        Some(uid) if uid == ours || uid == 0 => MOST_BYTES,
        _ => MOST_OF_OTHERS,
    };
    let peer = peer.and_then(|cred| cred.pid());
    if peer == Some(std::process::id().cast_signed()) {
        return Answer::Passed;
    }
    let path = format!("{PATH}?{QUERY}");
    match timeout(DEADLINE, fetch(stream, "localhost", &path, most)).await {
        Ok(Ok(snapshot)) => Answer::Snapshot(Box::new(snapshot)),
        Ok(Err(why)) => failed(why),
        Err(_) => failed(format!(
            "{} did not answer within {} ms",
            process(peer, &socket),
            DEADLINE.as_millis()
        )),
    }
}

// By a URL such as http://10.0.0.7:9911/debug/inflight.
async fn ask_url(url: String) -> Answer {
    let shown = crate::text::clean_url(&url);
    let asked = async {
        let (host, address, path) = parse_url(&url)?;
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| error.to_string())?;
        fetch(stream, &host, &format!("{path}?{QUERY}"), MOST_BYTES).await
    };
    let why = match timeout(DEADLINE, asked).await {
        Ok(Ok(snapshot)) => return Answer::Snapshot(Box::new(snapshot)),
        Ok(Err(why)) => why,
        Err(_) => format!("it did not answer within {} ms", DEADLINE.as_millis()),
    };
    Answer::Failed(PeerFailed {
        address: shown,
        why,
    })
}

// What to call the host, where it is, and the path of its report.
fn parse_url(url: &str) -> Result<(String, SocketAddr, String), String> {
    let uri: http::Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
    if uri.scheme_str() != Some("http") {
        return Err("only http:// can be asked".to_owned());
    }
    let host = uri.host().unwrap_or_default();
    let ip = match host.trim_start_matches('[').trim_end_matches(']') {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        text => text.parse().map_err(|_| {
            "no name is resolved on the way to a report: give its address".to_owned()
        })?,
    };
    let path = match uri.path() {
        "" | "/" => PATH,
        path => path,
    };
    let address = SocketAddr::new(ip, uri.port_u16().unwrap_or(80));
    Ok((host.to_owned(), address, path.to_owned()))
}

async fn fetch<S, T: DeserializeOwned>(
    stream: S,
    host: &str,
    path: &str,
    most: usize,
) -> Result<T, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    // Ends with the runtime, if not before.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, host)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), most).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    read(&body).map_err(|error| format!("it answered what is no snapshot: {error}"))
}

// What moves a cursor is written out, though a peer of ours has done so: it may be anybody's.
fn read<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    let is_plain = body.iter().all(|byte| (b' '..=b'~').contains(byte));
    if is_plain && !body.windows(2).any(|pair| pair == b"\\u") {
        return serde_json::from_slice(body);
    }
    let mut value = serde_json::from_slice(body)?;
    make_visible(&mut value);
    serde_json::from_value(value)
}

fn make_visible(value: &mut Value) {
    match value {
        Value::String(text) => *text = crate::text::visible(text),
        Value::Array(values) => values.iter_mut().for_each(make_visible),
        Value::Object(fields) => fields.values_mut().for_each(make_visible),
        _ => {}
    }
}

fn process(pid: Option<i32>, socket: &Path) -> String {
    let pid = pid.map(|pid| pid.to_string());
    let pid = pid.or_else(|| Some(socket.file_stem()?.to_string_lossy().into_owned()));
    format!("process {}", pid.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{parse_url, read};

    #[test]
    fn what_moves_a_cursor_does_not_come_in() {
        for told in ["{\"a\":[\"x\\u009b31m\"]}", "{\"a\":[\"x\u{9b}31m\"]}"] {
            let value: Value = read(told.as_bytes()).unwrap();
            assert_eq!(value, json!({"a": ["x\\u{9b}31m"]}), "{told}");
        }
        let plain: Value = read(br#"{"a":"x","n":1.5}"#).unwrap();
        assert_eq!(plain, json!({"a": "x", "n": 1.5}));
    }

    #[test]
    fn a_url_is_read_and_no_name_is_resolved() {
        let read = |url: &str| parse_url(url).map(|(_, address, path)| format!("{address}{path}"));

        for (url, expected) in [
            (
                "http://127.0.0.1:99/x/debug/inflight",
                "127.0.0.1:99/x/debug/inflight",
            ),
            ("http://localhost:99", "127.0.0.1:99/debug/inflight"),
            ("http://[::1]:99/", "[::1]:99/debug/inflight"),
            ("http://10.0.0.7", "10.0.0.7:80/debug/inflight"),
        ] {
            assert_eq!(read(url).as_deref(), Ok(expected));
        }
        assert!(
            read("http://api-7:99/")
                .unwrap_err()
                .contains("give its address")
        );
        assert!(
            read("https://10.0.0.7/")
                .unwrap_err()
                .contains("only http://")
        );
        assert!(read("http://").is_err());
    }
}
