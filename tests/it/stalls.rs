//! Gates: who stands there, and that all go on when told to or when nobody holds the gate any more.

use std::{future::ready, thread};

use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use inflight::testing::Stall;
use tower::{Layer, Service, service_fn};

#[test]
fn a_service_gets_a_request_only_when_its_gate_is_open() {
    let stall = Stall::new();
    let inner = service_fn(|request: u32| ready(Ok::<_, ()>(request + 1)));
    let mut service = stall.gate().layer(inner);
    let mut answer = std::pin::pin!(service.call(7));
    assert!(answer.as_mut().now_or_never().is_none());
    assert_eq!(stall.arrived(1), 1);

    stall.go_on();

    assert_eq!(answer.now_or_never(), Some(Ok(8)));
    assert_eq!(
        service.call(8).now_or_never(),
        Some(Ok(9)),
        "and from then on"
    );
}

#[test]
fn a_body_gives_no_frame_before() {
    let stall = Stall::new();
    let mut body = stall.gate().body(Full::new(&b"late"[..]));
    assert!(body.frame().now_or_never().is_none());

    stall.go_on();

    let frame = body.frame().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), &b"late"[..]);
}

#[tokio::test]
async fn whoever_sleeps_at_a_gate_is_woken() {
    let stall = Stall::new();
    let gate = stall.gate();
    let standing = tokio::spawn(async move { gate.pass_async().await });
    while stall.arrived(0) == 0 {
        tokio::task::yield_now().await;
    }

    stall.go_on();

    standing.await.unwrap();
}

#[test]
fn a_gate_whose_stall_is_gone_holds_nobody() {
    let stall = Stall::new();
    let gate = stall.gate();
    let standing = thread::spawn(move || gate.pass());
    assert_eq!(stall.arrived(1), 1);

    drop(stall);

    standing.join().unwrap();
}
