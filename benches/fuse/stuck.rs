//! How long `.diag` takes while everything behind it is stuck, one row for each way to be so.

use std::{
    path::Path,
    process::{Child as Process, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    child::Child,
    harness::{Bench, Limit, Unit, quantile},
    served::Served,
};

/// One way to be stuck.
struct Row {
    name: &'static str,
    slots: usize,
    checks_permissions: bool,
    /// What the file system holds up.
    held: &'static str,
    /// What is called, one caller each.
    calls: &'static [&'static str],
    /// How many of these calls the file system begins to work on.
    begun: usize,
    /// What becomes of the first caller then.
    signal: Option<&'static str>,
    /// Whether another one calls behind that.
    has_next: bool,
}

const PLAIN: Row = Row {
    name: "",
    slots: 1,
    checks_permissions: false,
    held: "",
    calls: &[],
    begun: 1,
    signal: None,
    has_next: false,
};

const ROWS: &[Row] = &[
    Row {
        name: "the only slot, in a read",
        held: "read",
        calls: &["read"],
        ..PLAIN
    },
    Row {
        name: "3 of 4 slots",
        slots: 4,
        held: "read",
        calls: &["read"; 3],
        begun: 3,
        ..PLAIN
    },
    Row {
        name: "4 of 4 slots, and one waits",
        slots: 4,
        held: "read",
        calls: &["read", "read", "read", "read", "stat"],
        begun: 4,
        ..PLAIN
    },
    Row {
        name: "a reply owed by another thread",
        held: "later",
        calls: &["read"],
        ..PLAIN
    },
    Row {
        name: "a lookup in the root, 4 slots",
        slots: 4,
        held: "lookup",
        calls: &["lookup"],
        ..PLAIN
    },
    Row {
        name: "a lookup in the root, and again",
        held: "lookup",
        calls: &["lookup", "lookup"],
        ..PLAIN
    },
    Row {
        name: "a readdir of the root, 4 slots",
        slots: 4,
        held: "readdir",
        calls: &["readdir"],
        ..PLAIN
    },
    Row {
        name: "a readdir of the root",
        held: "readdir",
        calls: &["readdir"],
        ..PLAIN
    },
    Row {
        name: "a mkdir in the root",
        held: "mkdir",
        calls: &["mkdir"],
        ..PLAIN
    },
    Row {
        name: "the only slot, permissions checked",
        checks_permissions: true,
        held: "read",
        calls: &["read"],
        ..PLAIN
    },
    Row {
        name: "attributes of the root, in 1 of 4",
        slots: 4,
        checks_permissions: true,
        held: "getattr-root",
        calls: &["stat-root"],
        ..PLAIN
    },
    Row {
        name: "a write, another behind its inode",
        held: "write",
        calls: &["write", "write"],
        ..PLAIN
    },
    Row {
        name: "a read of the page cache, and again",
        slots: 4,
        held: "read",
        calls: &["read-cached", "read-cached"],
        ..PLAIN
    },
    Row {
        name: "a flush",
        held: "flush",
        calls: &["flush"],
        ..PLAIN
    },
    Row {
        name: "a caller that handled a signal",
        held: "read",
        signal: Some("USR1"),
        ..PLAIN
    },
    Row {
        name: "a caller that was terminated",
        held: "read",
        signal: Some("TERM"),
        ..PLAIN
    },
    Row {
        name: "a new caller behind that one",
        held: "read",
        signal: Some("TERM"),
        has_next: true,
        ..PLAIN
    },
];

pub(crate) fn measure(bench: &mut Bench) {
    if !bench.wants("diag") {
        return;
    }
    let times = if bench.is_quick() { 4 } else { 50 };
    let mut callers = [(); 5].map(|()| Child::start(&["call"], Path::new("/")));
    let mut reader = Child::start(&["call"], Path::new("/"));
    println!(
        "{:<44} {:>12}   {:<12} {:<12}",
        "`cat .diag`, each time stuck anew", "p50", "p99", "longest"
    );
    let mut worst = (f64::NAN, f64::NAN);
    for row in ROWS {
        let mut served = Served::new("wrapped", row.slots, row.checks_permissions);
        let took: Vec<f64> = (0..times)
            .map(|_| row.time(&mut served, &mut callers, &mut reader))
            .collect();
        let (p50, p99) = (quantile(&took, 0.5), quantile(&took, 0.99));
        println!(
            "  {:<42} {:>12}   {:<12} {:<12}",
            row.name,
            Unit::Millis.show(p50),
            Unit::Millis.show(p99),
            Unit::Millis.show(quantile(&took, 1.0)),
        );
        worst = (worst.0.max(p50), worst.1.max(p99));
    }
    println!();
    let limits = (Limit::AtMost(100.0), Some(Limit::AtMost(20.0)));
    bench.bar(
        ".diag in ms, p50 of the slowest row",
        worst.0,
        limits.0,
        limits.1,
    );
    bench.bar(
        ".diag in ms, p99 of the slowest row",
        worst.1,
        limits.0,
        limits.1,
    );
}

impl Row {
    /// Has callers stuck, reads the report, frees them. How long the reading took, in milliseconds.
    fn time(&self, served: &mut Served, callers: &mut [Child], reader: &mut Child) -> f64 {
        let mount = served.mount();
        let mount = mount.display();
        // Ops that a sample has freed may say once more that they have begun.
        let child = &mut served.child;
        child.ask_past(&format!("hold {}", self.held), "held");
        let callers = &mut callers[..self.calls.len()];
        for (caller, call) in callers.iter_mut().zip(self.calls) {
            caller.tell(&format!("once {call} {mount}"));
        }
        let mut victim = None;
        if let Some(signal) = self.signal {
            victim = Some(Victim::new(&format!("{mount}/f"), signal == "USR1"));
        }
        for _ in 0..self.begun {
            served.child.expect("begun");
        }
        if let (Some(victim), Some(signal)) = (&victim, self.signal) {
            victim.signal(signal);
        }
        let next = self
            .has_next
            .then(|| Victim::new(&format!("{mount}/f"), false));
        if next.is_some() {
            // It is parked, which shows in the report only.
            let until = Instant::now() + Duration::from_secs(5);
            while served.kernel_waiting() < 2 && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let shown = match self.held {
            "later" => "read",
            "getattr-root" => "getattr",
            held => held,
        };
        let said = reader.ask(&format!("diag {shown} {mount}"), "diag");
        served.child.ask_past("free", "freed");
        for caller in callers {
            caller.expect("once");
        }
        drop((victim, next));
        let (nanos, is_shown) = said.split_once(' ').expect("two words");
        assert_eq!(
            is_shown, "true",
            "{}: what is stuck is not shown",
            self.name
        );
        nanos.parse::<f64>().expect("a number") / 1e6
    }
}

/// A caller that gets a signal, and is gone then.
struct Victim(Process);

impl Victim {
    fn new(file: &str, handles: bool) -> Self {
        let trap = if handles { "trap : USR1; " } else { "" };
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(format!("{trap}read -r x <'{file}'"));
        bash.env_remove("BASH_ENV").current_dir("/");
        bash.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(bash.spawn().expect("bash"))
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        let sent = kill
            .arg(format!("-{name}"))
            .arg(self.0.id().to_string())
            .status();
        assert!(sent.expect("kill").success());
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
