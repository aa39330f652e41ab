//! What the report shows of processes that carry no tracker: who is held up, what they have open, who listens.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use inflight::{Report, report::Verdict, snapshot::HeldUp};

use crate::{
    mounted::{Mounted, until},
    rig::{Rig, ops},
    rig_roles::File,
    stage::{Daemon, stop},
};

// What is said of one that waits behind another in the kernel. Other tests may hang at the same time.
fn held_up(report: &Report, pid: u32) -> Option<HeldUp> {
    let mut held_up = report.held_up.iter();
    held_up.find(|held_up| held_up.pid == pid).cloned()
}

#[test]
fn whoever_looks_up_the_same_stuck_name_is_shown_though_it_never_became_a_request() {
    let Some(mut mounted) = Mounted::slots(2) else {
        return;
    };
    mounted.hold("lookup-slow");
    let first = mounted.client("exec stat $M/slow");
    mounted.wait_for("begun lookup-slow");
    let second = mounted.client("cd $M; exec stat slow");

    let mut shown = None;
    until(|| {
        shown = held_up(&mounted.report(), second.pid());
        shown.as_ref().is_some_and(|shown| shown.comm == "stat")
    });
    let (mut text, mut reader) = (String::new(), 0);
    let line = format!("stat[{}]  state D in d_alloc_parallel", second.pid());
    // There may be no time to look at all threads of a busy machine.
    until(|| {
        (text, reader) = mounted.diag_and_reader();
        text.contains(&line)
    });

    let shown = shown.unwrap();
    let path = mounted.path("").display().to_string();
    assert_eq!(shown.mount.as_deref(), Some(path.trim_end_matches('/')));
    assert!(shown.is_likely && shown.state == "D", "{shown:?}");
    assert!(shown.wchan.contains("d_alloc_parallel"), "{shown:?}");
    assert!(
        text.contains(&format!("for stat[{}]", first.pid())),
        "{text}"
    );
    assert!(!text.contains("fuse_dev_do_read"), "idle daemons:\n{text}");
    // Those of other tests are held up for all that this mount knows.
    let reader = format!("cat[{reader}]");
    assert!(!text.contains(&reader), "who reads this very file:\n{text}");
    mounted.free("lookup-slow");
}

#[test]
fn whoever_waits_for_the_lock_of_a_file_is_shown_with_the_file() {
    let Some(mut mounted) = Mounted::slots(2) else {
        return;
    };
    mounted.hold("write");
    let dd = "exec dd if=/dev/zero of=$M/f1 bs=4k count=1 conv=notrunc";
    let _first = mounted.client(dd);
    mounted.wait_for("begun write");
    let second = mounted.client(dd);

    let mut shown = None;
    until(|| {
        shown = held_up(&mounted.report(), second.pid());
        shown.is_some()
    });

    let shown = shown.unwrap();
    let file = mounted.path("f1").display().to_string();
    assert_eq!(shown.file.as_deref(), Some(file.as_str()), "{shown:?}");
    assert!(!shown.is_likely);
    mounted.free("write");
}

#[test]
fn a_child_that_has_not_reached_its_exec_is_shown_as_its_parents() {
    let Some(mut mounted) = Mounted::slots(2) else {
        return;
    };
    mounted.hold("lookup-slow");
    let spawns = "import subprocess, sys; subprocess.run(['true'], cwd=sys.argv[1])";
    let parent = mounted.client(&format!("exec python3 -c \"{spawns}\" $M/slow"));
    mounted.wait_for("begun lookup-slow");

    let mut report = Report::default();
    until(|| {
        report = mounted.report();
        let caller = report.local.ops.first().and_then(|op| op.caller.as_ref());
        caller.is_some_and(|caller| caller.child_of.is_some())
    });

    let caller = report.local.ops[0].caller.as_ref().unwrap();
    let of = caller.child_of.as_ref().unwrap();
    assert_ne!(caller.pid, Some(parent.pid()), "it is the child that calls");
    let text = report.to_string();
    let named = format!("child of {}[{}], before exec", of.comm, of.pid);
    assert!(text.contains(&named), "{text}");
    mounted.free("lookup-slow");
}

// Its own tmpfs hides the socket from everybody else.
#[test]
fn a_peer_in_another_mount_namespace_is_asked() {
    let Some(mut rig) = Rig::new() else { return };
    let private = rig.path("inflight-private");
    let mounts = format!(
        "mkdir {0} && mount -t tmpfs none {0} && exec \"$@\"",
        private.display()
    );
    let server = rig.server_in(&["unshare", "-m", "sh", "-c", &mounts, "sh"], &private);
    let mount = rig.files("m", 2, &[("file", rig.asks(server, "gate:in"))]);
    let mut file = rig.read("m/file");
    let gate = rig.arrive("in");

    let is_joined = |report: &Report| report.edges.iter().any(|edge| edge.why == "served_by");
    rig.report_when(mount, is_joined);
    let entries = std::fs::read_dir(&private).unwrap();
    assert_eq!(entries.count(), 0, "the socket is not to be seen from here");
    drop(gate);
    assert!(file.ended());
}

/// Listens and never answers, in a network namespace of its own.
fn listens_apart(port: u16) -> Child {
    let listens = format!(
        "import fcntl, socket, struct, sys\n\
         s = socket.socket()\n\
         up = struct.pack('16sh', b'lo', 1)\n\
         fcntl.ioctl(s, 0x8914, up + bytes(24))\n\
         s.bind(('127.0.0.1', {port}))\n\
         s.listen()\n\
         print('up', flush=True)\n\
         sys.stdin.read()\n"
    );
    let mut child = Command::new("unshare")
        .args(["-n", "python3", "-c", &listens])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "up");
    child
}

#[test]
fn two_that_listen_at_one_port_in_two_network_namespaces_are_not_confused() {
    let Some(mut rig) = Rig::new() else { return };
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = here.local_addr().unwrap().port();
    thread::spawn(move || here.incoming().collect::<Vec<_>>());
    let mut apart = listens_apart(port);
    let file = || File {
        urls: vec![format!("http://127.0.0.1:{port}/")],
        ..File::default()
    };
    let of_apart = format!("--net=/proc/{}/ns/net", apart.id());
    let ours = rig.files("ours", 1, &[("file", file())]);
    let theirs = rig.files_in(&["nsenter", &of_apart], "theirs", 1, &[("file", file())]);
    let _reads = [rig.read("ours/file"), rig.read("theirs/file")];

    let knows_both = |report: &Report| report.listeners.len() == 2;
    let report = rig.report_when(ours, knows_both);

    for (files, listens) in [(ours, std::process::id()), (theirs, apart.id())] {
        let listener = report.listeners.iter().find(|it| it.pid == listens);
        assert_eq!(listener.unwrap().callers, [rig.pid(files)], "{report}");
        let snapshots = || std::iter::once(&report.local).chain(&report.peers);
        let of_files = snapshots().find(|it| it.process.pid == rig.pid(files));
        let call = of_files.unwrap().ops.iter().find(|op| op.name == "GET");
        let call = call.unwrap().id.to_string();
        let mut edges = report.edges.iter().filter(|edge| edge.from == call);
        let to = edges.next().map(|edge| edge.to.as_str());
        assert_eq!(to, Some(&*format!("process:{listens}")), "{report}");
        assert!(edges.next().is_none());
    }
    drop(apart.stdin.take());
    stop(&mut apart);
}

/// A server without a tracker that walks a mount while it holds its only lock.
const PYTHON: &str = include_str!("walks.py");

#[test]
fn after_a_lazy_unmount_a_server_without_a_tracker_is_still_named_with_what_it_has_open() {
    // Made first, it ends last: it cannot, while its thread is stuck in the mount.
    let mut python = Command::new("python3");
    let python = Daemon::start(Path::new("/"), python.args(["-c", PYTHON]));
    let Some(mut rig) = Rig::new() else { return };
    let url = python.url();
    let walks = format!("{url}/walk?{}", rig.path("m/dir").display());
    let file = |url: String| File {
        urls: vec![url],
        ..File::default()
    };
    let files = [
        ("dir", file(format!("{url}/list"))),
        ("begins", file(walks)),
    ];
    let mount = rig.files("m", 4, &files);
    let _begins = rig.read("m/begins");
    let is_likely = |report: &Report| report.verdict() == &Verdict::LikelyDeadlock;
    let report = rig.report_when(mount, is_likely);

    let caller = |report: &Report| {
        let readdir = ops(report).find(|op| op.name == "readdir").unwrap();
        readdir.caller.clone().unwrap()
    };
    let found = caller(&report);
    let [open] = &found.files[..] else {
        panic!("{found:?}")
    };
    assert_eq!(open.path, rig.path("m/dir").display().to_string());
    assert!(open.closes_on_exec && !open.is_detached);
    let pid = report.listeners[0].pid;
    assert_eq!(found.pid, Some(pid));
    assert_ne!(found.tid, pid, "a thread of it that serves a request");
    let text = report.to_string();
    let thread = format!("thread {} has fd {} open on ", found.tid, open.fd);
    assert!(
        text.contains(&thread) && text.contains("m/dir, close-on-exec"),
        "{text}"
    );

    let mut umount = Command::new("umount");
    let detached = umount.arg("-l").arg(rig.path("m")).status();
    assert!(detached.unwrap().success());
    let output = rig.inflight(&["--json", &rig.pid(mount).to_string()]);
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    let found = caller(&report);
    assert!(found.files.iter().any(|file| file.is_detached), "{found:?}");
    assert!(is_likely(&report), "{report}");
    let text = report.to_string();
    assert!(text.contains(&format!("python3[{pid}]")), "{text}");
    assert!(text.contains("close-on-exec, detached"), "{text}");
    let abort = format!("/sys/fs/fuse/connections/{}/abort", rig.connection(mount));
    assert!(text.contains(&abort), "{text}");
}
