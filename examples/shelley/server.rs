//! The server: keeps conversations, and looks for guidance files before it begins one.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use inflight::resource::Mutex;
use inflight::{Tracker, debug};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::{Conversation, Message, Model, REQUEST_HEADER, Rename, Say, Status, Transcript};
use crate::gate::Gates;
use crate::model::{self, CONTEXT, PREDICTABLE};
use crate::store::{Filter, Store};
use crate::stream::stream;
use crate::walk::{self, Searcher, Walk};

/// What the server is started with.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) walk: Walk,
    pub(crate) walk_deadline: Duration,
    /// A header without which nothing under `/api/` is answered.
    pub(crate) required: Option<String>,
    pub(crate) gates: Gates,
    /// Whether it can be asked what it is in the middle of.
    pub(crate) inflight: bool,
}

#[derive(Debug)]
pub(crate) struct Server {
    /// What this program calls "conversations": who makes, lists or stops one holds it.
    conversations: Mutex<()>,
    /// Never held while something is waited for.
    store: std::sync::Mutex<Store>,
    changes: watch::Sender<()>,
    walk: Walk,
    searcher: Searcher,
    required: Option<String>,
    gates: Gates,
}

/// The server while it runs, and what answers for it beside its port.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    _debug: Option<debug::Server>,
    _spans: Option<inflight::otel::Exporter>,
}

/// Serves until the runtime ends.
pub(crate) async fn start(options: Options) -> io::Result<Serving> {
    let tracker = Tracker::new("shelley");
    tracker.set_enabled(options.inflight);
    let _debug = options.inflight.then(|| debug::serve(&tracker));
    let _spans = crate::spans(&tracker);
    let server = Arc::new(Server {
        conversations: Mutex::new(&tracker, "conversations", ()),
        store: std::sync::Mutex::default(),
        changes: watch::Sender::new(()),
        walk: options.walk,
        searcher: Searcher::new(&tracker, &options.gates, options.walk_deadline),
        required: options.required,
        gates: options.gates,
    });
    let app = Router::new()
        .route("/", get(page))
        .route("/api/models", get(models))
        .route("/api/conversations", get(list))
        .route("/api/conversations/archived", get(archived))
        .route("/api/conversations/new", post(begin))
        .route("/api/conversation/{id}", get(one))
        .route("/api/conversation/{id}/stream", get(stream))
        .route("/api/conversation/{id}/chat", post(chat))
        .route("/api/conversation/{id}/cancel", post(cancel))
        .route("/api/conversation/{id}/archive", post(archive))
        .route("/api/conversation/{id}/unarchive", post(unarchive))
        .route("/api/conversation/{id}/delete", post(delete))
        .route("/api/conversation/{id}/rename", post(rename))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), guard))
        .layer(inflight::http::ServerLayer::new(&tracker))
        .with_state(server);
    let listener = TcpListener::bind(options.listen).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(Serving {
        address,
        _debug,
        _spans,
    })
}

impl Server {
    pub(crate) fn conversation(&self, id: &str) -> Result<Conversation, Refused> {
        self.store().conversation(id).ok_or(Refused::not_found())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// How it stands, and the messages after one; none if it is gone.
    pub(crate) fn news(&self, id: &str, after: u64) -> Option<(Conversation, Vec<Message>)> {
        let store = self.store();
        Some((store.conversation(id)?, store.messages_after(id, after)))
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let changed = change(&mut self.store());
        self.changes.send_replace(());
        changed
    }

    /// Adds a message; what the model says to it comes by itself.
    fn converse(self: &Arc<Self>, id: &str, message: &str) {
        let reply = model::reply(message);
        let (server, of_turn) = (Arc::clone(self), id.to_owned());
        self.change(|store| {
            store.say(id, "user", &model::text_of(message));
            store.begin_turn(id, |turn| {
                let answer = async move {
                    if let Some(before) = turn.before {
                        let _ = before.await;
                    }
                    tokio::time::sleep(reply.after).await;
                    server.change(|store| {
                        store.say(&of_turn, reply.kind, &reply.content);
                        store.end_turn(&of_turn, turn.number);
                    });
                    drop(turn.done);
                };
                tokio::spawn(answer).abort_handle()
            });
        });
    }
}

/// Nothing under `/api/` without the required header, and no change without the one that browsers do not send by themselves.
async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let changes = matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::DELETE
    );
    let refused = |why: String| (StatusCode::FORBIDDEN, why).into_response();
    if request.uri().path().starts_with("/api/") {
        if let Some(name) = server
            .required
            .as_ref()
            .filter(|name| !headers.contains_key(*name))
        {
            return refused(format!("missing required header: {name}"));
        }
        if changes && !headers.contains_key(REQUEST_HEADER) {
            return refused(format!("CSRF protection: {REQUEST_HEADER} is missing"));
        }
    }
    next.run(request).await
}

async fn page() -> Html<String> {
    let init = serde_json::json!({ "default_model": PREDICTABLE });
    Html(format!(
        "<!doctype html><title>shelley</title><script>window.__SHELLEY_INIT__={init};</script>"
    ))
}

async fn models() -> Json<[Model; 1]> {
    Json([Model {
        id: PREDICTABLE.to_owned(),
        ready: true,
        max_context_tokens: CONTEXT,
        ..Model::default()
    }])
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Page {
    limit: usize,
    offset: usize,
    q: String,
    search_content: bool,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: 5000,
            offset: 0,
            q: String::new(),
            search_content: false,
        }
    }
}

impl Page {
    fn of(&self, archived: bool) -> Filter<'_> {
        Filter {
            archived,
            text: &self.q,
            content: self.search_content,
            offset: self.offset,
            limit: self.limit,
        }
    }
}

/// Takes the same lock as [`begin`]: one half of the hang.
async fn list(
    State(server): State<Arc<Server>>,
    Query(page): Query<Page>,
) -> Json<Vec<Conversation>> {
    server.gates.pass("list", "").await;
    let _conversations = server.conversations.lock().await;
    Json(server.store().list(&page.of(false)))
}

/// Takes no lock.
async fn archived(
    State(server): State<Arc<Server>>,
    Query(page): Query<Page>,
) -> Json<Vec<Conversation>> {
    Json(server.store().list(&page.of(true)))
}

async fn one(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Transcript>, Refused> {
    server.gates.pass("one", &id).await;
    let found = server.store().transcript(&id);
    found.map(Json).ok_or(Refused::not_found())
}

/// Begins a conversation. With [`Walk::Naive`] it reads files while it holds the lock: the other half of the hang, as soon
/// as one of those files is served by a process that asks for the list.
async fn begin(
    State(server): State<Arc<Server>>,
    body: String,
) -> Result<(StatusCode, Json<Status>), Refused> {
    let say = said(&body)?;
    let cwd = say.cwd.filter(|cwd| !cwd.is_empty());
    let cwd = cwd.map_or_else(
        || std::env::current_dir().unwrap_or_default(),
        PathBuf::from,
    );
    let model = say.model.unwrap_or_else(|| PREDICTABLE.to_owned());
    let lock = server.conversations.lock().await;
    server.gates.pass("locked", "").await;

    let held = match server.walk {
        Walk::Naive => Some(lock),
        Walk::Unlocked | Walk::Repaired => {
            drop(lock);
            None
        }
    };
    let guidance = {
        let _phase = inflight::nested(format!("walk {}", cwd.display()));
        match server.walk {
            // Blocks this thread, as `std::fs` in a handler does; tokio moves its other tasks away.
            Walk::Naive | Walk::Unlocked => tokio::task::block_in_place(|| walk::naive(&cwd)),
            Walk::Repaired => server.searcher.search(&cwd).await,
        }
    };
    let held = match held {
        Some(lock) => lock,
        None => server.conversations.lock().await,
    };

    let id = server.change(|store| {
        let id = store.begin(&model, &cwd.display().to_string());
        store.say(&id, "system", &model::text_of(&guidance.prompt()));
        id
    });
    server.converse(&id, &say.message);
    if let Some(slug) = model::slug(&say.message) {
        let (server, id) = (Arc::clone(&server), id.clone());
        tokio::spawn(async move { server.change(|store| store.name(&id, &slug)) });
    }
    drop(held);
    server.gates.pass("accepted", &id).await;
    let accepted = Status {
        status: "accepted".to_owned(),
        conversation_id: Some(id),
    };
    Ok((StatusCode::CREATED, Json(accepted)))
}

async fn chat(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    body: String,
) -> Result<(StatusCode, Json<Status>), Refused> {
    server.conversation(&id)?;
    let say = said(&body)?;
    server.gates.pass("chat", &id).await;
    let _conversations = server.conversations.lock().await;
    server.converse(&id, &say.message);
    Ok((StatusCode::ACCEPTED, status("accepted")))
}

async fn cancel(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Json<Status> {
    let _conversations = server.conversations.lock().await;
    let cancelled = server.change(|store| {
        let cancelled = store.cancel(&id);
        if cancelled {
            store.say(&id, "agent", &model::text_of("[Operation cancelled]"));
        }
        cancelled
    });
    status(match cancelled {
        true => "cancelled",
        false => "no_active_conversation",
    })
}

async fn archive(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Conversation>, Refused> {
    let archived = server.change(|store| store.archive(&id, true));
    archived.map(Json).ok_or(Refused::not_found())
}

async fn unarchive(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Conversation>, Refused> {
    let unarchived = server.change(|store| store.archive(&id, false));
    unarchived.map(Json).ok_or(Refused::not_found())
}

async fn delete(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
) -> Result<Json<Status>, Refused> {
    match server.change(|store| store.delete(&id)) {
        true => Ok(status("deleted")),
        false => Err(Refused::not_found()),
    }
}

async fn rename(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    body: String,
) -> Result<Json<Conversation>, Refused> {
    let slug = parsed::<Rename>(&body)?.slug;
    let slug = model::slug(&slug).ok_or(Refused::bad("Slug is required"))?;
    let renamed = server.change(|store| store.name(&id, &slug));
    renamed.map(Json).ok_or(Refused::not_found())
}

/// A request that was not done, and the reason in a line.
#[derive(Debug)]
pub(crate) struct Refused(StatusCode, String);

impl Refused {
    fn bad(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }

    fn not_found() -> Self {
        Self(StatusCode::NOT_FOUND, "Conversation not found".to_owned())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

fn said(body: &str) -> Result<Say, Refused> {
    let say: Say = parsed(body)?;
    if say.message.is_empty() {
        return Err(Refused::bad("Message is required"));
    }
    match say.model.as_deref() {
        None | Some("" | PREDICTABLE) => Ok(Say { model: None, ..say }),
        Some(other) => Err(Refused::bad(format!("Unsupported model: {other}"))),
    }
}

fn parsed<T: DeserializeOwned>(body: &str) -> Result<T, Refused> {
    serde_json::from_str(body).map_err(|_| Refused::bad("Invalid JSON"))
}

fn status(status: &str) -> Json<Status> {
    Json(Status {
        status: status.to_owned(),
        conversation_id: None,
    })
}
