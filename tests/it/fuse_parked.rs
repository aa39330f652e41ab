//! Never worse than bare fuser: order, callers that are killed, forgets, and a thousand that wait.

use std::time::{Duration, Instant};

use crate::mounted::{Client, DEADLINE, Mounted, Spec, until, with_parked_unlink};

/// What a caller that was killed may take; bare fuser frees it at once.
const KILLED: Duration = Duration::from_secs(10);

fn stats(mounted: &mut Mounted, name: &str) -> u64 {
    mounted.tell("stats");
    let stats = mounted.wait_for("stats ");
    let mut fields = stats.split(' ').filter_map(|field| field.split_once('='));
    let (_, value) = fields.find(|(key, _)| *key == name).unwrap();
    value.parse().unwrap()
}

#[test]
fn with_a_thousand_callers_parked_there_are_no_more_threads_and_diag_is_answered() {
    const CALLERS: u64 = 1000;
    const READERS: usize = 500;
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.diag();
    mounted.hold("read");
    let _stuck = mounted.client("exec cat $M/f1");
    mounted.wait_for("begun read");
    let before = mounted.threads();

    let _parked = mounted.client("for n in {1..1000}; do stat $M/f$n & done; wait");
    mounted.wait_for_kernel(CALLERS + 1);
    let text = mounted.diag();
    assert!(text.contains("read"), "{text}");
    assert!(text.lines().count() < 80, "{text}");
    let report = mounted.report();
    assert_eq!(report.local.mounts[0].queued, CALLERS);

    let mut readers = mounted.client(
        "for n in {1..500}; do { cat $M/.diag > /dev/null && echo answered; } & done; wait",
    );
    let mut most = 0;
    let until = Instant::now() + DEADLINE;
    while !readers.has_ended() {
        most = most.max(mounted.threads());
        assert!(Instant::now() < until, "some were not answered");
    }
    assert_eq!(readers.output().lines().count(), READERS);
    // The reporter, and the one that looks after the parked.
    assert!(most <= before + 2, "{before} threads before, {most} then");
}

#[test]
fn a_caller_that_waits_behind_a_stuck_op_can_be_killed() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.hold("read");
    let _stuck = mounted.client("exec cat $M/f1");
    mounted.wait_for("begun read");
    let mut parked: Vec<Client> = (0..20)
        .map(|n| mounted.client(&format!("exec stat $M/f{n}")))
        .collect();
    mounted.wait_for_kernel(21);

    for client in &mut parked {
        client.signal("KILL");
        assert!(client.end_within(KILLED).is_some(), "it cannot be killed");
    }
    until(|| mounted.report().local.mounts[0].queued == 0);
    assert_eq!(mounted.kernel_waiting(), 1);
}

// Its locks would be held for ever, and what it wrote would be lost. While the kernel closes its files the process
// is still shown with the signal that has killed it.
#[test]
fn a_file_that_a_killed_process_had_open_is_flushed_though_it_must_wait() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let mut holder = mounted.client("exec 3< $M/f2; exec sleep 1000");
    until(|| stats(&mut mounted, "opened") == 1);
    mounted.hold("read");
    let mut stuck = mounted.client("exec cat $M/f1");
    mounted.wait_for("begun read");

    holder.signal("KILL");
    until(|| {
        let ops = mounted.report().local.ops;
        ops.iter().any(|op| op.name == "flush")
    });
    // Whoever looks after the parked has seen the flush as well when this one is free.
    let mut parked = mounted.client("exec stat $M/f3");
    mounted.wait_for_kernel(3);
    parked.signal("KILL");
    assert!(parked.end_within(KILLED).is_some(), "it cannot be killed");
    assert!(holder.end_within(Duration::ZERO).is_none());
    mounted.free("read");
    stuck.ended();

    assert!(holder.end_within(KILLED).is_some());
    // That of the one that was stuck, too.
    assert_eq!(stats(&mut mounted, "flushed"), 2);
}

#[test]
fn a_parked_unlink_is_not_run_after_an_abort() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let [mut stuck, mut rm] = with_parked_unlink(&mut mounted);

    mounted.abort();
    assert!(stuck.end_within(KILLED).is_some());
    assert!(rm.end_within(KILLED).is_some());
    mounted.free("read");

    assert_eq!(stats(&mut mounted, "unlinked"), 0);
}

#[test]
fn with_one_slot_and_one_client_a_release_is_never_seen_after_the_next_open() {
    const ROUNDS: u64 = 20_000;
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.client(": < $M/f1").ended();
    let before = stats(&mut mounted, "opened");

    let mut client = mounted.client("for n in {1..20000}; do : < $M/f1; done");
    // Ten times as long as it takes.
    assert!(client.end_within(6 * DEADLINE).is_some());

    assert_eq!(stats(&mut mounted, "opened") - before, ROUNDS);
    assert_eq!(stats(&mut mounted, "inversions"), 0);
}

#[test]
fn on_a_healthy_mount_nearly_nothing_is_parked() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let clients: Vec<Client> = (0..4)
        .map(|n| mounted.client(&format!("while :; do : < $M/f{n}; done")))
        .collect();
    mounted.tell("sample");

    let sampled = mounted.wait_for("sampled ");
    let (ops, parked) = sampled.split_once(' ').unwrap();
    let (ops, parked): (u64, u64) = (ops.parse().unwrap(), parked.parse().unwrap());
    drop(clients);
    // A spare that reads all the time parks two of three; on a busy machine a slot is now and then long taken.
    assert!(parked * 4 < ops, "{parked} of {ops} were parked");
}

#[test]
fn forgets_that_come_at_once_beside_a_stuck_slot_fill_nothing_and_arrive() {
    const INODES: u64 = 60_000;
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let mut stats_of_all =
        mounted.client("seq -f \"$M/f%g\" 1000 60999 | xargs -n 2000 stat --format= && echo done");
    assert!(stats_of_all.end_within(6 * DEADLINE).is_some());
    assert_eq!(stats_of_all.output().trim(), "done");
    mounted.hold("read");
    let mut stuck = mounted.client("exec cat $M/f1");
    mounted.wait_for("begun read");
    let before = stats(&mut mounted, "forgotten");

    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let report = mounted.report();
    assert_eq!(report.local.mounts[0].tracked, 1, "a forget is no op");
    mounted.free("read");
    stuck.ended();

    // Some of the inodes the kernel had forgotten before, by itself.
    until(|| stats(&mut mounted, "forgotten") >= INODES);
    assert!(before < INODES, "nothing was left to forget");
}

#[test]
fn with_a_mkdir_hanging_and_no_caches_a_killed_daemon_ends_and_frees_every_caller() {
    killed(Duration::ZERO);
}

// A minute is when the daemon has its `.diag` looked up again: no thread of its own may hang in it.
#[test]
#[ignore = "takes more than a minute; .ci/run runs it"]
fn a_daemon_whose_mkdir_has_hung_for_a_minute_can_be_killed() {
    killed(Duration::from_secs(65));
}

fn killed(after: Duration) {
    let Some(mut mounted) = Mounted::with(Spec {
        slots: 1,
        ..Spec::default()
    }) else {
        return;
    };
    mounted.hold("mkdir");
    let mut mkdir = mounted.client("exec mkdir $M/nodir");
    mounted.wait_for("begun mkdir");
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let mut parked = mounted.client("exec stat $M/f1");
    // What is tested is what a minute brings, so a minute it must be.
    std::thread::sleep(after);

    assert!(mounted.kill(), "the daemon survived kill -9");
    assert!(mkdir.end_within(KILLED).is_some());
    assert!(parked.end_within(KILLED).is_some());
}
