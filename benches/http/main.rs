//! What the HTTP layers cost beside no layer, TraceLayer and OpenTelemetry, over loopback.
#![allow(clippy::panic, clippy::print_stdout, missing_docs, reason = "a bench")]

#[path = "../child/mod.rs"]
mod child;
#[path = "../harness/mod.rs"]
mod harness;
mod holding;
mod load;
mod server;

use std::{cell::RefCell, process::ExitCode, time::Duration};

use tempfile::TempDir;

use crate::{
    child::Child,
    harness::{Bench, Limit, Unit, quantile},
};

/// What is asked for: a small answer, and one that is streamed.
const PATHS: [(&str, &str); 2] = [("small", "/small/7"), ("streamed", "/streamed/7")];

const CONNECTIONS: [usize; 2] = [16, 256];

/// A sample is short, and so many times as many are taken.
const TURNS: usize = 5;

/// The processors of either side.
const SERVES_ON: usize = 0;
const ASKS_ON: usize = 1;

/// A process that serves or asks, with what was measured of it.
struct Subject {
    name: &'static str,
    child: Child,
    address: String,
    asked: u64,
    cpu: Vec<f64>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("serve") => server::serve(&args[1]),
        Some("load") => load::run(&args[1]),
        _ => return bench(),
    }
    ExitCode::SUCCESS
}

fn bench() -> ExitCode {
    let compared = [
        "axum",
        "hyper",
        "tower-http",
        "tracing-subscriber",
        "tracing-opentelemetry",
        "opentelemetry_sdk",
    ];
    let mut bench = Bench::start("http", &compared);
    println!("Servers and clients are processes of their own, with one thread each for HTTP.");
    println!("`bodies` is a layer that wraps request and response bodies, and does nothing;");
    println!(
        "`op` one that holds an op as well, and says nothing of it: the least a tracker can do.\n"
    );
    let dir = tempfile::Builder::new().prefix("bench-").tempdir();
    let dir = dir.expect("a directory");
    servers(&mut bench, &dir);
    clients(&mut bench, &dir);
    bench.finish()
}

fn servers(bench: &mut Bench, dir: &TempDir) {
    let subjects: Vec<_> = ["bare", "bodies", "op", "inflight", "tower-http", "otel"]
        .iter()
        .map(|name| RefCell::new(Subject::serving(name, dir)))
        .collect();
    let load = RefCell::new(Child::start(&["load", "raw"], dir.path()));
    for (what, path) in PATHS {
        for connections in CONNECTIONS {
            let title = format!("server, {what} answers, {connections} connections");
            if !bench.wants(&title) {
                continue;
            }
            let sample = sample(bench);
            let mut group = bench.group(&title, Unit::PerSecond).turns_times(TURNS);
            for subject in &subjects {
                let name = subject.borrow().name;
                group = group.subject(name, || {
                    let (subject, load) = (&mut *subject.borrow_mut(), &mut *load.borrow_mut());
                    let address = subject.address.clone();
                    let before = subject.child.cpu();
                    let (rate, answers) = ask(load, &address, path, connections, sample);
                    subject.used(before, answers);
                    rate
                });
            }
            let turns = group.run();
            print_cpu(&subjects);
            let over_bare = turns.ratio("inflight", "bare").median;
            let over_otel = turns.ratio("inflight", "otel").median;
            let (bar, hope) = (Limit::AtLeast(0.95), Limit::AtLeast(0.99));
            bench.bar(
                &format!("{title}: layered over bare"),
                over_bare,
                bar,
                Some(hope),
            );
            let than = format!("{title}: layered over tracing + OpenTelemetry");
            bench.bar(&than, over_otel, Limit::AtLeast(1.25), None);
        }
    }
    for subject in &subjects {
        subject.borrow_mut().prove();
    }
}

fn clients(bench: &mut Bench, dir: &TempDir) {
    let mut server = Subject::serving("bare", dir);
    let subjects: Vec<_> = ["hyper", "layered"]
        .iter()
        .map(|name| RefCell::new(Subject::asking(name, dir)))
        .collect();
    for (what, path) in PATHS {
        for connections in CONNECTIONS {
            let title = format!("client, {what} answers, {connections} connections");
            if !bench.wants(&title) {
                continue;
            }
            let sample = sample(bench);
            let mut group = bench.group(&title, Unit::PerSecond).turns_times(TURNS);
            for subject in &subjects {
                let name = subject.borrow().name;
                let address = server.address.clone();
                group = group.subject(name, move || {
                    let subject = &mut *subject.borrow_mut();
                    let before = subject.child.cpu();
                    let (rate, answers) =
                        ask(&mut subject.child, &address, path, connections, sample);
                    subject.used(before, answers);
                    rate
                });
            }
            let turns = group.run();
            print_cpu(&subjects);
            let ratio = turns.ratio("layered", "hyper").median;
            let (bar, hope) = (Limit::AtLeast(0.95), Limit::AtLeast(0.99));
            bench.bar(
                &format!("{title}: layered over bare"),
                ratio,
                bar,
                Some(hope),
            );
        }
    }
    for subject in &subjects {
        subject.borrow_mut().prove();
    }
    server.child.kill();
}

fn sample(bench: &Bench) -> Duration {
    Duration::from_millis(if bench.is_quick() { 15 } else { 50 })
}

// Answers a second, and how many there were.
fn ask(
    load: &mut Child,
    address: &str,
    path: &str,
    connections: usize,
    sample: Duration,
) -> (f64, u64) {
    let line = format!("{address} {path} {connections} {}", sample.as_millis());
    let said = load.ask(&line, "answers");
    let (answers, each) = said.split_once(' ').expect("two numbers");
    let answers = answers.parse().expect("a number");
    (1e9 / each.parse::<f64>().expect("a number"), answers)
}

fn print_cpu(subjects: &[RefCell<Subject>]) {
    let mut line = "  processor time for each:".to_owned();
    let mut first = None;
    for subject in subjects {
        let mut subject = subject.borrow_mut();
        let nanos = quantile(&subject.cpu, 0.5);
        subject.cpu.clear();
        let ratio = nanos / *first.get_or_insert(nanos);
        line.push_str(&format!(
            "  {} {} ({ratio:.3})",
            subject.name,
            Unit::Nanos.show(nanos)
        ));
    }
    println!("{line}\n");
}

impl Subject {
    fn serving(name: &'static str, dir: &TempDir) -> Self {
        let mut child = Child::start(&["serve", name], &dir.path().join(name));
        let address = child.expect("listening");
        Self {
            name,
            child,
            address,
            asked: 0,
            cpu: Vec::new(),
        }
    }

    fn asking(name: &'static str, dir: &TempDir) -> Self {
        let child = Child::start(&["load", name], &dir.path().join(name));
        Self {
            name,
            child,
            address: String::new(),
            asked: 0,
            cpu: Vec::new(),
        }
    }

    fn used(&mut self, before: Duration, answers: u64) {
        let used = self.child.cpu() - before;
        self.cpu.push(used.as_nanos() as f64 / answers as f64);
        self.asked += answers;
    }

    // What records has a record of each; whoever may lose some says so.
    fn prove(&mut self) {
        let recorded = self.child.ask("recorded", "recorded");
        let (recorded, lost) = recorded.split_once(' ').expect("two numbers");
        let recorded: u64 = recorded.parse().expect("a number");
        let lost: u64 = lost.parse().expect("a number");
        println!(
            "{}: {} answers, {recorded} recorded, {lost} of these lost",
            self.name, self.asked
        );
        let is_bare = matches!(self.name, "bare" | "bodies" | "hyper");
        assert!(
            is_bare || recorded >= self.asked,
            "{} did not record all",
            self.name
        );
    }
}
