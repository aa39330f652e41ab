//! What an op works on, in memory that the next op of its record uses again.

use std::borrow::Cow;

/// What an op works on, as it is said.
#[derive(Clone, Debug)]
pub(crate) enum Target<'a> {
    Unknown,
    /// A path or a word.
    Text(Cow<'a, str>),
    /// A URL, or a path with a query; its secrets are removed when it is shown.
    Url(Cow<'a, str>),
}

/// The same as it is kept. The route that a framework matched stands behind it, in one string: each more would
/// be one more place in memory that an op fetches.
#[derive(Debug)]
pub(super) struct Subject {
    text: String,
    route_at: usize,
    is: Is,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Unknown,
    Text,
    Url,
}

// What is kept allocated for the next op.
const KEPT: usize = 1024;

impl Subject {
    pub(super) fn new(target: &Target<'_>, route: &str) -> Self {
        let mut new = Self {
            text: String::new(),
            route_at: 0,
            is: Is::Unknown,
        };
        new.renew(target, route);
        new
    }

    /// Makes it that of another op.
    #[inline]
    pub(super) fn renew(&mut self, target: &Target<'_>, route: &str) {
        // As it is for tasks, one after the other.
        if self.text.is_empty() && matches!(target, Target::Unknown) && route.is_empty() {
            self.is = Is::Unknown;
            return;
        }
        self.fill(target, route);
    }

    fn fill(&mut self, target: &Target<'_>, route: &str) {
        self.text.clear();
        if self.text.capacity() > KEPT {
            self.text.shrink_to(KEPT);
        }
        let (is, target) = taken(target);
        self.is = is;
        self.text.push_str(target);
        self.route_at = target.len();
        self.text.push_str(route);
    }

    pub(super) fn set_target(&mut self, target: &Target<'_>) {
        let (is, target) = taken(target);
        self.is = is;
        self.text.replace_range(..self.route_at, target);
        self.route_at = target.len();
    }

    pub(super) fn target(&self) -> Target<'_> {
        let target = Cow::Borrowed(&self.text[..self.route_at]);
        match self.is {
            Is::Unknown => Target::Unknown,
            Is::Text => Target::Text(target),
            Is::Url => Target::Url(target),
        }
    }

    pub(super) fn route(&self) -> Option<&str> {
        Some(&self.text[self.route_at..]).filter(|route| !route.is_empty())
    }
}

impl Clone for Subject {
    fn clone(&self) -> Self {
        Self {
            text: self.text.clone(),
            ..*self
        }
    }

    // Into the memory that is there: what is derived makes a new string.
    fn clone_from(&mut self, source: &Self) {
        self.text.clone_from(&source.text);
        self.route_at = source.route_at;
        self.is = source.is;
    }
}

fn taken<'a>(target: &'a Target<'_>) -> (Is, &'a str) {
    match target {
        Target::Unknown => (Is::Unknown, ""),
        Target::Text(text) => (Is::Text, text),
        Target::Url(url) => (Is::Url, url),
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Subject, Target};

    #[test]
    fn a_target_that_changes_leaves_the_route() {
        let mut subject = Subject::new(&Target::Url("/block/7".into()), "/block/{n}");
        subject.set_target(&Target::Text("the index".into()));

        assert!(matches!(subject.target(), Target::Text(text) if text == "the index"));
        assert_eq!(subject.route(), Some("/block/{n}"));
    }

    #[test]
    fn nothing_of_one_op_is_left_in_the_next() {
        let long = "x".repeat(2 * KEPT);
        let mut subject = Subject::new(&Target::Text(long.into()), "/{n}");
        subject.renew(&Target::Unknown, "");

        assert!(matches!(subject.target(), Target::Unknown));
        assert_eq!(subject.route(), None);
        assert!(subject.text.capacity() <= KEPT);
    }
}
