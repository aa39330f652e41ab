//! Keeps HTTP requests in flight, on the side that serves them and on the side that sends them, until
//! their bodies have ended.
//!
//! [`ServerLayer`] and [`ClientLayer`] are tower layers over any service of `http::Request<B>`;
//! [`Tracker::call`](crate::Tracker::call) is for clients that are none, as reqwest's. Each request is
//! an op. It is over at the first of: the end of the response's body, an error, as many bytes as
//! Content-Length says, or the drop of what is left. The op that is current when a request is sent waits
//! for it, and one that is served names the call it serves by the header `inflight-op`.
//!
//! A server's op is current whenever its handler and its body are polled, so that what the handler does is
//! found: `inflight::phase("walk")`, calls, locks, and the thread it blocks.
//!
//! ```
//! use axum::{Router, routing::get};
//! use inflight::{Tracker, http::ServerLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tracker = Tracker::new("example");
//!
//! // A server with axum. The layer comes last: it is the outermost then, and knows the routes.
//! let app = Router::new()
//!     .route("/block/{n}", get(async || "bytes"))
//!     .layer(ServerLayer::new(&tracker));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let url = format!("http://{}/block/7?token=secret", listener.local_addr()?);
//! tokio::spawn(async move { axum::serve(listener, app).await });
//!
//! // A client with reqwest. The call ends when it drops, so keep it until the body is read.
//! let fetch = async |url: &str| -> Result<String, reqwest::Error> {
//!     let client = reqwest::Client::new();
//!     let call = tracker.call("GET", url);
//!     let mut request = client.get(url).build()?;
//!     call.inject(request.headers_mut());
//!     let answer = async {
//!         let response = client.execute(request).await?;
//!         call.response(response.status());
//!         response.text().await
//!     };
//!     answer.await.inspect_err(|error| call.fail(error.to_string()))
//! };
//! assert_eq!(fetch(&url).await?, "bytes");
//!
//! let ended = tracker.snapshot().recent;
//! let server = ended.iter().find(|op| op.op.target == "/block/7?token=..").unwrap();
//! let client = ended.iter().find(|op| op.op.target.starts_with("http://")).unwrap();
//! assert_eq!(server.op.parent_id, Some(client.op.id));
//! # Ok(())
//! # }
//! ```

mod call;
mod client;
mod error;
mod headers;
mod request;
mod response;
mod server;
mod target;

use bytes::Buf;
use http_body::Frame;

pub use self::{
    call::Call,
    client::{Client, ClientLayer},
    request::{Counted, Plain, RequestBodies, RequestBody},
    response::{ResponseBody, ResponseFuture},
    server::{Server, ServerLayer},
};

const CONNECTING: &str = "connecting";
const AWAITING: &str = "waiting for the answer";
const CONNECTING_OR_AWAITING: &str = "connecting or waiting for the answer";

fn bytes_of(frame: &Frame<impl Buf>) -> u64 {
    frame.data_ref().map_or(0, |data| data.remaining() as u64)
}
