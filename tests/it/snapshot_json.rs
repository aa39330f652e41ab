//! The schema `inflight/1`: what is written reads back, and what is not known is kept.

use inflight::{
    Kind, Outcome, Snapshot, State, Tracker,
    snapshot::{LiveOp, On},
};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn what_a_process_is_doing_reads_back_as_it_was_written() {
    let tracker = Tracker::new("test");
    let (outer, inner) = (tracker.begin("outer"), tracker.begin("inner"));
    let _in = outer.enter();
    let _waits = inflight::waiting_for(&inner);
    inner.phase("one");
    drop(tracker.begin("ended"));
    let snapshot = tracker.snapshot();

    let json = serde_json::to_string(&snapshot).unwrap();
    let read: Snapshot = serde_json::from_str(&json).unwrap();

    assert_eq!(read, snapshot);
}

#[test]
fn an_op_is_written_with_the_names_of_the_schema() {
    let written = json!({
        "id": "00f067aa0ba902b7", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "parent_id": null,
        "kind": "fuse", "name": "flush", "target": "/conversation/1b9b/send",
        "age_ms": 29905.0, "progress_ms": 29904.0, "state": "stuck",
        "phase": {"path": ["handler"], "age_ms": 29904.0,
            "wait": {"on": "call", "ops": ["53995c3f42cd8ad8"], "all": true, "since_ms": 29904.0}},
        "events": [{"at_ms": 0.0, "phase": "handler"}], "events_dropped": 0,
        "thread": {"tid": 450, "name": "fuser-0", "since_ms": 29905.0, "wchan": "wait_woken"},
        "caller": {"tid": 512, "pid": 512, "comm": "bash", "uid": 0, "state": "S",
            "wchan": "request_wait_answer"},
        "fuse": {"unique": "26", "inode": "7", "mount": "/mnt/s"}
    });

    let op: LiveOp = serde_json::from_value(written.clone()).unwrap();

    assert_eq!(serde_json::to_value(&op).unwrap(), written);
    assert_eq!((&op.kind, &op.state), (&Kind::Fuse, &State::Stuck));
}

#[test]
fn fields_and_values_that_are_not_known_do_no_harm() {
    let written = json!({
        "schema": "inflight/1", "new": {"field": 1},
        "ops": [{
            "id": "00f067aa0ba902b7", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "kind": "grpc.client", "state": "dreaming", "also": "new",
            "phase": {"wait": {"on": "moon", "ops": []}}
        }],
        "recent": [{
            "id": "00f067aa0ba902b8", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "outcome": "vanished"
        }]
    });

    let read: Snapshot = serde_json::from_value(written).unwrap();

    let op = &read.ops[0];
    assert_eq!(op.kind, Kind::Other("grpc.client".to_owned()));
    assert_eq!(op.state, State::Other("dreaming".to_owned()));
    assert_eq!(
        op.phase.wait.as_ref().unwrap().on,
        On::Other("moon".to_owned())
    );
    assert_eq!(
        read.recent[0].outcome,
        Outcome::Other("vanished".to_owned())
    );
    let again: Value = serde_json::to_value(&read).unwrap();
    assert_eq!(again["ops"][0]["kind"], "grpc.client");
    // What makes no sense of a wait is no edge, and no reason to fail.
    let text = inflight::Report::from_snapshots(vec![read]).to_string();
    assert!(text.starts_with("OK"), "{text}");
}

#[test]
fn numbers_that_a_double_cannot_hold_are_text() {
    let snapshot = Tracker::new("test").snapshot();

    let json = serde_json::to_value(&snapshot).unwrap();

    assert!(json["process"]["start_ticks"].is_string());
    assert!(json["process"]["pid_ns"].is_string());
    assert!(json["clock_ms"].as_f64().unwrap() < 2f64.powi(53));
    assert_eq!(json["schema"], "inflight/1");
}

proptest! {
    #[test]
    fn any_names_read_back(name in ".*", target in ".*", phase in ".*", why in ".*") {
        let tracker = Tracker::new(name.clone());
        let op = tracker.begin(name);
        op.target(target);
        op.phase(phase);
        op.fail(why);
        let snapshot = tracker.snapshot();

        let json = serde_json::to_string(&snapshot).unwrap();
        let read: Snapshot = serde_json::from_str(&json).unwrap();
        let text = inflight::Report::local(&tracker).to_string();

        prop_assert_eq!(read, snapshot);
        prop_assert!(text.lines().all(|line| line.chars().count() <= 120), "{}", text);
        prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
