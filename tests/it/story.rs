//! The founding hang on a real mount, over real HTTP: what each side shows of it while it lasts.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use inflight::Kind;
use inflight::snapshot::{LiveOp, On};
use tempfile::TempDir;

use crate::stage::{DEADLINE, Hung, Stage, awaited, example, only, output, skipped, until};

#[test]
fn the_hang_is_shown_from_both_sides_with_the_same_ids() {
    let Some(stage) = Stage::set(
        &["--walk", "naive", "--gate", "locked", "--gate", "list"],
        &[],
    ) else {
        return;
    };
    let send = stage.mnt().join("conversation/1b9b/send");
    let mut shell = Hung::start(&format!("echo hello > {}", send.display()));
    stage.arrival("locked");
    stage.arrival("list");

    let text = until(|| Some(stage.diag(".diag")).filter(|text| text.starts_with("DEADLOCK")));
    let here = stage.report().local;
    let server = stage.snapshot(&stage.server);

    // The daemon's side: two FUSE ops, and the request each waits for.
    let flush = only(&here, Kind::Fuse, "flush");
    assert_eq!(flush.target, "/conversation/1b9b/send");
    assert_eq!(flush.caller.as_ref().unwrap().pid, Some(shell.0.id()));
    let sent = awaited(&here, flush);
    assert_eq!(
        (&sent.kind, sent.name.as_str()),
        (&Kind::HttpClient, "POST")
    );
    assert!(
        sent.target.ends_with("/api/conversations/new"),
        "{}",
        sent.target
    );
    assert_eq!(
        sent.http.as_ref().unwrap().peer,
        Some(stage.address().to_owned())
    );
    assert!(sent.age_ms > 0.0 && !sent.phase.path.is_empty(), "{sent:?}");
    let readdir = only(&here, Kind::Fuse, "readdir");
    assert_eq!(readdir.target, "/conversation");
    let asked = awaited(&here, readdir);
    assert_eq!(
        (&asked.kind, asked.name.as_str()),
        (&Kind::HttpClient, "GET")
    );
    assert_eq!(
        asked.http.as_ref().unwrap().peer,
        Some(stage.address().to_owned())
    );

    // The server's side: the same two requests, one waiting for the lock that the other holds.
    let post = only(&server, Kind::HttpServer, "POST");
    let get = only(&server, Kind::HttpServer, "GET");
    assert_eq!(post.parent_id, Some(sent.id));
    assert_eq!(get.parent_id, Some(asked.id));
    assert_eq!(
        (post.trace_id, get.trace_id),
        (flush.trace_id, readdir.trace_id)
    );
    let lock = server
        .resources
        .iter()
        .find(|resource| resource.name == "conversations")
        .unwrap();
    assert_eq!(
        lock.holders
            .iter()
            .map(|party| party.op)
            .collect::<Vec<_>>(),
        [Some(post.id)]
    );
    assert_eq!(
        lock.waiters
            .iter()
            .map(|party| party.op)
            .collect::<Vec<_>>(),
        [Some(get.id)]
    );
    let wait = get.phase.wait.as_ref().unwrap();
    assert_eq!(
        (&wait.on, wait.ops.as_slice()),
        (&On::Resource, [post.id].as_slice())
    );
    assert!(
        post.phase
            .path
            .iter()
            .any(|phase| phase.starts_with("walk ")),
        "{:?}",
        post.phase.path
    );
    // What joins the two: the thread that works for the POST is the one that called readdir.
    let caller = readdir.caller.as_ref().unwrap();
    assert_eq!(caller.pid, Some(stage.server.0.id()));
    assert_eq!(post.thread.as_ref().unwrap().tid, caller.tid);

    for part in [
        "flush /conversation/1b9b/send",
        "POST",
        "readdir /conversation",
        "HOLDS lock \"conversations\"",
        "WAITS for lock \"conversations\"",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    shell.ended();
}

#[test]
fn fifty_readers_that_share_one_request_each_show_it_and_then_none_does() {
    const READERS: usize = 50;
    let Some(stage) = Stage::set(&["--walk", "repaired", "--gate", "one"], &[]) else {
        return;
    };
    stage.say("1b9b");
    let file = stage.mnt().join("conversation/1b9b/messages/all.json");
    let readers: Vec<Hung> = (0..READERS)
        .map(|_| Hung::start(&format!("cat {} > /dev/null", file.display())))
        .collect();
    let gate = stage.arrive("one");
    let mount = until(|| {
        let mount = stage.snapshot(&stage.mount);
        let reads = mount
            .ops
            .iter()
            .filter(|op| op.kind == Kind::Fuse && op.name == "read");
        (reads.filter(|op| op.phase.wait.is_some()).count() == READERS).then_some(mount)
    });

    let gets: Vec<&LiveOp> = mount
        .ops
        .iter()
        .filter(|op| op.kind == Kind::HttpClient)
        .collect();
    let [get] = gets.as_slice() else {
        panic!("{} requests, not one", gets.len())
    };
    assert_eq!(
        get.http.as_ref().unwrap().peer,
        Some(stage.address().to_owned())
    );
    assert!(get.age_ms > 0.0);
    for read in mount.ops.iter().filter(|op| op.name == "read") {
        assert_eq!(read.target, "/conversation/1b9b/messages/all.json");
        assert_eq!(awaited(&mount, awaited(&mount, read)).id, get.id);
    }
    assert!(
        stage.arrivals.try_recv().is_err(),
        "there was a second request"
    );

    drop(gate);
    readers
        .into_iter()
        .for_each(|mut reader| assert!(reader.ended()));
    until(|| stage.snapshot(&stage.mount).ops.is_empty().then_some(()));
}

#[test]
fn each_of_eight_requests_blocked_in_the_mount_names_the_thread_that_called_it() {
    const POSTS: usize = 8;
    let elsewhere = TempDir::new().unwrap();
    let Some(stage) = Stage::set(
        &["--walk", "unlocked", "--gate", "one"],
        &["--cwd", &elsewhere.path().display().to_string()],
    ) else {
        return;
    };
    let ids: Vec<String> = (0..POSTS).map(|n| format!("beef{n}")).collect();
    ids.iter().for_each(|id| stage.say(id));

    let posts: Vec<TcpStream> = ids
        .iter()
        .map(|id| {
            let cwd = stage.mnt().join("conversation").join(id).join("messages");
            let body = format!(r#"{{"message":"hello","cwd":"{}"}}"#, cwd.display());
            let mut post = TcpStream::connect(stage.address()).unwrap();
            post.set_read_timeout(Some(DEADLINE)).unwrap();
            let head = format!("POST /api/conversations/new HTTP/1.1\r\nHost: x\r\nX-Shelley-Request: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            post.write_all((head + &body).as_bytes()).unwrap();
            post
        })
        .collect();
    let gates: Vec<UnixStream> = ids.iter().map(|_| stage.arrive("one")).collect();
    let server = stage.snapshot(&stage.server);
    let mount = stage.snapshot(&stage.mount);

    let posted: Vec<&LiveOp> = server
        .ops
        .iter()
        .filter(|op| op.kind == Kind::HttpServer && op.name == "POST")
        .collect();
    let readdirs: Vec<&LiveOp> = mount
        .ops
        .iter()
        .filter(|op| op.kind == Kind::Fuse && op.name == "readdir")
        .collect();
    assert_eq!((posted.len(), readdirs.len()), (POSTS, POSTS));
    let threads: HashSet<u32> = posted
        .iter()
        .map(|op| op.thread.as_ref().unwrap().tid)
        .collect();
    assert_eq!(threads.len(), POSTS, "two requests name one thread");
    for post in posted {
        let tid = post.thread.as_ref().unwrap().tid;
        let called: Vec<&&LiveOp> = readdirs
            .iter()
            .filter(|op| op.caller.as_ref().unwrap().tid == tid)
            .collect();
        let [readdir] = called.as_slice() else {
            panic!("thread {tid} made {} calls, not one", called.len())
        };
        let walk = post
            .phase
            .path
            .iter()
            .find_map(|phase| phase.strip_prefix("walk "))
            .unwrap();
        assert_eq!(format!("{}{}", stage.mnt().display(), readdir.target), walk);
    }

    drop(gates);
    for mut post in posts {
        let mut answer = String::new();
        post.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    }
}

#[test]
fn a_part_of_the_story_is_kept_until_enter() {
    if skipped() {
        return;
    }
    let tmp = TempDir::new().unwrap();
    let story = |args: &[&str]| {
        let story = Command::new(example())
            .args(args)
            .env("TMPDIR", tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        output(story.unwrap(), 3 * DEADLINE)
    };

    // Without a terminal Enter has been pressed already; nothing waits for the end of the hang.
    let hang = story(&["--keep", "--only", "hang"]);
    let told = String::from_utf8_lossy(&hang.stdout);

    assert_eq!(hang.status.code(), Some(0), "{told}");
    assert!(told.contains("Kept as it is, until Enter"), "{told}");
    assert!(
        told.contains("THE HANG") && !told.contains("THE REPAIR"),
        "{told}"
    );
    assert!(!told.contains("gives up"), "{told}");
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0, "{told}");
    assert_eq!(story(&["--only", "nothing"]).status.code(), Some(2));
}

#[test]
fn the_story_ends_well_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let tmp = TempDir::new().unwrap();

    let story = Command::new(example())
        .env("TMPDIR", tmp.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output(story, 3 * DEADLINE);

    let (told, complaints) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{told}\n{complaints}");
    for part in [
        "\n1. A CONVERSATION\n",
        "\n  Well, hi there!\n",
        "\n2. THE HANG\n",
        "\nDEADLOCK for ",
        "\n3. THE SAME WITH A SERVER",
        "\nLIKELY DEADLOCK for ",
        "\n4. THE REPAIR\n",
        "\n  Not entered: ",
        "\n  OK: nothing is stuck.",
    ] {
        assert!(told.contains(part), "{part} is missing in\n{told}");
    }
    assert_eq!(
        fs::read_dir(tmp.path()).unwrap().count(),
        0,
        "files are left"
    );
    let name = tmp.path().display().to_string();
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&name),
        "a mount is left"
    );
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("environ")).ok());
    let left = processes
        .filter(|environ| String::from_utf8_lossy(environ).contains(&name))
        .count();
    assert_eq!(left, 0, "processes are left");
}
