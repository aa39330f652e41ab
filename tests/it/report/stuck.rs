//! What is stuck though something near it moves, and threads that no op stands for.

use std::time::{Duration, Instant};

use inflight::Filter;

use super::*;

// A server that does not move, and a young call of a thread of it into the mount.
fn beside_a_young_call(requests: u64) -> Report {
    let [mut daemon, mut server] = founding();
    let mut young = op(12, Kind::Fuse, "readdir", "/x", 150.0);
    young.caller = caller(460, 444, "shelley");
    young.state = State::Running;
    daemon.ops = vec![young];
    server.resources.clear();
    server.ops = (0..requests)
        .map(|n| {
            let mut post = op(20 + n, Kind::HttpServer, "POST", "/jobs", 29_900.0);
            post.phase.path = vec!["handler".to_owned()];
            post
        })
        .collect();
    report([server, daemon])
}

#[test]
fn a_call_that_may_be_another_ones_hides_no_request_that_is_stuck() {
    for requests in [1, 2] {
        let report = beside_a_young_call(requests);

        assert_eq!(report.verdict(), &Verdict::Stuck, "{report}");
        assert_eq!(report.stuck().len() as u64, requests);
        let text = report.to_string();
        let first = text.lines().next().unwrap();
        assert!(
            first.contains("POST /jobs in shelley[444], which does not move (in handler)"),
            "{text}"
        );
    }
}

#[test]
fn one_request_of_a_trace_moves_one_call_of_it_and_nobody_knows_which() {
    let with_calls = |calls: u64| {
        let [mut daemon, mut server] = founding();
        let mut get = served(op(21, Kind::HttpServer, "GET", "/", 24_905.0), 99);
        get.parent_from = Some(ParentFrom::TraceParent);
        get.progress_ms = 20.0;
        daemon.ops = (0..calls)
            .map(|n| {
                let mut call = op(30 + n, Kind::HttpClient, "GET", "/", 25_000.0);
                call.trace_id = get.trace_id;
                call
            })
            .collect();
        server.resources.clear();
        server.ops = vec![get];
        report([daemon, server])
    };

    assert_eq!(with_calls(1).verdict(), &Verdict::Ok);
    assert_eq!(with_calls(2).verdict(), &Verdict::Stuck);
    assert_eq!(with_calls(2).stuck().len(), 2);
}

#[test]
fn an_idle_stream_that_moves_gives_no_lock_back() {
    let mut one = snapshot("api", 7);
    let mut stream = op(20, Kind::HttpServer, "GET", "/events", 900_000.0);
    stream.state = State::Idle;
    stream.progress_ms = 900.0;
    stream.phase.path = vec!["body".to_owned()];
    let mut waiter = op(21, Kind::HttpServer, "POST", "/jobs", 600_000.0);
    waiter.phase.wait = waits_for_lock(600_000.0, true);
    one.ops = vec![stream, waiter];
    one.resources = vec![lock(&[(20, 899_000.0)], &[(21, 600_000.0)], 1)];

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Stuck);
    let text = report.to_string();
    assert!(
        text.starts_with(
            "STUCK for 10 m 0 s (since 13:46:28 UTC): 1 op waits for GET /events in api[7], which is long by design (in body)\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("\nCulprit: [2] holds lock \"conversations\" while it is idle\n"),
        "{text}"
    );
}

fn party(tid: u32, since_ms: f64) -> Party {
    Party {
        thread: thread(tid, since_ms, "futex_wait_queue").map(|thread| *thread),
        since_ms,
        ..Party::default()
    }
}

fn crosswise(of_left: [Party; 2], of_right: [Party; 2]) -> Snapshot {
    let mut one = snapshot("api", 7);
    let lock = |id: &str, name: &str, [holder, waiter]: [Party; 2]| Resource {
        id: id.to_owned(),
        name: name.to_owned(),
        capacity: 1,
        holders: vec![holder],
        waiters: vec![waiter],
    };
    one.resources = vec![lock("1", "left", of_left), lock("2", "right", of_right)];
    one
}

#[test]
fn two_threads_that_wait_for_each_others_locks_are_a_deadlock_without_any_op() {
    let one = crosswise(
        [party(71, 31_000.0), party(72, 30_000.0)],
        [party(72, 31_000.0), party(71, 29_000.0)],
    );

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert!(report.cycles()[0].confirmed);
    assert_eq!(report.cycles()[0].for_ms, 29_000.0, "its youngest edge");
    assert_eq!(
        report.to_string(),
        "\
DEADLOCK for 29.0 s (since 13:55:59 UTC): 2 threads in api[7] wait for each other
Culprit: [2] holds lock \"left\" while it waits for [1], and [1] needs what it holds

 [1]  api[7]  thread 72 tokio    30.0 s   HOLDS lock \"right\"   WAITS for lock \"left\", held by [2]
 [2]  api[7]  thread 71 tokio    29.0 s   HOLDS lock \"left\"   WAITS for lock \"right\", held by [1]

In flight: 0 ops here; nothing else is slow
Checked: no peer asked
Not known: nothing
Taken 13:56:28.123 UTC by api[7], slow after 1 s, stuck after 10 s
"
    );
    let edges: Vec<(&str, &str, &str)> = report
        .edges
        .iter()
        .map(|edge| (edge.from.as_str(), edge.why.as_str(), edge.to.as_str()))
        .collect();
    for edge in [
        ("thread:7:71", "waits", "resource:7:2"),
        ("resource:7:2", "holds", "thread:7:72"),
        ("thread:7:72", "waits", "resource:7:1"),
        ("resource:7:1", "holds", "thread:7:71"),
    ] {
        assert!(edges.contains(&edge), "{edge:?} in {edges:?}");
    }
}

#[test]
fn an_op_and_a_thread_that_wait_for_each_others_locks_are_a_deadlock() {
    let of_op = |since_ms| Party {
        op: Some(id(20)),
        since_ms,
        ..Party::default()
    };
    let mut one = crosswise(
        [party(71, 31_000.0), of_op(30_000.0)],
        [of_op(31_000.0), party(71, 29_000.0)],
    );
    let mut job = op(20, Kind::Task, "job", "", 32_000.0);
    job.phase.wait = waits_for_lock(30_000.0, true);
    one.ops = vec![job];

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    let text = report.to_string();
    assert!(
        text.contains("1 op and 1 thread in api[7] wait for each other"),
        "{text}"
    );
}

#[test]
fn a_thread_without_an_op_is_judged_by_the_age_of_its_wait() {
    let after = |since_ms| {
        let mut one = snapshot("api", 7);
        one.resources = vec![Resource {
            holders: vec![Party {
                since_ms: 40_000.0,
                ..Party::default()
            }],
            waiters: vec![party(71, since_ms)],
            ..lock(&[], &[], 1)
        }];
        Report::from_snapshots(vec![one])
    };

    for (since_ms, verdict, begins) in [
        (
            900.0,
            Verdict::Ok,
            "OK: nothing is stuck. 1 thread in flight, oldest 0.9 s; no peer asked\n",
        ),
        (
            4000.0,
            Verdict::Slow,
            "SLOW: 1 thread has not moved for more than 1.0 s, the longest for 4.0 s\n",
        ),
        (
            30_000.0,
            Verdict::Stuck,
            "STUCK for 30.0 s (since 13:55:58 UTC): thread 71 tokio in api[7], which waits for lock \
             \"conversations\", held by one that\n        is not known\n",
        ),
    ] {
        let report = after(since_ms);
        assert_eq!(report.verdict(), &verdict);
        assert!(report.to_string().starts_with(begins), "{report}");
    }
}

#[test]
fn of_waits_within_each_other_a_thread_is_in_the_youngest() {
    let mut one = crosswise(
        [party(71, 31_000.0), party(72, 30_000.0)],
        [party(72, 31_000.0), party(71, 29_000.0)],
    );
    // What it tries first, inside of its wait for the other, is about to be free.
    one.resources.push(Resource {
        id: "3".to_owned(),
        waiters: vec![party(71, 20_000.0)],
        ..lock(&[], &[], 1)
    });

    assert!(Report::from_snapshots(vec![one]).cycles().is_empty());
}

#[test]
fn who_waits_for_a_lock_of_a_thread_is_told_by_that_thread() {
    let mut one = snapshot("api", 7);
    let mut waiter = op(21, Kind::Task, "job", "", 30_000.0);
    waiter.phase.wait = waits_for_lock(30_000.0, true);
    one.ops = vec![waiter];
    one.resources = vec![Resource {
        holders: vec![party(71, 40_000.0)],
        ..lock(&[], &[(21, 30_000.0)], 1)
    }];

    let text = Report::from_snapshots(vec![one]).to_string();

    assert!(
        text.starts_with(
            "STUCK for 30.0 s (since 13:55:58 UTC): 1 op waits for a thread that works for no op, and holds what they want\n\
             Culprit: [2] holds lock \"conversations\" while it does not move\n"
        ),
        "{text}"
    );
}

#[test]
fn a_hundred_thousand_requests_of_others_traces_or_for_one_lock_are_no_trouble() {
    // It frees the run; a graph that looks at all for each takes minutes.
    const DEADLINE: Duration = Duration::from_secs(60);
    let begun = Instant::now();
    let mut one = snapshot("api", 7);
    let requests = (1..=100_000).map(|n| op(n, Kind::HttpServer, "GET", "/x", 20_000.0));
    one.ops = requests.collect();
    for op in &mut one.ops {
        op.parent_id = Some(id(1_000_000 + op.id.value()));
        op.parent_from = Some(ParentFrom::TraceParent);
        op.phase.wait = waits_for_lock(15_000.0, true);
    }
    one.resources = vec![Resource {
        holders: vec![party(71, 40_000.0)],
        ..lock(&[], &[], 1)
    }];

    let report = Report::from_snapshots(vec![one]);

    assert_eq!(report.verdict(), &Verdict::Stuck);
    assert!(begun.elapsed() < DEADLINE);
}

#[test]
fn a_filter_hides_nothing_of_what_is_stuck() {
    let [daemon, server] = founding();
    let whole = report([server, daemon]);
    assert_eq!(whole.verdict(), &Verdict::Deadlock);

    for filter in [
        Filter::new().kind(Kind::Task),
        Filter::new().min_age(Duration::from_secs(3600)),
    ] {
        let filtered = whole.clone().filtered(&filter);

        assert_eq!(filtered.verdict(), &Verdict::Deadlock);
        assert_eq!(filtered.to_string(), whole.to_string());
    }
}
