//! The schema `inflight/1`: its names, its round trip, what its readers put up with, and its filters.

use std::time::Duration;

use inflight::{
    Filter, Kind, OpId, Outcome, Report, Snapshot, State, TraceId, Tracker,
    resource::Resource,
    snapshot::{
        Caller, EndedOp, Event, Fuse, Http, LiveOp, Mount, Off, On, OpenFile, Parent, ParentFrom,
        Party, Phase, Process, Resource as Shown, Thread, Totals, Wait,
    },
};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
};
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);

fn read(json: &Value) -> Snapshot {
    serde_json::from_value(json.clone()).unwrap()
}

fn written(snapshot: &Snapshot) -> Value {
    serde_json::to_value(snapshot).unwrap()
}

fn op(id: u64) -> LiveOp {
    LiveOp {
        id: OpId::new(id).unwrap(),
        trace_id: TraceId::new(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736).unwrap(),
        parent_id: None,
        parent_from: None,
        kind: Kind::Task,
        name: String::new(),
        target: String::new(),
        age_ms: 0.0,
        progress_ms: 0.0,
        state: State::Running,
        phase: Phase::default(),
        events: Vec::new(),
        events_dropped: 0,
        error: None,
        thread: None,
        more_threads: Vec::new(),
        caller: None,
        fuse: None,
        http: None,
    }
}

fn with_phase(phase: Value) -> Value {
    json!({
        "id": "0000000000000009", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "kind": "grpc.client", "state": "dreaming", "phase": phase
    })
}

fn founding() -> Snapshot {
    let flush = LiveOp {
        kind: Kind::Fuse,
        name: "flush".into(),
        target: "/inbox/1b9b/send".into(),
        age_ms: 29_905.0,
        progress_ms: 29_904.5,
        state: State::Stuck,
        phase: Phase {
            path: vec!["handler".into()],
            age_ms: 29_904.125,
            wait: Some(Box::new(Wait {
                on: On::Call,
                ops: vec![OpId::new(0x5399_5c3f_42cd_8ad8).unwrap()],
                all: true,
                since_ms: 29_904.0,
                resource: None,
                others: 0,
            })),
        },
        events: vec![Event {
            at_ms: 0.0,
            phase: "handler".into(),
            for_ms: None,
        }],
        thread: Some(Box::new(Thread {
            tid: 450,
            name: "fuser-0".into(),
            since_ms: 29_905.0,
            wchan: Some("wait_woken".into()),
        })),
        caller: Some(Box::new(Caller {
            tid: 512,
            pid: Some(512),
            comm: Some("bash".into()),
            uid: 0,
            state: Some("S".into()),
            wchan: Some("request_wait_answer".into()),
            child_of: Some(Parent {
                pid: 500,
                comm: "make".into(),
            }),
            files: vec![OpenFile {
                fd: 17,
                path: "/conversation".into(),
                closes_on_exec: true,
                is_detached: true,
            }],
            unknown: None,
        })),
        fuse: Some(Box::new(Fuse {
            unique: "18446744073709551615".into(),
            inode: "7".into(),
            mount: "/mnt/s".into(),
        })),
        ..op(0x00f0_67aa_0ba9_02b7)
    };
    let post = LiveOp {
        parent_id: Some(flush.id),
        kind: Kind::HttpClient,
        name: "POST".into(),
        target: "http://127.0.0.1:9999/api/new".into(),
        http: Some(Box::new(Http {
            peer: Some("127.0.0.1:9999".into()),
            status: None,
            route: None,
            sent_bytes: 41,
            received_bytes: 0,
        })),
        ..op(0x5399_5c3f_42cd_8ad8)
    };
    let party = |op: &LiveOp| Party {
        op: Some(op.id),
        thread: None,
        since_ms: 1.0,
    };
    Snapshot {
        schema: "inflight/1".into(),
        taken_at: "2026-02-11T13:56:28.123Z".into(),
        clock_ms: 884_123.4,
        process: Process {
            service: "files".into(),
            pid: 443,
            start_ticks: "88123".into(),
            boot_id: "b".into(),
            pid_ns: "4026531836".into(),
            time_ns: String::new(),
            host: "box".into(),
            exe: "/usr/bin/x".into(),
        },
        off: None,
        slow_after_ms: 1000.0,
        stuck_after_ms: 10_000.0,
        resources: vec![Shown {
            id: "1".into(),
            name: "inbox".into(),
            capacity: 1,
            holders: vec![party(&post)],
            waiters: vec![party(&flush)],
        }],
        mounts: vec![Mount {
            path: "/mnt/s".into(),
            connection: Some(40),
            kernel_waiting: Some(2),
            tracked: 2,
            queued: 0,
            queued_bytes: 0,
            slots: 4,
            notes: Vec::new(),
        }],
        recent: vec![EndedOp {
            op: LiveOp {
                name: "getattr".into(),
                ..op(9)
            },
            duration_ms: 2.5,
            ended_ms: 7.0,
            outcome: Outcome::Returned,
        }],
        totals: Totals {
            begun: 1200,
            ended: 1198,
            not_recorded: 0,
            left_out: 0,
            malformed_headers: 0,
            spans_dropped: 3,
            spans_problem: Some("nobody takes them".to_owned()),
        },
        ops: vec![flush, post],
    }
}

#[test]
fn the_names_are_those_that_people_script_against() {
    let quiet_op = |id: &str| {
        json!({
            "id": id, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "parent_id": null,
            "kind": "task", "name": "", "target": "", "age_ms": 0.0, "progress_ms": 0.0,
            "state": "running", "phase": {"path": [], "age_ms": 0.0, "wait": null},
            "events": [], "events_dropped": 0
        })
    };
    let with = |mut op: Value, more: Value| {
        let Value::Object(more) = more else { panic!() };
        op.as_object_mut().unwrap().extend(more);
        op
    };
    let expected = json!({
        "schema": "inflight/1", "taken_at": "2026-02-11T13:56:28.123Z", "clock_ms": 884123.4,
        "process": {
            "service": "files", "pid": 443, "start_ticks": "88123", "boot_id": "b",
            "pid_ns": "4026531836", "host": "box", "exe": "/usr/bin/x"
        },
        "slow_after_ms": 1000.0, "stuck_after_ms": 10000.0,
        "ops": [
            with(quiet_op("00f067aa0ba902b7"), json!({
                "kind": "fuse", "name": "flush", "target": "/inbox/1b9b/send",
                "age_ms": 29905.0, "progress_ms": 29904.5, "state": "stuck",
                "phase": {
                    "path": ["handler"], "age_ms": 29904.125,
                    "wait": {
                        "on": "call", "ops": ["53995c3f42cd8ad8"], "all": true,
                        "since_ms": 29904.0
                    }
                },
                "events": [{"at_ms": 0.0, "phase": "handler"}],
                "thread": {
                    "tid": 450, "name": "fuser-0", "since_ms": 29905.0, "wchan": "wait_woken"
                },
                "caller": {
                    "tid": 512, "pid": 512, "comm": "bash", "uid": 0, "state": "S",
                    "wchan": "request_wait_answer",
                    "child_of": {"pid": 500, "comm": "make"},
                    "files": [{
                        "fd": 17, "path": "/conversation", "closes_on_exec": true,
                        "is_detached": true
                    }]
                },
                "fuse": {"unique": "18446744073709551615", "inode": "7", "mount": "/mnt/s"}
            })),
            with(quiet_op("53995c3f42cd8ad8"), json!({
                "parent_id": "00f067aa0ba902b7", "kind": "http.client", "name": "POST",
                "target": "http://127.0.0.1:9999/api/new",
                "http": {
                    "peer": "127.0.0.1:9999", "status": null, "sent_bytes": 41,
                    "received_bytes": 0
                }
            }))
        ],
        "resources": [{
            "id": "1", "name": "inbox", "capacity": 1,
            "holders": [{"op": "53995c3f42cd8ad8", "since_ms": 1.0}],
            "waiters": [{"op": "00f067aa0ba902b7", "since_ms": 1.0}]
        }],
        "mounts": [{
            "path": "/mnt/s", "connection": 40, "kernel_waiting": 2, "tracked": 2, "queued": 0,
            "queued_bytes": 0, "slots": 4
        }],
        "recent": [with(quiet_op("0000000000000009"), json!({
            "name": "getattr", "duration_ms": 2.5, "ended_ms": 7.0, "outcome": "returned"
        }))],
        "totals": {
            "begun": 1200, "ended": 1198, "not_recorded": 0, "left_out": 0,
            "malformed_headers": 0, "spans_dropped": 3, "spans_problem": "nobody takes them"
        }
    });

    assert_eq!(written(&founding()), expected);
    assert_eq!(read(&expected), founding());
}

#[test]
fn every_word_of_the_schema_is_spelt_as_agreed() {
    let words = [
        json!([Kind::Fuse, Kind::HttpClient, Kind::HttpServer, Kind::Task]),
        json!([
            State::Running,
            State::Slow,
            State::Stuck,
            State::Idle,
            State::Queued
        ]),
        json!([On::Call, On::Op, On::Resource, On::Queue]),
        json!([
            Outcome::Completed,
            Outcome::Failed,
            Outcome::DroppedBeforeResponse,
            Outcome::DroppedInBody,
            Outcome::Returned,
            Outcome::Panicked
        ]),
        json!([ParentFrom::InflightOp, ParentFrom::TraceParent]),
    ];

    let agreed = [
        json!(["fuse", "http.client", "http.server", "task"]),
        json!(["running", "slow", "stuck", "idle", "queued"]),
        json!(["call", "op", "resource", "queue"]),
        json!([
            "completed",
            "failed",
            "dropped_before_response",
            "dropped_in_body",
            "returned",
            "panicked"
        ]),
        json!(["inflight-op", "traceparent"]),
    ];
    assert_eq!(words, agreed);
}

#[test]
fn a_snapshot_of_a_busy_tracker_comes_back_as_it_was() {
    let tracker = Tracker::new("test");
    let resource = Resource::new(&tracker, "table").capacity(3);
    let op = tracker.begin("outer");
    let entered = op.enter();
    let _held = resource.wait(|| ());
    inflight::phase("one");
    let _nested = inflight::nested("two");
    inflight::fail("EIO");
    let call = tracker.call("PUT", "https://api/x?y=z");
    call.sent(1 << 40);
    call.response(503_u16);
    tracker.begin("failed").fail("x");
    drop(entered);

    let taken = tracker.snapshot();
    let text = serde_json::to_string_pretty(&taken).unwrap();
    let report = Report::local(&tracker);
    let report_text = serde_json::to_string(&report).unwrap();

    assert_eq!((taken.ops.len(), taken.recent.len()), (2, 1));
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), taken);
    assert_eq!(
        serde_json::from_str::<Report>(&report_text).unwrap(),
        report
    );
}

#[test]
fn times_have_at_most_three_decimals() {
    fn numbers(value: &Value, into: &mut Vec<f64>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| numbers(value, into)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name.ends_with("_ms") {
                        into.push(value.as_f64().unwrap());
                    }
                    numbers(value, into);
                }
            }
            _ => {}
        }
    }
    let tracker = Tracker::new("test");
    let op = tracker.begin("x");
    let _in = op.enter();
    inflight::phase("y");
    let _call = tracker.call("GET", "http://api/x");

    let mut times = Vec::new();
    numbers(&written(&tracker.snapshot()), &mut times);

    assert!(times.len() > 10, "{times:?}");
    for time in times {
        let decimals = format!("{time}")
            .split_once('.')
            .map_or(0, |(_, d)| d.len());
        assert!(time >= 0.0 && decimals <= 3, "{time}");
    }
}

#[test]
fn numbers_that_may_pass_2_to_the_53_are_strings() {
    let json = written(&founding());

    for (path, text) in [
        ("/ops/0/id", "00f067aa0ba902b7"),
        ("/ops/0/fuse/unique", "18446744073709551615"),
        ("/ops/0/fuse/inode", "7"),
        ("/process/start_ticks", "88123"),
        ("/process/pid_ns", "4026531836"),
        ("/resources/0/id", "1"),
    ] {
        assert_eq!(json.pointer(path), Some(&json!(text)), "{path}");
    }
}

#[test]
fn a_reader_ignores_fields_it_does_not_know() {
    fn add_a_field(value: &mut Value) {
        match value {
            Value::Array(values) => values.iter_mut().for_each(add_a_field),
            Value::Object(fields) => {
                fields.values_mut().for_each(add_a_field);
                fields.insert("colour".into(), json!({"of": ["what", 1, null]}));
            }
            _ => {}
        }
    }
    let mut json = written(&founding());

    add_a_field(&mut json);

    assert_eq!(read(&json), founding());
}

#[test]
fn a_reader_does_without_fields_that_are_missing() {
    let empty = Snapshot {
        slow_after_ms: 1000.0,
        stuck_after_ms: 10_000.0,
        ..Snapshot::default()
    };
    assert_eq!(read(&json!({})), empty);
    let ids = json!({"id": "0000000000000009", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"});
    let bare = json!({
        "ops": [ids], "recent": [ids], "resources": [{}], "mounts": [{}], "process": {},
        "totals": {}, "off": {}
    });

    let read = read(&bare);

    assert_eq!(read.ops, [op(9)]);
    assert_eq!(read.recent[0].op, op(9));
    assert_eq!(read.off, Some(Off::default()));
}

#[test]
fn values_that_a_reader_does_not_know_are_kept() {
    let mut json = written(&founding());
    let set = |json: &mut Value, path: &str| {
        *json.pointer_mut(path).unwrap() = json!("from the future");
    };
    json["ops"][1]["parent_from"] = json!("traceparent");
    for path in [
        "/ops/0/kind",
        "/ops/0/state",
        "/ops/0/phase/wait/on",
        "/ops/1/parent_from",
        "/recent/0/outcome",
    ] {
        set(&mut json, path);
    }
    json["schema"] = json!("inflight/2");

    let read = read(&json);

    let future = || "from the future".to_owned();
    assert_eq!(read.ops[0].kind, Kind::Other(future()));
    assert_eq!(read.ops[0].state, State::Other(future()));
    assert_eq!(read.recent[0].outcome, Outcome::Other(future()));
    assert_eq!(written(&read), json);
    let mut report = serde_json::to_value(Report::from_snapshots(vec![founding()])).unwrap();
    set(&mut report, "/verdict");
    let read: Report = serde_json::from_value(report.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), report);
    // And something is said of it, whatever it is.
    assert!(!read.to_string().is_empty());
    let wait = json!({"on": "moon", "ops": []});
    let dreams = json!({"ops": [with_phase(json!({"wait": wait}))]});
    let text = Report::from_snapshots(vec![self::read(&dreams)]).to_string();
    assert!(text.starts_with("OK"), "{text}");
}

#[test]
fn what_is_no_snapshot_is_refused_and_not_guessed() {
    for text in [
        "",
        "[]1",
        "7",
        "{\"ops\":[{}]}",
        "{\"ops\":[{\"id\":\"0\",\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}]}",
        "{\"ops\":[{\"id\":7,\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}]}",
        "{\"ops\":7}",
    ] {
        assert!(serde_json::from_str::<Snapshot>(text).is_err(), "{text}");
    }
}

#[test]
fn a_filter_says_what_it_leaves_out() {
    let tracker = Tracker::new("test");
    let ops: Vec<_> = (0..10).map(|n| tracker.begin(n.to_string())).collect();
    let _call = tracker.call("GET", "http://api/x");
    let names = |filter: &Filter| {
        let taken = tracker.snapshot_of(filter);
        assert_eq!(taken.ops.len() as u64 + taken.totals.left_out, 11);
        assert_eq!((taken.totals.begun, taken.totals.ended), (11, 0));
        let names = taken.ops.into_iter().map(|op| op.name);
        names.collect::<Vec<_>>()
    };

    let all = Filter::new();
    assert_eq!(names(&all).len(), 11);
    assert_eq!(names(&all.clone().limit(3)), ["0", "1", "2"], "the oldest");
    assert!(names(&all.clone().limit(0)).is_empty());
    assert!(names(&all.clone().min_age(HOUR)).is_empty());
    assert_eq!(names(&all.clone().kind(Kind::HttpClient)), ["GET"]);
    assert!(names(&all.clone().kind(Kind::Fuse)).is_empty());
    assert_eq!(names(&all.kind(Kind::Task).limit(1)), ["0"]);
    drop(ops);
}

fn word() -> impl Strategy<Value = String> {
    any::<String>()
}

// As the schema writes times: whole microseconds.
fn millis() -> impl Strategy<Value = f64> {
    (0..1_u64 << 50).prop_map(|micros| micros as f64 / 1000.0)
}

fn id() -> impl Strategy<Value = OpId> {
    (1..=u64::MAX).prop_map(|id| OpId::new(id).unwrap())
}

fn threads() -> impl Strategy<Value = Vec<Thread>> {
    let thread = (any::<u32>(), word(), millis(), option::of(word()));
    let thread = thread.prop_map(|(tid, name, since_ms, wchan)| Thread {
        tid,
        name,
        since_ms,
        wchan,
    });
    vec(thread, 0..3)
}

fn phase() -> impl Strategy<Value = Phase> {
    let on = prop_oneof![
        Just(On::Call),
        Just(On::Op),
        Just(On::Resource),
        Just(On::Queue),
        Just(On::Other("x".into()))
    ];
    let wait = (
        on,
        vec(id(), 0..3),
        any::<bool>(),
        millis(),
        option::of(word()),
        any::<u64>(),
    );
    let wait = wait.prop_map(|(on, ops, all, since_ms, resource, others)| Wait {
        on,
        ops,
        all,
        since_ms,
        resource,
        others,
    });
    (vec(word(), 0..3), millis(), option::of(wait)).prop_map(|(path, age_ms, wait)| Phase {
        path,
        age_ms,
        wait: wait.map(Box::new),
    })
}

fn live_op() -> impl Strategy<Value = LiveOp> {
    let kind = prop_oneof![
        Just(Kind::Fuse),
        Just(Kind::HttpClient),
        Just(Kind::HttpServer),
        Just(Kind::Task),
        Just(Kind::Other("x".into()))
    ];
    let state = prop_oneof![
        Just(State::Running),
        Just(State::Slow),
        Just(State::Stuck),
        Just(State::Idle),
        Just(State::Queued),
        Just(State::Other("x".into()))
    ];
    let ids = (id(), 1..=u128::MAX, option::of(id()), any::<bool>());
    let words = (kind, word(), word(), state, option::of(word()));
    let times = (millis(), millis(), any::<u64>());
    let event = (millis(), word(), option::of(millis()));
    let more = (phase(), vec(event, 0..3), threads(), any::<bool>());
    (ids, words, times, more).prop_map(|(ids, words, times, more)| {
        let (phase, events, mut threads, is_http) = more;
        let event = |(at_ms, phase, for_ms)| Event {
            at_ms,
            phase,
            for_ms,
        };
        LiveOp {
            trace_id: TraceId::new(ids.1).unwrap(),
            parent_id: ids.2,
            parent_from: ids.3.then_some(ParentFrom::TraceParent),
            kind: words.0,
            name: words.1,
            target: words.2,
            state: words.3,
            age_ms: times.0,
            progress_ms: times.1,
            events_dropped: times.2,
            thread: threads.pop().map(Box::new),
            more_threads: threads,
            phase,
            events: events.into_iter().map(event).collect(),
            caller: words.4.clone().map(|comm| {
                Box::new(Caller {
                    comm: Some(comm),
                    ..Caller::default()
                })
            }),
            error: words.4,
            http: is_http.then(|| {
                Box::new(Http {
                    sent_bytes: times.2,
                    ..Http::default()
                })
            }),
            fuse: (!is_http).then(Box::default),
            ..op(ids.0.value())
        }
    })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let ended = (live_op(), millis(), millis());
    let party = (option::of(id()), threads(), millis());
    let parties = vec(party, 0..3);
    let process = (word(), any::<u32>(), word());
    (
        (word(), millis(), process, option::of((word(), word()))),
        (vec(live_op(), 0..3), vec(ended, 0..2)),
        (word(), any::<u64>(), parties),
        (word(), option::of(any::<u64>()), vec(word(), 0..2)),
    )
        .prop_map(|(head, ops, resource, mount)| {
            let (begun, notes) = (resource.1, mount.2);
            let parties = resource.2.into_iter();
            let holders = parties.map(|(op, mut threads, since_ms)| Party {
                op,
                thread: threads.pop(),
                since_ms,
            });
            let recent = ops
                .1
                .into_iter()
                .map(|(op, duration_ms, ended_ms)| EndedOp {
                    op,
                    duration_ms,
                    ended_ms,
                    outcome: Outcome::DroppedInBody,
                });
            Snapshot {
                taken_at: head.0,
                clock_ms: head.1,
                process: Process {
                    service: head.2.0,
                    pid: head.2.1,
                    time_ns: head.2.2,
                    ..Process::default()
                },
                off: head.3.map(|(since, why)| Off { since, why }),
                ops: ops.0,
                recent: recent.collect(),
                resources: vec![Shown {
                    name: resource.0,
                    capacity: begun,
                    holders: holders.collect(),
                    ..Shown::default()
                }],
                mounts: vec![Mount {
                    path: mount.0,
                    connection: mount.1,
                    notes,
                    ..Mount::default()
                }],
                totals: Totals {
                    begun,
                    ..Totals::default()
                },
                ..Snapshot::default()
            }
        })
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 100,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn any_snapshot_comes_back_as_it_was(taken in snapshot()) {
        let text = serde_json::to_string(&taken).unwrap();

        proptest::prop_assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), taken);
    }

    #[test]
    fn any_snapshot_can_be_reported(taken in snapshot(), peer in snapshot()) {
        let report = Report::from_snapshots(vec![taken, peer]);

        proptest::prop_assert!(!report.to_string().is_empty());
    }
}
