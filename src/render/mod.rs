//! The text of a report: what is stuck, why, and the way out; then the proof, and who waits behind.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

mod chains;
mod footer;
mod headline;
mod nodes;
mod way_out;
mod words;

pub(crate) use self::words::age;
use self::words::width;
use crate::{
    report::{Analysis, Report, Verdict},
    text,
};

/// Lines are at most this wide.
const WIDTH: usize = 120;

/// Columns for the process and for what it does, at most.
const PROCESS: usize = 26;
const WHAT: usize = 52;

/// Lines of ops that are listed one by one; the rest is counted.
const MOST_LISTED: usize = 40;

/// Ended ops that are listed.
const MOST_ENDED: usize = 5;

impl fmt::Display for Report {
    /// Writes the text that `.diag` shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let analysis = self.analyse();
        let mut text = Text::new(self, &analysis);
        text.write();
        f.write_str(&text.out)
    }
}

struct Text<'a> {
    report: &'a Report,
    analysis: &'a Analysis<'a>,
    /// The numbers of the ops that have a line of their own.
    numbers: BTreeMap<usize, usize>,
    shown: HashSet<usize>,
    listed: usize,
    /// Columns that the process and what it does really take.
    columns: (usize, usize),
    out: String,
}

impl<'a> Text<'a> {
    fn new(report: &'a Report, analysis: &'a Analysis<'a>) -> Self {
        Self {
            report,
            analysis,
            numbers: BTreeMap::new(),
            shown: HashSet::new(),
            listed: 0,
            columns: (0, 0),
            out: String::new(),
        }
    }

    fn write(&mut self) {
        let chains = self.chains();
        for node in chains.iter().flatten() {
            let number = self.numbers.len() + 1;
            self.numbers.entry(*node).or_insert(number);
        }
        self.columns = self.widths();
        self.headline(&chains);
        let mut was_long = true;
        for chain in &chains {
            // Those of one op alone stand close.
            let is_long = chain.len() > 1;
            if was_long || is_long {
                self.line("");
            }
            was_long = is_long;
            self.chain(chain);
        }
        let title = match self.report.verdict() {
            Verdict::Deadlock | Verdict::LikelyDeadlock => "Behind it, not part of it",
            _ if !chains.is_empty() => "Behind them",
            _ => "In flight",
        };
        self.behind(title);
        self.held_up();
        self.rest();
        self.ended();
        self.line("");
        self.counts();
    }

    fn line(&mut self, line: &str) {
        // A peer may have sent anything.
        self.out.push_str(&text::visible(line.trim_end()));
        self.out.push('\n');
    }

    // Breaks between words, which no id has in it.
    fn wrapped(&mut self, line: &str) {
        self.filled(line.split(' '));
    }

    // Breaks between these only.
    fn filled<'u>(&mut self, units: impl Iterator<Item = &'u str>) {
        let mut now = String::new();
        for unit in units {
            if !now.is_empty() && width(&now) + 1 + width(unit) > WIDTH {
                self.line(&now);
                now = "        ".to_owned();
            } else if !now.is_empty() {
                now.push(' ');
            }
            now.push_str(unit);
        }
        self.line(&now);
    }
}
