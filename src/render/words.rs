//! Words and numbers as people read them.

use super::WHAT;
use crate::snapshot::{LiveOp, Resource};

pub(super) fn what(op: &LiveOp) -> String {
    let target = op.target.strip_prefix("http://").unwrap_or(&op.target);
    match target {
        "" => short(&op.name, WHAT),
        target => {
            let room = WHAT.saturating_sub(op.name.chars().count() + 1).max(20);
            format!("{} {}", short(&op.name, 30), short(target, room))
        }
    }
}

pub(super) fn resource(resource: &Resource) -> String {
    let kind = match resource.capacity {
        0 | 1 => "lock",
        _ => "pool",
    };
    format!("{kind} {:?}", short(&resource.name, 60))
}

// The end of a path says more than its beginning.
pub(super) fn short(text: &str, max: usize) -> String {
    let length = text.chars().count();
    if length <= max {
        return text.to_owned();
    }
    let head = max / 3;
    let tail = max - head - 2;
    let begin: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - tail).collect();
    format!("{begin}..{end}")
}

pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

pub(super) fn and(names: &[String]) -> String {
    match names {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        names => names.join(", "),
    }
}

pub(super) fn count(n: usize, of: &str) -> String {
    count_u64(n as u64, of)
}

pub(super) fn count_u64(n: u64, of: &str) -> String {
    match n {
        1 => format!("1 {of}"),
        n => format!("{n} {of}s"),
    }
}

pub(super) fn bytes(n: u64) -> String {
    match n {
        1 => "1 byte".to_owned(),
        n if n < 10_000 => format!("{n} bytes"),
        n if n < 10_000_000 => format!("{} KiB", n / 1024),
        n => format!("{} MiB", n / (1024 * 1024)),
    }
}

/// A time as people read it: 0.2 s, 29.9 s, 4 m 10 s.
pub(crate) fn age(ms: f64) -> String {
    // Cut, not rounded: 59.96 s is no 60.0 s.
    let tenths = (ms.max(0.0) / 100.0) as u64;
    let seconds = tenths / 10;
    match seconds {
        0..60 => format!("{seconds}.{} s", tenths % 10),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

// A threshold: 10 s rather than 10.0 s.
pub(super) fn plain(ms: f64) -> String {
    let text = age(ms);
    text.replace(".0 s", " s")
}

// Of "2026-02-11T13:56:28.123Z".
pub(super) fn time_of_day(timestamp: &str) -> &str {
    timestamp.get(11..19).unwrap_or("?")
}

pub(super) fn time_of_day_with_millis(timestamp: &str) -> String {
    format!("{} UTC", timestamp.get(11..23).unwrap_or("?"))
}
