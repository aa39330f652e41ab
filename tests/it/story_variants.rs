//! Variants of the founding hang: what is a deadlock for another reason, what is none, and what can only be likely.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use inflight::{Kind, Report, machine, report::Verdict};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    mounted::connection_of,
    stage::{Hung, Stage, cat, until},
};

/// The lock is held over the walk, and both gates stand on the way into the hang.
const NAIVE: [&str; 6] = ["--walk", "naive", "--gate", "locked", "--gate", "list"];

fn send(stage: &Stage) -> Hung {
    let send = stage.mnt().join("conversation/1b9b/send");
    Hung::start(&format!("echo hello > {}", send.display()))
}

/// Kind and name of the members of the first circle, in some order.
fn members(report: &Report) -> Vec<(Kind, String)> {
    let snapshots = || std::iter::once(&report.local).chain(&report.peers);
    let mut members: Vec<(Kind, String)> = report.cycles()[0]
        .ops
        .iter()
        .map(|id| {
            let op = snapshots().find_map(|snapshot| snapshot.op(*id)).unwrap();
            (op.kind.clone(), op.name.clone())
        })
        .collect();
    members.sort_by_key(|member| format!("{member:?}"));
    members
}

// Of "DEADLOCK for 1.1 s (since 23:32:13 UTC)" the second of the day.
fn since(text: &str) -> i64 {
    let (_, at) = text.split_once("(since ").unwrap();
    let numbers = at[..8].split(':').map(|part| part.parse::<i64>().unwrap());
    numbers.fold(0, |sum, part| sum * 60 + part)
}

/// However a scope ends, its threads shall: they are joined.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn of(kind: Kind, name: &str) -> (Kind, String) {
    (kind, name.to_owned())
}

#[test]
fn the_lock_held_over_the_walk_is_a_deadlock_of_exactly_four() {
    let Some(stage) = Stage::set(&NAIVE, &[]) else {
        return;
    };
    let mut shell = send(&stage);
    stage.arrival("locked");
    stage.arrival("list");

    let report = until(|| Some(stage.report()).filter(|it| it.verdict() == &Verdict::Deadlock));

    assert_eq!(
        members(&report),
        [
            of(Kind::Fuse, "readdir"),
            of(Kind::HttpClient, "GET"),
            of(Kind::HttpServer, "GET"),
            of(Kind::HttpServer, "POST"),
        ]
    );
    let flush = report
        .local
        .ops
        .iter()
        .find(|op| op.name == "flush")
        .unwrap();
    assert!(report.blocked.contains(&flush.id));
    let youngest = report
        .edges
        .iter()
        .filter(|edge| edge.why == "waits")
        .map(|edge| edge.since_ms)
        .fold(f64::MAX, f64::min);
    assert!(report.cycles()[0].for_ms <= youngest);
    assert!(report.edges.iter().all(|edge| edge.certainty == "certain"));

    // The mount, the program and the data name one moment: that of the youngest edge.
    let text = stage.diag(".diag");
    let program = stage.inflight(&["check"]);
    let said = String::from_utf8(program.stdout).unwrap();
    assert_eq!(program.status.code(), Some(1), "{said}");
    let data = report.to_string();
    for text in [&text, &said] {
        assert!(text.starts_with("DEADLOCK for "), "{text}");
        // Two reports are rounded to the second each for itself.
        assert!((since(text) - since(&data)).abs() <= 1, "{data}\n{text}");
    }
    let taken: jiff::Timestamp = report.taken_at.parse().unwrap();
    let began = taken.as_second() - (report.cycles()[0].for_ms / 1000.0) as i64;
    assert!((began % 86_400 - since(&data)).abs() <= 1, "{data}");
    shell.ended();
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits until the kernel has had so many requests without an answer for longer than proof takes, and asks nobody
/// but the kernel.
fn hangs_unread(stage: &Stage, requests: u64) {
    let connection = connection_of(&stage.mnt()).unwrap();
    let is_hung = || machine::kernel_waiting(connection) == Some(requests);
    let mut since = Instant::now();
    until(|| {
        if !is_hung() {
            since = Instant::now();
        }
        (since.elapsed() > Duration::from_secs(2)).then_some(())
    });
}

#[test]
fn the_first_reader_of_an_old_hang_gets_the_answer_at_once() {
    for first in [
        |stage: &Stage| stage.diag(".diag"),
        |stage: &Stage| String::from_utf8(stage.inflight(&[]).stdout).unwrap(),
        |stage: &Stage| stage.report().to_string(),
    ] {
        let Some(stage) = Stage::set(&NAIVE, &[]) else {
            return;
        };
        let mut shell = send(&stage);
        stage.arrival("locked");
        stage.arrival("list");
        hangs_unread(&stage, 2);

        let text = first(&stage);

        assert!(text.starts_with("DEADLOCK for "), "{text}");
        shell.ended();
    }
}

#[test]
fn a_server_that_was_stopped_in_a_deadlock_is_not_taken_for_one_without_a_tracker() {
    let Some(stage) = Stage::set(&NAIVE, &[]) else {
        return;
    };
    let mut shell = send(&stage);
    stage.arrival("locked");
    stage.arrival("list");
    let server = stage.server.0.id();
    hangs_unread(&stage, 2);
    signal(server, Signal::STOP);

    let text = stage.diag(".diag");
    signal(server, Signal::CONT);

    assert!(text.starts_with("LIKELY DEADLOCK for "), "{text}");
    let why = format!(
        "Only likely, because shelley[{server}] is stopped (state T; kill -CONT lets it go on)"
    );
    assert!(text.contains(&why), "{text}");
    assert!(!text.contains("runs no inflight"), "{text}");
    shell.ended();
}

#[test]
fn one_slot_is_enough_for_a_deadlock_without_a_lock_and_the_flush_is_a_member() {
    let Some(stage) = Stage::set(&["--walk", "unlocked"], &["--slots", "1", "--inline"]) else {
        return;
    };
    let mut shell = send(&stage);

    let report = until(|| Some(stage.report()).filter(|it| it.verdict() == &Verdict::Deadlock));

    let members = members(&report);
    for member in [
        of(Kind::Fuse, "flush"),
        of(Kind::HttpClient, "POST"),
        of(Kind::HttpServer, "POST"),
    ] {
        assert!(members.contains(&member), "{members:?}");
    }
    assert_eq!(members.len(), 4, "{members:?}");
    assert!(report.edges.iter().any(|edge| edge.why == "slot"));
    let text = report.to_string();
    assert!(
        text.contains("has the only slot left while it waits for"),
        "{text}"
    );
    shell.ended();
}

#[test]
fn with_several_slots_and_no_lock_held_no_reader_ever_sees_a_deadlock() {
    const RUNS: usize = 50;
    const READS: usize = 10;
    let Some(stage) = Stage::set(&["--walk", "unlocked"], &["--slots", "4"]) else {
        return;
    };
    let is_over = AtomicBool::new(false);
    let read = AtomicUsize::new(0);
    let diag = stage.mnt().join(".diag");

    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    let text = cat(&diag);
                    assert!(!text.contains("DEADLOCK"), "{text}");
                    read.fetch_add(1, SeqCst);
                }
            });
        }
        let _ends_readers = SetWhenDropped(&is_over);
        (0..RUNS).for_each(|_| assert!(send(&stage).ended()));
        until(|| {
            assert!(send(&stage).ended());
            (read.load(SeqCst) >= READS).then_some(())
        });
    });
}

#[test]
fn a_server_without_a_tracker_is_a_likely_deadlock_that_names_its_process() {
    let mut python = Command::new("python3");
    python.args(["-c", include_str!("walks.py")]);
    let Some(stage) = Stage::over(&mut python, &[]) else {
        return;
    };
    let mut shell = send(&stage);

    let report = until(|| {
        Some(stage.report()).filter(|report| report.verdict() == &Verdict::LikelyDeadlock)
    });

    // What is called python3 may be a script that starts it.
    let [listener] = report.listeners.as_slice() else {
        panic!("{:?}", report.listeners)
    };
    let server = listener.pid;
    let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
    let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1);
    let started = stage.server.0.id();
    assert!(
        server == started || parent == Some(&*started.to_string()),
        "{stat}"
    );
    // A long first line is broken.
    let text = report.to_string().replace("\n        ", " ");
    let mut lines = text.lines();
    let first = lines.next().unwrap();
    let mnt = stage.mnt().display().to_string();
    assert!(first.starts_with("LIKELY DEADLOCK for "), "{text}");
    let circle = format!("{mnt} waits for python3[{server}], which is itself inside it");
    assert!(first.ends_with(&circle), "{text}");
    assert_eq!(
        lines.next().unwrap(),
        format!(
            "Only likely, because python3[{server}] runs no inflight: its process is known, its requests are not"
        )
    );
    let across = format!("process:{server}");
    let across = report
        .edges
        .iter()
        .filter(|edge| edge.from == across || edge.to == across);
    assert!(across.clone().count() >= 2);
    assert!(across.into_iter().all(|edge| edge.certainty == "likely"));
    shell.ended();
}

#[test]
fn a_server_that_was_stopped_is_named_with_its_state() {
    let Some(stage) = Stage::set(&["--walk", "repaired", "--gate", "locked"], &[]) else {
        return;
    };
    let mut shell = send(&stage);
    let gate = stage.arrive("locked");
    let server = stage.server.0.id();
    signal(server, Signal::STOP);

    // The call is two seconds old at least: that is enough to be called stuck, if one wants to.
    let report = until(|| {
        let report = stage.report().stuck_after(Duration::from_secs(2));
        Some(report).filter(|report| report.verdict() == &Verdict::Stuck)
    });
    signal(server, Signal::CONT);
    drop(gate);

    let text = report.to_string();
    let waits = format!(
        "waits for {} = shelley[{server}], which does not answer",
        stage.address()
    );
    assert!(text.contains(&waits), "{text}");
    assert!(
        text.contains("\nWhy: its process is stopped (state T)"),
        "{text}"
    );
    assert!(
        text.contains(&format!("process {server} did not answer within 300 ms")),
        "{text}"
    );
    assert!(shell.ended());
}
