//! What the example says to arguments that make no sense: a line that names them, and never a mount.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
};

use crate::stage::{DEADLINE, example, output};

/// The exit code, and what was said where.
fn shelley(arguments: &str) -> (Option<i32>, String, String) {
    let ran = Command::new(example())
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = output(ran.unwrap(), DEADLINE);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn each_command_says_how_it_is_used() {
    for arguments in ["--help", "-h", "serve --help", "mount --help"] {
        let (code, said, complaint) = shelley(arguments);

        assert_eq!((code, &*complaint), (Some(0), ""), "{arguments}");
        assert!(said.starts_with("usage: shelley "), "{said}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().display();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let over = "--server http://127.0.0.1:9";

    for (arguments, why) in [
        ("sing".to_owned(), "no such command: sing"),
        ("serve more".to_owned(), "what is more?"),
        ("serve --walk fast".to_owned(), "--walk fast: not naive, "),
        ("serve --threads 0".to_owned(), "--threads 0: not 1 to 512"),
        (
            "serve --threads 99999999".to_owned(),
            "--threads 99999999: not 1 to 512",
        ),
        ("serve --walk-deadline -1".to_owned(), "--walk-deadline: "),
        (
            "serve --gate door=/x".to_owned(),
            "--gate door=/x: not one of locked, ",
        ),
        ("serve --gate list".to_owned(), "not POINT=SOCKET"),
        ("serve --listen here".to_owned(), "--listen here: "),
        (
            format!("serve --listen {taken}"),
            "cannot serve: Address already in use",
        ),
        (
            "serve --otlp ftp://here".to_owned(),
            "--otlp ftp://here: not http://",
        ),
        ("mount /proc".to_owned(), "mount needs --server URL"),
        (format!("mount {over}"), "mount needs a directory"),
        (
            "mount /proc --server here".to_owned(),
            "--server here: not http://",
        ),
        (
            format!("mount /no/where {over}"),
            "/no/where: No such file or directory",
        ),
        (format!("mount {file} {over}"), "not a directory"),
        (
            format!("mount /proc {over} --slots 0"),
            "--slots 0: not 1 to 512",
        ),
        (
            format!("mount /proc {over} --header x"),
            "--header x: not NAME=VALUE",
        ),
    ] {
        // Should one be accepted, it ends at once all the same.
        let (code, said, complaint) = shelley(&format!("{arguments} --stop-at-eof"));

        assert_eq!((code, &*said), (Some(1), ""), "{arguments}");
        assert!(complaint.starts_with("shelley: "), "{complaint}");
        assert!(complaint.contains(why), "{arguments}: {complaint}");
    }
}

#[test]
fn that_no_spans_can_be_sent_is_said() {
    let ran = Command::new(example())
        .args("serve --stop-at-eof --otlp http://127.0.0.1:9".split(' '))
        .env("OTEL_SDK_DISABLED", "true")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = output(ran.unwrap(), DEADLINE);

    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "shelley: sends no spans: OTEL_SDK_DISABLED=true\n"
    );
    assert!(output.status.success());
}

#[test]
fn a_part_that_the_story_does_not_have_is_refused_by_its_name() {
    for (arguments, why) in [
        (
            "--only nothing",
            "--only nothing: not one of normal, hang, foreign, repaired",
        ),
        ("--only", "--only needs a value"),
        ("--keep --loud", "what is --loud?"),
    ] {
        let (code, said, complaint) = shelley(arguments);

        assert_eq!((code, &*said), (Some(2), ""), "{arguments}");
        assert!(complaint.contains(why), "{arguments}: {complaint}");
    }
}
