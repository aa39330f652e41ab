//! A whole conversation through the file system, by child processes only, behind `inflight run`.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};

use tempfile::NamedTempFile;

use crate::shelley_tools::request;
use crate::stage::{Hung, Stage, run_dir, skipped, until};

const FLOW: &str = r#"
set -eu
all=$mnt/conversation
id=$(cat "$mnt/new/clone")
it=$all/$id
[ ! -e "$it/created" ]
echo "model=predictable cwd=$cwd" > "$it/ctl"
echo hello > "$it/send"
[ -e "$it/created" ]

replied() {
    until [ "$(cat "$it/messages/last/1/0/content.md")" = "$1" ]; do :; done
}
replied "Well, hi there!"
[ "$(cat "$it/messages/001-user/content.md")" = hello ]
echo "echo: more" > "$it/send"
replied more
[ "$(readlink "$it/messages/last/1/0")" = ../../004-agent ]
[ "$(cat "$it/messages/count")" = 5 ]

server_id=$(cat "$it/id")
ls "$all" | grep -qx "$id"
[ "$(readlink "$all/$server_id")" = "$id" ]
until [ -e "$it/slug" ]; do :; done
[ "$(readlink "$all/$(cat "$it/slug")")" = "$id" ]
[ "$(readlink "$it/cwd")" = "$cwd" ]
curl -sf "$url/api/conversation/$server_id" | grep -q '"Well, hi there!\|Well, hi there!'

echo > "$it/archived"
ls "$all" | grep -qx "$id" && exit 11
curl -sf "$url/api/conversations/archived" | grep -q "$server_id"
rm "$it/archived"
ls "$all" | grep -qx "$id"
curl -sf -X POST -H "X-Shelley-Request: 1" "$url/api/conversation/$server_id/delete" > /dev/null
ls "$all" | grep -qx "$id" && exit 12
echo done
"#;

/// Runs the flow: its exit code, and what it and `inflight run` said.
fn flow(stage: &Stage, most: &str) -> (i32, String) {
    inflight(stage, &["run", "-t", most, "--", "sh", "-c", FLOW])
}

fn inflight(stage: &Stage, args: &[&str]) -> (i32, String) {
    let above = stage.mnt().parent().unwrap().to_owned();
    // No pipe: a shell that is left behind in the mount keeps its end open.
    let said = NamedTempFile::new().unwrap();
    let to = || File::options().append(true).open(said.path()).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_inflight"))
        .args(args)
        .env("mnt", stage.mnt())
        .env("cwd", &above)
        .env("url", format!("http://{}", stage.address()))
        .env("INFLIGHT_DIR", run_dir(&above))
        .env_remove("INFLIGHT_PEERS")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(to())
        .stderr(to())
        .spawn();
    let mut run = Hung(run.unwrap());
    let ended = until(|| run.0.try_wait().unwrap());
    (
        ended.code().unwrap_or(-1),
        fs::read_to_string(said.path()).unwrap(),
    )
}

/// So many rows at once, each of so many flows one after the other.
fn in_rows(rows: usize, each: usize, row: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for _ in 0..rows {
            scope.spawn(|| row(each));
        }
    });
}

/// Nothing is left behind: no op of either, no process of the flow, and the server still answers.
fn is_clear(stage: &Stage) {
    for daemon in [&stage.mount, &stage.server] {
        until(|| stage.snapshot(daemon).ops.is_empty().then_some(()));
    }
    let mnt = stage.mnt().display().to_string();
    until(|| (!is_left(&mnt)).then_some(()));
    assert_eq!(
        request(stage.address(), "GET", "/api/conversations", &[], "").status,
        200
    );
}

fn is_proof(said: &str) -> bool {
    said.lines().any(|line| line.starts_with("DEADLOCK for "))
}

fn is_left(mnt: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|it| fs::read(it.path().join("environ")).ok());
    let mnt = format!("mnt={mnt}\0");
    commands
        .into_iter()
        .any(|environ| String::from_utf8_lossy(&environ).contains(&mnt))
}

/// One flow over a pair of processes of its own, whose hang nothing ends but what the report says.
fn hang_is_diagnosed_and_ended() -> bool {
    let Some(stage) = Stage::set(&["--walk", "naive"], &["--fresh", "--http-timeout", "3600"])
    else {
        return false;
    };
    let (code, mut said) = flow(&stage, "4s");

    assert_eq!(code, 124, "{said}");
    let is_at_once = is_proof(&said);
    // Ten reports at once may be more than this machine answers in 300 ms: then it says so, and the hang still stands.
    until(|| {
        if is_proof(&said) {
            return Some(());
        }
        assert!(said.contains("did not answer within 300 ms"), "{said}");
        said = inflight(&stage, &[]).1;
        None
    });
    let mnt = stage.mnt().display().to_string();
    for member in [
        format!("shelley[{}] ", stage.server.0.id()),
        format!("shelley-fuse[{}] ", stage.mount.0.id()),
        "POST /api/conversations/new".to_owned(),
        "flush /conversation/".to_owned(),
        "HOLDS lock \"conversations\"".to_owned(),
        "WAITS for lock \"conversations\", held by".to_owned(),
    ] {
        assert!(said.contains(&member), "{member} is missing: {said}");
    }

    let (code, said) = inflight(&stage, &["abort", &mnt, "--yes"]);

    assert_eq!(code, 0, "{said}");
    is_clear(&stage);
    is_at_once
}

#[test]
fn with_the_naive_server_each_of_a_hundred_hangs_is_diagnosed_and_none_is_left() {
    if skipped() {
        return;
    }
    let at_once = AtomicUsize::new(0);
    in_rows(10, 10, |each| {
        for _ in 0..each {
            at_once.fetch_add(hang_is_diagnosed_and_ended().into(), SeqCst);
        }
    });
    eprintln!(
        "{} of 100 hangs were diagnosed by the first report",
        at_once.into_inner()
    );
}

#[test]
fn with_the_repaired_server_none_of_a_hundred_flows_hangs() {
    in_rows(4, 25, |each| {
        let Some(stage) = Stage::set(&[], &["--fresh"]) else {
            return;
        };
        for _ in 0..each {
            let (code, said) = flow(&stage, "15s");

            assert_eq!((code, &*said), (0, "done\n"));
        }
        is_clear(&stage);
    });
}
