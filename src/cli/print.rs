//! Standard output, in colour where a person reads it.

use std::io::Write;

use anstyle::{AnsiColor, Style};

// Whoever reads may have gone: that is no failure.
// Colours are for a terminal, and for those who did not say NO_COLOR.
pub(super) fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out
        .write_all(coloured(text).as_bytes())
        .and_then(|()| out.flush());
}

// The verdict and what holds it up. Nothing in a report is a control character, so what is added is all there is.
fn coloured(text: &str) -> String {
    let words = [
        ("LIKELY DEADLOCK", AnsiColor::Red),
        ("DEADLOCK", AnsiColor::Red),
        ("STUCK", AnsiColor::Red),
        ("SLOW", AnsiColor::Yellow),
        ("UNKNOWN", AnsiColor::Yellow),
        ("OFF", AnsiColor::Yellow),
        ("OK", AnsiColor::Green),
    ];
    let of_verdict = words.iter().find(|(word, _)| text.starts_with(word));
    let Some((word, colour)) = of_verdict else {
        return text.to_owned();
    };
    let paint = |word: &str, style: Style| format!("{style}{word}{style:#}");
    let verdict = paint(word, Style::new().bold().fg_color(Some((*colour).into())));
    let rest = text[word.len()..]
        .replace("HOLDS", &paint("HOLDS", Style::new().bold()))
        .replace("WAITS", &paint("WAITS", Style::new().bold()))
        .replace("Culprit:", &paint("Culprit:", Style::new().bold()));
    verdict + &rest
}
