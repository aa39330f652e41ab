//! The processes of a rig: a server whose requests do what their URL says, a file system whose files send such requests, a proxy.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsStr,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawQuery, Request as HttpRequest, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::get,
};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};
use inflight::{
    FutureExt, Tracker, debug,
    fuse::{self, fuser},
    http::ServerLayer,
    resource::Resource,
    testing::Daemon,
};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Runtime, sync};

pub(crate) const ROLE: &str = "INFLIGHT_TEST_ROLE";

/// What a child process is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Serves `/?do=STEP,STEP`, see [`Server::step`].
    Server { name: String, gates: PathBuf },
    /// Serves files, each of which sends requests when it is read.
    Files {
        name: String,
        gates: PathBuf,
        mount: PathBuf,
        slots: usize,
        files: BTreeMap<String, File>,
    },
    /// Passes requests on, and changes them.
    Proxy { to: String, how: Changes },
}

/// What a file does when it is read, a directory (a name that begins with `dir`) when it is listed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct File {
    /// Requests, in full.
    pub(crate) urls: Vec<String>,
    pub(crate) how: How,
    /// Passed at the end.
    pub(crate) gate: Option<String>,
    /// A path that is looked at first, by the thread of the op itself.
    pub(crate) looks_at: Option<PathBuf>,
    /// Read through the page cache, where a reader waits for a page and not for the request.
    pub(crate) is_cached: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum How {
    /// One after the other.
    #[default]
    Waits,
    /// All at once, until one answers.
    Hedged,
    /// Under ops of their own, and nobody waits for them.
    Spawned,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Changes {
    /// A span of its own stands in `traceparent`.
    ReplacesSpan,
    /// Headers it does not know are dropped; `traceparent` it knows.
    DropsUnknown,
    /// A second request is sent like the first.
    SendsTwice,
}

/// The child. In an ordinary run of the tests there is nothing to do.
#[test]
fn plays_its_role_if_told_to() {
    let Ok(told) = std::env::var(ROLE) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    match serde_json::from_str(&told).unwrap() {
        Role::Server { name, gates } => serve(&runtime, &name, gates),
        Role::Proxy { to, how } => {
            let proxy = Arc::new((to, how));
            let app = Router::new().fallback(pass_on).with_state(proxy);
            Daemon::say(&listen(&runtime, app));
        }
        Role::Files {
            name,
            gates,
            mount,
            slots,
            files,
        } => {
            let tracker = Tracker::new(&name);
            debug::serve(&tracker).forever();
            let files = Files {
                files: files.into_iter().collect(),
                tracker: tracker.clone(),
                http: reqwest::Client::builder().no_proxy().build().unwrap(),
                runtime,
                gates,
            };
            let mut config = Config::default();
            config.n_threads = Some(slots);
            let served = fuse::spawn_mount(files, &mount, &config, &tracker).unwrap();
            Daemon::say("mounted");
            wait_for_eof();
            // What is stuck must not be waited for: whoever started this unmounts it.
            std::mem::forget(served);
        }
    }
    wait_for_eof();
    std::process::exit(0);
}

fn wait_for_eof() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn listen(runtime: &Runtime, app: Router) -> String {
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}")
    })
}

/// Comes to a gate, and stays there until the test lets go.
fn pass(gates: &Path, gate: &str) {
    let mut stream = UnixStream::connect(gates).unwrap();
    writeln!(stream, "{gate}").unwrap();
    // A byte, the end and an error all mean: go on.
    let _ = stream.read(&mut [0]);
}

struct Server {
    gates: PathBuf,
    lock: (Resource, Arc<sync::Mutex<()>>),
    permits: (Resource, Arc<sync::Semaphore>),
}

fn serve(runtime: &Runtime, name: &str, gates: PathBuf) {
    let tracker = Tracker::new(name);
    debug::serve(&tracker).forever();
    let server = Server {
        gates,
        lock: (Resource::new(&tracker, "lock"), Arc::default()),
        permits: (
            Resource::new(&tracker, "permits").capacity(2),
            Arc::new(sync::Semaphore::new(2)),
        ),
    };
    let app = Router::new()
        .route("/", get(work))
        .route("/events", get(events))
        .route("/{name}", get(work))
        .layer(ServerLayer::new(&tracker))
        .with_state(Arc::new(server));
    Daemon::say(&listen(runtime, app));
}

async fn work(State(server): State<Arc<Server>>, RawQuery(query): RawQuery) -> StatusCode {
    let query = query.unwrap_or_default();
    let mut held = Vec::new();
    for step in query.trim_start_matches("do=").split(',') {
        server.step(step, &mut held).await;
    }
    StatusCode::OK
}

// A first event, and then none.
async fn events() -> impl IntoResponse {
    let first = futures_util::stream::once(async { Ok::<_, std::io::Error>(Event::default()) });
    let rest = futures_util::stream::pending();
    Sse::new(futures_util::StreamExt::chain(first, rest))
}

impl Server {
    async fn step(&self, step: &str, held: &mut Vec<Box<dyn Any + Send>>) {
        let (verb, on) = step.split_once(':').unwrap_or((step, ""));
        let on = on.to_owned();
        match verb {
            "lock" => {
                let (resource, lock) = &self.lock;
                let guard = resource.wait_async(Arc::clone(lock).lock_owned()).await;
                held.push(Box::new(guard));
            }
            "permit" => {
                let (resource, permits) = &self.permits;
                let guard = resource.wait_async(Arc::clone(permits).acquire_owned());
                held.push(Box::new(guard.await));
            }
            // Not for order: what is over at once nobody ever sees.
            "works" => tokio::time::sleep(Duration::from_millis(10)).await,
            "gate" => {
                let gates = self.gates.clone();
                tokio::task::spawn_blocking(move || pass(&gates, &on))
                    .await
                    .unwrap();
            }
            "walk" => tokio::task::block_in_place(|| walk(&on)),
            "ours" => inflight::spawn_blocking(move || walk(&on)).await.unwrap(),
            "plain" => tokio::task::spawn_blocking(move || walk(&on))
                .await
                .unwrap(),
            // The pages are asked for on behalf of this thread, which does not wait for them.
            "advise" => {
                let file = tokio::task::block_in_place(|| {
                    let file = std::fs::File::open(&on).unwrap();
                    let advice = rustix::fs::Advice::WillNeed;
                    rustix::fs::fadvise(&file, 0, None, advice).unwrap();
                    pass(&self.gates, "advised");
                    file
                });
                held.push(Box::new(file));
            }
            other => panic!("no such step: {other}"),
        }
    }
}

// Errors are those of a mount that was aborted: the test has seen what it wanted.
fn walk(path: &str) {
    match Path::new(path).file_name().and_then(OsStr::to_str) {
        Some(name) if !name.starts_with("dir") => drop(std::fs::read(path)),
        _ => drop(std::fs::read_dir(path).map(Iterator::count)),
    }
}

struct Files {
    files: Vec<(String, File)>,
    tracker: Tracker,
    http: reqwest::Client,
    runtime: Runtime,
    gates: PathBuf,
}

impl Files {
    fn act(&self, ino: INodeNo) {
        let Some((name, file)) = self.files.get(index(ino)) else {
            return;
        };
        inflight::target(format!("/{name}"));
        if let Some(path) = &file.looks_at {
            // Whatever it says: to ask is the point.
            let _ = path.symlink_metadata();
        }
        let requests = file.urls.iter().map(|url| self.send(url.clone()));
        match file.how {
            How::Waits => self.runtime.block_on(async {
                for request in requests {
                    request.await;
                }
            }),
            How::Hedged => {
                let requests: Vec<_> = requests.map(Box::pin).collect();
                self.runtime
                    .block_on(futures_util::future::select_all(requests));
            }
            How::Spawned => {
                for request in requests {
                    let own = self.tracker.begin("prefetch");
                    self.runtime.spawn(request.in_op(&own));
                }
            }
        }
        if let Some(gate) = &file.gate {
            pass(&self.gates, gate);
        }
    }

    // A call is waited for by the op that is current when it begins.
    fn send(&self, url: String) -> impl Future<Output = ()> + Send + use<> {
        let (tracker, http) = (self.tracker.clone(), self.http.clone());
        async move {
            let call = tracker.call("GET", &url).traceparent(true);
            let mut request = http.get(&url).build().unwrap();
            call.inject(request.headers_mut());
            if let Ok(response) = http.execute(request).await {
                call.response(response.status().as_u16());
                let _ = response.bytes().await;
            }
        }
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let named = self.files.get(index(ino));
        let is_dir = named.is_none_or(|(name, _)| name.starts_with("dir"));
        FileAttr {
            ino,
            size: if is_dir { 0 } else { 2 },
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_dir {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if is_dir { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

// The root is 1, and the first file is 2.
fn index(ino: INodeNo) -> usize {
    usize::try_from(ino.0).unwrap().wrapping_sub(2)
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = self.files.iter().position(|(known, _)| name == &**known);
        match at {
            Some(at) => {
                let attr = self.attr(INodeNo(at as u64 + 2));
                reply.entry(&Duration::ZERO, &attr, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.attr(ino));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let is_cached = self.files.get(index(ino)).is_some_and(|it| it.1.is_cached);
        let flags = match is_cached {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_DIRECT_IO,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if offset > 0 {
            return reply.data(&[]);
        }
        self.act(ino);
        reply.data(b"x\n");
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            self.act(ino);
            let _ = reply.add(ino, 1, FileType::Directory, ".");
        }
        reply.ok();
    }
}

async fn pass_on(State(proxy): State<Arc<(String, Changes)>>, request: HttpRequest) -> Response {
    let (to, how) = &*proxy;
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let url = format!("{to}{path}");
    let mut headers: HeaderMap = request.headers().clone();
    match how {
        Changes::ReplacesSpan => {
            let old = headers["traceparent"].to_str().unwrap().to_owned();
            let mut parts: Vec<&str> = old.split('-').collect();
            parts[2] = "00000000deadbeef";
            headers.insert("traceparent", parts.join("-").parse().unwrap());
        }
        Changes::DropsUnknown => {
            headers.remove("inflight-op");
        }
        Changes::SendsTwice => {}
    }
    headers.remove("host");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let send = || client.get(&url).headers(headers.clone()).send();
    let answer = match how {
        Changes::SendsTwice => {
            let both = [Box::pin(send()), Box::pin(send())];
            futures_util::future::select_all(both).await.0
        }
        _ => send().await,
    };
    match answer {
        Ok(answer) => {
            let body = answer.bytes().await.unwrap_or_else(|_| Bytes::new());
            Response::new(Body::from(body))
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
