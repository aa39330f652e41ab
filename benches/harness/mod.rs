//! What the benches share: subjects that take turns, ratios of their pairs, conditions, and bars that can be missed.
#![allow(dead_code, reason = "each bench uses its part")]

use std::{
    fs,
    process::ExitCode,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

/// Compiled in, so that the versions shown are those that were built.
const LOCKED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"));

const USAGE: &str = "cargo bench [--bench NAME] [-- [--quick] [--check] [WORD..]]

  --quick   short samples and fewer turns: shows that all works; its numbers are rough
  --check   fails if a bar is missed; with --quick, if one is missed by more than a factor of four
  WORD      only groups whose title contains one of these words";

/// One run of a bench.
pub(crate) struct Bench {
    quick: bool,
    check: bool,
    words: Vec<String>,
    bars: Vec<String>,
    has_failed: bool,
}

/// Subjects that do the same job and take turns at it.
pub(crate) struct Group<'a> {
    title: String,
    unit: Unit,
    turns: usize,
    is_wanted: bool,
    subjects: Vec<Subject<'a>>,
}

struct Subject<'a> {
    name: String,
    sample: Box<dyn FnMut() -> f64 + 'a>,
}

/// What the turns of a group gave.
pub(crate) struct Turns {
    unit: Unit,
    samples: Vec<(String, Vec<f64>)>,
}

/// What a sample is a number of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds for one piece of work.
    Nanos,
    /// Milliseconds for one piece of work.
    Millis,
    /// Pieces of work in a second.
    PerSecond,
}

/// One subject over another, turn by turn.
#[derive(Clone, Copy)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    /// The quartiles.
    pub(crate) spread: (f64, f64),
    pub(crate) worst: f64,
}

/// On which side of it a number reaches a bar.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Bench {
    /// Reads the arguments and prints the conditions; of the crates in `compared`, the versions.
    pub(crate) fn start(name: &str, compared: &[&str]) -> Self {
        let (mut quick, mut check, mut is_bench) = (false, false, false);
        let mut words = Vec::new();
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--bench" => is_bench = true,
                "--quick" => quick = true,
                "--check" => check = true,
                "--help" | "-h" => {
                    println!("{USAGE}");
                    std::process::exit(0);
                }
                word if word.starts_with('-') => {
                    eprintln!("{word} is not known\n\n{USAGE}");
                    std::process::exit(2);
                }
                word => words.push(word.to_lowercase()),
            }
        }
        // `cargo test --benches` says nothing, and wants to know only whether it runs.
        let quick = quick || !is_bench;
        println!("== {name}{}", if quick { ", quick" } else { "" });
        println!("{}", conditions());
        let own = ["inflight"];
        let versions: Vec<_> = own.iter().chain(compared).map(|of| version(of)).collect();
        println!("{}\n", versions.join(", "));
        Self {
            quick,
            check,
            words,
            bars: Vec::new(),
            has_failed: false,
        }
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.quick
    }

    /// How long a sample of something that takes nanoseconds is to take.
    pub(crate) fn sample(&self) -> Duration {
        Duration::from_millis(if self.quick { 2 } else { 20 })
    }

    /// How many turns the subjects of a group take.
    pub(crate) fn turns(&self) -> usize {
        if self.quick { 3 } else { 10 }
    }

    /// Whether this is to be run, after the words of the command line.
    pub(crate) fn wants(&self, title: &str) -> bool {
        let title = title.to_lowercase();
        self.words.is_empty() || self.words.iter().any(|word| title.contains(word))
    }

    /// Begins a group. The first subject is what the others are shown against.
    pub(crate) fn group<'a>(&self, title: impl Into<String>, unit: Unit) -> Group<'a> {
        let title = title.into();
        Group {
            is_wanted: self.wants(&title),
            title,
            unit,
            turns: self.turns(),
            subjects: Vec::new(),
        }
    }

    /// Holds a number against a bar and what is hoped for beyond it. NaN was not measured.
    pub(crate) fn bar(&mut self, what: &str, value: f64, bar: Limit, hope: Option<Limit>) {
        if value.is_nan() {
            return;
        }
        let (word, limit) = bar.words();
        let reached = |limit: Limit| match limit.is_reached(value, 1.0) {
            true => "reached",
            false => "NOT reached",
        };
        let mut line = format!(
            "bar: {what}: {} ({word} {limit}) {}",
            number(value),
            reached(bar)
        );
        if let Some(hope) = hope {
            let (word, limit) = hope.words();
            line.push_str(&format!("; hoped {word} {limit}: {}", reached(hope)));
        }
        self.bars.push(line);
        // Short samples on a busy machine miss by a third; twice is no noise.
        self.has_failed |= !bar.is_reached(value, if self.quick { 4.0 } else { 1.0 });
    }

    /// Prints the bars. Fails if one was missed and `--check` was said.
    pub(crate) fn finish(self) -> ExitCode {
        for line in &self.bars {
            println!("{line}");
        }
        println!();
        match self.check && self.has_failed {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }
}

impl<'a> Group<'a> {
    /// Adds a subject. `sample` does the job for a while and returns one number.
    pub(crate) fn subject(
        mut self,
        name: impl Into<String>,
        sample: impl FnMut() -> f64 + 'a,
    ) -> Self {
        self.subjects.push(Subject {
            name: name.into(),
            sample: Box::new(sample),
        });
        self
    }

    /// Takes so many times as many turns. Whoever shares a core with us comes and goes: many short turns bring the
    /// subjects of a pair closer together than few long ones.
    pub(crate) fn turns_times(mut self, factor: usize) -> Self {
        self.turns *= factor;
        self
    }

    /// Lets the subjects take turns, and prints what they gave.
    pub(crate) fn run(mut self) -> Turns {
        let names = self.subjects.iter().map(|subject| subject.name.clone());
        let mut turns = Turns {
            unit: self.unit,
            samples: names.map(|name| (name, Vec::new())).collect(),
        };
        if !self.is_wanted {
            return turns;
        }
        // The first is thrown away: caches, page tables and the clock of the processor come to rest.
        for turn in 0..=self.turns {
            let mut order: Vec<usize> = (0..self.subjects.len()).collect();
            // Every other turn backwards, so that a machine that slows down hits both of a pair alike.
            if turn % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let value = (self.subjects[at].sample)();
                if turn > 0 {
                    turns.samples[at].1.push(value);
                }
            }
        }
        turns.print(&self.title);
        turns
    }
}

impl Turns {
    /// One subject over another: the median of the ratios of their pairs, and how they spread.
    pub(crate) fn ratio(&self, of: &str, over: &str) -> Ratio {
        let pairs = self.of(of).iter().zip(self.of(over));
        let ratios: Vec<f64> = pairs.map(|(of, over)| of / over).collect();
        let worst = match self.unit {
            Unit::PerSecond => 0.0,
            Unit::Nanos | Unit::Millis => 1.0,
        };
        Ratio {
            median: quantile(&ratios, 0.5),
            spread: (quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
            worst: quantile(&ratios, worst),
        }
    }

    pub(crate) fn median(&self, of: &str) -> f64 {
        quantile(self.of(of), 0.5)
    }

    fn of(&self, name: &str) -> &[f64] {
        let found = self.samples.iter().find(|(known, _)| known == name);
        found.map_or(&[], |(_, samples)| samples)
    }

    fn print(&self, title: &str) {
        println!(
            "{title:<44} {:>12}   ratio      spread          worst",
            "median"
        );
        let Some((first, _)) = self.samples.first() else {
            return;
        };
        for (name, _) in &self.samples {
            let median = self.unit.show(self.median(name));
            if name == first {
                println!("  {name:<42} {median:>12}   1");
                continue;
            }
            let Ratio {
                median: ratio,
                spread: (low, high),
                worst,
            } = self.ratio(name, first);
            let spread = format!("{} .. {}", number(low), number(high));
            println!(
                "  {name:<42} {median:>12}   {:<7}    {spread:<15} {}",
                number(ratio),
                number(worst)
            );
        }
        println!();
    }
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Unit::Nanos if value >= 100_000.0 => format!("{} us", number(value / 1000.0)),
            Unit::Nanos => format!("{} ns", number(value)),
            Unit::Millis => format!("{} ms", number(value)),
            Unit::PerSecond => format!("{value:.0} /s"),
        }
    }
}

impl Limit {
    fn words(self) -> (&'static str, String) {
        match self {
            Limit::AtMost(limit) => ("at most", number(limit)),
            Limit::AtLeast(limit) => ("at least", number(limit)),
        }
    }

    fn is_reached(self, value: f64, leeway: f64) -> bool {
        match self {
            Limit::AtMost(limit) => value <= limit * leeway,
            Limit::AtLeast(limit) => value >= limit / leeway,
        }
    }
}

/// Does a piece of work again and again for about so long, and returns the nanoseconds each took.
pub(crate) fn nanos_each(sample: Duration, mut work: impl FnMut()) -> f64 {
    // So many between two looks at the clock that the looks cost nothing.
    const BATCH: u32 = 256;
    let mut batches = Vec::new();
    let begun = Instant::now();
    let mut last = begun;
    while last - begun < sample || batches.len() < 3 {
        for _ in 0..BATCH {
            work();
        }
        let now = Instant::now();
        batches.push((now - last).as_nanos() as f64 / f64::from(BATCH));
        last = now;
    }
    // The median of short batches, since a mean would count what else ran on this processor.
    quantile(&batches, 0.5)
}

/// The same on so many threads at once; the nanoseconds are those that a thread took for each.
pub(crate) fn nanos_each_on<W: FnMut()>(
    threads: usize,
    sample: Duration,
    prepare: impl Fn(usize) -> W + Sync,
) -> f64 {
    let start = Barrier::new(threads);
    let (start, prepare) = (&start, &prepare);
    let taken = thread::scope(|scope| {
        let threads = (0..threads).map(|number| {
            scope.spawn(move || {
                let work = prepare(number);
                start.wait();
                nanos_each(sample, work)
            })
        });
        let threads: Vec<_> = threads.collect();
        let taken = threads.into_iter().map(|thread| thread.join());
        taken.map(|taken| taken.unwrap_or(f64::NAN)).sum::<f64>()
    });
    taken / threads as f64
}

/// How many threads run at once here.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value below which this part of the values lies; NaN of none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = part * last as f64;
    let (low, high) = (sorted[place as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

fn conditions() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let processor = processor
        .lines()
        .find(|line| line.starts_with("model name"));
    let processor = processor.and_then(|line| line.split_once(": "));
    format!(
        "{} cores of {}, Linux {}, clock {}, load {} before",
        cores(),
        processor.map_or("a processor of no name", |(_, name)| name),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    )
}

fn version(of: &str) -> String {
    let name = format!("name = \"{of}\"\nversion = \"");
    let found = LOCKED.split(&name).skip(1);
    let versions: Vec<_> = found.filter_map(|rest| rest.split('"').next()).collect();
    match versions.is_empty() {
        true => format!("{of} (not in Cargo.lock)"),
        false => format!("{of} {}", versions.join(" and ")),
    }
}
