//! The command line.

use std::{fmt::Display, str::FromStr, time::Duration};

use reqwest::Url;

const MOST_THREADS: usize = 512;

/// What is left of it.
pub(crate) struct Args(pub(crate) Vec<String>);

impl Args {
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let found = self.0.iter().position(|arg| arg == name);
        found.map(|at| self.0.remove(at)).is_some()
    }

    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.0.iter().position(|arg| arg == name) else {
            return Ok(None);
        };
        if at + 1 == self.0.len() {
            return Err(format!("{name} needs a value"));
        }
        self.0.remove(at);
        Ok(Some(self.0.remove(at)))
    }

    /// Where something answers over plain HTTP.
    pub(crate) fn url(&mut self, name: &str) -> Result<Option<String>, String> {
        let is_url = |url: &String| Url::parse(url).is_ok_and(|url| url.scheme() == "http");
        match self.value(name)? {
            Some(url) if !is_url(&url) => Err(format!("{name} {url}: not http://HOST:PORT")),
            url => Ok(url),
        }
    }

    pub(crate) fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, String> {
        self.value(name)?
            .map(|value| value.parse().map_err(|e| format!("{name} {value}: {e}")))
            .transpose()
    }

    /// How many threads: one at least, and not so many that the machine has no room for others.
    pub(crate) fn threads(&mut self, name: &str, usual: usize) -> Result<usize, String> {
        match self.parsed(name)?.unwrap_or(usual) {
            threads @ 1..=MOST_THREADS => Ok(threads),
            other => Err(format!("{name} {other}: not 1 to {MOST_THREADS}")),
        }
    }

    pub(crate) fn seconds(&mut self, name: &str) -> Result<Option<Duration>, String> {
        let seconds = self.parsed(name)?.map(Duration::try_from_secs_f64);
        seconds.transpose().map_err(|e| format!("{name}: {e}"))
    }

    pub(crate) fn next(&mut self) -> Option<String> {
        let at = self.0.iter().position(|arg| !arg.starts_with("--"))?;
        Some(self.0.remove(at))
    }

    pub(crate) fn nothing_left(&self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some(arg) => Err(format!("what is {arg}?")),
        }
    }
}
