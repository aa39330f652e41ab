//! `/debug/inflight`: what it answers to whom, and that nothing holds it up.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use http_body_util::BodyExt;
use inflight::{Report, Snapshot, Tracker, debug, http::ServerLayer};
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(20);

const CHILD: &str = "INFLIGHT_TEST_CHILD";

/// Runs a test of this file once more, alone in a process with a directory of its own for sockets.
fn in_child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("debug_server::{test}"), "--nocapture"])
        .env(CHILD, test)
        .env("INFLIGHT_DIR", dir)
        .env_remove("INFLIGHT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn is_child(test: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == test)
}

fn passes_in_child(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let child = in_child(test, &dir.path().join("run"));
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}");
    assert!(out.contains("1 passed"), "{out}");
}

fn get(socket: &Path, path: &str, headers: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn ask(tracker: &Tracker, uri: &str, accept: Option<&str>) -> (StatusCode, String, String) {
    let mut request = Request::get(uri);
    if let Some(accept) = accept {
        request = request.header(header::ACCEPT, accept);
    }
    // Behind the layer, as in an application.
    let app = debug::router(tracker).layer(ServerLayer::new(tracker));
    let response = app
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let status = response.status();
    let kind = response.headers()[header::CONTENT_TYPE]
        .to_str()
        .unwrap()
        .to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn each_gets_the_form_it_asks_for() {
    let tracker = Tracker::new("<api>");
    let _op = tracker.begin("reindex");

    for accept in [None, Some("*/*"), Some("text/plain")] {
        let (status, kind, text) = ask(&tracker, "/debug/inflight", accept).await;
        assert_eq!(status, StatusCode::OK);
        assert!(kind.starts_with("text/plain"), "{kind}");
        assert!(text.contains("reindex"), "{text}");
    }
    let browser = Some("text/html,application/xhtml+xml,*/*;q=0.8");
    let (_, kind, page) = ask(&tracker, "/debug/inflight", browser).await;
    assert!(kind.starts_with("text/html"));
    assert!(
        page.contains("&lt;api&gt;") && !page.contains("<api>"),
        "{page}"
    );
    for (uri, accept) in [
        ("/debug/inflight?format=json", None),
        ("/debug/inflight", Some("application/json")),
    ] {
        let (_, _, json) = ask(&tracker, uri, accept).await;
        let snapshot: Snapshot = serde_json::from_str(&json).unwrap();
        assert_eq!(snapshot.ops.len(), 1, "its own requests are no ops");
        assert_eq!(snapshot.process.pid, std::process::id());
    }
    let (_, _, json) = ask(&tracker, "/debug/inflight?format=json&peers=1", None).await;
    let report: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(report.local.ops.len(), 1);
    assert_eq!(tracker.snapshot().totals.begun, 1);
}

#[tokio::test]
async fn a_snapshot_can_be_narrowed_and_nonsense_is_explained() {
    let tracker = Tracker::new("api");
    let _ops: Vec<_> = (0..5).map(|n| tracker.begin(format!("op {n}"))).collect();
    let json = async |query: &str| {
        let uri = format!("/debug/inflight?format=json&{query}");
        let (status, _, body) = ask(&tracker, &uri, None).await;
        (status, body)
    };

    let (_, body) = json("limit=2").await;
    let snapshot: Snapshot = serde_json::from_str(&body).unwrap();
    assert_eq!((snapshot.ops.len(), snapshot.totals.left_out), (2, 3));
    for query in ["min_age=1h", "min_age=60m", "min_age=9000s", "kind=fuse"] {
        let (_, body) = json(query).await;
        let snapshot: Snapshot = serde_json::from_str(&body).unwrap();
        assert_eq!(snapshot.totals.left_out, 5, "{query}");
    }
    assert_eq!(json("count").await.1, r#"{"ops":5}"#);
    assert_eq!(json("count&kind=task").await.1, r#"{"ops":5}"#);
    assert_eq!(json("count&kind=fuse").await.1, r#"{"ops":0}"#);
    assert_eq!(json("count&min_age=1h").await.1, r#"{"ops":0}"#);
    let (_, _, text) = ask(&tracker, "/debug/inflight?count", None).await;
    assert_eq!(text, "5\n");
    for query in [
        "min_age=soon",
        "min_age=-1s",
        "kind=x",
        "limit=x",
        "format=x",
        "limits=1",
        "min_age=1e99h",
    ] {
        let (status, body) = json(query).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(
            body.contains("GET /debug/inflight takes"),
            "{query}: {body}"
        );
    }
}

#[test]
fn the_server_answers_when_all_threads_of_the_application_are_blocked() {
    const TEST: &str = "the_server_answers_when_all_threads_of_the_application_are_blocked";
    if !is_child(TEST) {
        return passes_in_child(TEST);
    }
    let tracker = Tracker::new("api");
    let server = debug::serve(&tracker);
    let socket = server.path().unwrap().to_owned();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o600, 0o700)
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();

    runtime.block_on(async {
        let op = tracker.begin("blocks its runtime");
        let _in = op.enter();
        let answer = get(&socket, "/debug/inflight", "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("blocks its runtime"), "{answer}");
    });

    drop(server);
    assert!(!socket.exists());
}

#[test]
fn a_server_that_was_let_go_runs_on() {
    const TEST: &str = "a_server_that_was_let_go_runs_on";
    if !is_child(TEST) {
        return passes_in_child(TEST);
    }
    let tracker = Tracker::new("api");
    let server = debug::serve(&tracker);
    let socket = server.path().unwrap().to_owned();
    assert_eq!(server.problem(), None);

    server.forever();

    assert!(get(&socket, "/debug/inflight?count", "").ends_with("\r\n\r\n0\n"));
}

#[test]
fn who_asks_and_goes_away_keeps_nobody_from_a_report() {
    const TEST: &str = "who_asks_and_goes_away_keeps_nobody_from_a_report";
    if !is_child(TEST) {
        return passes_in_child(TEST);
    }
    // It never answers: a report takes as long as one may.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let tracker = Tracker::builder("api").peer(url).build();
    let server = debug::serve(&tracker);
    let socket = server.path().unwrap();

    for _ in 0..100 {
        let mut gives_up = UnixStream::connect(socket).unwrap();
        gives_up
            .write_all(b"GET /debug/inflight HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
    }

    let answer = get(socket, "/debug/inflight", "");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn who_comes_and_says_nothing_uses_nothing_up() {
    const TEST: &str = "who_comes_and_says_nothing_uses_nothing_up";
    const IDLE: usize = 40;
    if !is_child(TEST) {
        return passes_in_child(TEST);
    }
    let server = debug::serve(&Tracker::new("api")).tcp("127.0.0.1:0".parse().unwrap());
    let connect = || {
        let stream = std::net::TcpStream::connect(server.address().unwrap()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let idle: Vec<_> = (0..IDLE).map(|_| connect()).collect();

    // Behind all of them: those that were let in first are let go for it.
    let mut asks = connect();
    asks.write_all(b"GET /debug/inflight?count HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    asks.read_to_string(&mut answer).unwrap();

    assert!(answer.ends_with("\r\n\r\n0\n"), "{answer}");
    // Ours, and fewer at the other end.
    assert!(open() < before + IDLE + IDLE, "all are open");
    drop(idle);
}

#[test]
fn a_peer_is_joined_and_one_that_is_stopped_is_named() {
    const TEST: &str = "a_peer_is_joined_and_one_that_is_stopped_is_named";
    let tracker = Tracker::new("peer");
    if is_child(TEST) {
        // The peer: holds a socket and an op until its stdin ends.
        let _op = tracker.begin("work of the peer");
        let _server = debug::serve(&tracker);
        writeln!(std::io::stdout(), "@ready").unwrap();
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        return;
    }
    if !is_child("asks") {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let mut peer = in_child(TEST, &run);
        let mut lines = BufReader::new(peer.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("@ready")));
        let ask = || {
            let mut asks = Command::new(std::env::current_exe().unwrap());
            asks.args(["--exact", &format!("debug_server::{TEST}"), "--nocapture"]);
            asks.env(CHILD, "asks").env("INFLIGHT_DIR", &run);
            String::from_utf8(asks.output().unwrap().stdout).unwrap()
        };
        // Younger ops than a tenth of a second are not asked for.
        let deadline = std::time::Instant::now() + DEADLINE;
        let mut joined = ask();
        while !joined.contains("work of the peer") && std::time::Instant::now() < deadline {
            joined = ask();
        }
        let signal = |name: &str| {
            let pid = peer.id().to_string();
            let status = Command::new("kill").args([name, &pid]).status();
            assert!(status.unwrap().success());
        };
        signal("-STOP");
        let stopped = ask();
        signal("-CONT");
        drop(peer.stdin.take());
        peer.wait().unwrap();
        let after = ask();

        assert!(joined.contains("work of the peer"), "{joined}");
        let why = format!("process {} did not answer within 300 ms", peer.id());
        assert!(stopped.contains(&why), "{stopped}");
        assert!(!after.contains(&why), "{after}");
        assert!(!after.contains("work of the peer"), "{after}");
        return;
    }
    writeln!(std::io::stdout(), "{}", Report::collect(&tracker)).unwrap();
}

#[tokio::test]
async fn a_report_is_collected_on_any_runtime() {
    let tracker = Tracker::new("api");
    let _op = tracker.begin("reindex");

    // The blocking one, too: it asks on a thread of its own.
    let (one, other) = (
        Report::collect(&tracker),
        Report::collect_async(&tracker).await,
    );

    assert_eq!(one.local.ops.len(), 1);
    assert_eq!(other.local.ops.len(), 1);
    assert!(
        one.peers
            .iter()
            .all(|peer| peer.process.pid != std::process::id())
    );
}

#[test]
fn a_peer_is_asked_by_its_url_and_by_no_name() {
    const TEST: &str = "a_peer_is_asked_by_its_url_and_by_no_name";
    let tracker = Tracker::new("peer");
    if is_child(TEST) {
        let _op = tracker.begin("work of the peer");
        let server = debug::serve(&tracker).tcp("127.0.0.1:0".parse().unwrap());
        writeln!(std::io::stdout(), "@at {}", server.address().unwrap()).unwrap();
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        return;
    }
    if is_child("asks") {
        writeln!(std::io::stdout(), "{}", Report::collect(&tracker)).unwrap();
        return;
    }
    // No directory that anyone would look in: only the address leads to it.
    let dir = tempfile::tempdir().unwrap();
    let mut peer = in_child(TEST, &dir.path().join("theirs"));
    let lines = BufReader::new(peer.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let address = lines
        .find_map(|line| Some(line.split_once("@at ")?.1.to_owned()))
        .unwrap();
    let says = |host: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "GET /debug/inflight?count HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for host in [address.as_str(), "localhost", "localhost:80", "[::1]:80"] {
        assert!(says(host).starts_with("HTTP/1.1 200 OK"), "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
    ] {
        assert!(says(host).starts_with("HTTP/1.1 403 "), "{host}");
    }

    // One that accepts and never answers, and one that answers nonsense.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nonsense = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let [of_silent, of_nonsense] = [&silent, &nonsense].map(|it| it.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in nonsense.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    let ask = || {
        let mut asks = Command::new(std::env::current_exe().unwrap());
        asks.args(["--exact", &format!("debug_server::{TEST}"), "--nocapture"]);
        asks.env(CHILD, "asks")
            .env("INFLIGHT_DIR", dir.path().join("ours"));
        let peers =
            format!("http://{address}, http://{of_silent}, http://{of_nonsense}, http://api/");
        asks.env("INFLIGHT_PEERS", peers);
        String::from_utf8(asks.output().unwrap().stdout).unwrap()
    };
    let deadline = std::time::Instant::now() + DEADLINE;
    let mut text = ask();
    while !text.contains("work of the peer") && std::time::Instant::now() < deadline {
        text = ask();
    }
    drop(peer.stdin.take());
    peer.wait().unwrap();
    drop(silent);

    let text = text.replace("\n        ", " ");
    for part in [
        "work of the peer".to_owned(),
        format!("what http://{of_silent} does (it did not answer within 300 ms)"),
        format!("what http://{of_nonsense} does (it answered what is no snapshot"),
        "what http://api/ does (no name is resolved".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} is missing in\n{text}");
    }
}
