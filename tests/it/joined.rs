//! Which request made which call, over real processes: threads, candidates, proxies, and rows of several services.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use inflight::{Report, report::Verdict, snapshot::LiveOp};

use crate::{
    rig::{Id, Rig, ops},
    rig_roles::{Changes, File},
    stage::{DEADLINE, cat, snapshot_of},
};

fn is_deadlock(report: &Report) -> bool {
    report.verdict() == &Verdict::Deadlock
}

fn op<'a>(report: &'a Report, id: &str) -> Option<&'a LiveOp> {
    ops(report).find(|op| op.id.to_string() == id)
}

// 3 of "/post3?do=.." and of "~/dir3".
fn number(target: &str) -> Option<char> {
    let name = target.trim_start_matches(['~', '/']);
    let name = name.strip_prefix("post").or(name.strip_prefix("dir"))?;
    name.chars().next()
}

// Holds every edge from a request to a call against what they are about; how many there were.
fn right_edges(report: &Report) -> usize {
    let mut right = 0;
    for edge in report.edges.iter().filter(|edge| edge.why == "thread") {
        let (from, to) = (op(report, &edge.from), op(report, &edge.to));
        let (Some(from), Some(to)) = (from, to) else {
            panic!("{edge:?} leads nowhere in\n{report}");
        };
        let (post, dir) = (number(&from.target), number(&to.target));
        // A lookup in the root is of no directory.
        if dir.is_some() {
            assert_eq!(post, dir, "{edge:?} in\n{report}");
            right += 1;
        }
    }
    right
}

const DIRS: [&str; 8] = [
    "dir0", "dir1", "dir2", "dir3", "dir4", "dir5", "dir6", "dir7",
];

// The requests that walk one directory each.
fn posts(rig: &Rig, server: Id) -> Vec<String> {
    let posts = DIRS.iter().enumerate();
    let url = |(n, dir): (usize, &&str)| {
        let dir = rig.path("m").join(dir);
        format!("{}/post{n}?do=walk:{}", rig.at(server), dir.display())
    };
    posts.map(url).collect()
}

#[test]
fn eight_requests_that_list_eight_directories_are_each_joined_to_their_own() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let files = DIRS.map(|dir| {
        let gate = Some(dir.to_owned());
        (
            dir,
            File {
                gate,
                ..File::default()
            },
        )
    });
    let mount = rig.files("m", 16, &files);
    let posts: Vec<_> = posts(&rig, server)
        .iter()
        .map(|url| rig.curl(url))
        .collect();
    let gates: Vec<_> = DIRS.iter().map(|dir| rig.arrive(dir)).collect();

    let threads = |report: &Report| report.edges.iter().filter(|it| it.why == "thread").count();
    let report = rig.report_when(mount, |report| threads(report) == 8);
    assert_eq!(right_edges(&report), 8);
    let mut edges = report.edges.iter().filter(|it| it.why == "thread");
    assert!(edges.all(|it| it.certainty == "certain"), "{report}");
    assert!(!report.edges.iter().any(|it| it.why == "process"));
    // The server was started by a program of the same name, and has long been one of its own.
    let mut callers = ops(&report).filter_map(|op| op.caller.as_ref());
    assert!(callers.all(|caller| caller.child_of.is_none()));
    drop(gates);
    assert!(posts.into_iter().all(|mut post| post.ended()));
}

#[test]
fn over_two_thousand_healthy_rounds_no_request_is_joined_to_the_call_of_another() {
    const ROUNDS: usize = 250;
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let files = DIRS.map(|dir| (dir, rig.asks(server, "works")));
    let mount = rig.files("m", 16, &files);
    let urls = posts(&rig, server);
    let (run, pids) = (rig.run_dir(), [rig.pid(mount), rig.pid(server)]);
    let is_over = AtomicBool::new(false);

    let (seen, wrong) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut seen, mut wrong) = (0, Vec::new());
            let until = Instant::now() + 7 * DEADLINE;
            while !is_over.load(SeqCst) && Instant::now() < until {
                // Of peers only older ops are asked for: here all are wanted, in either order.
                for pids in [pids, [pids[1], pids[0]]] {
                    let both = thread::scope(|scope| {
                        let run = &run;
                        let asked = pids.map(|pid| scope.spawn(move || snapshot_of(run, pid)));
                        asked.map(|asked| asked.join().unwrap())
                    });
                    let report = Report::from_snapshots(both.to_vec());
                    seen += right_edges(&report);
                    let verdict = report.verdict();
                    if matches!(verdict, Verdict::Deadlock | Verdict::LikelyDeadlock) {
                        wrong.push(report.to_string());
                    }
                }
            }
            (seen, wrong)
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let client = &client;
        let rounds = urls.iter().map(|url| async move {
            for _ in 0..ROUNDS {
                let answer = client.get(url).send().await.unwrap();
                assert!(answer.status().is_success());
            }
        });
        let rounds = futures_util::future::join_all(rounds);
        let all = runtime.block_on(async { tokio::time::timeout(6 * DEADLINE, rounds).await });
        is_over.store(true, SeqCst);
        assert!(all.is_ok(), "the rounds did not end");
        reader.join().unwrap()
    });

    assert!(seen > 0, "no report was read in the middle of a call");
    assert!(wrong.is_empty(), "{wrong:?}");
}

// A thread of tokio's own carries no op: any of the open requests may have made the call.
#[test]
fn of_eight_requests_none_is_blamed_for_the_call_of_a_plain_thread_and_ours_is_known() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let dir = rig.path("m/dir");
    let files = [
        ("dir", rig.asks(server, "lock")),
        (
            "plain",
            rig.asks(server, &format!("lock,gate:in,plain:{}", dir.display())),
        ),
        (
            "ours",
            rig.asks(server, &format!("lock,gate:in,ours:{}", dir.display())),
        ),
    ];
    let mount = rig.files("m", 4, &files);
    let idle = rig.ask(server, "gate:open");
    let mut others: Vec<_> = (0..7).map(|_| rig.curl(&idle)).collect();
    let gates: Vec<_> = (0..7).map(|_| rig.arrive("open")).collect();
    let _plain = rig.read("m/plain");
    drop(rig.arrive("in"));

    let candidates = |report: &Report| {
        let edges = report.edges.iter().filter(|edge| edge.why == "process");
        edges.filter(|edge| edge.certainty == "likely").count()
    };
    // Past the second after which a circle would be one.
    let is_old = |report: &Report| ops(report).any(|op| op.name == "readdir" && op.age_ms > 2e3);
    let report = rig.report_when(mount, |report| candidates(report) == 8 && is_old(report));
    assert!(report.cycles().is_empty(), "{report}");
    assert!(!is_deadlock(&report) && report.verdict() != &Verdict::LikelyDeadlock);
    assert!(!report.edges.iter().any(|edge| edge.why == "thread"));

    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let walks = format!("lock,ours:{}", rig.path("m/dir").display());
    let files = [
        ("dir", rig.asks(server, "lock")),
        ("ours", rig.asks(server, &walks)),
    ];
    let mount = rig.files("m", 4, &files);
    let _ours = rig.read("m/ours");
    let report = rig.report_when(mount, is_deadlock);
    assert_eq!(candidates(&report), 0, "{report}");
    drop(gates);
    assert!(others.iter_mut().all(|other| other.ended()));
}

/// The hang through a proxy: what the mount says of it.
fn through(how: Changes, is_so: impl Fn(&Report) -> bool) -> Option<Report> {
    let mut rig = Rig::new()?;
    let server = rig.server("server");
    let proxy = rig.proxy(server, how);
    let walks = format!("lock,walk:{}", rig.path("m/dir").display());
    let files = [
        ("dir", rig.asks(proxy, "lock")),
        ("begins", rig.asks(proxy, &walks)),
    ];
    let mount = rig.files("m", 8, &files);
    let _begins = rig.read("m/begins");
    Some(rig.report_when(mount, is_so))
}

fn served(report: &Report) -> Vec<&str> {
    let edges = report.edges.iter().filter(|edge| edge.why == "served_by");
    edges.map(|edge| edge.certainty.as_str()).collect()
}

#[test]
fn a_proxy_that_puts_its_own_span_into_traceparent_leaves_the_join_certain() {
    let report = through(Changes::ReplacesSpan, is_deadlock);
    if let Some(report) = report {
        assert_eq!(served(&report), ["certain", "certain"], "{report}");
    }
}

#[test]
fn behind_a_proxy_that_drops_our_header_the_join_is_likely_and_the_report_says_why() {
    let is_likely = |report: &Report| report.verdict() == &Verdict::LikelyDeadlock;
    let Some(report) = through(Changes::DropsUnknown, is_likely) else {
        return;
    };

    assert_eq!(served(&report), ["likely", "likely"], "{report}");
    assert!(!report.cycles()[0].confirmed);
    let text = report.to_string();
    assert!(text.contains("is known by its trace alone"), "{text}");
}

#[test]
fn of_a_request_that_a_proxy_sends_twice_both_copies_are_known() {
    let Some(report) = through(Changes::SendsTwice, is_deadlock) else {
        return;
    };

    let calls = ops(&report).filter(|op| op.name == "GET").count();
    assert_eq!(served(&report), ["certain"; 4], "{calls} in\n{report}");
}

#[test]
fn a_stream_that_stays_open_is_idle_and_never_stuck() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let mount = rig.files("m", 2, &[("file", rig.asks(server, "gate:in"))]);
    let _events = rig.curl(&format!("{}/events", rig.at(server)));
    let old = |report: &Report| ops(report).any(|op| op.age_ms > 2500.0);

    let report = rig
        .report_when(mount, old)
        .stuck_after(Duration::from_secs(2));

    assert_eq!(report.verdict(), &Verdict::Ok, "{report}");
    let op = ops(&report).find(|op| op.age_ms > 2500.0).unwrap();
    assert_eq!(op.state, inflight::State::Idle);

    // The control: a request of the same age.
    let _stuck = rig.read("m/file");
    let _gate = rig.arrive("in");
    let is_old = |report: &Report| ops(report).any(|op| op.name == "read" && op.age_ms > 2500.0);
    let report = rig
        .report_when(mount, is_old)
        .stuck_after(Duration::from_secs(2));
    assert_eq!(report.verdict(), &Verdict::Stuck, "{report}");
}

#[test]
fn two_mounts_over_one_server_tell_the_same_from_both_sides() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let walks = format!("lock,walk:{}", rig.path("b/dir").display());
    let a = rig.files("a", 2, &[("begins", rig.asks(server, &walks))]);
    let b = rig.files("b", 2, &[("dir", rig.asks(server, "lock"))]);
    let _begins = rig.read("a/begins");

    let from_b = rig.report_when(b, is_deadlock);
    let from_a = rig.report_when(a, is_deadlock);

    let members = |report: &Report| {
        let mut members: Vec<String> = report.cycles()[0]
            .ops
            .iter()
            .map(|id| id.to_string())
            .collect();
        members.sort();
        members
    };
    assert_eq!(members(&from_a), members(&from_b));
    assert_eq!(members(&from_a).len(), 4);
    // The one that began it only waits.
    let read = from_a
        .local
        .ops
        .iter()
        .find(|op| op.name == "read")
        .unwrap();
    assert!(from_a.blocked.contains(&read.id), "{from_a}");
    assert!(from_b.blocked.contains(&read.id), "{from_b}");
}

#[test]
fn a_circle_through_two_servers_and_two_mounts_is_found() {
    let Some(mut rig) = Rig::new() else { return };
    let [one, two] = ["one", "two"].map(|name| rig.server(name));
    let walk_b = format!("lock,walk:{}", rig.path("b/dir").display());
    let walk_c = format!("walk:{}", rig.path("c/dir").display());
    let a = rig.files("a", 2, &[("begins", rig.asks(one, &walk_b))]);
    rig.files("b", 2, &[("dir", rig.asks(two, &walk_c))]);
    rig.files("c", 2, &[("dir", rig.asks(one, "lock"))]);
    let _begins = rig.read("a/begins");

    let report = rig.report_when(a, is_deadlock);

    // Two requests and two calls on each way, and the last waits for the lock of the first.
    assert_eq!(report.cycles()[0].ops.len(), 7, "{report}");
    let first = report.to_string();
    let first = first.lines().next().unwrap();
    for name in ["one[", "two[", "b[", "c["] {
        assert!(first.contains(name), "{first}");
    }
}

#[test]
fn a_caller_in_the_daemon_itself_calls_into_its_own_mount() {
    let Some(mut rig) = Rig::new() else { return };
    let file = File {
        looks_at: Some(rig.path("m/other")),
        ..File::default()
    };
    let mount = rig.files("m", 1, &[("file", file), ("other", File::default())]);
    let _read = rig.read("m/file");

    let report = rig.report_when(mount, is_deadlock);

    let text = report.to_string();
    let own = format!("m[{}] calls into its own mount", rig.pid(mount));
    assert!(text.contains(&own), "{text}");
    assert_eq!(report.cycles()[0].ops.len(), 2, "{text}");
}

/// One that accepts, and then does as it is told.
fn bad_peer(rig: &Rig, name: &str, does: impl Fn(UnixStream) + Send + 'static) -> String {
    let path = rig.run_dir().join(name);
    let listener = UnixListener::bind(&path).unwrap();
    // Ends with the process.
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(does));
    path.display().to_string()
}

#[test]
fn peers_that_are_silent_talk_nonsense_or_never_stop_are_named_and_hold_nobody_up() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let mount = rig.files("m", 2, &[("file", rig.asks(server, "gate:in"))]);
    let silent = bad_peer(&rig, "4000001.sock", |stream| {
        thread::spawn(move || stream.take(1 << 20).read_to_end(&mut Vec::new()));
    });
    let garbage = bad_peer(&rig, "4000002.sock", |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"\x00\xff\x1b[31m nonsense\r\n\r\n");
    });
    let endless = bad_peer(&rig, "4000003.sock", |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n[");
        let spaces = vec![b' '; 1 << 20];
        while stream.write_all(&spaces).is_ok() {}
    });
    let mut file = rig.read("m/file");
    let gate = rig.arrive("in");

    let report = rig.report_when(mount, |report| report.peers_failed.len() == 3);
    drop(gate);
    assert!(file.ended());

    let why = |address: &str| {
        let failed = report.peers_failed.iter().find(|it| it.address == address);
        failed
            .unwrap_or_else(|| panic!("{address} is missing"))
            .why
            .as_str()
    };
    assert!(why(&silent).contains("did not answer within 300 ms"));
    assert!(!why(&garbage).is_empty() && !why(&garbage).contains('\x1b'));
    assert!(!why(&endless).is_empty());
    let pids: Vec<u32> = report.peers.iter().map(|it| it.process.pid).collect();
    assert_eq!(pids, [rig.pid(server)], "the others answer all the same");
    assert!(cat(&rig.path("m/.diag")).contains(&silent));
}

#[test]
fn a_daemon_and_a_server_that_were_killed_are_missed_by_nobody() {
    let Some(mut rig) = Rig::new() else { return };
    let server = rig.server("server");
    let walks = format!("walk:{}", rig.path("b/dir").display());
    let a = rig.files("a", 2, &[("begins", rig.asks(server, &walks))]);
    let b = rig.files("b", 2, &[("dir", rig.asks(server, "gate:in"))]);
    let mut begins = rig.read("a/begins");
    let _gate = rig.arrive("in");

    rig.kill(b);
    // Its callers got an error, and the request went on.
    assert!(begins.ended());
    let report = rig.report(a);
    assert_eq!(report.peers.len(), 1, "{report}");
    assert_eq!(report.verdict(), &Verdict::Ok, "{report}");

    rig.kill(server);
    let report = rig.report(a);
    assert!(report.peers.is_empty(), "{report}");
}
