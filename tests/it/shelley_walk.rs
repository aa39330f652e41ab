//! The repaired search for guidance files: what it finds, what it does not enter, and that nothing can hold it up.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::{Value, json};

use crate::shelley_tools::{Server, post, request, sh};
use crate::stage::{Stage, until};

/// The system prompt of a conversation that begins in `cwd`.
fn prompt(address: &str, cwd: &Path) -> String {
    let say = json!({"message": "hello", "cwd": cwd.display().to_string()});
    let answer = post(address, "/api/conversations/new", &say.to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    prompt_of(address, answer.json()["conversation_id"].as_str().unwrap())
}

fn prompt_of(address: &str, id: &str) -> String {
    let path = format!("/api/conversation/{id}");
    let transcript = request(address, "GET", &path, &[], "").json();
    let data = transcript["messages"][0]["llm_data"].as_str().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    data["Content"][0]["Text"].as_str().unwrap().to_owned()
}

/// How many requests the file system was ever asked by the server's process.
fn asked_by_server(stage: &Stage) -> usize {
    let server = Some(stage.server.0.id());
    let mount = stage.snapshot(&stage.mount);
    let live = mount.ops.iter().filter_map(|op| op.caller.as_ref());
    let ended = mount.recent.iter().filter_map(|op| op.op.caller.as_ref());
    live.chain(ended)
        .filter(|caller| caller.pid == server)
        .count()
}

/// Nothing was asked of the mount, which is named instead.
fn is_left_out(stage: &Stage, cwd: &Path, mount: &Path) {
    let prompt = prompt(stage.address(), cwd);

    let left_out = format!("\nNot entered: {}", mount.display());
    assert!(prompt.ends_with(&left_out), "{prompt}");
    assert_eq!(asked_by_server(stage), 0);
}

#[test]
fn guidance_is_found_by_any_case_through_links_and_up_to_the_root_of_the_repository() {
    let server = Server::start(&[]);
    let dir = server.dir.path().join("work");
    for (file, text) in [
        ("AGENTS.md", "a"),
        ("deep/er/claude.md", "c"),
        ("deep/notes.md", "n"),
        ("deep/skills/x/SKILL.md", "s"),
        (".hidden/readme.md", "h"),
        ("node_modules/readme.md", "m"),
        (".git/HEAD", ""),
        ("vendor/readme.md", "v"),
    ] {
        let file = dir.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    symlink("../AGENTS.md", dir.join("deep/README.md")).unwrap();
    symlink("nowhere", dir.join("deep/agent.md")).unwrap();
    symlink(&dir, server.dir.path().join("link")).unwrap();

    let prompt = prompt(server.address(), &server.dir.path().join("link/deep"));

    let found = [
        "AGENTS.md",
        "deep/README.md",
        "deep/er/claude.md",
        "deep/skills/x/SKILL.md",
    ];
    let found = found.map(|file| dir.join(file).display().to_string());
    assert_eq!(prompt, format!("Guidance: {}", found.join(", ")));
}

#[test]
fn a_mount_two_levels_down_is_left_out() {
    let Some(stage) = Stage::set(&[], &[]) else {
        return;
    };
    let above = stage.mnt().parent().unwrap().parent().unwrap().to_owned();
    let only = tempfile::Builder::new()
        .prefix("inflight-above-")
        .tempdir_in(&above)
        .unwrap();
    fs::create_dir_all(only.path().join("one")).unwrap();
    let mnt = only.path().join("one/two");
    fs::create_dir(&mnt).unwrap();
    let _bind = Bind::on(&stage.mnt(), &mnt);

    is_left_out(&stage, only.path(), &mnt);
}

#[test]
fn a_mount_behind_a_link_is_left_out() {
    let Some(stage) = Stage::set(&[], &[]) else {
        return;
    };
    let dir = tempfile::TempDir::new().unwrap();
    symlink(stage.mnt(), dir.path().join("cwd")).unwrap();
    symlink(stage.mnt().join("README.md"), dir.path().join("README.md")).unwrap();
    symlink(stage.mnt(), dir.path().join("link")).unwrap();

    // The way into it, a file that is read, and a directory, which is not entered through a link.
    is_left_out(&stage, dir.path(), &stage.mnt());
    let through = prompt(stage.address(), &dir.path().join("cwd/conversation"));
    assert_eq!(
        through,
        format!("Guidance: \nNot entered: {}", stage.mnt().display())
    );
    assert_eq!(asked_by_server(&stage), 0);
}

#[test]
fn a_mount_bound_elsewhere_is_left_out() {
    let Some(stage) = Stage::set(&[], &[]) else {
        return;
    };
    let dir = tempfile::TempDir::new().unwrap();
    let bound = dir.path().join("bound");
    fs::create_dir(&bound).unwrap();
    let _bind = Bind::on(&stage.mnt(), &bound);

    is_left_out(&stage, dir.path(), &bound);
}

#[test]
fn a_mount_that_appears_during_the_search_is_left_out() {
    let Some(stage) = Stage::set(&["--gate", "dir"], &[]) else {
        return;
    };
    let dir = tempfile::TempDir::new().unwrap();
    let late = dir.path().join("late");
    fs::create_dir(&late).unwrap();
    let (address, cwd) = (stage.address().to_owned(), dir.path().to_owned());

    let prompt = std::thread::spawn(move || prompt(&address, &cwd));
    let gate = stage.arrive("dir");
    let _bind = Bind::on(&stage.mnt(), &late);
    drop(gate);

    let prompt = prompt.join().unwrap();
    assert_eq!(
        prompt,
        format!("Guidance: \nNot entered: {}", late.display())
    );
    assert_eq!(asked_by_server(&stage), 0);
}

#[test]
fn a_mount_of_another_kind_is_entered() {
    if crate::stage::skipped() {
        return;
    }
    let server = Server::start(&[]);
    let dir = tempfile::TempDir::new().unwrap();
    let (there, here) = (dir.path().join(".there"), dir.path().join("here"));
    fs::create_dir(&there).unwrap();
    fs::create_dir(&here).unwrap();
    fs::write(there.join("README.md"), "x").unwrap();
    let _bind = Bind::on(&there, &here);

    let prompt = prompt(server.address(), dir.path());

    assert_eq!(
        prompt,
        format!("Guidance: {}", here.join("README.md").display())
    );
}

#[test]
fn a_search_whose_thread_sleeps_in_a_system_call_is_left_behind_at_its_deadline() {
    let Some(stage) = Stage::set(&["--gate", "dir", "--walk-deadline", "0.2"], &[]) else {
        return;
    };
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join("README.md"), "x").unwrap();

    let prompt = prompt(stage.address(), dir.path());

    let gate = stage.arrive("dir");
    assert_eq!(
        prompt,
        "Guidance: \nNot finished: the deadline of 200ms has passed"
    );
    let server = stage.snapshot(&stage.server);
    let [search] = server.ops.as_slice() else {
        panic!("{:?}", server.ops)
    };
    assert_eq!(search.name, format!("search {}", dir.path().display()));
    drop(gate);
    until(|| stage.snapshot(&stage.server).ops.is_empty().then_some(()));
}

#[test]
fn no_lock_is_held_over_the_search() {
    let Some(stage) = Stage::set(&["--gate", "dir"], &[]) else {
        return;
    };
    let mnt = stage.mnt();

    let sent = std::thread::spawn(move || sh(&mnt, "echo hello > $mnt/conversation/1b9b/send"));
    let gate = stage.arrive("dir");

    // Through the mount too, which is under the folder that is searched.
    let list = request(stage.address(), "GET", "/api/conversations", &[], "");
    assert_eq!((list.status, &*list.body), (200, "[]"));
    assert_eq!(
        sh(&stage.mnt(), "ls $mnt/conversation"),
        (0, "last\n".to_owned())
    );
    let chat = post(stage.address(), "/api/conversation/cNONE/cancel", "");
    assert_eq!(chat.status, 200);
    drop(gate);
    assert_eq!(sent.join().unwrap().0, 0);
}

#[test]
fn after_eight_searches_were_left_behind_there_is_no_ninth() {
    let Some(stage) = Stage::set(&["--gate", "dir", "--walk-deadline", "0.05"], &[]) else {
        return;
    };
    let dir = tempfile::TempDir::new().unwrap();

    let prompts: Vec<String> = (0..9)
        .map(|_| prompt(stage.address(), dir.path()))
        .collect();

    assert!(prompts[7].ends_with("has passed"), "{prompts:?}");
    assert_eq!(
        prompts[8],
        "Guidance: \nNot finished: too many searches hang"
    );
    (0..8).for_each(|_| stage.arrival("dir"));
    until(|| stage.snapshot(&stage.server).ops.is_empty().then_some(()));
    let after = prompt(stage.address(), dir.path());
    assert!(!after.contains("too many"), "{after}");
}

/// A directory seen at a second place, until it is dropped.
struct Bind(std::path::PathBuf);

impl Bind {
    fn on(from: &Path, to: &Path) -> Self {
        let status = Command::new("mount")
            .arg("--bind")
            .args([from, to])
            .status();
        assert!(status.unwrap().success());
        Self(to.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
