//! The text of an error that somebody else made.

use std::{
    any::Any,
    error::Error,
    fmt::{self, Write},
};

// Far more than is shown. A cut through a URL could bring out what the `@` behind it would have hidden.
const MAX: usize = 16 * 1024;
const MAX_CAUSES: usize = 8;

#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

/// What an error says, and its causes if they can be reached.
pub(super) fn text<E: fmt::Display + 'static>(error: &E) -> String {
    let mut out = Bounded::default();
    // Not to_string(): it panics if `Display` reports an error.
    let _ = write!(out, "{error}");
    let mut cause = cause(error);
    for _ in 0..MAX_CAUSES {
        let Some(error) = cause else { break };
        let before = out.text.len();
        let _ = write!(out, ": {error}");
        // Some say their cause themselves.
        let (said, this) = out.text.split_at(before);
        if said.contains(&this[this.len().min(2)..]) {
            out.text.truncate(before);
        }
        cause = error.source();
    }
    if out.full {
        let end = out.text.rfind(char::is_whitespace).unwrap_or(0);
        out.text.truncate(end);
        out.text.push_str(" ...");
    }
    out.text
}

fn cause<E: 'static>(error: &E) -> Option<&(dyn Error + 'static)> {
    let error: &dyn Any = error;
    if let Some(error) = error.downcast_ref::<Box<dyn Error + Send + Sync>>() {
        return error.source();
    }
    #[cfg(feature = "debug")]
    {
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.source();
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.source();
        }
        if let Some(error) = error.downcast_ref::<axum::Error>() {
            return error.source();
        }
    }
    None
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = MAX - self.text.len();
        let end = part.floor_char_boundary(room);
        self.text.push_str(&part[..end]);
        self.full |= end < part.len();
        if self.full { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX, text};

    struct Liar;

    impl std::fmt::Display for Liar {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Err(std::fmt::Error)
        }
    }

    #[test]
    fn an_endless_error_is_cut_between_words() {
        let secret = format!("cannot reach http://bob:{}@api", "s3cret".repeat(MAX));

        assert_eq!(text(&secret), "cannot reach ...");
    }

    #[test]
    fn an_error_that_cannot_be_shown_is_no_panic() {
        assert_eq!(text(&Liar), "");
    }

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("refused");
        let error: Box<dyn std::error::Error + Send + Sync> =
            Box::new(std::io::Error::other(inner));

        assert_eq!(text(&error), "refused");
    }
}
