//! One binary for all integration tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod http_bodies;
mod story;
mod tidy;
