//! A mount goes in bounded time, whatever is stuck in it, and only if it is ours.

use std::process::Command;

use crate::mounted::{Client, Mounted, connection_of, with_parked_unlink};

fn unmounted(mounted: &mut Mounted) -> String {
    mounted.tell("unmount");
    mounted.wait_for("unmounted ")
}

#[test]
fn an_idle_mount_goes() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };

    assert_eq!(unmounted(&mut mounted), "Some(Ok(()))");
    assert_eq!(connection_of(&mounted.path("")), None);
}

#[test]
fn a_mount_in_whose_directory_somebody_stands_goes() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let inside = mounted.client("cd $M/d1 && echo there && exec sleep 1000");
    let proc = format!("/proc/{}/cwd", inside.pid());
    // Of a link in /proc only the text is read.
    crate::mounted::until(|| std::fs::read_link(&proc).is_ok_and(|cwd| cwd == mounted.path("d1")));

    unmounted(&mut mounted);

    assert_eq!(connection_of(&mounted.path("")), None);
}

#[test]
fn a_mount_with_a_stuck_op_goes_and_the_callers_are_freed() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let mut clients: [Client; 2] = with_parked_unlink(&mut mounted);

    let said = unmounted(&mut mounted);

    assert_eq!(connection_of(&mounted.path("")), None);
    for client in &mut clients {
        client.ended();
    }
    // The thread is stuck in the file system itself, and that is said.
    assert!(said.contains("which runs read"), "{said}");
    mounted.tell("stats");
    assert!(mounted.wait_for("stats ").contains("unlinked=0"));
}

#[test]
fn what_somebody_else_mounted_over_it_is_left_alone() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.path("");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "strangers"]).arg(&path);
    assert!(mount.status().unwrap().success());

    mounted.abort();
    unmounted(&mut mounted);

    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_there = list.lines().any(|line| line.contains("strangers"));
    let removed = Command::new("umount").arg("-l").arg(&path).status();
    assert!(removed.unwrap().success());
    assert!(is_there, "it has unmounted a stranger's");
}
