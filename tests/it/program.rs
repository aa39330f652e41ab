//! The program `inflight`, run as a user runs it, on mounts that are healthy, stuck and dead.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use inflight::{Report, report::Verdict};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process},
};

use crate::{
    mounted::{Client, Mounted, until},
    stage::{Stage, output, skipped, stop},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Runs it to its end; it must come to one whatever hangs.
fn inflight(arguments: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_inflight"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let stderr = child.stderr.take().unwrap();
    let read = |mut from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut out = Vec::new();
            let _ = from.read_to_end(&mut out);
            out
        })
    };
    let (stdout, stderr) = (read(Box::new(stdout)), read(Box::new(stderr)));
    let until = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("inflight {arguments:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stuck(mounted: &mut Mounted) -> Client {
    mounted.hold("read");
    let cat = mounted.client("exec cat $M/f1");
    mounted.wait_for("begun read");
    cat
}

#[test]
fn it_tells_a_healthy_a_stuck_and_a_dead_mount_apart_without_hanging() {
    let (Some(healthy), Some(mut stuck_one), Some(mut dead)) =
        (Mounted::new(), Mounted::new(), Mounted::new())
    else {
        return;
    };
    let cat = stuck(&mut stuck_one);
    assert!(dead.kill());

    let caller = format!("cat[{}]", cat.pid());
    let mut text = String::new();
    // Ops younger than a tenth of a second are not asked for.
    until(|| {
        let output = inflight(&[]);
        assert!(output.status.success());
        text = out(&output);
        text.contains(&caller)
    });

    let line = |mounted: &Mounted| {
        let path = format!("     {}   ", mounted.path("").display());
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&path));
        lines
            .next()
            .unwrap_or_else(|| panic!("{path} is missing in\n{text}"))
    };
    let served = |mounted: &Mounted| format!("[{}]   kernel ", mounted.pid());
    assert!(line(&healthy).ends_with("kernel 0 waiting"), "{text}");
    assert!(line(&healthy).contains(&served(&healthy)), "{text}");
    assert!(line(&stuck_one).ends_with("kernel 1 waiting"), "{text}");
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
    if namespace != Path::new("pid:[4026531836]") {
        let unknown = "who serves it is not known (may be outside of this container)";
        return assert!(line(&dead).contains(unknown), "{text}");
    }
    assert!(line(&dead).contains("DEAD: nobody serves it"), "{text}");
    let advice = format!("to remove it: umount -l {}", dead.path("").display());
    assert!(text.contains(&advice), "{text}");
}

#[test]
fn check_says_by_its_exit_code_whether_something_is_stuck() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let pid = mounted.pid().to_string();
    let path = mounted.path("").display().to_string();

    let well = inflight(&["check", &pid]);
    assert_eq!(well.status.code(), Some(0), "{}", out(&well));
    assert!(out(&well).starts_with("OK: nothing is stuck."));
    let mut cat = stuck(&mut mounted);
    for source in [&pid, &path] {
        // Ops younger than a tenth of a second are not asked for.
        let mut last = None;
        until(|| {
            let stuck = inflight(&["check", "--stuck-after", "1ms", source]);
            last = Some(out(&stuck));
            stuck.status.code() == Some(1)
        });
        assert!(last.unwrap().starts_with("STUCK for "));
    }
    let unknown = inflight(&["check", "/nowhere"]);
    assert_eq!(unknown.status.code(), Some(2));
    mounted.free("read");
    cat.ended();
}

const RECORDS: &str = "INFLIGHT_TEST_RECORDS_NOTHING";

/// Serves a report until its stdin ends.
#[test]
fn records_nothing_if_told_to() {
    if std::env::var_os(RECORDS).is_none() {
        return;
    }
    let _server = inflight::debug::serve(&inflight::Tracker::new("api"));
    writeln!(std::io::stdout(), "@ready").unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn where_nothing_is_recorded_check_cannot_tell() {
    let dir = tempfile::tempdir().unwrap();
    let mut api = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program::records_nothing_if_told_to"])
        .arg("--nocapture")
        .env(RECORDS, "1")
        .env("INFLIGHT", "off")
        .env("INFLIGHT_DIR", dir.path().join("inflight"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(api.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("@ready")));

    let check = inflight(&["check", &api.id().to_string()]);
    drop(api.stdin.take());
    api.wait().unwrap();

    assert_eq!(check.status.code(), Some(2), "{}", out(&check));
    let said = "UNKNOWN: 1 of 1 peers recorded nothing, and nothing is stuck";
    assert!(out(&check).starts_with(said), "{}", out(&check));
    assert!(out(&check).contains("(INFLIGHT=off)"), "{}", out(&check));
}

#[test]
fn a_source_narrows_the_report_and_one_that_is_not_there_is_named() {
    let (Some(one), Some(other)) = (Mounted::new(), Mounted::new()) else {
        return;
    };

    let output = inflight(&["--json", &one.pid().to_string()]);
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    let pids: Vec<u32> = report.peers.iter().map(|peer| peer.process.pid).collect();
    assert_eq!(pids, [one.pid()]);
    assert_eq!(report.verdict(), &Verdict::Ok);
    assert_ne!(one.pid(), other.pid());

    let nobody = inflight(&["4000000"]);
    assert_eq!(nobody.status.code(), Some(2));
    let why = err(&nobody);
    assert!(
        why.contains("4000000: no process that serves a report is behind it"),
        "{why}"
    );
    assert!(why.contains("Looked for PID.sock in\n"), "{why}");
}

#[test]
fn a_mount_whose_process_has_no_socket_to_be_found_is_asked_by_its_diag() {
    let Some(stage) = Stage::set(&["--walk", "repaired"], &[]) else {
        return;
    };
    let mnt = stage.mnt().display().to_string();

    let output = inflight(&["--json", &mnt]);
    let check = inflight(&["check", &mnt]);

    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    let pids: Vec<u32> = report.peers.iter().map(|peer| peer.process.pid).collect();
    assert!(pids.contains(&stage.mount.0.id()), "{report}");
    assert_eq!(check.status.code(), Some(0), "{}", out(&check));
}

/// Mounts a file system that reads none of its requests.
const SILENT: &str = r#"
import os, subprocess, sys
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
mount = ["mount", "-i", "-t", "fuse", "-o", options, "none", sys.argv[1]]
subprocess.run(mount, pass_fds=[fd], check=True)
print("up", flush=True)
sys.stdin.read()
subprocess.run(["umount", "-l", sys.argv[1]])
"#;

#[test]
fn a_mount_that_answers_nothing_is_given_up() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3");
    let silent = python.args(["-c", SILENT]).arg(dir.path());
    let silent = silent.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut silent = silent.spawn().unwrap();
    let mut up = String::new();
    let mut stdout = BufReader::new(silent.stdout.take().unwrap());
    stdout.read_line(&mut up).unwrap();
    assert_eq!(up.trim(), "up");

    let output = inflight(&[&dir.path().display().to_string()]);
    let all = inflight(&[]);

    drop(silent.stdin.take());
    stop(&mut silent);
    // With others to tell of there is a report, without there is none.
    let said = out(&output).replace("\n        ", " ") + &err(&output);
    let why =
        "no process with a debug socket serves it, and .diag.json was not answered within 300 ms";
    assert!(said.contains(why), "{said}");
    assert!(!said.starts_with("OK"), "{said}");
    assert!(all.status.success(), "{}", err(&all));
}

#[test]
fn another_user_is_told_what_only_root_may_ask() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    // Where that user may go.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("inflight");
    std::fs::copy(env!("CARGO_BIN_EXE_inflight"), &program).unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut inflight = Command::new(&program);
        inflight.args(arguments).uid(65534).gid(65534);
        inflight.current_dir("/").output().unwrap()
    };

    let output = as_nobody(&[]);
    let check = as_nobody(&["check"]);

    let text = out(&output);
    let path = format!("     {}   ", mounted.path("").display());
    let line = text.lines().find(|line| line.starts_with(&path));
    assert!(text.starts_with("UNKNOWN: "), "{text}");
    let socket = format!(
        "{}.sock does (it is another user's, needs root)",
        mounted.pid()
    );
    assert!(text.replace("\n        ", " ").contains(&socket), "{text}");
    assert!(!line.unwrap().contains("runs no inflight"), "{text}");
    assert_eq!(check.status.code(), Some(2), "{}", out(&check));
}

#[test]
fn abort_frees_the_callers_and_names_them() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let mut cat = stuck(&mut mounted);
    let path = mounted.path("").display().to_string();
    until(|| out(&inflight(&[&path])).contains("cat["));

    let unsure = inflight(&["abort", &path]);
    assert_eq!(unsure.status.code(), Some(2), "nobody is here to be asked");
    assert!(err(&unsure).contains("may be carried out all the same"));
    assert!(!cat.has_ended());
    let output = inflight(&["abort", "--yes", &path]);

    assert!(output.status.success(), "{}", err(&output));
    assert!(
        out(&output).contains("Freed 1 requests: cat["),
        "{}",
        out(&output)
    );
    cat.ended();
}

#[test]
fn abort_takes_the_number_of_a_connection_whose_mount_is_gone() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.path("");
    let mut cat = stuck(&mut mounted);
    let connection = crate::mounted::connection_of(&path).unwrap().to_string();
    let detached = Command::new("umount").arg("-l").arg(&path).status();
    assert!(detached.unwrap().success());

    let by_path = inflight(&["abort", "--yes", &path.display().to_string()]);
    assert_eq!(by_path.status.code(), Some(2));
    let by_number = inflight(&["abort", "--yes", &connection]);

    assert!(by_number.status.success(), "{}", err(&by_number));
    cat.ended();
}

#[test]
fn run_ends_in_time_though_its_child_cannot_be_killed() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    mounted.hold("read");
    let file = mounted.path("f1").display().to_string();

    // Not a pipe: the child that is left behind would keep it open.
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_inflight"));
    program
        .args(["run", "-t", "500ms", "--", "cat", &file])
        .stdout(Stdio::null())
        .stderr(said.reopen().unwrap());
    let mut child = program.spawn().unwrap();
    let mut status = None;
    until(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });

    let text = std::fs::read_to_string(said.path()).unwrap();
    assert_eq!(status.unwrap().code(), Some(124), "{text}");
    assert!(text.contains("cat has not ended after 0.5 s"), "{text}");
    assert!(text.contains("in request_wait_answer"), "{text}");
    assert!(
        text.contains("read ~/f1"),
        "the report is missing in\n{text}"
    );
    assert!(text.contains("left behind"), "{text}");
    mounted.free("read");
}

#[test]
fn run_ends_as_its_command_does() {
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["/nowhere/at/all"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let mut arguments = vec!["run", "--"];
        arguments.extend(command);

        assert_eq!(
            inflight(&arguments).status.code(),
            Some(code),
            "{command:?}"
        );
    }
}

#[test]
fn help_teaches_and_nonsense_is_explained() {
    let help = out(&inflight(&["--help"]));
    for part in [
        "inflight check",
        "inflight abort /mnt/s",
        "Exit codes",
        "called wrongly",
        "--min-age",
    ] {
        assert!(help.contains(part), "{part} is missing in\n{help}");
    }
    for nonsense in [
        &["--kind", "x"][..],
        &["--min-age", "soon"],
        &["run"],
        &["--jsno"],
    ] {
        let output = inflight(nonsense);
        assert_eq!(output.status.code(), Some(2), "{nonsense:?}");
        assert!(err(&output).starts_with("error: "), "{}", err(&output));
    }
}

#[test]
fn colours_are_for_a_terminal_and_not_for_those_who_want_none() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    // A terminal of its own, whose output is this program's.
    let on_terminal = |no_color: &str| {
        let command = format!("{} {}", env!("CARGO_BIN_EXE_inflight"), mounted.pid());
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]);
        script.env("TERM", "xterm").env("NO_COLOR", no_color);
        out(&script.stdin(Stdio::null()).output().unwrap())
    };

    let green = "\u{1b}[1m\u{1b}[32mOK\u{1b}[0m: nothing is stuck.";
    let shown = on_terminal("");
    assert!(shown.contains(green), "{shown:?}");
    let plain = on_terminal("1");
    assert!(plain.contains("OK: nothing is stuck."), "{plain:?}");
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
    let piped = out(&inflight(&[&mounted.pid().to_string()]));
    assert!(!piped.contains('\u{1b}'), "{piped:?}");
}

/// Runs a command on a terminal of its own, types this once it has said so, and waits for its end: the code, and
/// what it said.
fn on_terminal(command: &str, ready: &str, typed: &str) -> (Option<i32>, String) {
    let mut script = Command::new("script")
        .args(["-qec", command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Held open: its end would be a hang-up.
    let mut stdin = script.stdin.take().unwrap();
    let mut stdout = BufReader::new(script.stdout.take().unwrap());
    let (said, rest) = channel();
    let typed = typed.to_owned();
    let ready = ready.to_owned();
    thread::spawn(move || {
        let mut all = String::new();
        while stdout.read_line(&mut all).is_ok_and(|read| read > 0) {
            if all.trim_end().ends_with(&ready) {
                stdin.write_all(typed.as_bytes()).unwrap();
            }
        }
        let _ = said.send(all);
    });
    let output = output(script, DEADLINE);
    (
        output.status.code(),
        rest.recv_timeout(DEADLINE).unwrap_or_default(),
    )
}

#[test]
fn a_command_that_is_run_may_read_from_the_terminal() {
    let program = env!("CARGO_BIN_EXE_inflight");
    let reads = "echo ready; head -n 1";
    // Once more in the foreground, the shell reads the second line itself.
    let command = format!(
        "sh -c '{program} run -t 20s -- sh -c \"{reads}\" && read line && echo second $line'"
    );

    let (code, said) = on_terminal(&command, "ready", "one\ntwo\n");

    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("second two"), "{said}");
}

/// For a shell: says that it is ready once the terminal is its own. What is typed before is for the shell around
/// `inflight` too.
const READY: &str = "until read -r _ _ _ _ group _ _ has _ </proc/$$/stat; [ $group = $has ]; \
                     do sleep 0.01; done; echo ready";

/// For a shell: waits until `inflight`, whose child it is, only waits. It has lent what it lends.
const WAITED_FOR: &str = "until grep -q nanosleep /proc/$PPID/wchan; do sleep 0.01; done";

#[test]
fn control_c_on_the_terminal_is_for_the_command() {
    let program = env!("CARGO_BIN_EXE_inflight");
    let caught = format!("trap \"echo caught; exit 5\" INT; {READY}; while :; do sleep 0.1; done");
    let command = format!("{program} run -t 20s -- sh -c '{caught}'");

    let (code, said) = on_terminal(&command, "ready", "\u{3}");

    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("caught"), "{said}");
}

#[test]
fn a_command_whose_input_is_a_file_may_ask_the_terminal() {
    let program = env!("CARGO_BIN_EXE_inflight");
    let asks = "echo ready; read -r line </dev/tty; echo read $line";
    // A shell with job control would say that it was stopped.
    let job = format!("{program} run -t 20s -- sh -c \"$ASKS\" </dev/null");
    let command = format!("ASKS='{asks}' sh -c 'set -m; {job}; exit $?'");

    let (code, said) = on_terminal(&command, "ready", "word\n");

    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("read word"), "{said}");
}

#[test]
fn control_z_stops_run_and_its_command_and_fg_goes_on_with_both() {
    let program = env!("CARGO_BIN_EXE_inflight");
    // The shell around has job control, as that of a user.
    let script = format!("{READY}; read -r line; echo read $line; exit 6");
    let command = format!(
        "SCRIPT='{script}' sh -c 'set -m; {program} run -t 20s -- sh -c \"$SCRIPT\"; \
         echo stopped $?; fg; echo ended $?'"
    );

    let (_, said) = on_terminal(&command, "ready", "\u{1a}on\n");

    for part in ["stopped 148", "read on", "ended 6"] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
}

#[test]
fn control_z_stops_run_with_a_command_that_stops_itself() {
    let program = env!("CARGO_BIN_EXE_inflight");
    // As top does it, once it has put the screen in order.
    let script = "import os, signal, sys, time
signal.signal(signal.SIGTSTP, lambda *_: os.kill(os.getpid(), signal.SIGSTOP))
while os.tcgetpgrp(0) != os.getpgrp(): time.sleep(0.01)
print(\"ready\", flush=True)
print(\"read\", sys.stdin.readline(), flush=True)
sys.exit(6)";
    let command = format!(
        "SCRIPT='{script}' sh -c 'set -m; {program} run -t 20s -- python3 -c \"$SCRIPT\"; \
         echo stopped $?; fg; echo ended $?'"
    );

    let (_, said) = on_terminal(&command, "ready", "\u{1a}on\n");

    for part in ["stopped 148", "read on", "ended 6"] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
}

#[test]
fn control_z_stops_a_command_whose_input_is_a_file_and_its_deadline() {
    let program = env!("CARGO_BIN_EXE_inflight");
    let pid = tempfile::NamedTempFile::new().unwrap();
    let pid = pid.path().display();
    let script = format!(
        "{WAITED_FOR}; trap \"exit 6\" CONT; echo $$ >{pid}; echo ready; while :; do sleep 0.01; done"
    );
    // Stopped for as long as the command may take.
    let command = format!(
        "SCRIPT='{script}' sh -c 'set -m; {program} run -t 5s -- sh -c \"$SCRIPT\" </dev/null; \
         echo stopped $?; read -r pid <{pid}; grep State /proc/$pid/status; sleep 5; \
         fg; echo ended $?'"
    );

    let (_, said) = on_terminal(&command, "ready", "\u{1a}");

    for part in ["stopped 148", "T (stopped)", "ended 6"] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
}

#[test]
fn control_z_stops_nobody_for_ever_where_no_shell_would_go_on() {
    let program = env!("CARGO_BIN_EXE_inflight");
    let goes_on =
        format!("{WAITED_FOR}; trap \"exit 6\" CONT; echo ready; while :; do sleep 0.01; done");
    let reads = format!("{READY}; read -r line; exit 6");
    for (script, input) in [(goes_on, "/dev/null"), (reads, "/dev/tty")] {
        let command = format!("{program} run -t 20s -- sh -c '{script}' <{input}");

        let (code, said) = on_terminal(&command, "ready", "\u{1a}on\n");

        assert_eq!(code, Some(6), "{said}");
    }
}

#[test]
fn control_c_ends_the_loop_around_run_as_well() {
    let program = env!("CARGO_BIN_EXE_inflight");
    let lent = format!("{READY}; exec sleep 60");
    let not_lent = "echo ready; exec sleep 60";
    // In a script it is in one group with the shell, in a shell with job control it is not.
    for (shell, script, input, typed, code) in [
        ("", &*lent, "/dev/tty", "\u{3}", 128 + 2),
        ("", &lent, "/dev/tty", "\u{1c}", 128 + 3),
        ("set -m; ", &lent, "/dev/tty", "\u{3}", 128 + 2),
        ("set -m; ", not_lent, "/dev/null", "\u{3}", 128 + 2),
    ] {
        let run = format!("{program} run -t 20s -- sh -c \"$SCRIPT\" <{input}");
        let command = format!(
            "ulimit -c 0; SCRIPT='{script}' sh -c '{shell}for i in 1 2; do {run}; echo went on; done'"
        );

        let (ended, said) = on_terminal(&command, "ready", typed);

        assert!(!said.contains("went on"), "{said}");
        assert_eq!(ended, Some(code), "{said}");
    }
}

#[test]
fn a_shell_that_has_taken_the_terminal_back_keeps_it() {
    let program = env!("CARGO_BIN_EXE_inflight");
    // Only run is stopped, while the terminal is lent, and ends in the background.
    let script = format!("{READY}; kill -STOP $PPID");
    let command = format!(
        "SCRIPT='{script}' sh -c 'set -m; {program} run -t 20s -- sh -c \"$SCRIPT\"; bg; wait; \
         echo again; read -r line; echo read $line'"
    );

    let (_, said) = on_terminal(&command, "again", "on\n");

    assert!(said.contains("read on"), "{said}");
}

#[test]
fn a_pager_behind_the_command_has_the_terminal() {
    let program = env!("CARGO_BIN_EXE_inflight");
    // Ends with the pager.
    let script = format!("{WAITED_FOR}; while echo; do sleep 0.01; done");
    let pager = "read -r line; echo ready; read -r line </dev/tty; echo read $line";
    let command = format!(
        "SCRIPT='{script}' PAGER='{pager}' \
         sh -c 'set -m; {program} run -t 20s -- sh -c \"$SCRIPT\" | sh -c \"$PAGER\"'"
    );

    let (_, said) = on_terminal(&command, "ready", "on\n");

    assert!(said.contains("read on"), "{said}");
}

#[test]
fn what_nohup_ignores_is_ignored_by_the_command_too() {
    let script =
        "trap '' HUP; exec \"$0\" run -t 20s -- sh -c 'kill -HUP $PPID; kill -HUP $$; exit 7'";
    let mut nohup = Command::new("sh");
    let nohup = nohup.args(["-c", script, env!("CARGO_BIN_EXE_inflight")]);

    let output = output(nohup.stdout(Stdio::piped()).spawn().unwrap(), DEADLINE);

    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_deadline_that_the_clock_does_not_reach_is_none() {
    let output = inflight(&[
        "run",
        "-t",
        "9999999999999999999s",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]);

    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
}

#[test]
fn run_ends_its_command_though_nobody_listens_to_the_report() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_inflight"));
    run.args(["run", "-t", "100ms", "--", "sleep", "60"]);
    let mut run = run
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(run.stderr.take());

    // Comes to its end with the command, whose output it is.
    let output = output(run, DEADLINE);

    assert_eq!(output.status.code(), Some(124));
}

#[test]
fn run_ends_its_command_before_a_report_that_nobody_reads_on() {
    let (mut full, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_inflight"));
    run.args(["run", "-t", "100ms", "--", "sleep", "60"]);
    let mut child = run.stderr(writer).spawn().unwrap();
    let of_run = Path::new("/proc").join(child.id().to_string());
    let read = |file: &str| std::fs::read_to_string(of_run.join(file)).unwrap();

    until(|| read("wchan").contains("pipe_write"));
    let children = read(&format!("task/{}/children", child.id()));
    // Its copy of the writing end would keep the pipe open.
    drop(run);
    let mut said = Vec::new();
    full.read_to_end(&mut said).unwrap();

    assert_eq!(children, "");
    assert!(String::from_utf8_lossy(&said).contains("has not ended after 0.1 s"));
    assert_eq!(child.wait().unwrap().code(), Some(124));
}

#[test]
fn a_signal_to_run_ends_its_command_too() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_inflight"))
        .args([
            "run",
            "-t",
            "60s",
            "--",
            "sh",
            "-c",
            "echo $$; exec sleep 60",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(run.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let command = Path::new("/proc").join(line.trim());
    assert!(command.exists());

    let pid = Pid::from_child(&run);
    kill_process(pid, Signal::TERM).unwrap();

    let mut status = None;
    until(|| {
        status = run.try_wait().unwrap();
        status.is_some()
    });
    // Died of it, as its command has: for a shell that is the same code.
    assert_eq!(status.unwrap().signal(), Some(15));
    assert!(!command.exists());
}
