//! What is in flight, over HTTP: a router for your own axum app, and a server that nothing can hold up.
//!
//! [`serve`] is the one to rely on: it has its own thread, its own runtime and a Unix socket, so it
//! answers when every worker of the application is stuck. [`router`] adds the same page to an app of
//! yours, and hangs with it.
//!
//! ```
//! use inflight::{Tracker, debug};
//!
//! let tracker = Tracker::new("api");
//! let server = debug::serve(&tracker);
//! match (server.path(), server.problem()) {
//!     (Some(path), _) => println!("curl --unix-socket {} http://localhost/debug/inflight", path.display()),
//!     (None, problem) => println!("no debug server: {problem:?}"),
//! }
//! ```
//!
//! Both answer `GET /debug/inflight`: the text of the report by default, `?format=json` (or `Accept:
//! application/json`) the snapshot of this process, with `?peers=1` the whole report, and a browser gets
//! the text in a page. `?limit=`, `?min_age=` (`500ms`, `2s`, `1m`) and `?kind=` narrow the snapshot;
//! `?count` says only how many ops are in flight.

mod connections;
mod directory;
mod peers;
mod router;
mod server;
mod sources;

pub use self::{
    directory::looked_in,
    router::{parse_duration, router},
    server::{Server, serve},
};
