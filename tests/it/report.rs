//! Verdicts and text over snapshots written by hand: what is a deadlock, what is none, and how it reads.

mod machines;
mod proof;
mod stuck;

use proptest::prelude::*;

use inflight::{
    Kind, OpId, Report, Snapshot, State, TraceId,
    report::Verdict,
    snapshot::{
        Caller, Fuse, Http, LiveOp, Mount, On, ParentFrom, Party, Phase, Process, Resource, Thread,
        Wait,
    },
};

const BLOCKED: &str = "request_wait_answer";

fn id(n: u64) -> OpId {
    OpId::new(n).unwrap()
}

fn op(n: u64, kind: Kind, name: &str, target: &str, age_ms: f64) -> LiveOp {
    LiveOp {
        id: id(n),
        trace_id: TraceId::new(u128::from(n) << 64 | 0xab).unwrap(),
        parent_id: None,
        parent_from: None,
        kind,
        name: name.to_owned(),
        target: target.to_owned(),
        age_ms,
        progress_ms: age_ms,
        state: State::Stuck,
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

fn snapshot(service: &str, pid: u32) -> Snapshot {
    Snapshot {
        schema: "inflight/1".to_owned(),
        taken_at: "2026-02-11T13:56:28.123Z".to_owned(),
        clock_ms: 1_000_000.0,
        slow_after_ms: 1000.0,
        stuck_after_ms: 10_000.0,
        process: Process {
            service: service.to_owned(),
            pid,
            boot_id: "boot".to_owned(),
            pid_ns: "1".to_owned(),
            ..Process::default()
        },
        ..Snapshot::default()
    }
}

fn waits(on: On, ops: &[u64], since_ms: f64) -> Option<Box<Wait>> {
    Some(Box::new(Wait {
        on,
        ops: ops.iter().map(|n| id(*n)).collect(),
        all: ops.len() == 1,
        since_ms,
        ..Wait::default()
    }))
}

fn caller(tid: u32, pid: u32, comm: &str) -> Option<Box<Caller>> {
    Some(Box::new(Caller {
        tid,
        pid: Some(pid),
        comm: Some(comm.to_owned()),
        ..Caller::default()
    }))
}

fn fuse(mut op: LiveOp, caller: Option<Box<Caller>>, calls: u64) -> LiveOp {
    op.caller = caller;
    op.fuse = Some(Box::new(Fuse {
        mount: "/mnt/s".to_owned(),
        inode: "7".to_owned(),
        unique: "26".to_owned(),
    }));
    op.phase.wait = waits(On::Call, &[calls], op.age_ms - 1.0);
    op
}

fn call(mut op: LiveOp, parent: u64) -> LiveOp {
    op.parent_id = Some(id(parent));
    op.phase.path = vec!["waiting for the answer".to_owned()];
    op.http = Some(Box::new(Http {
        peer: Some("127.0.0.1:9999".to_owned()),
        ..Http::default()
    }));
    op
}

fn served(mut op: LiveOp, parent: u64) -> LiveOp {
    op.parent_id = Some(id(parent));
    op.parent_from = Some(ParentFrom::InflightOp);
    op.phase.path = vec!["handler".to_owned()];
    op.http = Some(Box::default());
    op
}

fn thread(tid: u32, since_ms: f64, wchan: &str) -> Option<Box<Thread>> {
    Some(Box::new(Thread {
        tid,
        name: "tokio".to_owned(),
        since_ms,
        wchan: Some(wchan.to_owned()),
    }))
}

fn lock(holders: &[(u64, f64)], waiters: &[(u64, f64)], capacity: u64) -> Resource {
    let parties = |of: &[(u64, f64)]| {
        let party = |(op, since_ms): &(u64, f64)| Party {
            op: Some(id(*op)),
            since_ms: *since_ms,
            ..Party::default()
        };
        of.iter().map(party).collect()
    };
    Resource {
        id: "1".to_owned(),
        name: "conversations".to_owned(),
        capacity,
        holders: parties(holders),
        waiters: parties(waiters),
    }
}

fn waits_for_lock(since_ms: f64, all: bool) -> Option<Box<Wait>> {
    Some(Box::new(Wait {
        on: On::Resource,
        ops: vec![id(20)],
        all,
        since_ms,
        resource: Some("1".to_owned()),
        ..Wait::default()
    }))
}

// The founding hang. The daemon: flush 10 -> POST 11; readdir 12, called by the server -> GET 13.
// The server: POST 20 holds the lock and is in the readdir; GET 21 waits for the lock.
fn founding() -> [Snapshot; 2] {
    let mut daemon = snapshot("shelley-fuse", 443);
    let url = |path: &str| format!("http://127.0.0.1:9999{path}");
    daemon.ops = vec![
        fuse(
            op(10, Kind::Fuse, "flush", "/conversation/1b9b/send", 29_905.0),
            caller(512, 512, "bash"),
            11,
        ),
        call(
            op(
                11,
                Kind::HttpClient,
                "POST",
                &url("/api/conversations/new"),
                29_904.0,
            ),
            10,
        ),
        fuse(
            op(12, Kind::Fuse, "readdir", "/conversation", 24_910.0),
            caller(451, 444, "shelley"),
            13,
        ),
        call(
            op(
                13,
                Kind::HttpClient,
                "GET",
                &url("/api/conversations"),
                24_909.0,
            ),
            12,
        ),
    ];
    daemon.mounts = vec![Mount {
        path: "/mnt/s".to_owned(),
        connection: Some(40),
        kernel_waiting: Some(2),
        tracked: 2,
        slots: 4,
        ..Mount::default()
    }];
    let mut server = snapshot("shelley", 444);
    let mut post = served(
        op(
            20,
            Kind::HttpServer,
            "POST",
            "/api/conversations/new",
            29_900.0,
        ),
        11,
    );
    post.thread = thread(451, 29_000.0, BLOCKED);
    post.phase.path.push("walk /tmp".to_owned());
    let mut get = served(
        op(21, Kind::HttpServer, "GET", "/api/conversations", 24_905.0),
        13,
    );
    get.phase.wait = waits_for_lock(24_900.0, true);
    server.ops = vec![post, get];
    server.resources = vec![lock(&[(20, 29_800.0)], &[(21, 24_900.0)], 1)];
    // Two traces: what the flush began, and what the readdir began.
    for op in daemon.ops.iter_mut().chain(&mut server.ops) {
        let began = if matches!(op.id.value(), 10 | 11 | 20) {
            0xa
        } else {
            0xb
        };
        op.trace_id = TraceId::new(0x4bf9_2f35 << 64 | began).unwrap();
    }
    [daemon, server]
}

fn report(snapshots: [Snapshot; 2]) -> Report {
    Report::from_snapshots(snapshots.to_vec())
}

fn cycle(report: &Report) -> Vec<u64> {
    let mut ops: Vec<u64> = report.cycles()[0].ops.iter().map(|op| op.value()).collect();
    ops.sort_unstable();
    ops
}

#[test]
fn the_founding_hang_is_told_from_both_snapshots() {
    let report = report(founding());

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert_eq!(cycle(&report), [12, 13, 20, 21]);
    assert!(report.cycles()[0].confirmed);
    assert_eq!(report.cycles()[0].for_ms, 24_900.0, "its youngest edge");
    assert_eq!(report.blocked, [id(11), id(10)]);
    assert_eq!(report.blocked_behind(id(11)), [id(10)]);
    assert_eq!(
        report.to_string(),
        "\
DEADLOCK for 24.9 s (since 13:56:03 UTC): shelley[444] and shelley-fuse[443] wait for each other
Culprit: [1] holds lock \"conversations\" while it waits for a file in /mnt/s, and [4] needs what it holds
Blocked: 1 caller, bash[512].  To free it now: inflight abort /mnt/s or echo 1 > /sys/fs/fuse/connections/40/abort
          (they get errors)

 [1]  shelley[444]       POST /api/conversations/new                  29.9 s   handler > walk /tmp
          HOLDS lock \"conversations\"
       its thread 451 is in a file-system call
 [2]  shelley-fuse[443]  readdir /conversation                        24.9 s   for shelley[444]
       which sent, and waits for
 [3]  shelley-fuse[443]  GET 127.0.0.1:9999/api/conversations         24.9 s   waiting for the answer
       which is served by
 [4]  shelley[444]       GET /api/conversations                       24.9 s   handler
          WAITS for lock \"conversations\", held by [1]

Behind it, not part of it
      bash[512]          flush /conversation/1b9b/send                29.9 s
          -> POST 127.0.0.1:9999/api/conversations/new (29.9 s, waiting for the answer)   -> [1]

In flight: 4 ops here, 2 in shelley[444]; nothing else is slow
Checked: kernel 2 waiting, 2 tracked; 1 peer asked, 1 answered
Not known: nothing
Find it: trace 000000004bf92f35000000000000000a ([1]), trace 000000004bf92f35000000000000000b ([2] [3] [4])
Taken 13:56:28.123 UTC by shelley-fuse[443], slow after 1 s, stuck after 10 s
"
    );
}

#[test]
fn a_report_reads_back_as_it_was_written() {
    let report = report(founding());

    let json = serde_json::to_string(&report).unwrap();
    let read: Report = serde_json::from_str(&json).unwrap();

    assert_eq!(read, report);
    assert_eq!(read.to_string(), report.to_string());
    let edges: Vec<(&str, &str, &str)> = report
        .edges
        .iter()
        .map(|edge| (edge.from.as_str(), edge.why.as_str(), edge.to.as_str()))
        .collect();
    for edge in [
        ("000000000000000a", "sent", "000000000000000b"),
        ("000000000000000b", "served_by", "0000000000000014"),
        ("0000000000000014", "thread", "000000000000000c"),
        ("0000000000000015", "waits", "resource:444:1"),
        ("resource:444:1", "holds", "0000000000000014"),
    ] {
        assert!(edges.contains(&edge), "{edge:?} in {edges:?}");
    }
}

#[test]
fn without_the_peer_it_is_stuck_and_the_address_is_named() {
    let [daemon, _] = founding();

    let text = Report::from_snapshots(vec![daemon]).to_string();

    assert!(
        text.starts_with(
            "STUCK for 29.9 s (since 13:55:58 UTC): 1 op waits for 127.0.0.1:9999, which does not answer; 1 more cause below\n"
        ),
        "{text}"
    );
    assert!(text.contains("flush /conversation/1b9b/send"), "{text}");
}

#[test]
fn one_slot_without_the_lock_is_a_deadlock_with_the_slot() {
    let [mut daemon, mut server] = founding();
    // The readdir is parked behind the flush, and has sent nothing.
    daemon.ops.truncate(3);
    daemon.ops[2].phase.wait = waits(On::Queue, &[10], 24_905.0);
    daemon.ops[2].state = State::Queued;
    daemon.mounts[0].slots = 1;
    server.ops.truncate(1);
    server.resources.clear();

    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert_eq!(cycle(&report), [10, 11, 12, 20], "the flush is a member");
    let text = report.to_string();
    assert!(
        text.contains("Culprit: [1] has the only slot left while it waits for"),
        "{text}"
    );
}

#[test]
fn a_slot_that_can_come_free_is_a_way_round() {
    let [mut daemon, mut server] = founding();
    let mut free = op(14, Kind::Fuse, "read", "/README.md", 10.0);
    free.fuse = daemon.ops[0].fuse.clone();
    daemon.ops.truncate(3);
    daemon.ops.push(free);
    daemon.ops[2].phase.wait = waits(On::Queue, &[10, 14], 24_905.0);
    server.ops.truncate(1);
    server.resources.clear();

    let report = report([daemon, server]);

    assert!(report.cycles().is_empty());
}

#[test]
fn a_permit_that_another_may_give_back_is_a_way_round() {
    let [daemon, mut server] = founding();
    server.ops.push(op(22, Kind::Task, "other", "", 50.0));
    server.resources = vec![lock(&[(20, 29_800.0), (22, 40.0)], &[(21, 24_900.0)], 2)];
    server.ops[1].phase.wait = waits_for_lock(24_900.0, false);

    assert!(report([daemon, server]).cycles().is_empty());
}

#[test]
fn a_permit_that_was_not_given_out_is_a_way_round() {
    let [daemon, mut server] = founding();
    server.resources = vec![lock(&[(20, 29_800.0)], &[(21, 24_900.0)], 2)];
    server.ops[1].phase.wait = waits_for_lock(24_900.0, false);

    assert!(report([daemon, server]).cycles().is_empty());
}

#[test]
fn who_waits_for_all_holders_needs_only_one_in_the_circle() {
    let [daemon, mut server] = founding();
    server.ops.push(op(22, Kind::Task, "reader", "", 50.0));
    server.resources = vec![lock(&[(20, 29_800.0), (22, 40.0)], &[(21, 24_900.0)], 1)];

    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert_eq!(cycle(&report), [12, 13, 20, 21], "the reader is no member");
}

#[test]
fn a_circle_younger_than_a_second_is_none_yet() {
    let [mut daemon, mut server] = founding();
    daemon.ops[2].age_ms = 900.0;
    daemon.ops[3].age_ms = 899.0;
    server.ops[1].age_ms = 898.0;
    server.ops[1].phase.wait.as_mut().unwrap().since_ms = 897.0;

    let report = report([daemon, server]);

    assert!(report.cycles().is_empty());
    assert_eq!(report.verdict(), &Verdict::Ok, "its last step is young");
}

#[test]
fn a_thread_that_came_to_the_op_after_the_call_began_did_not_make_it() {
    let [daemon, mut server] = founding();
    server.ops[0].thread = thread(451, 24_000.0, BLOCKED);

    let report = report([daemon, server]);

    assert_ne!(report.verdict(), &Verdict::Deadlock);
}

#[test]
fn a_thread_that_does_not_sleep_in_the_call_makes_it_only_likely() {
    let [daemon, mut server] = founding();
    server.ops[0].thread = thread(451, 29_000.0, "ep_poll");

    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::LikelyDeadlock);
    assert!(!report.cycles()[0].confirmed);
    let text = report.to_string();
    let second = text.lines().nth(1).unwrap();
    assert_eq!(
        second,
        "Only likely, because the thread of [1] called [2], but was not seen asleep in that call"
    );
}

#[test]
fn a_call_from_an_unknown_thread_of_the_server_is_likely_the_requests() {
    let [daemon, mut server] = founding();
    server.ops[0].thread = None;

    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::LikelyDeadlock);
    assert_eq!(cycle(&report), [12, 13, 20, 21]);
    assert!(report.to_string().contains("\nOnly likely, because "));
}

#[test]
fn of_several_requests_that_may_have_made_a_call_none_is_blamed() {
    let [daemon, mut server] = founding();
    server.ops[0].thread = None;
    let mut other = served(
        op(
            22,
            Kind::HttpServer,
            "POST",
            "/api/conversations/new",
            29_000.0,
        ),
        98,
    );
    other.parent_id = None;
    server.ops.push(other);

    let report = report([daemon, server]);

    assert!(report.cycles().is_empty());
    let likely = report.edges.iter().filter(|edge| edge.why == "process");
    let from: Vec<&str> = likely.map(|edge| edge.from.as_str()).collect();
    assert_eq!(
        from,
        ["0000000000000014", "0000000000000016"],
        "both are shown"
    );
}

#[test]
fn thread_ids_of_another_pid_namespace_or_boot_mean_nothing() {
    let [daemon, server] = founding();
    let mut elsewhere = server.clone();
    elsewhere.process.pid_ns = "2".to_owned();
    let mut other_boot = server;
    other_boot.process.boot_id = "other".to_owned();

    for server in [elsewhere, other_boot] {
        assert!(report([daemon.clone(), server]).cycles().is_empty());
    }
}

#[test]
fn an_op_that_is_named_but_not_there_is_a_way_out() {
    let [daemon, mut server] = founding();
    server.resources[0].holders.push(Party {
        op: Some(id(99)),
        since_ms: 1.0,
        ..Party::default()
    });
    server.resources[0].capacity = 2;
    server.ops[1].phase.wait = waits_for_lock(24_900.0, false);

    assert!(report([daemon, server]).cycles().is_empty());
}

#[test]
fn a_request_known_by_its_trace_alone_is_likely_served_there() {
    let [daemon, mut server] = founding();
    server.ops[1].parent_from = Some(ParentFrom::TraceParent);
    server.ops[1].parent_id = Some(id(999));
    server.ops[1].trace_id = daemon.ops[3].trace_id;

    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::LikelyDeadlock);
    let text = report.to_string();
    assert!(text.contains("is known by its trace alone"), "{text}");
}

#[test]
fn who_waits_for_what_it_holds_itself_is_a_circle_of_one() {
    let mut one = snapshot("api", 7);
    let mut task = op(20, Kind::Task, "reindex", "", 5000.0);
    task.phase.wait = waits_for_lock(4000.0, true);
    one.ops = vec![task];
    one.resources = vec![lock(&[(20, 4500.0)], &[(20, 4000.0)], 1)];

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert_eq!(cycle(&report), [20]);
    let text = report.to_string();
    assert!(
        text.starts_with(
            "DEADLOCK for 4.0 s (since 13:56:24 UTC): 1 op in api[7] waits for what it holds itself"
        ),
        "{text}"
    );
}

#[test]
fn two_locks_taken_in_two_orders_are_a_circle() {
    let mut one = snapshot("api", 7);
    let task = |n, resource: &str| {
        let mut task = op(n, Kind::Task, "transfer", "", 5000.0);
        task.phase.wait = Some(Box::new(Wait {
            resource: Some(resource.to_owned()),
            ..*waits_for_lock(4000.0, true).unwrap()
        }));
        task
    };
    one.ops = vec![task(20, "2"), task(21, "1"), task(22, "1")];
    one.resources = vec![
        lock(&[(20, 4500.0)], &[(21, 4000.0), (22, 4000.0)], 1),
        Resource {
            id: "2".to_owned(),
            name: "ledger".to_owned(),
            ..lock(&[(21, 4500.0)], &[(20, 4000.0)], 1)
        },
    ];

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(cycle(&report), [20, 21]);
    assert_eq!(report.blocked, [id(22)]);
}

#[test]
fn a_server_that_moves_keeps_those_who_wait_for_it_from_being_stuck() {
    let [daemon, mut server] = founding();
    server.ops.truncate(1);
    server.ops[0].thread = None;
    server.ops[0].progress_ms = 20.0;
    server.resources.clear();
    let mut daemon = daemon;
    daemon.ops.truncate(2);

    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::Ok);
    assert!(report.stuck().is_empty());
}

#[test]
fn slow_is_said_of_what_has_not_moved_for_the_slow_threshold() {
    let mut one = snapshot("api", 7);
    one.ops = vec![op(20, Kind::Task, "reindex", "", 4000.0)];

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Slow);
    assert!(
        report
            .to_string()
            .starts_with("SLOW: 1 op has not moved for more than 1.0 s, the longest for 4.0 s\n")
    );
}

#[test]
fn a_task_that_does_not_move_is_named_with_its_phase_and_what_it_holds() {
    let mut one = snapshot("api", 7);
    let mut holder = op(20, Kind::Task, "reindex", "", 40_000.0);
    holder.phase.path = vec!["fsync".to_owned()];
    let mut waiter = served(op(21, Kind::HttpServer, "GET", "/jobs", 30_000.0), 1);
    waiter.parent_id = None;
    waiter.phase.wait = waits_for_lock(30_000.0, true);
    one.ops = vec![holder, waiter];
    one.resources = vec![lock(&[(20, 39_000.0)], &[(21, 30_000.0)], 1)];

    let text = Report::from_snapshots(vec![one]).to_string();

    assert!(
        text.starts_with(
            "STUCK for 40.0 s (since 13:55:48 UTC): 1 op waits for reindex in api[7], which does not move (in fsync)\n\
             Culprit: [2] holds lock \"conversations\" while it does not move\n"
        ),
        "{text}"
    );
}

#[test]
fn no_line_is_wider_than_a_terminal_and_no_id_is_cut() {
    let [mut daemon, server] = founding();
    let long = "very-long-name/".repeat(30);
    for op in &mut daemon.ops {
        op.target = format!("{}{long}", op.target);
        op.phase.path = vec![long.clone(), long.clone()];
        op.error = Some(long.clone());
    }
    daemon.mounts[0].path = format!("/mnt/{long}");
    for n in 100..1100 {
        daemon.ops.push(fuse(
            op(n, Kind::Fuse, "read", &format!("/{long}{n}"), 20_000.0),
            caller(n as u32, n as u32, "cat"),
            13,
        ));
    }

    let report = report([daemon, server]);
    let text = report.to_string();

    for line in text.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
    assert!(text.lines().count() < 150);
    for op in &report.cycles()[0].ops {
        let trace = report.local.op(*op).map(|op| op.trace_id.to_string());
        assert!(trace.is_none_or(|trace| text.contains(&trace)));
    }
    assert!(text.contains("more; all stand in the JSON"), "{text}");
}

#[test]
fn a_hundred_thousand_ops_in_one_chain_are_no_trouble() {
    const OPS: u64 = 100_000;
    let mut one = snapshot("api", 7);
    one.ops = (1..=OPS)
        .map(|n| {
            let mut task = op(n, Kind::Task, "link", "", 20_000.0);
            task.phase.wait = waits(On::Op, &[n % OPS + 1], 15_000.0);
            task
        })
        .collect();

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert_eq!(report.cycles()[0].ops.len() as u64, OPS);
}

#[test]
fn nothing_at_all_is_ok() {
    let text = Report::from_snapshots(Vec::new()).to_string();

    assert!(
        text.starts_with("OK: nothing is stuck. Nothing is in flight; no peer asked\n"),
        "{text}"
    );
}

/// Ops that wait for each other at random: for which, and whether for all of them.
fn waiting() -> impl Strategy<Value = Vec<(Vec<usize>, bool)>> {
    (2usize..9).prop_flat_map(|count| {
        let wait = (proptest::collection::vec(0..count + 1, 0..4), any::<bool>());
        proptest::collection::vec(wait, count)
    })
}

/// Who never goes on, found the slow way: let everyone go on who can, until nobody can. `count` stands for
/// an op that no snapshot has.
fn never_goes_on(waits: &[(Vec<usize>, bool)]) -> Vec<bool> {
    let mut goes_on = vec![false; waits.len() + 1];
    goes_on[waits.len()] = true;
    for _ in 0..waits.len() {
        for (op, (on, all)) in waits.iter().enumerate() {
            goes_on[op] |= on.is_empty()
                || match all {
                    true => on.iter().all(|on| goes_on[*on]),
                    false => on.iter().any(|on| goes_on[*on]),
                };
        }
    }
    goes_on.pop();
    goes_on.into_iter().map(|goes_on| !goes_on).collect()
}

/// What stands between an op and what it waits for.
#[derive(Clone, Copy, Debug)]
enum Via {
    Stated,
    Lock,
    Served,
    Thread,
}

fn via() -> impl Strategy<Value = Vec<Via>> {
    let via = prop_oneof![
        Just(Via::Stated),
        Just(Via::Lock),
        Just(Via::Served),
        Just(Via::Thread)
    ];
    proptest::collection::vec(via, 9)
}

fn stated(on: &[usize], all: bool) -> Option<Box<Wait>> {
    Some(Box::new(Wait {
        on: On::Op,
        ops: on.iter().map(|n| id(*n as u64 + 1)).collect(),
        all,
        since_ms: 15_000.0,
        ..Wait::default()
    }))
}

/// The waits as snapshots of two processes have them, with an op more for each server's and each FUSE op between.
fn through(waits: &[(Vec<usize>, bool)], via: &[Via]) -> [Snapshot; 2] {
    let mut snapshots = [snapshot("same", 7), snapshot("same", 8)];
    let mut more = 1000;
    let mut tid = 500;
    for (n, (on, all)) in waits.iter().enumerate() {
        let mut it = op(n as u64 + 1, Kind::Task, "same", "same", 20_000.0);
        let there = (n + 1) % 2;
        match via[n] {
            _ if on.is_empty() => {}
            Via::Lock => {
                let holders: Vec<(u64, f64)> =
                    on.iter().map(|n| (*n as u64 + 1, 16_000.0)).collect();
                let waiters = [(n as u64 + 1, 15_000.0)];
                let mut lock = lock(&holders, &waiters, on.len() as u64);
                lock.id = format!("lock {n}");
                it.phase.wait = stated(on, *all).map(|wait| {
                    Box::new(Wait {
                        on: On::Resource,
                        resource: Some(lock.id.clone()),
                        ..*wait
                    })
                });
                snapshots[n % 2].resources.push(lock);
            }
            // Of several that serve one call, or threads that work for one op, any may go on.
            Via::Served if !all => {
                it.kind = Kind::HttpClient;
                for on in on {
                    more += 1;
                    let server = op(more, Kind::HttpServer, "same", "same", 18_000.0);
                    let mut server = served(server, n as u64 + 1);
                    server.phase.wait = stated(&[*on], true);
                    snapshots[there].ops.push(server);
                }
            }
            Via::Thread if !all => {
                for on in on {
                    more += 1;
                    tid += 1;
                    let runs = thread(tid, 19_000.0, "request_wait_answer");
                    match it.thread {
                        None => it.thread = runs,
                        Some(_) => it.more_threads.extend(runs.map(|thread| *thread)),
                    }
                    let called = op(more, Kind::Fuse, "same", "same", 18_000.0);
                    let mut called = fuse(called, caller(tid, 7 + (n % 2) as u32, "same"), more);
                    called.phase.wait = stated(&[*on], true);
                    snapshots[there].ops.push(called);
                }
            }
            Via::Stated | Via::Served | Via::Thread => it.phase.wait = stated(on, *all),
        }
        snapshots[n % 2].ops.push(it);
    }
    snapshots
}

proptest! {
    // Locks, requests and threads between them change nothing of who waits for whom.
    #[test]
    fn a_deadlock_through_locks_requests_and_threads_is_reported_just_when_someone_never_goes_on(
        waits in waiting(),
        via in via(),
    ) {
        let never = never_goes_on(&waits);

        let report = report(through(&waits, &via));

        let is_deadlock = report.verdict() == &Verdict::Deadlock;
        prop_assert_eq!(is_deadlock, never.contains(&true), "{:?} {:?}\n{}", waits, via, report);
        for cycle in report.cycles() {
            prop_assert!(cycle.confirmed, "{:?} {:?}\n{}", waits, via, report);
            let members = cycle.ops.iter().map(|member| member.value() as usize);
            for member in members.filter(|member| *member < 1000) {
                prop_assert!(never[member - 1], "{:?} {:?}\n{}", waits, via, report);
            }
        }
    }

    #[test]
    fn a_deadlock_is_reported_just_when_someone_never_goes_on(waits in waiting()) {
        let mut snapshots = [snapshot("same", 7), snapshot("same", 8)];
        for (n, (on, all)) in waits.iter().enumerate() {
            // Spread over two processes; all look alike.
            let mut task = op(n as u64 + 1, Kind::Task, "same", "same", 20_000.0);
            if !on.is_empty() {
                task.phase.wait = Some(Box::new(Wait {
                    on: On::Op,
                    ops: on.iter().map(|n| id(*n as u64 + 1)).collect(),
                    all: *all,
                    since_ms: 15_000.0,
                    ..Wait::default()
                }));
            }
            snapshots[n % 2].ops.push(task);
        }
        let never = never_goes_on(&waits);

        let report = report(snapshots);

        let is_deadlock = report.verdict() == &Verdict::Deadlock;
        prop_assert_eq!(is_deadlock, never.contains(&true), "{:?}", waits);
        for cycle in report.cycles() {
            prop_assert!(cycle.confirmed);
            for member in &cycle.ops {
                let n = member.value() as usize - 1;
                prop_assert!(never[n]);
                let next = waits[n].0.iter().any(|on| cycle.ops.contains(&id(*on as u64 + 1)));
                prop_assert!(next, "{} waits for no member", n);
            }
        }
        let text = report.to_string();
        prop_assert!(text.lines().all(|line| line.chars().count() <= 120));
    }
}
