//! Which run of tests a process, a mount or a file belongs to: a mark in the environment of all it starts.

use std::{env, fs, path::PathBuf, sync::LazyLock};

use crate::{proc, process};

/// In the environment of whatever a run started: the runs it belongs to, the outermost first.
pub(super) const VARIABLE: &str = "INFLIGHT_TEST_RUN";

/// What the names of directories of runs begin with.
pub(super) const PREFIX: &str = "inflight-test-";

/// Longer, and no socket would fit in.
const LONGEST_TEMPORARY: usize = 40;

static OWN: LazyLock<RunId> = LazyLock::new(RunId::of_this_process);

/// A process that runs tests, told from all others that ever had its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RunId {
    boot: String,
    pid_ns: String,
    pid: u32,
    start_ticks: String,
}

impl RunId {
    /// The run that this process is.
    pub(super) fn own() -> &'static Self {
        &OWN
    }

    fn of_this_process() -> Self {
        let process = process::identify("");
        Self {
            boot: process.boot_id.chars().take(8).collect(),
            pid_ns: process.pid_ns,
            pid: process.pid,
            start_ticks: process.start_ticks,
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let mut field = || fields.next().filter(|field| !field.is_empty());
        let id = Self {
            boot: field()?.to_owned(),
            pid_ns: field()?.to_owned(),
            pid: field()?.parse().ok()?,
            start_ticks: field()?.to_owned(),
        };
        fields.next().is_none().then_some(id)
    }

    /// The run whose directory it is.
    pub(super) fn of_directory(name: &str) -> Option<Self> {
        Self::parse(name.strip_prefix(PREFIX)?)
    }

    pub(super) fn text(&self) -> String {
        let Self {
            boot,
            pid_ns,
            pid,
            start_ticks,
        } = self;
        format!("{boot}-{pid_ns}-{pid}-{start_ticks}")
    }

    /// What the environment of whatever it starts is to hold.
    pub(super) fn mark(&self) -> String {
        match env::var(VARIABLE) {
            Ok(outer) if !outer.is_empty() => format!("{outer},{}", self.text()),
            _ => self.text(),
        }
    }

    /// Where its files are.
    pub(super) fn directory(&self) -> PathBuf {
        temporary().join(format!("{PREFIX}{}", self.text()))
    }

    /// Whether it surely has ended. Of one in another pid namespace nobody here knows.
    pub(super) fn is_over(&self) -> bool {
        let own = Self::own();
        if self.boot != own.boot {
            return true;
        }
        self.pid_ns == own.pid_ns
            && process::start_ticks_of(self.pid).is_none_or(|ticks| ticks != self.start_ticks)
    }

    /// The processes that carry its mark and are to end with it, this one excepted. Of a run that is over: none that
    /// a live one has to do with.
    pub(super) fn processes(&self) -> Vec<u32> {
        let text = self.text();
        let own = std::process::id();
        let is_own = self == Self::own();
        let are_over = |runs: &[String]| {
            let mut runs = runs.iter().filter_map(|run| Self::parse(run));
            runs.all(|run| run.is_over())
        };
        let marked = marked().into_iter().filter(|(pid, runs)| {
            *pid != own && runs.contains(&text) && (is_own || are_over(runs))
        });
        marked.map(|(pid, _)| pid).collect()
    }
}

/// All processes that carry a mark, and the runs in it.
pub(super) fn marked() -> Vec<(u32, Vec<String>)> {
    let begin = format!("{VARIABLE}=");
    let processes = proc::processes().filter_map(|(pid, path)| {
        let environment = fs::read(path.join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let mark = variables.find_map(|variable| variable.strip_prefix(begin.as_bytes()))?;
        let runs = String::from_utf8_lossy(mark);
        Some((pid, runs.split(',').map(str::to_owned).collect()))
    });
    processes.collect()
}

/// Where directories of runs are.
pub(super) fn temporary() -> PathBuf {
    let dir = env::temp_dir();
    match dir.as_os_str().len() > LONGEST_TEMPORARY {
        true => PathBuf::from("/tmp"),
        false => dir,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use super::{PREFIX, RunId, VARIABLE};

    #[test]
    fn a_run_is_read_back_from_its_directory() {
        let own = RunId::own();
        let name = own.directory();
        let name = name.file_name().unwrap().to_str().unwrap();

        assert_eq!(RunId::of_directory(name).as_ref(), Some(own));
        for strange in ["", "inflight-test-", "inflight-test-a-1-x-2", "other"] {
            assert_eq!(RunId::of_directory(strange), None, "{strange}");
        }
        assert!(name.starts_with(PREFIX));
    }

    #[test]
    fn only_a_run_that_is_surely_over_is_over() {
        let own = RunId::own();
        let other = |change: fn(&mut RunId)| {
            let mut other = own.clone();
            change(&mut other);
            other.is_over()
        };

        assert!(!own.is_over());
        assert!(other(|run| run.start_ticks = "1".to_owned()));
        assert!(other(|run| run.boot = "0".to_owned()));
        assert!(!other(|run| run.pid_ns = "1".to_owned()));
    }

    #[test]
    fn a_process_is_found_by_its_mark() {
        let mut run = RunId::own().clone();
        run.start_ticks = "77".to_owned();
        let mut cat = Command::new("cat");
        cat.env(VARIABLE, format!("x,{}", run.text()));
        let mut cat = cat.stdin(Stdio::piped()).spawn().unwrap();

        // It runs a moment before the kernel shows what it was given.
        let deadline = Instant::now() + Duration::from_secs(10);
        while run.processes().is_empty() && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(run.processes(), [cat.id()]);

        drop(cat.stdin.take());
        cat.wait().unwrap();
        assert!(run.processes().is_empty());
    }
}
