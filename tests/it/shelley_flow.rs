//! A whole conversation through the file system, by child processes only, behind `inflight run`.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use crate::shelley_tools::request;
use crate::stage::{Stage, output, run_dir, skipped, until};

/// Frees the test if `inflight run` itself hangs.
const MOST: Duration = Duration::from_secs(60);

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
    let run = Command::new(env!("CARGO_BIN_EXE_inflight"))
        .args(args)
        .env("mnt", stage.mnt())
        .env("cwd", &above)
        .env("url", format!("http://{}", stage.address()))
        .env("INFLIGHT_DIR", run_dir(&above))
        .env_remove("INFLIGHT_PEERS")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output(run, MOST);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), said.into_owned())
}

/// So many flows over so many pairs of processes.
fn in_pairs(pairs: usize, each: usize, walk: &str, timeout: &str, check: impl Fn(&Stage) + Sync) {
    thread::scope(|scope| {
        for _ in 0..pairs {
            scope.spawn(|| {
                let stage = Stage::set(&["--walk", walk], &["--fresh", "--http-timeout", timeout]);
                let Some(stage) = stage else { return };
                for _ in 0..each {
                    check(&stage);
                }
                // Nothing is left behind: no op of either, and both still answer.
                for daemon in [&stage.mount, &stage.server] {
                    until(|| stage.snapshot(daemon).ops.is_empty().then_some(()));
                }
                assert_eq!(
                    request(stage.address(), "GET", "/api/conversations", &[], "").status,
                    200
                );
            });
        }
    });
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

#[test]
fn with_the_naive_server_each_of_a_hundred_hangs_is_diagnosed_and_none_is_left() {
    if skipped() {
        return;
    }
    let at_once = AtomicUsize::new(0);
    in_pairs(10, 10, "naive", "5", |stage| {
        let (code, mut said) = flow(stage, "2500ms");

        assert_eq!(code, 124, "{said}");
        if is_proof(&said) {
            at_once.fetch_add(1, SeqCst);
        }
        // Ten reports at once may be more than this machine answers in 300 ms: then it says so, and the hang still stands.
        while !is_proof(&said) {
            assert!(said.contains("did not answer within 300 ms"), "{said}");
            said = inflight(stage, &[]).1;
        }
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
        until(|| stage.snapshot(&stage.server).ops.is_empty().then_some(()));
        let mnt = stage.mnt().display().to_string();
        until(|| (!is_left(&mnt)).then_some(()));
    });
    eprintln!(
        "{} of 100 hangs were diagnosed by the first report",
        at_once.into_inner()
    );
}

#[test]
fn with_the_repaired_server_none_of_a_hundred_flows_hangs() {
    in_pairs(4, 25, "repaired", "8", |stage| {
        let (code, said) = flow(stage, "20s");

        assert_eq!((code, &*said), (0, "done\n"));
    });
}
