//! What the file system of the example says when its server fails it, and that nothing is wedged by it.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};

use inflight::Kind;

use crate::shelley_tools::{post, sh};
use crate::stage::{DEADLINE, Hung, Stage, only, until};

const SAY: &str = "echo hello | tee $mnt/conversation/1b9b/send";

/// What the last ended op of this name says went wrong.
fn failure(stage: &Stage, kind: Kind, name: &str) -> String {
    // An op ends a moment after its answer was sent.
    until(|| {
        let mount = stage.snapshot(&stage.mount);
        let ended = mount.recent.into_iter().map(|it| it.op);
        let mut named = ended.filter(|op| op.kind == kind && op.name == name);
        named.find_map(|op| op.error)
    })
}

/// The file system answers what needs no server, and no op is left.
fn is_not_wedged(stage: &Stage) {
    let (code, said) = sh(
        &stage.mnt(),
        "cat $mnt/README.md && cat $mnt/model/predictable/new/clone || ls $mnt/conversation/1b9b",
    );
    assert_eq!(code, 0, "{said}");
    until(|| stage.snapshot(&stage.mount).ops.is_empty().then_some(()));
}

/// A server that reads a request and then says this.
fn canned(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.set_read_timeout(Some(DEADLINE));
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).is_ok_and(|n| n == 1)
                {
                    request.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&request).to_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|it| it.split("\r\n").next()?.parse().ok());
                let _ = stream.read_exact(&mut vec![0; length.unwrap_or(0)]);
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    url
}

/// A file system over such a server.
fn over(answer: &'static str) -> Option<Stage> {
    // The stage's own server stands by, for the file system to be started.
    let url = canned(answer);
    let mut line = Command::new("sh");
    line.args(["-c", "echo \"serving $1\"; read -r _", "sh", &url]);
    Stage::over(&mut line, &["--fresh"])
}

fn is_eio(mnt: &Path, script: &str) {
    let (code, said) = sh(mnt, script);
    assert_ne!(code, 0, "{script}: {said}");
    assert!(said.contains("Input/output error"), "{script}: {said}");
}

#[test]
fn a_server_killed_in_mid_send_is_an_input_output_error_with_its_reason() {
    let Some(mut stage) = Stage::set(&["--gate", "locked"], &["--fresh"]) else {
        return;
    };
    let mnt = stage.mnt();

    let shell = thread::spawn(move || sh(&mnt, SAY));
    let gate = stage.arrive("locked");
    stage.server.0.kill().unwrap();
    let (code, said) = shell.join().unwrap();
    drop(gate);

    assert_ne!(code, 0);
    assert!(said.contains("Input/output error"), "{said}");
    let why = failure(&stage, Kind::Fuse, "flush");
    assert!(why.contains("error sending request"), "{why}");
    assert_eq!(failure(&stage, Kind::HttpClient, "POST"), why);
    is_eio(&stage.mnt(), "ls $mnt/conversation");
    is_not_wedged(&stage);
}

#[test]
fn a_server_that_answers_500_is_an_input_output_error_everywhere() {
    let Some(stage) = over(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\nsick",
    ) else {
        return;
    };
    let mnt = &stage.mnt();

    is_eio(mnt, SAY);
    assert_eq!(
        failure(&stage, Kind::Fuse, "flush"),
        "the server answered 500 Internal Server Error: sick"
    );
    for script in [
        "ls $mnt/conversation",
        "ls $mnt/conversation/some-slug",
        "ls $mnt/conversation/last/1",
        "ls $mnt/model",
        "ls $mnt/model/predictable",
        "readlink -v $mnt/model/default",
        "echo model=predictable | tee $mnt/conversation/1b9b/ctl",
    ] {
        is_eio(mnt, script);
    }
    let (_, made) = sh(mnt, "cat $mnt/conversation/1b9b/created");
    assert!(made.contains("No such file"), "{made}");
    is_not_wedged(&stage);
}

#[test]
fn a_server_that_cuts_the_stream_is_an_input_output_error_with_its_reason() {
    let Some(stage) = over("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n[{\"id\":") else {
        return;
    };

    is_eio(&stage.mnt(), "ls $mnt/conversation");
    let why = failure(&stage, Kind::Fuse, "readdir");
    assert!(why.contains("body"), "{why}");
    is_eio(&stage.mnt(), SAY);
    is_not_wedged(&stage);
}

#[test]
fn a_server_that_says_something_else_is_an_input_output_error() {
    let Some(stage) = over("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    else {
        return;
    };

    is_eio(&stage.mnt(), SAY);
    is_eio(&stage.mnt(), "ls $mnt/model");
    is_not_wedged(&stage);
}

#[test]
fn null_is_an_empty_list() {
    let Some(stage) = over("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnull")
    else {
        return;
    };

    for (dir, names) in [("conversation", "last\n"), ("model", "default\n")] {
        assert_eq!(
            sh(&stage.mnt(), &format!("ls $mnt/{dir}")),
            (0, names.to_owned())
        );
    }
}

#[test]
fn a_server_that_is_silent_is_an_input_output_error_after_the_timeout() {
    let Some(stage) = Stage::set(&["--gate", "locked"], &["--fresh", "--http-timeout", "0.5"])
    else {
        return;
    };

    is_eio(&stage.mnt(), SAY);

    drop(stage.arrive("locked"));
    assert_eq!(
        failure(&stage, Kind::Fuse, "flush"),
        "the server did not answer in time"
    );
    is_not_wedged(&stage);
}

#[test]
fn a_slow_model_holds_nobody_up() {
    let Some(stage) = Stage::set(&[], &["--fresh", "--cwd", "/proc/self/fdinfo"]) else {
        return;
    };
    let mnt = &stage.mnt();

    let (code, said) = sh(
        mnt,
        "echo 'delay: 5' > $mnt/conversation/1b9b/send && cat $mnt/conversation/1b9b/messages/count && ls $mnt/conversation",
    );

    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("2\n"), "{said}");
    assert_eq!(sh(mnt, "test -e $mnt/conversation/1b9b/working").0, 0);
    is_not_wedged(&stage);
}

#[test]
fn a_conversation_that_others_deleted_is_not_there() {
    let Some(stage) = Stage::set(&[], &["--fresh", "--cwd", "/proc/self/fdinfo"]) else {
        return;
    };
    let mnt = &stage.mnt();
    let (_, id) = sh(
        mnt,
        "echo hello > $mnt/conversation/1b9b/send; cat $mnt/conversation/1b9b/id",
    );
    post(
        stage.address(),
        &format!("/api/conversation/{}/delete", id.trim()),
        "",
    );

    for script in ["cat $mnt/conversation/1b9b/messages/count", SAY] {
        let (code, said) = sh(mnt, script);
        assert_ne!(code, 0);
        assert!(said.contains("No such file"), "{script}: {said}");
    }
    is_not_wedged(&stage);
}

#[test]
fn a_duplicate_that_is_closed_says_nothing_twice() {
    let Some(stage) = Stage::set(&[], &["--fresh", "--cwd", "/proc/self/fdinfo"]) else {
        return;
    };
    let mnt = &stage.mnt();

    let (code, said) = sh(
        mnt,
        "exec 3> $mnt/conversation/1b9b/send; (:) 3>&-; (:); echo hello >&3; (: ; exec 4>&3 3>&- 4>&-); exec 3>&-",
    );

    assert_eq!(code, 0, "{said}");
    let said = until(|| {
        let (_, said) = sh(mnt, "ls $mnt/conversation/1b9b/messages");
        said.contains("agent").then_some(said)
    });
    assert_eq!(said.matches("user").count(), 1, "{said}");
}

#[test]
fn what_is_no_text_is_not_sent() {
    let Some(stage) = Stage::set(&[], &["--fresh", "--cwd", "/proc/self/fdinfo"]) else {
        return;
    };

    let (code, said) = sh(
        &stage.mnt(),
        "printf '\\377' | tee $mnt/conversation/1b9b/send > /dev/null",
    );

    assert_ne!(code, 0);
    assert!(said.contains("Invalid argument"), "{said}");
}

#[test]
fn a_write_begins_a_request_of_its_own_instead_of_waiting_for_an_older_answer() {
    let Some(stage) = Stage::set(
        &["--gate", "one"],
        &["--fresh", "--cwd", "/proc/self/fdinfo"],
    ) else {
        return;
    };
    let count = "cat $mnt/conversation/1b9b/messages/count";
    let mnt = stage.mnt();
    stage.say("1b9b");
    let mut older = Hung::start(&format!(
        "{} > /dev/null",
        count.replace("$mnt", &mnt.display().to_string())
    ));
    let first = stage.arrive("one");

    stage.say("1b9b");
    let newer = thread::spawn(move || sh(&mnt, count));
    let second = stage.arrive("one");

    // Both wait, each for its own.
    let mount = stage.snapshot(&stage.mount);
    let fetches = mount.ops.iter().filter(|op| op.name.starts_with("fetch c"));
    assert_eq!(fetches.count(), 2);
    drop((first, second));
    assert!(older.ended());
    let count: usize = newer.join().unwrap().1.trim().parse().unwrap();
    assert!(count >= 4, "{count}");
    until(|| stage.snapshot(&stage.mount).ops.is_empty().then_some(()));
}

#[test]
fn sigterm_unmounts_though_the_server_is_silent() {
    let Some(mut stage) = Stage::set(&["--gate", "locked"], &[]) else {
        return;
    };
    let mnt = stage.mnt();
    let shell = thread::spawn(move || sh(&mnt, SAY));
    let _gate = stage.arrive("locked");
    let mount = stage.snapshot(&stage.mount);
    only(&mount, Kind::Fuse, "flush");

    let pid = stage.mount.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );

    let status = stage.mount.0.ended(DEADLINE).unwrap();
    assert!(status.success(), "{status}");
    assert_ne!(shell.join().unwrap().0, 0);
    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!list.contains(&stage.mnt().display().to_string()), "{list}");
}

#[test]
fn ready_is_written_once_the_mount_answers() {
    let Some(stage) = Stage::set(&[], &[]) else {
        return;
    };
    let (dir, ready) = (
        tempfile::TempDir::new().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let mount = format!(
        "{} mount {} --server http://{} --ready-fd 7 --stop-at-eof 7> {}",
        crate::stage::example().display(),
        dir.path().display(),
        stage.address(),
        ready.path().display()
    );

    let mut daemon = crate::stage::Daemon::start(
        dir.path(),
        Command::new("sh").args(["-c", &format!("exec {mount}")]),
    );

    assert_eq!(daemon.line(), format!("mounted {}", dir.path().display()));
    until(|| (std::fs::read_to_string(ready.path()).unwrap() == "READY\n").then_some(()));
    assert_eq!(sh(dir.path(), "ls $mnt | wc -l").1.trim(), "4");
    daemon.end();
    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!list.contains(&dir.path().display().to_string()), "{list}");
}
