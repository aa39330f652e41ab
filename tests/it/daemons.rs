//! Daemons and commands under test: what is said when they do not do as they should, and what is swept up after a run.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use inflight::testing::{Daemon, Shell, run, sweep};

use crate::{
    mounted::{Mounted, connection_of, until},
    stage::DEADLINE,
};

/// Of commands that are to hang.
const SHORT: Duration = Duration::from_millis(500);

const KILLED: &str = "INFLIGHT_TEST_KILLED";

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]);
    shell
}

/// What a test says that fails in this.
fn said<T>(f: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(f()))).expect_err("it did not fail");
    *panic.downcast::<String>().unwrap()
}

#[test]
fn a_command_that_hangs_is_ended_and_the_error_has_report_threads_and_files() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.hold("read");
    let script = format!("cat {}", mounted.path("f1").display());

    let error = run(Shell::new(script).deadline(SHORT)).unwrap_err();

    assert!(error.hung());
    // Killed, it still waits for the answer: it is left behind, not waited for.
    assert_eq!(error.left().len(), 1, "{error}");
    let text = error.to_string();
    assert!(text.contains("has not ended after 0.5 s"), "{text}");
    let threads = error.threads();
    let waits = threads.iter().filter_map(|thread| thread.wchan.as_deref());
    assert!(
        waits.clone().any(|it| it == "request_wait_answer"),
        "{text}"
    );
    let files = text.split("It has open on FUSE mounts\n").nth(1).unwrap();
    assert!(files.contains("/mnt/f1"), "{text}");
    mounted.free("read");
}

#[test]
fn a_directory_that_hangs_hangs_the_command_and_nobody_else() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.hold("lookup-dir");
    let in_dir = Shell::new("true").dir(mounted.path("dir")).deadline(SHORT);

    let error = run(in_dir).unwrap_err();

    assert!(error.hung());
    mounted.free("lookup-dir");
    let in_dir = Shell::new("pwd").dir(mounted.path("dir"));
    let path = format!("{}\n", mounted.path("dir").display());
    assert_eq!(run(in_dir).unwrap().stdout, path);
}

#[test]
fn a_command_that_fails_says_how_and_what_it_wrote() {
    let error = run("echo out; echo err >&2; exit 7").unwrap_err();

    assert!(!error.hung());
    assert_eq!(error.status().unwrap().code(), Some(7));
    assert_eq!(error.output().stdout, "out\n");
    let text = error.to_string();
    assert!(text.contains("failed, exit status: 7"), "{text}");
    assert!(text.contains("It wrote to stderr\nerr\n"), "{text}");
}

#[test]
fn a_daemon_says_where_it_serves_and_more_lines_later() {
    let script =
        "echo at http://127.0.0.1:9 >&$INFLIGHT_READY_FD; read line; echo got $line >&3; cat";
    let mut daemon = Daemon::builder(shell(script))
        .stops_at_eof()
        .start()
        .unwrap();

    assert_eq!(daemon.url(), "http://127.0.0.1:9");
    let stdin = daemon.stdin().unwrap();
    std::io::Write::write_all(stdin, b"it\n").unwrap();
    assert_eq!(daemon.line(DEADLINE).unwrap(), "got it");
}

#[test]
fn a_daemon_that_crashes_fails_its_test_and_shows_what_it_said() {
    let text = said(|| {
        let script = "echo oops >&2; echo ready >&3; exit 3";
        let mut daemon = Daemon::start(shell(script)).unwrap();
        // There is nothing more to be read once it has ended.
        daemon.line(DEADLINE).unwrap_err();
        daemon
    });

    assert!(
        text.contains("ended before it was told to, exit status: 3"),
        "{text}"
    );
    assert!(text.contains("It said\noops\n"), "{text}");
}

#[test]
fn a_daemon_that_ends_before_it_is_ready_is_no_daemon() {
    let error = Daemon::start(shell("echo why; exit 3")).unwrap_err();

    let text = error.to_string();
    assert!(text.contains("has ended, and was not ready"), "{text}");
    assert_eq!(error.said().trim(), "why");
}

#[test]
fn a_daemon_that_says_it_is_ready_must_have_mounted_what_it_was_to() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::builder(shell("echo ready >&3; read line")).mounts_at(dir.path());

    let text = daemon.start().unwrap_err().to_string();

    assert!(text.contains("has mounted nothing"), "{text}");
}

#[test]
fn a_daemon_that_knows_no_ready_pipe_is_ready_when_its_output_says_so() {
    let daemon = Daemon::builder(shell(
        "echo starting; echo serving http://[::1]:9; read line",
    ));

    let daemon = daemon.ready_line("serving ").start().unwrap();

    assert_eq!(daemon.url(), "http://[::1]:9");
}

/// The child: leaves a dead mount and a daemon that nobody ends, and waits to be killed.
#[test]
fn is_killed_if_told_to() {
    if std::env::var_os(KILLED).is_none() {
        return;
    }
    let mut mounted = Mounted::new().unwrap();
    assert!(mounted.kill());
    let deaf = "trap '' TERM; echo ready >&3; while :; do sleep 60; done";
    let deaf = Daemon::start(shell(deaf)).unwrap();
    Daemon::say("ready");
    Daemon::say(&format!("{} {}", deaf.id(), mounted.path("").display()));
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()).unwrap();
}

#[test]
fn what_a_killed_run_left_is_swept_up_and_a_live_one_is_left_alone() {
    if crate::stage::skipped() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "daemons::is_killed_if_told_to"])
        .args(["--nocapture", "--test-threads=1"])
        .env(KILLED, "1")
        // What a live run has started is that one's: this one is to be nobody's.
        .env_remove("INFLIGHT_TEST_RUN");
    let mut child = Daemon::start(child).unwrap();
    let line = child.line(DEADLINE).unwrap();
    let (pid, mount) = line.split_once(' ').unwrap();
    let (process, mount) = (Path::new("/proc").join(pid), PathBuf::from(mount));
    let directory = run_directory(child.id());

    let _nothing_of_it = sweep();
    assert!(process.exists(), "the run was alive");
    assert!(connection_of(&mount).is_some());

    child.kill().unwrap();
    let swept = sweep();

    assert!(swept.left.is_empty(), "{swept}");
    until(|| !process.exists());
    assert_eq!(connection_of(&mount), None);
    assert!(!directory.exists());
    let _made_by_it = fs::remove_dir_all(mount.parent().unwrap());
}

fn run_directory(pid: u32) -> PathBuf {
    let part = format!("-{pid}-");
    let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let names = entries.map(|entry| entry.path());
    let mut found = names.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("inflight-test-") && name.contains(&part)
    });
    found.next().unwrap()
}
