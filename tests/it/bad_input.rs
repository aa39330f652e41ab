//! Strings that would do harm, and more ops than anyone wants.

use inflight::{Filter, Report, Tracker, resource::Resource};

const HOSTILE: [&str; 6] = [
    "a\nb",
    "\x1b[31mred",
    "\u{202e}gnp.exe",
    "zero\u{200b}width",
    "\u{2066}isolated\u{2069}",
    "tab\tand\rreturn",
];

fn is_harmless(text: &str) -> bool {
    text.chars()
        .all(|c| !c.is_control() && !matches!(c, '\u{200b}' | '\u{202e}' | '\u{2066}' | '\u{2069}'))
}

#[test]
fn hostile_strings_come_out_escaped_everywhere() {
    let long = "x".repeat(100_000);
    for hostile in HOSTILE.into_iter().chain([long.as_str()]) {
        let tracker = Tracker::new(hostile);
        let resource = Resource::new(&tracker, hostile.to_owned());
        let op = tracker.begin(hostile.to_owned());
        let _in = op.enter();
        op.target(hostile.to_owned());
        op.phase(hostile.to_owned());
        let _nested = op.nested(hostile.to_owned());
        op.fail(hostile.to_owned());
        let _held = resource.wait(|| ());

        let report = Report::local(&tracker);
        let text = report.to_string();
        let json = serde_json::to_string(&report).unwrap();

        assert!(text.lines().all(is_harmless), "{text:?}");
        assert!(is_harmless(&json), "{json:?}");
        assert!(json.len() < 20_000, "{} bytes", json.len());
    }
}

#[test]
fn secrets_in_urls_are_shown_nowhere() {
    let tracker = Tracker::new("test");
    let url = format!(
        "http://bob:s3cret@api/{}?token=s3cret&{}#s3cret",
        "x".repeat(50_000),
        "y=s3cret&".repeat(5_000)
    );
    let call = tracker.call("GET", &url);
    call.fail(format!("error sending request for url ({url})"));
    let op = tracker.begin("sync");
    op.target(url.clone());
    op.phase(format!("fetch {url}"));
    op.fail(url);

    let during = serde_json::to_string(&Report::local(&tracker)).unwrap();
    let text = Report::local(&tracker).to_string();
    drop((call, op));
    let after = serde_json::to_string(&Report::local(&tracker)).unwrap();

    for shown in [during, text, after] {
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("api"), "{shown}");
        assert!(shown.len() < 30_000, "{}", shown.len());
    }
}

#[test]
fn a_hundred_thousand_live_ops_are_shown_and_counted() {
    const OPS: usize = 100_000;
    let tracker = Tracker::builder("test").capacity(2 * OPS).build();
    let mut ops: Vec<_> = (0..OPS).map(|n| tracker.begin(format!("op {n}"))).collect();

    let all = tracker.snapshot();
    let some = tracker.snapshot_of(&Filter::new().limit(10));
    let text = Report::local(&tracker).to_string();

    assert_eq!(all.ops.len(), OPS);
    assert!(
        all.ops.windows(2).all(|two| two[0].age_ms >= two[1].age_ms),
        "oldest first"
    );
    assert_eq!(
        (some.ops.len(), some.totals.left_out as usize),
        (10, OPS - 10)
    );
    assert!(text.contains("In flight: 100000 ops here"), "{text}");
    assert!(text.lines().count() < 100);
    ops.truncate(1);
    assert_eq!(tracker.snapshot().ops.len(), 1);
}
