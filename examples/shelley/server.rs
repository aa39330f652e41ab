//! The server: keeps conversations in memory and walks a folder for guidance files before it begins one.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use inflight::resource::Mutex;
use inflight::{Tracker, debug};
use tokio::net::TcpListener;

use crate::api::{Accepted, Conversation, Message, REQUEST_HEADER, Say, Transcript};
use crate::gate::Gates;

/// Files that tell the model how to work in a folder, in lower case.
const GUIDANCE: [&str; 5] = [
    "agent.md",
    "agents.md",
    "claude.md",
    "dear_llm.md",
    "readme.md",
];

/// When the lock on the conversations is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// Over the whole of a new conversation, walk included: as it was.
    Naive,
    /// Never while files are read.
    Repaired,
}

impl FromStr for Walk {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "naive" => Ok(Self::Naive),
            "repaired" => Ok(Self::Repaired),
            _ => Err("not naive or repaired"),
        }
    }
}

struct Server {
    conversations: Mutex<Vec<Transcript>>,
    begun: AtomicU64,
    walk: Walk,
    gates: Gates,
}

/// The server while it runs, and what answers for it beside its port.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    _debug: debug::Server,
    _spans: Option<inflight::otel::Exporter>,
}

/// Serves until the runtime ends.
pub(crate) async fn start(listen: SocketAddr, walk: Walk, gates: Gates) -> io::Result<Serving> {
    let tracker = Tracker::new("shelley");
    let _debug = debug::serve(&tracker);
    let _spans = crate::spans(&tracker);
    let server = Server {
        conversations: Mutex::new(&tracker, "conversations", Vec::new()),
        begun: AtomicU64::new(0),
        walk,
        gates,
    };
    let app = Router::new()
        .route("/api/conversations", get(list))
        .route("/api/conversations/archived", get(archived))
        .route("/api/conversations/new", post(begin))
        .route("/api/conversation/{id}", get(one))
        .route("/api/conversation/{id}/chat", post(chat))
        .layer(inflight::http::ServerLayer::new(&tracker))
        .with_state(Arc::new(server));
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(Serving {
        address,
        _debug,
        _spans,
    })
}

/// Takes the same lock as [`begin`]: one half of the hang.
async fn list(State(server): State<Arc<Server>>) -> Json<Vec<Conversation>> {
    server.gates.pass("list", "").await;
    let conversations = server.conversations.lock().await;
    Json(
        conversations
            .iter()
            .map(|transcript| transcript.conversation.clone())
            .collect(),
    )
}

/// Takes no lock; nothing is ever archived here.
async fn archived() -> Json<Vec<Conversation>> {
    Json(Vec::new())
}

async fn one(
    State(server): State<Arc<Server>>,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<Transcript>, Refused> {
    server.gates.pass("one", &id).await;
    let conversations = server.conversations.lock().await;
    let found = conversations
        .iter()
        .find(|transcript| transcript.conversation.conversation_id == id);
    found
        .cloned()
        .map(Json)
        .ok_or(Refused(StatusCode::NOT_FOUND, "Conversation not found"))
}

/// Begins a conversation. With [`Walk::Naive`] it reads files while it holds the lock: the other half of the hang, as soon
/// as one of those files is served by a process that asks for the list.
async fn begin(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    body: String,
) -> Result<impl IntoResponse, Refused> {
    let say = said(&headers, &body)?;
    let cwd = say.cwd.map_or_else(
        || std::env::current_dir().unwrap_or_default(),
        PathBuf::from,
    );
    let lock = server.conversations.lock().await;
    let id = format!("c{:06X}", server.begun.fetch_add(1, Ordering::Relaxed) + 1);
    server.gates.pass("locked", &id).await;

    let held = match server.walk {
        Walk::Naive => Some(lock),
        Walk::Repaired => {
            drop(lock);
            None
        }
    };
    // Blocks this thread, as `std::fs` in a handler does; tokio moves its other tasks away.
    let guidance = tokio::task::block_in_place(|| {
        let _phase = inflight::nested(format!("walk {}", cwd.display()));
        guidance_under(&cwd)
    });
    let mut conversations = match held {
        Some(lock) => lock,
        None => server.conversations.lock().await,
    };

    let found: Vec<String> = guidance
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let mut transcript = Transcript {
        messages: Vec::new(),
        conversation: Conversation {
            conversation_id: id.clone(),
            slug: None,
            cwd: cwd.display().to_string(),
            archived: false,
            model: "predictable".to_owned(),
            working: false,
        },
    };
    add(
        &mut transcript,
        "system",
        format!("Guidance: {}", found.join(", ")),
    );
    converse(&mut transcript, say.message);
    conversations.push(transcript);
    Ok((
        StatusCode::CREATED,
        Json(Accepted {
            status: "accepted".to_owned(),
            conversation_id: Some(id),
        }),
    ))
}

async fn chat(
    State(server): State<Arc<Server>>,
    UrlPath(id): UrlPath<String>,
    headers: HeaderMap,
    body: String,
) -> Result<impl IntoResponse, Refused> {
    let say = said(&headers, &body)?;
    let mut conversations = server.conversations.lock().await;
    let found = conversations
        .iter_mut()
        .find(|transcript| transcript.conversation.conversation_id == id);
    let transcript = found.ok_or(Refused(StatusCode::NOT_FOUND, "Conversation not found"))?;
    converse(transcript, say.message);
    Ok((
        StatusCode::ACCEPTED,
        Json(Accepted {
            status: "accepted".to_owned(),
            conversation_id: None,
        }),
    ))
}

/// A request that was not done, and the reason in a line.
struct Refused(StatusCode, &'static str);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

fn said(headers: &HeaderMap, body: &str) -> Result<Say, Refused> {
    if !headers.contains_key(REQUEST_HEADER) {
        return Err(Refused(
            StatusCode::FORBIDDEN,
            "CSRF protection: X-Shelley-Request is missing",
        ));
    }
    let say: Say =
        serde_json::from_str(body).map_err(|_| Refused(StatusCode::BAD_REQUEST, "Invalid JSON"))?;
    if say.message.is_empty() {
        return Err(Refused(StatusCode::BAD_REQUEST, "Message is required"));
    }
    Ok(say)
}

/// Adds a message and what the predictable model says to it.
fn converse(transcript: &mut Transcript, message: String) {
    let reply = match message.trim() {
        "hello" => "Well, hi there!".to_owned(),
        "Hello" => "Hello! I'm Shelley, your AI assistant. How can I help you today?".to_owned(),
        said => match said.strip_prefix("echo: ") {
            Some(echo) => echo.to_owned(),
            None => "edit predictable.go to add a response for that one...".to_owned(),
        },
    };
    add(transcript, "user", message);
    add(transcript, "agent", reply);
}

fn add(transcript: &mut Transcript, kind: &str, text: String) {
    let sequence_id = transcript.messages.len() as u64 + 1;
    let message_id = format!("{}-{sequence_id}", transcript.conversation.conversation_id);
    transcript.messages.push(Message {
        message_id,
        sequence_id,
        kind: kind.to_owned(),
        text,
    });
}

/// Finds the guidance files under `dir`, as far as they can be read, into whatever is mounted there.
fn guidance_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        let mut names: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        names.sort();
        for path in names {
            let Some(name) = path
                .file_name()
                .map(|name| name.to_string_lossy().to_lowercase())
            else {
                continue;
            };
            if name.starts_with('.') || name == "node_modules" || name == "vendor" {
                continue;
            }
            match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => todo.push(path),
                Ok(meta)
                    if meta.is_file()
                        && GUIDANCE.contains(&name.as_str())
                        && std::fs::read(&path).is_ok() =>
                {
                    found.push(path)
                }
                _ => {}
            }
        }
    }
    found
}
