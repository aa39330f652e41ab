//! How it reads where names are long, and where numbers are of another machine or namespace.

use inflight::snapshot::Listener;

use super::*;

#[test]
fn a_process_of_another_pid_namespace_is_not_taken_for_one_of_the_same_number() {
    let [mut daemon, server] = founding();
    daemon.ops.truncate(2);
    daemon.ops[0].caller = caller(444, 444, "bash");
    let mut other_boot = daemon.clone();
    daemon.process.pid_ns = "container".to_owned();
    other_boot.process.boot_id = "other".to_owned();

    for daemon in [daemon, other_boot] {
        let text = report([daemon, server.clone()]).to_string();

        assert!(text.contains("Blocked: 1 caller, bash[444]."), "{text}");
        assert!(text.contains("for bash[444]"), "{text}");
    }
}

#[test]
fn what_a_process_was_not_told_of_its_namespace_tells_nothing_apart() {
    let [mut daemon, mut server] = founding();
    daemon.process.pid_ns = String::new();
    server.process.boot_id = String::new();

    let text = report([daemon, server]).to_string();

    assert!(text.contains("Blocked: 1 caller, bash[512]."), "{text}");
}

#[test]
fn a_mount_of_another_machine_is_no_way_out_here() {
    let way_out = |change: fn(&mut Process)| {
        let mut reader = snapshot("inflight", 99);
        reader.process.host = "box".to_owned();
        let [mut daemon, mut server] = founding();
        for there in [&mut daemon, &mut server] {
            there.process.host = "box".to_owned();
            change(&mut there.process);
        }
        let report = Report::from_snapshots(vec![reader, daemon, server]);
        assert_eq!(report.verdict(), &Verdict::Deadlock);
        report.to_string().contains("inflight abort")
    };

    assert!(way_out(|_| {}));
    assert!(way_out(|process| process.host = String::new()));
    assert!(!way_out(|process| process.boot_id = "other".to_owned()));
    assert!(!way_out(|process| process.host = "other".to_owned()));
}

#[test]
fn many_slots_or_holders_with_long_names_are_broken_between_them() {
    let mut daemon = snapshot("shelley-fuse", 443);
    let copies = (50..60).map(|n| {
        let path = format!("/some/rather/long/directory/name/with/files-{n}/data.bin");
        let mut write = op(n, Kind::Fuse, "write", &path, 40_000.0);
        write.caller = caller(n as u32, n as u32, "cp");
        if n > 50 {
            write.progress_ms = 5.0;
        }
        write
    });
    daemon.ops = copies.collect();
    let slots: Vec<u64> = (50..60).collect();
    let mut read = op(60, Kind::Fuse, "read", "/q", 30_000.0);
    read.phase.wait = waits(On::Queue, &slots, 30_000.0);
    daemon.ops.push(read);
    let mut server = snapshot("api", 7);
    server.ops = (20..24)
        .map(|n| {
            let path = format!("/api/v1/tenants/acme-corporation/reports/{n}/rows");
            let mut get = op(n, Kind::HttpServer, "GET", &path, 40_000.0);
            get.progress_ms = 5.0;
            get
        })
        .collect();
    server.ops[0].progress_ms = 40_000.0;
    let mut waiter = op(30, Kind::HttpServer, "GET", "/w", 30_000.0);
    waiter.phase.wait = waits_for_lock(30_000.0, false);
    server.ops.push(waiter);
    let holders = [20, 21, 22, 23].map(|n| (n, 1.0));
    server.resources = vec![lock(&holders, &[(30, 1.0)], 4)];

    let text = report([daemon, server]).to_string();

    for line in text.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
    assert!(text.contains("which waits for any of the slots, in which are [2], write /some"));
    assert!(
        text.contains("files-57/data.bin,\n        2 more\n"),
        "{text}"
    );
    assert!(text.contains("held by [4], GET /api/v1/tenants/"), "{text}");
}

#[test]
fn a_mount_with_a_long_path_is_named_by_its_number() {
    let [mut daemon, server] = founding();
    let path = format!("/home/{}", "long-name/".repeat(10));
    daemon.mounts[0].path.clone_from(&path);
    for fuse in daemon.ops.iter_mut().filter_map(|op| op.fuse.as_mut()) {
        fuse.mount.clone_from(&path);
    }

    let text = report([daemon, server]).to_string();

    assert!(text.contains("inflight abort 40 or"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 120));
}

#[test]
fn who_listens_here_has_made_no_calls_of_another_pid_namespace() {
    let verdict = |pid_ns: &str| {
        let [mut daemon, _] = founding();
        daemon.process.pid_ns = pid_ns.to_owned();
        daemon.ops[2].caller = caller(702, 702, "gunicorn");
        let mut report = Report::from_snapshots(vec![snapshot("inflight", 99), daemon]);
        report.listeners = vec![Listener {
            peer: "127.0.0.1:9999".to_owned(),
            callers: vec![443],
            pid: 702,
            comm: "gunicorn".to_owned(),
            state: "S".to_owned(),
        }];
        // Judges anew.
        let report = report.stuck_after(std::time::Duration::from_secs(10));
        report.verdict().clone()
    };

    assert_eq!(verdict("1"), Verdict::LikelyDeadlock);
    assert_eq!(verdict("container"), Verdict::Stuck);
}
