//! Tests that hang on purpose, run as anybody's are: by `cargo test`, one at a time, and by `cargo nextest`.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use inflight::{
    machine,
    testing::{Output, Shell, Watch, run},
};
use tempfile::TempDir;

use crate::{
    mounted::{PLANT, guard},
    stage::skipped,
};

/// Of each test, by INFLIGHT_TEST_DEADLINE.
const DEADLINE: Duration = Duration::from_secs(4);

/// When each must have failed; the rest is for the runner to start, on a machine that does much else.
const FAILED: Duration = Duration::from_secs(4 + 5 + 15);

/// The first time its dependencies are built.
const BUILT: Duration = Duration::from_secs(600);

const RUNS: u32 = 200;

const RUNNERS: &[&str] = &[
    "cargo test --offline --locked --test hangs -- --exact CASE",
    "cargo test --offline --locked --test hangs -- --exact CASE --test-threads=1",
    "cargo nextest run --offline --locked --test hangs -E 'test(=CASE)'",
];

/// What an inner runner must not take from an outer one.
const CLEAN: &str = "unset NEXTEST NEXTEST_TEST_NAME NEXTEST_PROFILE RUST_TEST_THREADS RUSTFLAGS INFLIGHT INFLIGHT_DIR";

fn crate_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

// What was built for the tests of the crate itself serves these as well.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(3).unwrap().to_path_buf()
}

fn shell(script: &str) -> Shell {
    Shell::new(format!("{CLEAN}; {script}"))
        .dir(crate_dir())
        .env("CARGO_TARGET_DIR", target().display().to_string())
        .env("RUST_BACKTRACE", "0")
}

/// Builds them once, and says where the healthy ones are.
fn healthy() -> &'static Path {
    static HEALTHY: OnceLock<PathBuf> = OnceLock::new();
    HEALTHY.get_or_init(|| {
        let script = "cargo test --offline --locked --no-run 2>&1";
        let built = run(shell(script).deadline(BUILT)).unwrap();
        let mut lines = built.stdout.lines();
        let line = lines.find_map(|line| line.split_once("tests/healthy.rs ("));
        let (_, path) = line.unwrap_or_else(|| panic!("{}", built.stdout));
        let path = Path::new(path.trim_end_matches(')'));
        // As cargo says it, from where it was called or in full.
        crate_dir().join(path)
    })
}

/// A run of one of them, and what it leaves.
struct Ran {
    hung: bool,
    code: Option<i32>,
    output: Output,
    temporary: TempDir,
    _watch: Watch,
}

fn fail(runner: &str, case: &str) -> Ran {
    healthy();
    fail_as(shell(&runner.replace("CASE", case)))
}

fn fail_as(script: Shell) -> Ran {
    let temporary = tempfile::Builder::new().prefix("fx").tempdir().unwrap();
    let script = script
        .env("TMPDIR", temporary.path().display().to_string())
        .env("INFLIGHT_TEST_DEADLINE", format!("{}s", DEADLINE.as_secs()))
        .deadline(FAILED);
    let guard = guard();
    let error = run(script).expect_err("it passed");
    Ran {
        hung: error.hung(),
        code: error.status().and_then(|status| status.code()),
        output: error.output().clone(),
        temporary,
        _watch: guard,
    }
}

impl Ran {
    fn text(&self) -> String {
        format!("{}{}", self.output.stdout, self.output.stderr)
    }

    fn assert_nothing_is_left(&self) {
        self.assert_nobody_is_left();
        let sockets = sockets_in(self.temporary.path());
        assert!(sockets.is_empty(), "{sockets:?}\n{}", self.text());
    }

    fn assert_nobody_is_left(&self) {
        let dir = self.temporary.path();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = format!(" {}", dir.display());
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(&here)).collect();
        assert!(mounts.is_empty(), "{mounts:#?}\n{}", self.text());
        let variable = format!("TMPDIR={}", dir.display());
        let processes = processes_with(&variable);
        assert!(processes.is_empty(), "{processes:?}\n{}", self.text());
    }
}

// The directory is removed next: what is mounted in it, if a test is rightly about to fail, would hang that.
impl Drop for Ran {
    fn drop(&mut self) {
        for mount in machine::fuse_mounts() {
            if Path::new(&mount.path).starts_with(self.temporary.path()) {
                let _gone = machine::abort(mount.connection);
                let _gone = run(format!("umount -l {}", mount.path));
            }
        }
    }
}

// What was killed may take a moment to be gone: a zombie has no environment.
fn processes_with(variable: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|it| it == variable.as_bytes()).then_some(pid)
    });
    processes.collect()
}

fn sockets_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_socket() {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Runs one under each of the runners; all of `expected` must be in what it says.
fn fails_everywhere(case: &str, expected: &[&str]) {
    if skipped() {
        return;
    }
    for runner in RUNNERS {
        let ran = fail(runner, case);
        let text = ran.text();
        assert!(!ran.hung, "{runner} hung: {text}");
        assert_ne!(ran.code, Some(0), "{runner}: {text}");
        assert!(text.contains(case), "{runner}: {text}");
        for expected in expected {
            assert!(text.contains(expected), "no {expected} of {runner}: {text}");
        }
        ran.assert_nothing_is_left();
    }
}

#[test]
fn a_stuck_op_is_named_and_the_test_ends() {
    fails_everywhere(
        "a_stuck_op",
        &["HUNG: test a_stuck_op ", "read /stuck", "GET /stuck"],
    );
}

#[test]
fn a_leaked_op_fails_its_test() {
    let call = "GET 127.0.0.1:9/leaked";
    fails_everywhere("a_leaked_op", &["something is in flight", "import", call]);
}

#[test]
fn a_deadlock_across_processes_is_proven_and_ended() {
    let expected = &[
        "HUNG: test a_deadlock_across_processes ",
        "DEADLOCK for",
        "read /list",
        "GET /walk",
        "HOLDS lock \"lock\"",
    ];
    fails_everywhere("a_deadlock_across_processes", expected);
}

#[test]
fn a_process_whose_worker_waits_in_its_own_mount_ends() {
    let expected = &[
        "HUNG: test a_blocked_worker_thread ",
        "GET /blocks",
        "read /read",
        "tokio-rt-worker",
    ];
    fails_everywhere("a_blocked_worker_thread", expected);
}

#[test]
fn a_daemon_that_never_gets_ready_is_shown_with_what_it_waits_for() {
    let expected = &["was not ready within 2s", "asks[", "GET /stuck"];
    fails_everywhere("a_daemon_that_never_gets_ready", expected);
}

#[test]
fn a_daemon_that_ignores_term_fails_its_test_and_is_killed() {
    let expected = &["has not ended 1s after TERM", "asks[", "GET /stuck"];
    fails_everywhere("a_daemon_that_ignores_term", expected);
}

#[test]
fn an_exit_that_hangs_is_no_way_to_hang() {
    fails_everywhere(
        "an_exit_that_hangs",
        &["HUNG: test an_exit_that_hangs ", "import", "rows"],
    );
}

#[test]
fn the_tests_that_end_with_one_that_hangs_are_named() {
    if skipped() {
        return;
    }
    let both =
        "cargo test --offline --locked --test hangs -- a_stuck_op a_deadlock --test-threads=2";

    let ran = fail(both, "");

    let text = ran.text();
    assert!(!ran.hung, "{text}");
    let named = |case: &str| {
        let hung = text.contains(&format!("HUNG: test {case} "));
        hung || text.contains(&format!("under a guard too: test {case} "))
    };
    assert!(
        named("a_stuck_op") && named("a_deadlock_across_processes"),
        "{text}"
    );
    ran.assert_nothing_is_left();
}

#[test]
fn nextest_kills_a_test_without_a_guard_that_ignores_term() {
    let quick = "cargo nextest run --offline --locked --profile quick --run-ignored all --test hangs -E 'test(=CASE)'";

    let ran = fail(quick, "without_a_guard");

    let text = ran.text();
    assert!(!ran.hung, "{text}");
    assert!(
        text.contains("TIMEOUT") && text.contains("without_a_guard"),
        "{text}"
    );
    ran.assert_nothing_is_left();
}

#[test]
fn no_inherited_shell_hook_runs_in_a_command() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hook = dir.path().join("hook");
    fs::write(&hook, "exit 9\n").unwrap();
    let script = format!(
        "{CLEAN}; exec env BASH_ENV={} 'BASH_FUNC_cat%%=() {{ exit 9; }}' {}",
        hook.display(),
        healthy().display()
    );

    run(Shell::new(script).deadline(FAILED)).unwrap();
}

#[test]
#[ignore = "takes about a minute"]
fn healthy_tests_pass_two_hundred_times_in_a_row() {
    if skipped() {
        return;
    }
    let healthy = healthy();
    for _ in 0..RUNS {
        run(Shell::new(format!("{CLEAN}; {}", healthy.display())).deadline(FAILED)).unwrap();
    }
}

#[test]
fn a_hang_planted_in_a_test_of_our_own_ends_the_suite() {
    if skipped() {
        return;
    }
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "{CLEAN}; exec {} --exact mounted::hangs_if_told_to",
        own.display()
    );

    let ran = fail_as(Shell::new(script).env(PLANT, "1"));

    let text = ran.text();
    assert!(!ran.hung, "{text}");
    assert_eq!(ran.code, Some(101), "{text}");
    for expected in ["HUNG: test mounted::hangs_if_told_to ", "read ", "served["] {
        assert!(text.contains(expected), "no {expected}: {text}");
    }
    // The socket of a daemon that had to be killed stands in the directory that goes next.
    ran.assert_nobody_is_left();
}
