//! What users, peers and the network may hand in: hostile, secret, far too long, far too much.

use std::{
    fs,
    time::{Duration, Instant},
};

use inflight::{
    Filter, Op, Report, Snapshot, Tracker,
    id::{Context, TraceParent},
    resource::Resource,
};
use proptest::{collection::vec, prelude::any};
use serde_json::Value;

/// Longer than any string that is shown.
const BOUND: usize = 512;

const HOSTILE: &[&str] = &[
    "line one\nDEADLOCK: line two",
    "return\rover",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{202e}txt.exe\u{2066}\u{2069}",
    "zero\u{200b}\u{200d}\u{2060}\u{feff}width",
    "null\0 delete\u{7f} c1\u{85}\u{9b}31m",
    "line\u{2028}para\u{2029}",
    "\u{e0041}\u{e007f} tags \u{fe0f}\u{ad}",
];

const SECRET_URLS: &[&str] = &[
    "http://bob:s3cret@api:80/x?token=s3cret&limit=s3cret#s3cret",
    "https://s3cret@api/x",
    "http://bob:p@s3cret@[::1]:80/?a=s3cret",
    "http://bob:x/s3cret@10.0.0.7:99/x",
    "http://bob:(s3cret)'s3cret'@api/x?t=(s3cret)'s3cret'",
    "postgres://bob:s3cret@db/x?sslpassword=s3cret",
    "http://api/x?next=http://bob:s3cret@other/?t=s3cret",
];

// A string of that many bytes that is no plain text.
fn long(bytes: usize) -> String {
    "\u{e9}\n".repeat(bytes.div_ceil(3))
}

fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fe0f}' | '\u{e0000}'..='\u{e0fff}')
}

fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(strings).collect(),
        Value::Object(fields) => fields.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

// Everything a reader of this tracker can get to see.
fn outlets(tracker: &Tracker, op: &Op) -> (Vec<String>, String) {
    let report = serde_json::to_value(Report::local(tracker)).unwrap();
    let strings = strings(&report).into_iter().map(str::to_owned);
    let debug = format!("{op:?}");
    let text = Report::local(tracker).to_string();
    (strings.chain([debug]).collect(), text)
}

// Says `text` of an op wherever something can be said.
fn say(tracker: &Tracker, text: &str) -> Op {
    let op = tracker.begin(text.to_owned());
    let _in = op.enter();
    op.phase(format!("{text} before"));
    op.phase(text.to_owned());
    op.target(text.to_owned());
    op.fail(text.to_owned());
    let resource = Resource::new(tracker, text.to_owned());
    // Long enough to leave an event.
    let held = resource.wait(|| {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1) {
            std::thread::yield_now();
        }
    });
    let ended = tracker.begin(text.to_owned());
    ended.fail(text.to_owned());
    drop((ended, held));
    op
}

#[test]
fn what_moves_a_cursor_is_written_out() {
    for hostile in HOSTILE {
        let tracker = Tracker::new(*hostile);
        let op = say(&tracker, hostile);
        let _nested = op.nested(*hostile);
        let _resource = Resource::new(&tracker, *hostile);
        let _call = tracker.call(hostile, format!("http://api/{hostile}"));

        let (strings, text) = outlets(&tracker, &op);

        for shown in &strings {
            assert!(shown.chars().all(is_harmless), "{shown:?}");
            assert!(shown.len() <= BOUND, "{} bytes", shown.len());
        }
        let in_lines = text.lines().flat_map(str::chars);
        assert!(in_lines.clone().all(is_harmless), "{text:?}");
        assert!(
            !text
                .lines()
                .skip(1)
                .any(|line| line.starts_with("DEADLOCK"))
        );
        // Written out, not thrown away.
        let all = strings.concat();
        assert!(all.contains("\\u{") || all.contains("\\n") || all.contains("\\r"));
    }
}

#[test]
fn what_is_too_long_is_cut() {
    for text in [long(1000), long(100_000), "x".repeat(1 << 20)] {
        let tracker = Tracker::new(text.clone());
        let op = say(&tracker, &text);
        let _nested = op.nested(text.clone());
        let _call = tracker.call(&text, format!("http://{text}/{text}?{text}={text}"));

        let (strings, text) = outlets(&tracker, &op);

        let longest = strings.iter().map(String::len).max();
        assert!(longest <= Some(BOUND), "{longest:?}");
        assert!(strings.iter().any(|shown| shown.ends_with("...")));
        assert!(text.len() < 16 * 1024, "{} bytes", text.len());
    }
}

#[test]
fn no_outlet_shows_a_password_a_query_value_or_a_fragment() {
    let filler = "f".repeat(100_000);
    let long_ones = [
        format!("http://bob:{filler}s3cret@api/x?t=s3cret"),
        format!("http://api/{filler}?token={filler}s3cret"),
        format!("http://bob:s3cret@api/x?token=s3cret{filler}"),
        // As long as is kept, so that the cut is just before the host.
        format!("http://{}:s3cret@api/x", "b".repeat(BOUND - 16)),
        format!("http://{}:s3cret@api/x", "b".repeat(128 - 16)),
    ];
    let urls = SECRET_URLS.iter().map(|url| (*url).to_owned());
    for url in urls.chain(long_ones) {
        let tracker = Tracker::new("test");
        let op = say(&tracker, &format!("GET {url} failed"));
        let _nested = op.nested(url.clone());
        let _call = tracker.call("GET", &url);

        let (strings, text) = outlets(&tracker, &op);

        for shown in strings.iter().map(String::as_str).chain(text.lines()) {
            assert!(!shown.contains("s3cret"), "{shown:?}");
            assert!(!shown.contains("fffffff@") && !shown.contains("=fff"));
        }
    }
}

#[test]
fn a_peer_cannot_write_to_the_terminal_of_who_asks_it() {
    let tracker = Tracker::new("peer");
    let op = say(&tracker, "HERE");
    let _waits = {
        let _in = op.enter();
        tracker.call("GET", "http://api/HERE")
    };
    let honest = serde_json::to_string(&tracker.snapshot()).unwrap();

    for hostile in HOSTILE
        .iter()
        .map(|text| (*text).to_owned())
        .chain([long(100_000)])
    {
        let inside = serde_json::to_string(&hostile).unwrap();
        let sent = honest.replace("HERE", inside.trim_matches('"'));
        let peer: Snapshot = serde_json::from_str(&sent).unwrap();
        assert!(peer.ops[0].name.contains(&hostile));

        let text = Report::from_snapshots(vec![Snapshot::default(), peer]).to_string();

        let mut in_lines = text.lines().flat_map(str::chars);
        assert!(in_lines.all(is_harmless), "{text:?}");
        assert!(!text.contains("\nDEADLOCK") && !text.contains("\nover"));
        assert!(text.len() < 64 * 1024, "{} bytes", text.len());
    }
}

#[test]
fn a_hundred_thousand_ops_are_shown_or_counted() {
    const OPS: usize = 100_000;
    let resident = || -> f64 {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages = statm.split(' ').nth(1).unwrap();
        pages.parse::<f64>().unwrap() * 4096.0
    };
    let tracker = Tracker::builder("test").capacity(OPS).build();
    let before = resident();
    let ops: Vec<_> = (0..OPS)
        .map(|_| {
            let op = tracker.begin("one of many");
            op.phase("waiting");
            op
        })
        .collect();
    let per_op = (resident() - before) / OPS as f64;

    let begun = Instant::now();
    let all = tracker.snapshot();
    let took = begun.elapsed();
    let few = tracker.snapshot_of(&Filter::new().limit(100));
    let none = tracker.snapshot_of(&Filter::new().limit(0));
    let above = tracker.begin("one too many");

    eprintln!("{per_op:.0} bytes a live op; a snapshot of {OPS} took {took:?}, unoptimised");
    assert_eq!((all.ops.len(), all.totals.left_out), (OPS, 0));
    assert_eq!(all.ops[0].id, ops[0].id().unwrap(), "the oldest first");
    assert_eq!(
        (few.ops.len(), few.totals.left_out),
        (100, OPS as u64 - 100)
    );
    assert_eq!(few.ops[0].id, ops[0].id().unwrap());
    assert!(serde_json::to_string(&few).unwrap().len() < 100 * 1024);
    assert_eq!(none.totals.left_out, OPS as u64);
    assert_eq!(above.id(), None);
    assert_eq!(
        tracker
            .snapshot_of(&Filter::new().limit(0))
            .totals
            .not_recorded,
        1
    );
    let text = Report::local(&tracker).to_string();
    assert!(
        text.contains("100,000") || text.contains("100000"),
        "{text:.500}"
    );
    assert!(text.len() < 64 * 1024, "{} bytes", text.len());
    drop(ops);
    assert!(tracker.snapshot().ops.is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 500,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn no_text_is_too_strange_for_an_op(chars in vec(any::<char>(), 0..2000)) {
        let text: String = chars.into_iter().collect();
        let tracker = Tracker::new(text.clone());
        let op = tracker.begin(text.clone());
        op.target(text.clone());
        op.phase(text.clone());
        let _call = tracker.call(&text, &text);

        let (strings, text) = outlets(&tracker, &op);

        proptest::prop_assert!(strings.iter().all(|shown| shown.len() <= BOUND));
        proptest::prop_assert!(strings.iter().flat_map(|shown| shown.chars()).all(is_harmless));
        proptest::prop_assert!(text.lines().flat_map(str::chars).all(is_harmless));
        let mut widths = text.lines().map(|line| line.chars().count());
        proptest::prop_assert!(widths.all(|width| width <= 120), "{}", text);
    }

    #[test]
    fn a_header_is_read_back_as_written_or_refused(
        chars in vec(any::<char>(), 0..80),
        hex in "[0-9a-f]{32}-[0-9a-f]{16}",
        parent in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z]{1,5})?",
    ) {
        let any: String = chars.into_iter().collect();
        for text in [&any, &hex, &parent] {
            if let Ok(context) = text.parse::<Context>() {
                proptest::prop_assert_eq!(&context.to_string(), text);
            }
            if let Ok(parent) = text.parse::<TraceParent>() {
                proptest::prop_assert_eq!(&parent.to_string()[3..55], &text[3..55]);
            }
        }
    }
}
