//! What becomes of spans: all arrive or are counted, and nobody waits for an endpoint that is silent, absent or refuses.

use std::{
    io::Write,
    net::TcpListener,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use inflight::{
    Report, Tracker,
    otel::{Exporter, Protocol},
};

use crate::{
    receiver::{Receiver, Taken},
    stage::{DEADLINE, child},
};

/// Frees a test in which much is sent.
const MOST: Duration = Duration::from_secs(120);

#[test]
fn a_burst_arrives_or_is_counted() {
    const OPS: u64 = 100_000;
    for queue in [OPS as usize, 500] {
        let receiver = Receiver::start();
        let tracker = Tracker::new("burst");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .queue(queue)
            .timeout(MOST)
            .start();

        for _ in 0..OPS {
            drop(tracker.begin("x"));
        }
        // Not at the shutdown: what is under way then may arrive though its answer is not waited for.
        let dropped = tracker.snapshot().totals.spans_dropped;
        let all = |taken: &Taken| taken.spans.len() as u64 + dropped >= OPS;
        drop(receiver.wait_within(MOST, all));
        exporter.shutdown();

        let taken = receiver.taken();
        assert_eq!(tracker.snapshot().totals.spans_dropped, dropped);
        assert_eq!(taken.spans.len() as u64 + dropped, OPS);
        let mut ids: Vec<_> = taken.spans.iter().map(|span| &span.span_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), taken.spans.len(), "none came twice");
        if queue as u64 == OPS {
            assert_eq!(dropped, 0);
        }
    }
}

#[test]
fn an_endpoint_that_is_silent_holds_up_nothing_and_is_said() {
    // The kernel takes the connection, and nobody ever reads.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tracker = Tracker::new("silent");
    let exporter = Exporter::builder(&tracker)
        .endpoint(format!("http://{}", listener.local_addr().unwrap()))
        .every(Duration::from_millis(10))
        .queue(1000)
        .start();
    drop(tracker.begin("first"));
    let _connected = listener.accept().unwrap();

    for _ in 0..5000 {
        drop(tracker.begin("x"));
    }
    let while_silent = tracker.snapshot().totals.spans_dropped;
    exporter.shutdown();

    assert!(
        while_silent >= 3500,
        "{while_silent} of 5001 with room for 1000"
    );
    let totals = tracker.snapshot().totals;
    assert_eq!(totals.spans_dropped, 5001);
    let report = Report::local(&tracker).to_string();
    let said = report.lines().find(|line| line.starts_with("Spans of "));
    let said = said.unwrap_or_else(|| panic!("{report}"));
    assert!(said.contains("5001 ended ops not sent"), "{said}");
    assert!(said.contains("takes no spans"), "{report}");
}

#[test]
fn an_endpoint_that_is_absent_is_said_while_the_exporter_runs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tracker = Tracker::new("absent");
        let exporter = Exporter::builder(&tracker)
            .endpoint(format!("http://user:secret@{address}"))
            .protocol(protocol)
            .every(Duration::from_millis(10))
            .start();
        assert_eq!(exporter.problem(), None);

        drop(tracker.begin("x"));

        let until = Instant::now() + DEADLINE;
        let problem = loop {
            match tracker.snapshot().totals.spans_problem {
                Some(problem) => break problem,
                None => assert!(Instant::now() < until),
            }
            std::thread::yield_now();
        };
        assert!(problem.contains(&address.to_string()), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
        exporter.shutdown();
        assert_eq!(tracker.snapshot().totals.spans_dropped, 1);
    }
}

#[test]
fn what_was_refused_is_sent_again_and_counted_once_given_up() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("refused");
    receiver.got.status.store(400, Relaxed);
    let exporter = receiver.exporter(&tracker);

    drop(tracker.begin("x"));
    drop(receiver.wait_for(|taken| taken.requests == 1));
    receiver.got.status.store(0, Relaxed);
    drop(receiver.wait_for(|taken| taken.spans.len() == 1));
    receiver.got.status.store(400, Relaxed);
    drop(tracker.begin("y"));
    drop(receiver.wait_for(|taken| taken.requests == 5));
    exporter.shutdown();

    assert_eq!(receiver.taken().spans.len(), 1);
    assert_eq!(tracker.snapshot().totals.spans_dropped, 1);
}

#[test]
fn nothing_is_kept_and_nothing_is_counted_without_an_exporter() {
    let tracker = Tracker::new("none");

    drop(tracker.begin("x"));

    let totals = tracker.snapshot().totals;
    assert_eq!((totals.ended, totals.spans_dropped), (1, 0));
    assert!(!Report::local(&tracker).to_string().contains("Spans of"));
}

#[test]
fn a_tracker_has_one_exporter_at_a_time() {
    let receiver = Receiver::start();
    let tracker = Tracker::new("one");
    let first = receiver.exporter(&tracker);

    let second = Exporter::builder(&tracker).endpoint(&receiver.url).start();
    assert_eq!(
        second.problem(),
        Some("another exporter is attached to this tracker")
    );
    drop(second);
    drop(tracker.begin("still sent"));
    first.shutdown();
    assert_eq!(receiver.taken().spans.len(), 1);

    let third = receiver.exporter(&tracker);
    drop(tracker.begin("sent by the third"));
    third.shutdown();
    assert_eq!(receiver.taken().spans.len(), 2);
}

const FLOOD: &str = "INFLIGHT_TEST_FLOOD";

/// Ends a hundred thousand ops whose spans nobody takes, and says by how many KiB that made this process larger.
#[test]
fn ends_many_ops_if_told_to() {
    let Ok(endpoint) = std::env::var(FLOOD) else {
        return;
    };
    let tracker = Tracker::new("flood");
    let exporter = Exporter::builder(&tracker)
        .endpoint(endpoint)
        .queue(1000)
        .start();
    let flood = |ops: u64| (0..ops).for_each(|_| drop(tracker.begin("x")));
    // What is allocated once is there then.
    flood(5000);

    let before = peak();
    flood(100_000);
    let grown = peak() - before;

    exporter.shutdown();
    assert_eq!(tracker.snapshot().totals.spans_dropped, 105_000);
    writeln!(std::io::stdout(), "grown by {grown} KiB").unwrap();
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

#[test]
fn a_burst_that_nobody_takes_needs_the_memory_of_the_queue_and_no_more() {
    // The kernel takes the connection, and nobody ever reads.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());

    let said = child(
        "otel_delivery::ends_many_ops_if_told_to",
        &[(FLOOD, &endpoint)],
    );

    let grown = said.split_once("grown by ").and_then(|(_, rest)| {
        let (number, _) = rest.split_once(' ')?;
        number.parse::<u64>().ok()
    });
    let grown = grown.unwrap_or_else(|| panic!("{said}"));
    // All of them would be 50 MiB.
    assert!(grown < 10 << 10, "{grown} KiB");
}

#[tokio::test]
async fn one_may_be_started_and_stopped_within_a_runtime_of_the_application() {
    let receiver = tokio::task::spawn_blocking(Receiver::start).await.unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tracker = Tracker::new("async");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .protocol(protocol)
            .flush_within(Duration::MAX)
            .every(Duration::MAX)
            .start();
        drop(tracker.begin("x"));

        exporter.shutdown();

        assert_eq!(tracker.snapshot().totals.spans_dropped, 0);
    }
    assert_eq!(receiver.taken().spans.len(), 2);
    tokio::task::spawn_blocking(|| drop(receiver))
        .await
        .unwrap();
}
