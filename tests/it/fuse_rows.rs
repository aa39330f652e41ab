//! `.diag` is answered whatever is stuck behind it: one test for each way to be stuck.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::Command,
    time::{Duration, Instant},
};

use inflight::snapshot::On;

use crate::mounted::{Client, DEADLINE, Mounted, Spec, until};

/// The op must be named in the text, with who called.
fn shows(mounted: &Mounted, parts: &[&str]) {
    let text = mounted.diag();
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

fn stuck(mounted: &mut Mounted, op: &str, command: &str) -> Client {
    mounted.hold(op);
    let client = mounted.client(command);
    mounted.wait_for(&format!("begun {op}"));
    client
}

#[test]
fn diag_is_answered_when_the_only_slot_is_stuck() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let mut cat = stuck(&mut mounted, "read", "exec cat $M/f1");

    shows(&mounted, &["read", "f1", &format!("cat[{}]", cat.pid())]);

    mounted.free("read");
    assert!(cat.ended().success());
}

#[test]
fn diag_is_answered_when_all_of_four_slots_are_stuck_and_more_wait() {
    let Some(mut mounted) = Mounted::slots(4) else {
        return;
    };
    mounted.hold("read");
    let mut clients: Vec<Client> = (0..4)
        .map(|n| mounted.client(&format!("exec cat $M/f{n}")))
        .collect();
    for _ in 0..4 {
        mounted.wait_for("begun read");
    }
    clients.push(mounted.client("exec stat $M/f9"));
    mounted.wait_for_kernel(5);

    until(|| mounted.report().local.mounts[0].queued == 1);
    let report = mounted.report();
    let parked = report
        .local
        .ops
        .iter()
        .find_map(|op| op.phase.wait.as_ref().filter(|wait| wait.on == On::Queue));
    assert_eq!(parked.unwrap().ops.len(), 4, "any of the slots frees it");
    assert!(!parked.unwrap().all);
    shows(&mounted, &["f0", "f1", "f2", "f3", "any of 4 slots"]);

    mounted.free("read");
    for client in &mut clients {
        client.ended();
    }
}

#[test]
fn diag_is_answered_when_a_lookup_in_the_root_is_stuck() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let _first = stuck(&mut mounted, "lookup-nolook", "exec stat $M/nolook");
    // The second waits for the directory's lock in the kernel, and is no request at all.
    let _second = mounted.client("exec stat $M/nolook");

    shows(&mounted, &["lookup", "nolook"]);
}

#[test]
fn diag_is_answered_when_a_readdir_of_the_root_is_stuck() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let _ls = stuck(&mut mounted, "readdir", "exec ls $M");

    shows(&mounted, &["readdir"]);
}

#[test]
fn diag_is_answered_when_a_mkdir_in_the_root_is_stuck() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let _mkdir = stuck(&mut mounted, "mkdir", "exec mkdir $M/nodir");

    shows(&mounted, &["mkdir", "nodir"]);
}

#[test]
fn diag_is_answered_when_a_change_of_the_root_is_stuck_and_the_kernel_checks_permissions() {
    let Some(mut mounted) = Mounted::checking_permissions(1) else {
        return;
    };
    let _chmod = stuck(&mut mounted, "setattr", "exec chmod 711 $M");

    shows(&mounted, &["setattr", "chmod["]);
}

// The kernel believes what it is told: an old answer would let in who was just shut out.
#[test]
fn what_was_changed_of_the_root_is_not_undone_by_an_answer_from_memory() {
    let Some(mut mounted) = Mounted::checking_permissions(1) else {
        return;
    };
    mounted.client("chmod 711 $M").ended();

    // Until it was asked again there is nothing to be told from memory.
    let deadline = Instant::now() + DEADLINE;
    let mode = loop {
        let mut cat = stuck(&mut mounted, "read", "exec cat $M/f1");
        let mut stat = mounted.client("exec stat -c %a $M");
        let answered = stat.end_within(Duration::from_secs(1)).is_some();
        mounted.free("read");
        cat.ended();
        if answered {
            break stat.output();
        }
        assert!(Instant::now() < deadline, "it was never asked again");
    };

    assert_eq!(mode.trim(), "711");
}

#[test]
fn diag_is_answered_when_the_kernel_checks_permissions() {
    let Some(mut mounted) = Mounted::checking_permissions(1) else {
        return;
    };
    let _cat = stuck(&mut mounted, "read", "exec cat $M/f1");

    shows(&mounted, &["read", "f1"]);
}

#[test]
fn diag_is_answered_when_the_attributes_of_the_root_are_stuck_in_one_of_four_slots() {
    let Some(mut mounted) = Mounted::checking_permissions(4) else {
        return;
    };
    let _stat = stuck(&mut mounted, "getattr-root", "exec stat $M");

    shows(&mounted, &["getattr"]);
}

#[test]
fn diag_is_answered_when_a_reply_is_parked_in_another_thread() {
    let Some(mut mounted) = Mounted::with(Spec {
        slots: 1,
        is_async: true,
        ..Spec::default()
    }) else {
        return;
    };
    let mut cat = stuck(&mut mounted, "read", "exec cat $M/f1");

    shows(&mounted, &["read", "f1", "kernel 1 waiting, 1 tracked"]);

    mounted.free("read");
    assert!(cat.ended().success());
}

#[test]
fn diag_is_answered_after_a_panic_and_the_mount_goes_on() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.tell("panic open");
    mounted.wait_for("held open");
    let mut cat = mounted.client("cat $M/f1 2>&1");

    cat.ended();
    assert!(cat.output().contains("Input/output error"));
    shows(&mounted, &["open", "panicked: told to, in open"]);
    assert!(mounted.client("exec stat $M/f2").ended().success());
}

#[test]
fn diag_is_answered_when_a_flush_is_stuck() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let _cat = stuck(&mut mounted, "flush", "exec cat $M/f1");

    shows(&mounted, &["flush", "f1"]);
}

#[test]
fn diag_is_answered_when_a_write_is_stuck_and_another_waits_for_the_inode() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let _first = stuck(&mut mounted, "write", "echo x >> $M/f1");
    // Waits in the kernel for the lock of the inode.
    let _second = mounted.client("echo y > $M/f1");

    shows(&mounted, &["write", "f1"]);
}

#[test]
fn diag_is_answered_after_a_caller_was_interrupted() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let cat = stuck(&mut mounted, "read", "exec cat $M/f1");
    cat.signal("TERM");
    // fuser knows no interrupts, and says so: from here on new callers wait uninterruptibly.
    let _next = mounted.client("exec stat $M/f2");
    mounted.wait_for_kernel(2);

    shows(&mounted, &["read", "f1"]);
}

#[test]
fn names_that_would_move_a_cursor_are_escaped() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let long = vec![b'x'; 250];
    let names: [&[u8]; 5] = [
        b"no\nline",
        b"no\x1b[31mred",
        "no\u{202e}gnp".as_bytes(),
        b"no\xff\xfe",
        &long,
    ];
    for name in names {
        let held = format!("lookup-{}", String::from_utf8_lossy(name));
        // The daemon is told in lines.
        let held = held.replace('\n', " ");
        let mut stat = Command::new("stat");
        stat.arg(mounted.path("").join(OsStr::from_bytes(name)));
        if !name.contains(&b'\n') {
            mounted.hold(&held);
            let mut client = mounted.run(stat);
            mounted.wait_for("begun lookup-");

            let text = mounted.diag();
            assert!(text.contains("lookup"), "{text}");
            let is_hostile = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(is_hostile), "{text:?}");
            assert!(text.lines().all(|line| line.chars().count() <= 120));
            mounted.free(&held);
            client.ended();
        } else {
            mounted.run(stat).ended();
            let text = serde_json::to_string(&mounted.report()).unwrap();
            assert!(text.contains(r"no\\nline"), "{text}");
        }
    }
}

#[test]
fn on_an_idle_mount_five_hundred_reports_say_that_nothing_waits() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let mut reports = mounted
        // Once a report: the mounts of other tests, which it also speaks of, may say the same.
        .client(
            "for n in {1..500}; do grep -m1 'kernel 0 waiting, 0 tracked' $M/.diag; done | wc -l",
        );

    assert!(reports.end_within(6 * DEADLINE).is_some());

    assert_eq!(reports.output().trim(), "500");
}

#[test]
fn a_reply_that_was_handed_off_without_a_handle_is_counted_and_explained() {
    let Some(mut mounted) = Mounted::with(Spec {
        slots: 1,
        no_handle: true,
        ..Spec::default()
    }) else {
        return;
    };
    let _cat = stuck(&mut mounted, "read", "exec cat $M/f1");

    shows(
        &mounted,
        &[
            "kernel 1 waiting, 0 tracked",
            "1 more request that the kernel counts",
            "handed off without a handle",
        ],
    );
}
