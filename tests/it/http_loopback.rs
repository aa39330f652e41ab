//! The HTTP layers on real connections: axum serves, hyper's client asks.

use std::{
    fs, net::SocketAddr, os::unix::fs::OpenOptionsExt, process::Command, sync::Arc, time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    response::{Sse, sse::Event},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use inflight::{
    Kind, Outcome, Snapshot, State, Tracker,
    http::{ClientLayer, RequestBody, ServerLayer},
    snapshot::{LiveOp, On, ParentFrom},
};
use tokio::{net::TcpListener, sync::Notify};
use tower::{Layer, Service, ServiceExt};
use tower_http::services::ServeDir;

type Sent = Full<Bytes>;
type Hyper = inflight::http::Client<Client<HttpConnector, RequestBody<Sent>>>;

// Frees a test that would hang; nothing is measured by it.
const DEADLINE: Duration = Duration::from_secs(20);

async fn serve(app: Router<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn hyper() -> Client<HttpConnector, RequestBody<Sent>> {
    Client::builder(TokioExecutor::new()).build_http()
}

fn client(tracker: &Tracker) -> Hyper {
    ClientLayer::new(tracker).layer(hyper())
}

fn ask(address: SocketAddr, path: &str) -> Request<Sent> {
    Request::get(format!("http://{address}{path}"))
        .body(Sent::default())
        .unwrap()
}

async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

/// Looks again until it is so: what another task does next is not ours to order.
async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    bounded(async {
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// How the HTTP ops ended, once so many have and none is left.
async fn ended(tracker: &Tracker, count: usize) -> Vec<Outcome> {
    eventually(|| {
        let Snapshot { ops, recent, .. } = tracker.snapshot();
        let is_http = |kind: &Kind| *kind != Kind::Task;
        let ended = recent.iter().filter(|ended| is_http(&ended.op.kind));
        let outcomes: Vec<_> = ended.map(|ended| ended.outcome.clone()).collect();
        let is_idle = !ops.iter().any(|op| is_http(&op.kind));
        (is_idle && outcomes.len() == count).then_some(outcomes)
    })
    .await
}

fn only(tracker: &Tracker) -> Option<LiveOp> {
    let mut ops = tracker.snapshot().ops;
    (ops.len() == 1).then(|| ops.remove(0))
}

#[tokio::test]
async fn both_sides_name_the_same_call() {
    let (here, there) = (Tracker::new("client"), Tracker::new("server"));
    let (asked, mut was_asked) = tokio::sync::mpsc::channel(1);
    let answer = Arc::new(Notify::new());
    let may_answer = Arc::clone(&answer);
    let handler = move || {
        let (asked, may_answer) = (asked.clone(), Arc::clone(&may_answer));
        async move {
            asked.send(()).await.unwrap();
            may_answer.notified().await;
            "ok"
        }
    };
    let app = Router::new()
        .route("/block/{n}", get(handler))
        .layer(ServerLayer::new(&there));
    let address = serve(app).await;
    let task = here.begin("read");

    let response = {
        let _in = task.enter();
        client(&here).call(ask(address, "/block/7?token=s3cret"))
    };
    let response = tokio::spawn(response);
    bounded(was_asked.recv()).await.unwrap();

    let (mine, theirs) = (here.snapshot(), there.snapshot());
    let (reads, sends, serves) = (&mine.ops[0], &mine.ops[1], &theirs.ops[0]);
    assert_eq!(serves.parent_id, Some(sends.id));
    assert_eq!(serves.parent_from, Some(ParentFrom::InflightOp));
    assert_eq!(serves.trace_id, sends.trace_id);
    assert_eq!((&serves.kind, &*serves.name), (&Kind::HttpServer, "GET"));
    assert_eq!(serves.target, "/block/7?token=..");
    assert_eq!(serves.phase.path, ["handler"]);
    let http = serves.http.as_ref().unwrap();
    assert_eq!(http.route.as_deref(), Some("/block/{n}"));
    assert!(http.peer.as_ref().unwrap().starts_with("127.0.0.1:"));
    assert_ne!(http.peer, Some(address.to_string()));

    assert_eq!(sends.parent_id, Some(reads.id));
    assert_eq!(sends.target, format!("http://{address}/block/7?token=.."));
    assert_eq!(sends.phase.path, ["waiting for the answer"]);
    assert_eq!(sends.http.as_ref().unwrap().peer, Some(address.to_string()));
    let wait = reads.phase.wait.as_ref().unwrap();
    assert_eq!((&wait.on, &wait.ops[..]), (&On::Call, &[sends.id][..]));

    answer.notify_one();
    let body = bounded(response).await.unwrap().unwrap().into_body();
    assert_eq!(bounded(body.collect()).await.unwrap().to_bytes(), "ok");
    assert_eq!(ended(&here, 1).await, [Outcome::Completed]);
    assert_eq!(ended(&there, 1).await, [Outcome::Completed]);
}

/// Sends it, reads all of the answer, and says how it went.
async fn fetch(client: &mut Hyper, request: Request<Sent>) -> (StatusCode, usize) {
    bounded(async {
        let response = client.ready().await.unwrap().call(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, body.len())
    })
    .await
}

#[tokio::test]
async fn a_head_a_304_a_range_and_a_file_are_completed_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), vec![b'x'; 100_000]).unwrap();
    let (here, there) = (Tracker::new("client"), Tracker::new("server"));
    let app = Router::new()
        .fallback_service(ServeDir::new(dir.path()))
        .layer(ServerLayer::new(&there));
    let address = serve(app).await;
    let mut client = client(&here);
    let with = |method: &str, name: header::HeaderName, value: &str| {
        Request::builder()
            .method(method)
            .uri(format!("http://{address}/file"))
            .header(name, value)
            .body(Sent::default())
            .unwrap()
    };
    let later = "Fri, 01 Jan 2100 00:00:00 GMT";

    for (request, expected) in [
        (
            with("GET", header::ACCEPT, "*/*"),
            (StatusCode::OK, 100_000),
        ),
        (with("HEAD", header::ACCEPT, "*/*"), (StatusCode::OK, 0)),
        (
            with("GET", header::RANGE, "bytes=10-19"),
            (StatusCode::PARTIAL_CONTENT, 10),
        ),
        (
            with("GET", header::IF_MODIFIED_SINCE, later),
            (StatusCode::NOT_MODIFIED, 0),
        ),
    ] {
        assert_eq!(fetch(&mut client, request).await, expected);
    }

    let all = vec![Outcome::Completed; 4];
    assert_eq!(ended(&here, 4).await, all);
    assert_eq!(ended(&there, 4).await, all);
    let received: Vec<u64> = here
        .snapshot()
        .recent
        .iter()
        .map(|ended| ended.op.http.as_ref().unwrap().received_bytes)
        .collect();
    assert_eq!(received, [100_000, 0, 10, 0]);
}

#[tokio::test]
async fn a_large_upload_that_is_given_up_ends_at_once() {
    let (here, there) = (Tracker::new("client"), Tracker::new("server"));
    let (asked, mut was_asked) = tokio::sync::mpsc::channel(1);
    // Reads nothing of the body, and never answers.
    let handler = move |_: Body| {
        let asked = asked.clone();
        async move {
            asked.send(()).await.unwrap();
            std::future::pending::<&str>().await
        }
    };
    let app = Router::new()
        .route("/upload", post(handler))
        .layer(ServerLayer::new(&there));
    let address = serve(app).await;
    let chunk = Bytes::from(vec![0; 1 << 20]);
    let chunks = (0..64).map(move |_| {
        let frame = http_body::Frame::data(chunk.clone());
        Ok::<_, std::convert::Infallible>(frame)
    });
    let upload = Request::post(format!("http://{address}/upload"))
        .body(StreamBody::new(stream::iter(chunks)))
        .unwrap();
    let sender = Client::builder(TokioExecutor::new()).build_http();
    let mut sends = Box::pin(ClientLayer::new(&here).layer(sender).call(upload));
    // Polled here, so that dropping it is giving it up.
    bounded(async {
        tokio::select! {
            _ = &mut sends => panic!("it was answered"),
            _ = was_asked.recv() => {}
        }
    })
    .await;
    eventually(|| {
        only(&here).filter(|op| op.phase.path == ["sending: waiting for the server to read"])
    })
    .await;

    drop(sends);

    let after = here.snapshot();
    assert!(after.ops.is_empty(), "whatever hyper still holds");
    assert_eq!(after.recent[0].outcome, Outcome::DroppedBeforeResponse);
    // The server reads no more, and so does not learn of it.
    assert_eq!(there.snapshot().ops.len(), 1);
}

#[tokio::test]
async fn an_event_stream_is_idle_on_both_sides_however_old() {
    let strict = |name: &str| {
        Tracker::builder(name)
            .slow_after(Duration::ZERO)
            .stuck_after(Duration::ZERO)
            .build()
    };
    let (here, there) = (strict("client"), strict("server"));
    let handler = async || {
        let first =
            stream::once(async { Ok::<_, std::convert::Infallible>(Event::default().data("one")) });
        Sse::new(first.chain(stream::pending()))
    };
    let app = Router::new()
        .route("/events", get(handler))
        .layer(ServerLayer::new(&there));
    let address = serve(app).await;
    let response = bounded(client(&here).call(ask(address, "/events"))).await;
    let mut body = response.unwrap().into_body();
    bounded(body.frame()).await.unwrap().unwrap();

    for tracker in [&here, &there] {
        let op = only(tracker).unwrap();
        assert_eq!(op.state, State::Idle);
        assert!(op.progress_ms <= op.age_ms);
        assert!(inflight::Report::local(tracker).stuck().is_empty());
    }
    drop(body);
    assert_eq!(ended(&here, 1).await, [Outcome::DroppedInBody]);
    assert_eq!(ended(&there, 1).await, [Outcome::DroppedInBody]);
}

#[tokio::test]
async fn a_download_that_stopped_says_on_both_sides_who_owes() {
    let (here, there) = (Tracker::new("client"), Tracker::new("server"));
    let handler = async || {
        let first = stream::once(async { Ok::<_, std::convert::Infallible>(Bytes::from("part")) });
        Body::from_stream(first.chain(stream::pending()))
    };
    let app = Router::new()
        .route("/download", get(handler))
        .layer(ServerLayer::new(&there));
    let address = serve(app).await;
    let response = bounded(client(&here).call(ask(address, "/download"))).await;
    let mut body = response.unwrap().into_body();
    bounded(body.frame()).await.unwrap().unwrap();
    let more = tokio::spawn(async move { body.frame().await.is_some() });

    let phase = |tracker: &Tracker| only(tracker)?.phase.path.pop();
    let waits = |tracker, text: &'static str| {
        eventually(move || phase(tracker).filter(|phase| phase == text))
    };
    waits(&there, "sending: waiting for the handler's next chunk").await;
    waits(&here, "receiving: waiting for the server's next chunk").await;
    more.abort();
}

#[tokio::test]
async fn connecting_and_sending_are_told_apart() {
    let tracker = Tracker::new("client");
    let silent = tower::service_fn(|_: axum::http::Uri| {
        std::future::pending::<Result<hyper_util::rt::TokioIo<tokio::net::TcpStream>, std::io::Error>>(
        )
    });
    let connects: Client<_, RequestBody<Sent>> =
        Client::builder(TokioExecutor::new()).build(silent);
    let request = Request::get("http://api.example:81/x?key=s3cret")
        .body(Sent::default())
        .unwrap();
    let task = tokio::spawn(ClientLayer::new(&tracker).layer(connects).call(request));
    let op = eventually(|| only(&tracker)).await;
    assert_eq!(op.phase.path, ["connecting"]);
    assert_eq!(op.http.unwrap().peer.as_deref(), Some("api.example:81"));
    task.abort();
    eventually(|| tracker.snapshot().ops.is_empty().then_some(())).await;

    let app = Router::new().route(
        "/",
        post(async |body: Body| {
            let _all = body.collect().await;
        }),
    );
    let address = serve(app).await;
    let first = stream::once(async {
        Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from("part")))
    });
    let body = StreamBody::new(Box::pin(first.chain(stream::pending())));
    let sends = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::post(format!("http://{address}/"))
        .body(body)
        .unwrap();
    let task = tokio::spawn(ClientLayer::new(&tracker).layer(sends).call(request));
    let op = eventually(|| {
        only(&tracker)
            .filter(|op| op.phase.path == ["sending: waiting for the caller's next chunk"])
    })
    .await;
    assert_eq!(op.http.unwrap().sent_bytes, 4);
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_blocked_in_a_system_call_is_found_by_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let tracker = Tracker::new("server");
    let path = fifo.clone();
    let app = Router::new()
        .route("/", get(async move || fs::read_to_string(path).unwrap()))
        .layer(ServerLayer::new(&tracker));
    let address = serve(app).await;
    let client = Tracker::new("client");
    let answer = tokio::spawn(self::client(&client).call(ask(address, "/")));

    let sleeps = eventually(|| {
        let report = inflight::Report::local(&tracker);
        let thread = report.local.ops.first()?.thread.clone()?;
        thread
            .wchan
            .filter(|wchan| wchan.contains("fifo") || wchan.contains("wait_for_partner"))
    });
    sleeps.await;
    // Without a block of its own: it cannot hang, whoever reads.
    let mut write = fs::OpenOptions::new()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut write, b"ok").unwrap();
    drop(write);

    assert!(bounded(answer).await.unwrap().is_ok());
}
