//! One binary for all integration tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod http_bodies;
mod kernel_opcodes;
mod kernel_parking;
mod kernel_recorder;
mod story;
mod tidy;
