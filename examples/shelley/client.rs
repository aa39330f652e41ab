//! The client: one method for each thing the file system asks of the server, each call seen by the tracker.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
    iter,
    time::Duration,
};

use inflight::Tracker;
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Conversation, Model, REQUEST_HEADER, Say, Status, Transcript};

/// The server did not do what it was asked to, and why.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    why: String,
    /// The server answered, and does not know what was asked for.
    pub(crate) not_found: bool,
}

impl Failed {
    pub(crate) fn new(why: impl Display) -> Self {
        Self {
            why: why.to_string(),
            not_found: false,
        }
    }
}

impl From<reqwest::Error> for Failed {
    fn from(e: reqwest::Error) -> Self {
        if e.is_timeout() {
            return Self::new("the server did not answer in time");
        }
        let causes = iter::successors(e.source(), |cause| (*cause).source());
        Self::new(causes.fold(e.to_string(), |all, cause| format!("{all}: {cause}")))
    }
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// The server, as the file system sees it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: String,
    header: Option<(String, String)>,
    tracker: Tracker,
}

impl Client {
    /// Every request ends within `timeout`, so that a hang does too, and carries `header`.
    pub(crate) fn new(
        server: &str,
        timeout: Duration,
        header: Option<(String, String)>,
        tracker: &Tracker,
    ) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(timeout)
            .build()?;
        Ok(Self {
            http,
            server: server.trim_end_matches('/').to_owned(),
            header,
            tracker: tracker.clone(),
        })
    }

    pub(crate) async fn conversations(&self) -> Result<Vec<Conversation>, Failed> {
        self.list("/api/conversations").await
    }

    pub(crate) async fn archived(&self) -> Result<Vec<Conversation>, Failed> {
        self.list("/api/conversations/archived").await
    }

    pub(crate) async fn transcript(&self, id: &str) -> Result<Transcript, Failed> {
        self.get(&format!("/api/conversation/{id}")).await
    }

    pub(crate) async fn models(&self) -> Result<Vec<Model>, Failed> {
        self.list("/api/models").await
    }

    /// What the server's page says is used when nothing is said.
    pub(crate) async fn default_model(&self) -> Result<Option<String>, Failed> {
        let page = self.request(Method::GET, "/", None::<()>).await?;
        let page = String::from_utf8_lossy(&page);
        let found = page
            .split_once("__SHELLEY_INIT__")
            .and_then(|(_, rest)| rest.split_once("\"default_model\":\""));
        Ok(found.and_then(|(_, rest)| Some(rest.split_once('"')?.0.to_owned())))
    }

    /// Begins a conversation; the server looks for guidance files before it answers.
    pub(crate) async fn begin(&self, say: Say) -> Result<Status, Failed> {
        self.post("/api/conversations/new", Some(say)).await
    }

    pub(crate) async fn chat(&self, id: &str, message: String) -> Result<Status, Failed> {
        let say = Say {
            message,
            ..Say::default()
        };
        self.post(&format!("/api/conversation/{id}/chat"), Some(say))
            .await
    }

    /// `cancel`, `archive`, `unarchive` or `delete`.
    pub(crate) async fn act(&self, id: &str, what: &str) -> Result<(), Failed> {
        let path = format!("/api/conversation/{id}/{what}");
        self.request(Method::POST, &path, None::<()>)
            .await
            .map(drop)
    }

    /// No rows are `null` to servers written in Go.
    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failed> {
        let rows: Option<Vec<T>> = self.get(path).await?;
        Ok(rows.unwrap_or_default())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        let body = self.request(Method::GET, path, None::<()>).await?;
        serde_json::from_slice(&body).map_err(Failed::new)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<impl Serialize>,
    ) -> Result<T, Failed> {
        let body = self.request(Method::POST, path, body).await?;
        serde_json::from_slice(&body).map_err(Failed::new)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
    ) -> Result<Vec<u8>, Failed> {
        let url = format!("{}{path}", self.server);
        // The op that is current here waits for this call until it is dropped.
        let call = self.tracker.call(method.as_str(), &url);
        let answer = async {
            let mut request = self.http.request(method, &url).header(REQUEST_HEADER, "1");
            if let Some((name, value)) = &self.header {
                request = request.header(name, value);
            }
            if let Some(body) = body {
                request = request.json(&body);
            }
            let mut request = request.build()?;
            call.inject(request.headers_mut());
            let mut response = self.http.execute(request).await?;
            let status = response.status();
            call.response(status.as_u16());
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                call.received(chunk.len() as u64);
                body.extend_from_slice(&chunk);
            }
            if status.is_success() {
                return Ok(body);
            }
            let said = String::from_utf8_lossy(&body);
            Err(Failed {
                why: format!("the server answered {status}: {}", said.trim()),
                not_found: status == StatusCode::NOT_FOUND,
            })
        };
        let answer: Result<_, Failed> = answer.await;
        answer.inspect_err(|failed| call.fail(failed.to_string()))
    }
}
