//! Runs a shell command that may hang, with a deadline.

use std::{
    error, fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    clean_shell,
    registry::{self, Directory},
    scene,
};
use crate::{
    machine::{Group, Sleeper},
    report::Report,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// What it is given to end after TERM, and after KILL.
const LAST: Duration = Duration::from_millis(500);

static RUNS: AtomicU32 = AtomicU32::new(0);

/// A shell command, and how it is to be run.
#[must_use = "it is run by `run`"]
#[derive(Clone, Debug)]
pub struct Shell {
    script: String,
    shell: String,
    dir: Option<PathBuf>,
    variables: Vec<(String, String)>,
    deadline: Duration,
}

/// What a command that ended well wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// To its standard output.
    pub stdout: String,
    /// To its standard error.
    pub stderr: String,
}

/// A command that failed, hung, or could not be run.
///
/// Its text has all of it: what the command wrote, the report, its threads and where they sleep, and what it has
/// open on FUSE mounts.
pub struct RunError(Box<Failure>);

struct Failure {
    what: String,
    status: Option<ExitStatus>,
    hung: bool,
    output: Output,
    threads: Vec<Sleeper>,
    files: String,
    left: Vec<Sleeper>,
    report: Report,
}

/// Runs a shell command to its end, at most for its deadline: `run("cat /mnt/s/file")?.stdout`.
///
/// It runs in a process group of its own, with `/` as its directory, no input, and an environment in which no
/// inherited shell hook can run. If it hangs, it is ended, and what cannot die is left behind: nothing is waited for
/// without a deadline. Settings are those of [`Shell`].
///
/// # Errors
///
/// If it has not ended at its deadline (10 s), if its exit status is a failure, or if it cannot be run; each with the
/// report of that moment.
pub fn run(command: impl Into<Shell>) -> Result<Output, RunError> {
    command.into().run()
}

impl Shell {
    /// A command in the language of the shell.
    pub fn new(script: impl Into<String>) -> Self {
        Self {
            script: script.into(),
            shell: "sh".to_owned(),
            dir: None,
            variables: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// Sets the shell. Default: `sh`.
    pub fn shell(mut self, shell: impl Into<String>) -> Self {
        self.shell = shell.into();
        self
    }

    /// Sets the directory, which the shell itself goes to. Default: `/`.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Sets how long it may take. Default: 10 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    fn run(&self) -> Result<Output, RunError> {
        let running = Running::start(self);
        let (mut group, files) = running.map_err(|error| {
            let what = format!("cannot be run: {error}");
            RunError(Box::new(Failure::new(what, Output::default(), self)))
        })?;
        let ended = group.ended_within(self.deadline);
        let what = match &ended {
            Ok(Some(status)) if status.success() => return Ok(files.output()),
            Ok(Some(status)) => format!("failed, {status}"),
            Ok(None) => format!("has not ended after {:.1} s", self.deadline.as_secs_f64()),
            Err(error) => format!("cannot be waited for: {error}"),
        };
        let mut failure = Failure::new(what, files.output(), self);
        failure.status = ended.ok().flatten();
        failure.hung = failure.status.is_none();
        failure.threads = group.threads();
        let mut pids: Vec<u32> = failure.threads.iter().map(|thread| thread.pid).collect();
        pids.dedup();
        failure.files = scene::open_files(pids);
        failure.left = group.end(LAST);
        Err(RunError(Box::new(failure)))
    }
}

impl<S: Into<String>> From<S> for Shell {
    fn from(script: S) -> Self {
        Self::new(script)
    }
}

/// Where a command writes to: files, since a pipe would have to be read by somebody all along.
struct Running {
    directory: Arc<Directory>,
    number: u32,
}

impl Running {
    fn start(shell: &Shell) -> io::Result<(Group, Self)> {
        let files = Self {
            directory: registry::directory()?,
            number: RUNS.fetch_add(1, Relaxed),
        };
        // The directory may hang: that must hang the shell, and nobody else.
        let script = match &shell.dir {
            Some(_) => format!("cd -- \"$0\" && {{\n{}\n}}", shell.script),
            None => shell.script.clone(),
        };
        let mut command = clean_shell::command(&shell.shell, &script);
        if let Some(dir) = &shell.dir {
            command.arg(dir);
        }
        command
            .envs(shell.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(File::create(files.path("out"))?)
            .stderr(File::create(files.path("err"))?);
        Ok((Group::spawn(&mut command)?, files))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory
            .path()
            .join(format!("run-{}.{name}", self.number))
    }

    fn output(&self) -> Output {
        let read = |name: &str| {
            let bytes = fs::read(self.path(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Output {
            stdout: read("out"),
            stderr: read("err"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for name in ["out", "err"] {
            let path: &Path = &self.path(name);
            let _gone = fs::remove_file(path);
        }
    }
}

impl Failure {
    fn new(what: String, output: Output, shell: &Shell) -> Self {
        let report = scene::report(None, super::test_name::known().as_deref());
        Self {
            what: format!("`{}` {what}", shell.script),
            status: None,
            hung: false,
            output,
            threads: Vec::new(),
            files: String::new(),
            left: Vec::new(),
            report: scene::judged(report, shell.deadline),
        }
    }
}

impl RunError {
    /// Whether it had not ended at its deadline.
    #[must_use]
    pub fn hung(&self) -> bool {
        self.0.hung
    }

    /// How it ended, if it ended by itself.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        self.0.status
    }

    /// What it wrote.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.0.output
    }

    /// What was in flight when it failed.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.0.report
    }

    /// Its threads when it failed, and where they slept.
    #[must_use]
    pub fn threads(&self) -> &[Sleeper] {
        &self.0.threads
    }

    /// Its threads that could not be killed.
    #[must_use]
    pub fn left(&self) -> &[Sleeper] {
        &self.0.left
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.what)?;
        f.write_str(&scene::section("", &self.0.report.to_string()))?;
        let list = |threads: &[Sleeper]| -> String {
            let lines = threads.iter().map(|thread| format!("  {thread}\n"));
            lines.collect()
        };
        for (heading, text) in [
            ("Its threads", list(&self.0.threads)),
            ("It has open on FUSE mounts", self.0.files.clone()),
            (
                "Left behind, since it cannot be killed now",
                list(&self.0.left),
            ),
            ("It wrote to stdout", self.0.output.stdout.clone()),
            ("It wrote to stderr", self.0.output.stderr.clone()),
        ] {
            f.write_str(&scene::section(heading, &text))?;
        }
        Ok(())
    }
}

// What `unwrap` shows is for people.
impl fmt::Debug for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for RunError {}
