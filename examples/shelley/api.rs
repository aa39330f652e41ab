//! What server and file system say to each other: the shapes of the JSON, and the client.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
    iter,
    path::Path,
    time::Duration,
};

use inflight::Tracker;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Asked for by the server in everything that changes something.
pub(crate) const REQUEST_HEADER: &str = "X-Shelley-Request";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Conversation {
    pub(crate) conversation_id: String,
    pub(crate) slug: Option<String>,
    pub(crate) cwd: String,
    pub(crate) archived: bool,
    pub(crate) model: String,
    pub(crate) working: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) message_id: String,
    pub(crate) sequence_id: u64,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// `GET /api/conversation/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Transcript {
    pub(crate) messages: Vec<Message>,
    pub(crate) conversation: Conversation,
}

/// The body of `POST /api/conversations/new` and of `POST /api/conversation/{id}/chat`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Say {
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<String>,
}

/// The server did not do what it was asked to, and why.
#[derive(Clone, Debug)]
pub(crate) struct Failed(String);

impl Failed {
    pub(crate) fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }
}

impl From<reqwest::Error> for Failed {
    fn from(e: reqwest::Error) -> Self {
        if e.is_timeout() {
            return Self::new("the server did not answer in time");
        }
        let causes = iter::successors(e.source(), |cause| (*cause).source());
        Self(causes.fold(e.to_string(), |all, cause| format!("{all}: {cause}")))
    }
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The server, as the file system sees it.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: String,
    tracker: Tracker,
}

impl Client {
    /// Every request ends within `timeout`, so that a hang does too.
    pub(crate) fn new(server: &str, timeout: Duration, tracker: &Tracker) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(timeout)
            .build()?;
        Ok(Self {
            http,
            server: server.trim_end_matches('/').to_owned(),
            tracker: tracker.clone(),
        })
    }

    pub(crate) async fn conversations(&self) -> Result<Vec<Conversation>, Failed> {
        self.request(Method::GET, "/api/conversations", None).await
    }

    pub(crate) async fn archived(&self) -> Result<Vec<Conversation>, Failed> {
        self.request(Method::GET, "/api/conversations/archived", None)
            .await
    }

    pub(crate) async fn transcript(&self, id: &str) -> Result<Transcript, Failed> {
        self.request(Method::GET, &format!("/api/conversation/{id}"), None)
            .await
    }

    /// Begins a conversation; the server looks for guidance files under `cwd` before it answers.
    pub(crate) async fn begin(&self, message: String, cwd: &Path) -> Result<Accepted, Failed> {
        let say = Say {
            message,
            cwd: Some(cwd.display().to_string()),
        };
        self.request(Method::POST, "/api/conversations/new", Some(say))
            .await
    }

    pub(crate) async fn chat(&self, id: &str, message: String) -> Result<Accepted, Failed> {
        let say = Say { message, cwd: None };
        self.request(
            Method::POST,
            &format!("/api/conversation/{id}/chat"),
            Some(say),
        )
        .await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        say: Option<Say>,
    ) -> Result<T, Failed> {
        let url = format!("{}{path}", self.server);
        // The op that is current here waits for this call until it is dropped.
        let call = self.tracker.call(method.as_str(), &url);
        let mut request = self.http.request(method, &url).header(REQUEST_HEADER, "1");
        if let Some(say) = say {
            request = request.json(&say);
        }
        let mut request = request.build()?;
        call.inject(request.headers_mut());
        let mut response = self.http.execute(request).await?;
        call.response(response.status().as_u16());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            call.received(chunk.len() as u64);
            body.extend_from_slice(&chunk);
        }
        response.error_for_status()?;
        serde_json::from_slice(&body).map_err(Failed::new)
    }
}
