//! What looks like a circle and has a way round it after all: a call that was given up, a holder nobody knows.

use super::*;

// The handler of the POST has given its walk up at a timeout, and asks somebody else.
fn gave_up() -> [Snapshot; 2] {
    let [daemon, mut server] = founding();
    let mail = op(
        30,
        Kind::HttpClient,
        "POST",
        "http://10.1.1.1/mail",
        15_000.0,
    );
    let mut mail = call(mail, 20);
    mail.progress_ms = 10.0;
    mail.state = State::Running;
    server.ops[0].phase.wait = waits(On::Call, &[30], 15_000.0);
    server.ops[0].progress_ms = 10.0;
    server.ops.push(mail);
    [daemon, server]
}

#[test]
fn an_op_that_waits_for_another_call_has_given_up_what_its_thread_does() {
    let [daemon, mut server] = gave_up();
    let moves = report([daemon.clone(), server.clone()]);
    assert!(moves.cycles().is_empty(), "{moves}");

    // Nor is it one if the other call does not move either.
    server.ops[0].progress_ms = 29_900.0;
    server.ops[2].progress_ms = 15_000.0;
    let stands = report([daemon, server]);

    assert!(stands.cycles().is_empty(), "{stands}");
    assert_eq!(stands.verdict(), &Verdict::Stuck);
}

#[test]
fn an_op_that_moved_since_its_thread_made_the_call_has_given_it_up() {
    let [daemon, mut server] = founding();
    server.ops[0].progress_ms = 22_000.0;
    assert!(report([daemon.clone(), server.clone()]).cycles().is_empty());

    // What moved it just before the call tells nothing.
    server.ops[0].progress_ms = 24_911.0;
    let report = report([daemon, server]);

    assert_eq!(report.verdict(), &Verdict::Deadlock);
    assert_eq!(cycle(&report), [12, 13, 20, 21]);
}

#[test]
fn of_several_threads_in_calls_the_last_one_counts() {
    let [mut daemon, mut server] = founding();
    let second = op(14, Kind::Fuse, "readdir", "/conversation", 20_000.0);
    daemon
        .ops
        .push(fuse(second, caller(452, 444, "shelley"), 13));
    server.ops[0].more_threads = vec![*thread(452, 29_000.0, BLOCKED).unwrap()];
    server.ops[0].progress_ms = 20_001.0;
    let both = report([daemon.clone(), server.clone()]);
    assert_eq!(both.verdict(), &Verdict::Deadlock, "{both}");

    server.ops[0].progress_ms = 19_999.0;

    assert!(report([daemon, server]).cycles().is_empty());
}

#[test]
fn a_lock_that_a_task_without_an_op_holds_may_be_given_back() {
    let [daemon, mut server] = founding();
    server.resources[0].holders = vec![Party {
        since_ms: 29_800.0,
        ..Party::default()
    }];

    let report = report([daemon, server]);

    assert!(report.cycles().is_empty());
    assert_eq!(report.verdict(), &Verdict::Stuck);
    let text = report.to_string();
    assert!(
        text.contains("WAITS for lock \"conversations\", held by one that is not known"),
        "{text}"
    );
}
