//! One binary for all integration tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod assertions;
mod bad_input;
mod context;
mod debug_server;
mod fuse_parked;
mod fuse_rows;
mod fuse_unmount;
mod http_bodies;
mod http_headers;
mod http_loopback;
mod kernel_fake;
mod kernel_opcodes;
mod kernel_parking;
mod kernel_recorder;
mod mounted;
mod program;
mod report;
mod resource;
mod snapshot_json;
mod stage;
mod story;
mod story_variants;
mod tidy;
mod tracker;
mod watchdog;
