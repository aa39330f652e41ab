//! What waits for seconds and looks like a circle, but has a way round: never called a deadlock. Each has its control.

use std::{
    thread,
    time::{Duration, Instant},
};

use inflight::{Report, report::Verdict};

use crate::{
    rig::{Id, Rig},
    rig_roles::{File, How},
};

/// So long each of them lasts.
const LASTS: Duration = Duration::from_secs(6);

/// So many reports are read, however long each takes.
const LEAST: usize = 10;

/// Reads the report all the while, and holds what is said of it against it.
fn never_a_deadlock(rig: &Rig, files: Id, is_still_so: impl Fn(&Report) -> bool) {
    let until = Instant::now() + LASTS;
    let mut read = 0;
    while Instant::now() < until || read <= LEAST {
        let report = rig.report(files);
        assert!(is_still_so(&report), "it is over:\n{report}");
        assert_ne!(report.verdict(), &Verdict::Deadlock, "{report}");
        assert!(!report.cycles().iter().any(|it| it.confirmed), "{report}");
        read += 1;
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_deadlock(report: &Report) -> bool {
    report.verdict() == &Verdict::Deadlock
}

fn names(report: &Report, name: &str) -> usize {
    crate::rig::ops(report).filter(|op| op.name == name).count()
}

// The server of one slot's op reads a file of the mount: that waits for any of the two slots.
#[test]
fn of_two_slots_one_will_be_free() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let walks = format!("gate:in,walk:{}", rig.path("m/other").display());
    let files = [
        ("walks", rig.asks(server, &walks)),
        ("walks2", rig.asks(server, &walks)),
        ("slow", rig.asks(server, "gate:slow")),
        ("other", File::default()),
    ];
    let mount = rig.files("m", 2, &files);
    let mut slow = rig.read("m/slow");
    let gate = rig.arrive("slow");
    let mut walks = rig.read("m/walks");
    drop(rig.arrive("in"));

    let waits = |report: &Report| report.local.mounts[0].queued > 0;
    rig.report_when(mount, waits);
    never_a_deadlock(&rig, mount, waits);
    drop(gate);
    assert!(slow.ended() && walks.ended());

    // The control: both slots are taken by such.
    let _both = [rig.read("m/walks"), rig.read("m/walks2")];
    let gates = [rig.arrive("in"), rig.arrive("in")];
    drop(gates);
    let report = rig.report_when(mount, is_deadlock);
    assert!(report.edges.iter().any(|edge| edge.why == "slot"));
}

#[test]
fn readahead_is_in_flight_for_a_thread_that_has_moved_on() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let [file, direct] = ["file", "direct"].map(|name| rig.path("m").join(name));
    let ahead = File {
        is_cached: true,
        ..rig.asks(server, "lock")
    };
    let files = [
        ("file", ahead),
        ("direct", rig.asks(server, "lock")),
        (
            "begins",
            rig.asks(server, &format!("lock,advise:{}", file.display())),
        ),
        (
            "control",
            rig.asks(server, &format!("lock,walk:{}", direct.display())),
        ),
    ];
    let mount = rig.files("m", 4, &files);
    let mut begins = rig.read("m/begins");
    let gate = rig.arrive("advised");

    let reads = |report: &Report| names(report, "read") == 2;
    rig.report_when(mount, reads);
    never_a_deadlock(&rig, mount, reads);
    drop(gate);
    assert!(begins.ended());

    let _control = rig.read("m/control");
    rig.report_when(mount, is_deadlock);
}

#[test]
fn of_two_permits_one_will_be_free() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let file = rig.path("m/file").display().to_string();
    let walks = format!("permit,gate:has,walk:{file}");
    let files = [
        ("file", rig.asks(server, "permit")),
        ("walks", rig.asks(server, &walks)),
        ("walks2", rig.asks(server, &walks)),
    ];
    let mount = rig.files("m", 4, &files);
    let holds = rig.ask(server, "permit,gate:other");
    let mut other = rig.curl(&holds);
    let gate = rig.arrive("other");
    let mut walks = rig.read("m/walks");
    drop(rig.arrive("has"));

    let waits = |report: &Report| names(report, "read") == 2;
    rig.report_when(mount, waits);
    never_a_deadlock(&rig, mount, waits);
    drop(gate);
    assert!(other.ended() && walks.ended());

    // The control: both are held by such.
    let _both = [rig.read("m/walks"), rig.read("m/walks2")];
    let gates = [rig.arrive("has"), rig.arrive("has")];
    drop(gates);
    rig.report_when(mount, is_deadlock);
}

#[test]
fn of_two_hedged_calls_one_will_answer() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let file = rig.path("m/file").display().to_string();
    let hedged = File {
        urls: vec![rig.ask(server, "lock"), rig.ask(server, "gate:hedge")],
        how: How::Hedged,
        ..File::default()
    };
    let twice = rig.path("m/twice").display().to_string();
    let no_way_round = File {
        urls: vec![rig.ask(server, "lock"), rig.ask(server, "lock")],
        how: How::Hedged,
        ..File::default()
    };
    let files = [
        ("file", hedged),
        ("twice", no_way_round),
        ("begins", rig.asks(server, &format!("lock,walk:{file}"))),
        ("control", rig.asks(server, &format!("lock,walk:{twice}"))),
    ];
    let mount = rig.files("m", 4, &files);
    let mut begins = rig.read("m/begins");
    let gate = rig.arrive("hedge");

    let waits = |report: &Report| names(report, "read") == 2;
    rig.report_when(mount, waits);
    never_a_deadlock(&rig, mount, waits);
    drop(gate);
    assert!(begins.ended());

    let _control = rig.read("m/control");
    rig.report_when(mount, is_deadlock);
}

#[test]
fn nobody_waits_for_a_call_that_was_spawned() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let spawns = File {
        urls: vec![rig.ask(server, "lock")],
        how: How::Spawned,
        gate: Some("spawned".to_owned()),
        ..File::default()
    };
    let waits = rig.asks(server, "lock");
    let [spawning, waiting] = ["spawns", "waits"].map(|name| rig.path("m").join(name));
    let files = [
        ("spawns", spawns),
        ("waits", waits),
        (
            "begins",
            rig.asks(server, &format!("lock,walk:{}", spawning.display())),
        ),
        (
            "control",
            rig.asks(server, &format!("lock,walk:{}", waiting.display())),
        ),
    ];
    let mount = rig.files("m", 4, &files);
    let mut begins = rig.read("m/begins");
    let gate = rig.arrive("spawned");

    let is_in_flight = |report: &Report| names(report, "prefetch") == 1;
    rig.report_when(mount, is_in_flight);
    never_a_deadlock(&rig, mount, is_in_flight);
    drop(gate);
    assert!(begins.ended());

    let _control = rig.read("m/control");
    rig.report_when(mount, is_deadlock);
}
