//! Does one thing so many times, for callgrind to count the instructions.

mod request;

use inflight::{
    FutureExt, Op, Tracker,
    http::{ClientLayer, ServerLayer},
    resource::Resource,
};
use request::{Bodies, calls, requests, router, server};
use std::{
    pin::pin,
    process::ExitCode,
    task::{Context, Waker},
};
use tower::Layer;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(what), Some(times)) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    let Ok(times) = times.parse::<usize>() else {
        return ExitCode::from(2);
    };
    let tracker = Tracker::builder("bench").capacity(200_000).build();
    let one = || {
        let op = tracker.begin("flush");
        op.phase("open index");
        op
    };
    let op = one();
    let resource = Resource::new(&tracker, "table");
    match what.as_str() {
        "nothing" => {}
        "begin+phase+end" => (0..times).for_each(|_| drop(one())),
        "nested" => (0..times).for_each(|_| {
            let op = one();
            let _a = op.nested("list");
            let _b = op.nested("read");
            let _c = op.nested("parse");
        }),
        "phase" => (0..times).for_each(|_| op.phase("read")),
        "enter" => (0..times).for_each(|_| drop(op.enter())),
        "current" => {
            let _in = op.enter();
            (0..times).for_each(|_| drop(Op::current()));
        }
        "resource" => {
            let _in = op.enter();
            (0..times).for_each(|_| drop(resource.wait(|| ())));
        }
        "in_op" => (0..times).for_each(|_| {
            let future = pin!(std::future::ready(()).in_op(&op));
            let _ = future.poll(&mut Context::from_waker(Waker::noop()));
        }),
        "request-bare" => requests(times, router()),
        "request-bodies" => requests(times, router().layer(Bodies)),
        "request" => requests(times, router().layer(ServerLayer::new(&tracker))),
        "call-bare" => calls(times, server()),
        "call" => calls(times, ClientLayer::new(&tracker).layer(server())),
        "snapshot" => {
            let held: Vec<Op> = (0..times).map(|_| one()).collect();
            assert_eq!(tracker.snapshot().ops.len(), held.len() + 1);
        }
        "begin" => {
            let held: Vec<Op> = (0..times).map(|_| one()).collect();
            std::mem::forget(held);
        }
        _ => return ExitCode::from(2),
    }
    drop(op);
    assert!(tracker.snapshot().ops.is_empty() || what == "begin");
    ExitCode::SUCCESS
}
