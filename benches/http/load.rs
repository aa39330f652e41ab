//! The child that asks: over plain sockets, or through hyper-util's client, bare or with the layer.

use std::{
    cell::RefCell,
    fmt::Debug,
    io::stdin,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use axum::http::{Request, Response, Uri};
use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use inflight::{Tracker, debug, http::ClientLayer, watchdog};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};
use tower::{Service, ServiceBuilder, ServiceExt};

use crate::{
    ASKS_ON,
    child::{say, stay_on},
    harness::quantile,
};

/// Answers between two looks at the clock that count.
const BATCH: u64 = 64;

/// When to stop, and what has been done.
#[derive(Clone)]
struct Count(Rc<RefCell<Counted>>);

struct Counted {
    until: Instant,
    answers: u64,
    last: Instant,
    /// Nanoseconds for each answer.
    batches: Vec<f64>,
}

/// A line each: an address, a path, how many connections, and for how many milliseconds.
pub(crate) fn run(by: &str) {
    stay_on(ASKS_ON);
    let tracker = Tracker::new("bench");
    let _rest = (by == "layered").then(|| (debug::serve(&tracker), watchdog::spawn(&tracker)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let tasks = LocalSet::new();
    let client = client();
    let layered = Client::builder(TokioExecutor::new()).build_http();
    for line in stdin().lines().map_while(Result::ok) {
        if line == "recorded" {
            say(&format!("recorded {} 0", tracker.snapshot().totals.ended));
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let [address, path, connections, millis] = *words else {
            panic!("what is {line}?");
        };
        let address: SocketAddr = address.parse().expect("an address");
        let connections: usize = connections.parse().expect("a number");
        let most = Duration::from_millis(millis.parse().expect("milliseconds"));
        let work = async {
            match by {
                "raw" => raw(address, path, connections, most).await,
                "hyper" => through(client.clone(), address, path, connections, most).await,
                _ => {
                    let layer = ClientLayer::new(&tracker);
                    let layered = ServiceBuilder::new().layer(layer).service(layered.clone());
                    through(layered, address, path, connections, most).await
                }
            }
        };
        let (answers, each) = tasks.block_on(&runtime, work);
        say(&format!("answers {answers} {each}"));
    }
}

fn client() -> Client<HttpConnector, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

impl Count {
    fn new(most: Duration) -> Self {
        let now = Instant::now();
        Self(Rc::new(RefCell::new(Counted {
            until: now + most,
            answers: 0,
            last: now,
            batches: Vec::new(),
        })))
    }

    /// One more; true until it is time to stop.
    fn goes_on(&self) -> bool {
        let mut counted = self.0.borrow_mut();
        counted.answers += 1;
        let now = Instant::now();
        if counted.answers.is_multiple_of(BATCH) {
            let took = (now - counted.last).as_nanos() as f64;
            counted.batches.push(took / BATCH as f64);
            counted.last = now;
        }
        now < counted.until
    }

    /// How many there were, and how many nanoseconds each took.
    fn result(&self) -> (u64, f64) {
        let counted = self.0.borrow();
        // Not the mean, which would count what else ran on this processor.
        (counted.answers, quantile(&counted.batches, 0.5))
    }
}

/// Writes requests and reads answers, and looks at nothing in them but their length.
async fn raw(address: SocketAddr, path: &str, connections: usize, most: Duration) -> (u64, f64) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    let request: Rc<[u8]> = request.into_bytes().into();
    let mut ready = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        // The first answer tells how long they are.
        stream.write_all(&request).await.expect("to be read");
        let mut buffer = vec![0; 128 << 10];
        let length = first(&mut stream, &mut buffer).await;
        ready.push((stream, buffer, length));
    }
    let count = Count::new(most);
    let tasks = ready.into_iter().map(|(mut stream, mut buffer, length)| {
        let (count, request) = (count.clone(), Rc::clone(&request));
        tokio::task::spawn_local(async move {
            loop {
                stream.write_all(&request).await.expect("to be read");
                stream
                    .read_exact(&mut buffer[..length])
                    .await
                    .expect("an answer");
                assert!(buffer.starts_with(b"HTTP/1.1 200"));
                if !count.goes_on() {
                    return;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    let (answers, each) = count.result();
    (answers + connections as u64, each)
}

async fn first(stream: &mut TcpStream, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    loop {
        length += stream.read(&mut buffer[length..]).await.expect("an answer");
        let answer = &buffer[..length];
        let is_chunked = answer.windows(7).any(|word| word == b"chunked");
        let end: &[u8] = if is_chunked { b"\r\n0\r\n\r\n" } else { b"\n" };
        if answer.ends_with(end) && answer.windows(4).any(|word| word == b"\r\n\r\n") {
            return length;
        }
    }
}

/// Asks through a client, and reads each body to its end.
async fn through<S, B>(
    client: S,
    address: SocketAddr,
    path: &str,
    tasks: usize,
    most: Duration,
) -> (u64, f64)
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>> + Clone + 'static,
    S::Error: Debug,
    B: Body,
    B::Error: Debug,
{
    let uri: Uri = format!("http://{address}{path}").parse().expect("a URI");
    let count = Count::new(most);
    let tasks = (0..tasks).map(|_| {
        let (count, mut client, uri) = (count.clone(), client.clone(), uri.clone());
        tokio::task::spawn_local(async move {
            loop {
                let request = Request::get(uri.clone()).body(Empty::new());
                let client = client.ready().await.expect("a client");
                let response = client.call(request.expect("a request")).await;
                let response = response.expect("an answer");
                assert!(response.status().is_success());
                let mut body = pin!(response.into_body());
                while let Some(frame) = body.frame().await {
                    frame.expect("a frame");
                }
                if !count.goes_on() {
                    return;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    count.result()
}
