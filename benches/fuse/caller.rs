//! The child that calls into mounts: as often as it can for a while, or once, to be stuck.

use std::{
    fs::{self, File},
    io::{Read, stdin},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    child::{say, stay_on},
    harness::quantile,
    null::ENTRIES,
};

/// Calls between two looks at the clock, which cost nothing beside them.
const BATCH: u64 = 8;

/// Stays on a processor if one is named. One line each: `rate OP MILLIS MOUNT`, `times OP N MOUNT`, `once OP MOUNT`, `diag NEEDLE MOUNT`.
pub(crate) fn run(processor: Option<&String>) {
    if let Some(processor) = processor {
        stay_on(processor.parse().expect("a number"));
    }
    for line in stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match *words {
            ["rate", op, millis, mount] => {
                let most = Duration::from_millis(millis.parse().expect("milliseconds"));
                let (calls, each) = rate(op, most, u64::MAX, Path::new(mount));
                say(&format!("rate {calls} {each}"));
            }
            ["times", op, times, mount] => {
                let times = times.parse().expect("a number");
                let (calls, _) = rate(op, Duration::MAX, times, Path::new(mount));
                say(&format!("times {calls}"));
            }
            ["once", op, mount] => {
                once(op, Path::new(mount));
                say("once");
            }
            ["diag", needle, mount] => {
                let (took, text) = diag(Path::new(mount));
                let shown = text.contains(needle);
                say(&format!("diag {} {shown}", took.as_nanos()));
            }
            _ => panic!("what is {line}?"),
        }
    }
}

/// Calls again and again; how often, and how many nanoseconds each took.
fn rate(op: &str, most: Duration, times: u64, mount: &Path) -> (u64, f64) {
    let path = mount.join(if op == "readdir" { "d" } else { "f" });
    let is_io = op.starts_with("read-") || op.starts_with("write-");
    let file = is_io.then(|| {
        let mut options = File::options();
        options.read(true).write(true).open(&path).expect("open f")
    });
    let size = if op.ends_with("128k") {
        128 << 10
    } else {
        4 << 10
    };
    let mut buffer = vec![0; size];
    let mut call = || match (op, &file) {
        ("stat", _) => {
            let _known = fs::metadata(&path).expect("stat f");
        }
        ("open", _) => drop(File::open(&path).expect("open f")),
        ("readdir", _) => {
            let entries = fs::read_dir(&path).expect("readdir d").count();
            assert_eq!(entries as u64, ENTRIES);
        }
        ("read-4k" | "read-128k", Some(file)) => {
            assert_eq!(file.read_at(&mut buffer, 0).expect("read f"), size);
        }
        ("write-4k" | "write-128k", Some(file)) => {
            assert_eq!(file.write_at(&buffer, 0).expect("write f"), size);
        }
        _ => panic!("what is {op}?"),
    };
    let mut batches = Vec::new();
    let began = Instant::now();
    let mut last = began;
    let mut calls = 0;
    while calls < times && last - began < most {
        let batch = BATCH.min(times - calls);
        for _ in 0..batch {
            call();
        }
        calls += batch;
        let now = Instant::now();
        batches.push((now - last).as_nanos() as f64 / batch as f64);
        last = now;
    }
    // Not the mean, which would count what else ran on this processor.
    (calls, quantile(&batches, 0.5))
}

/// A call that is held up; what becomes of it in the end does not matter.
fn once(op: &str, mount: &Path) {
    let in_mount = |name: &str| mount.join(name);
    let mut buffer = [0; 4096];
    match op {
        "stat-root" => drop(fs::metadata(mount)),
        "stat" => drop(fs::metadata(in_mount("f"))),
        "lookup" => drop(fs::metadata(in_mount("unknown"))),
        "readdir" => drop(fs::read_dir(mount).map(Iterator::count)),
        "mkdir" => drop(fs::create_dir(in_mount("new"))),
        "read" => drop(File::open(in_mount("f")).map(|file| file.read_at(&mut buffer, 0))),
        "read-cached" => drop(File::open(in_mount("c")).map(|file| file.read_at(&mut buffer, 0))),
        "write" => {
            let file = File::options().write(true).open(in_mount("f"));
            drop(file.map(|file| file.write_at(&buffer, 0)));
        }
        "flush" => drop(File::open(in_mount("f"))),
        _ => panic!("what is {op}?"),
    }
}

/// What `cat .diag` does.
fn diag(mount: &Path) -> (Duration, String) {
    let began = Instant::now();
    let mut text = String::new();
    let file = File::open(mount.join(".diag"));
    let mut file = file.expect("open .diag");
    file.read_to_string(&mut text).expect("read .diag");
    drop(file);
    (began.elapsed(), text)
}
