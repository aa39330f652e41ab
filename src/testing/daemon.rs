//! A file-system or server process under test: ready when it says so, and gone whatever happens.

use std::{
    env, error, fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    clean_shell,
    clear::{RECORD, record},
    lines::Lines,
    registry::{self, Directory},
    scene, test_name,
};
use crate::{place::Place, report::Report};

/// In the environment of a daemon: the number of the descriptor that it writes to when it is ready.
const READY: &str = "INFLIGHT_READY_FD";

/// Standard output is captured with standard error; what was its pipe becomes descriptor 3.
const SCRIPT: &str = r#"exec 3>&1 >&2; cd -- "$0" && exec "$@""#;

const READY_WITHIN: Duration = Duration::from_secs(30);

const STOPS_WITHIN: Duration = Duration::from_secs(6);

/// What it is given after KILL, and its mount to go.
const LAST: Duration = Duration::from_secs(2);

/// What its debug server may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

const LOOK: Duration = Duration::from_millis(2);

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A process under test, ended when this is dropped.
///
/// Dropped, it gets TERM; if it has not ended 6 s later, its report is taken and it gets KILL. What it has left mounted
/// is aborted and unmounted. That it did not end, or had ended when nobody asked it to, fails the test; one that panics
/// already is told so on its standard error. Whether it can be killed or not, nothing is waited for without a deadline.
///
/// It is of the same process group as the test, so that whoever ends the test by a signal to all ends it as well.
#[must_use = "dropped at once, it is ended at once"]
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    lines: Lines,
    files: Files,
    mount: Option<PathBuf>,
    place: Option<Place>,
    url: Option<String>,
    stops_within: Duration,
    stops_at_eof: bool,
    may_end: bool,
    is_over: bool,
}

/// A daemon to be started, and how.
#[must_use = "it is started by `start`"]
#[derive(Debug)]
pub struct DaemonBuilder {
    command: Command,
    mount: Option<PathBuf>,
    ready_line: Option<String>,
    ready_within: Duration,
    stops_within: Duration,
    stops_at_eof: bool,
}

/// A daemon that did not become ready. Its text has what the daemon wrote, the report of that moment, and its threads.
pub struct DaemonError {
    what: String,
    said: String,
    threads: String,
    report: Option<Box<Report>>,
}

/// What a daemon leaves in the directory of its test.
#[derive(Debug)]
struct Files {
    directory: Arc<Directory>,
    number: u32,
    // Where its debug socket is.
    sockets: PathBuf,
}

impl Daemon {
    /// Starts a program, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it cannot be run, ends, or is not ready within 30 s.
    pub fn start(command: Command) -> Result<Self, DaemonError> {
        Self::builder(command).start()
    }

    /// Prepares a program: its arguments, its environment and its directory are taken over.
    pub fn builder(command: Command) -> DaemonBuilder {
        DaemonBuilder {
            command,
            mount: None,
            ready_line: None,
            ready_within: READY_WITHIN,
            stops_within: STOPS_WITHIN,
            stops_at_eof: false,
        }
    }

    /// Called in the daemon: writes a line to whoever started it, and the first one says that it is ready.
    ///
    /// The first URL in that line is where it serves, on a port of its own choice. Other programs do the same with
    /// `echo ready >&$INFLIGHT_READY_FD`. Of a process that no `Daemon` started it does nothing.
    pub fn say(line: &str) {
        let Ok(number) = env::var(READY) else {
            return;
        };
        let pipe = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{number}"));
        // Whoever started it may be gone.
        let _ = pipe.and_then(|mut pipe| pipe.write_all(format!("{line}\n").as_bytes()));
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where it is mounted.
    ///
    /// # Panics
    ///
    /// If it was not said where it [mounts](DaemonBuilder::mounts_at).
    #[must_use]
    pub fn mount(&self) -> &Path {
        let mount = self.mount.as_deref();
        mount.expect("a daemon of which `mounts_at` was said")
    }

    /// The number of the connection of its mount, as under /sys/fs/fuse/connections.
    #[must_use]
    pub fn connection(&self) -> Option<u64> {
        self.place.as_ref().map(Place::connection)
    }

    /// Where it serves: the first URL that it wrote when it was ready.
    ///
    /// # Panics
    ///
    /// If it wrote none.
    #[must_use]
    pub fn url(&self) -> &str {
        let url = self.url.as_deref();
        url.expect("a daemon that writes its URL when it is ready")
    }

    /// Where its debug socket is, or will be: `inflight::debug::serve` opens it there.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.files.sockets.join(format!("{}.sock", self.id()))
    }

    /// The report that it makes, with all that it can ask.
    ///
    /// # Errors
    ///
    /// If it does not answer within 3 s, or serves no report.
    pub fn report(&self) -> Result<Report, DaemonError> {
        let socket = self.socket();
        Report::of_process(&socket, ANSWERS_WITHIN).map_err(|why| {
            let what = format!("has no report at {}: {why}", socket.display());
            self.error(&what, ANSWERS_WITHIN)
        })
    }

    /// Its standard input, a pipe.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Waits for the next line that it writes to the ready pipe, for as long as it may take to be ready.
    ///
    /// # Errors
    ///
    /// If none comes, or the daemon ends before.
    pub fn line(&mut self, within: Duration) -> Result<String, DaemonError> {
        let until = Instant::now() + within;
        match self
            .lines
            .next(until, || self.child.try_wait().is_ok_and(|it| it.is_some()))
        {
            Ok(line) => Ok(line),
            Err(why) => Err(self.error(&why, within)),
        }
    }

    /// What it wrote to its standard output and error: the last 64 KiB.
    #[must_use]
    pub fn said(&self) -> String {
        scene::said(&self.files.path("said"))
    }

    /// Waits for it to end by itself, at most for so long, after which its end is no surprise to anybody.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        self.may_end = true;
        self.ended_within(within)
    }

    /// Kills it, as a crash would. What it has mounted stays there until this is dropped.
    ///
    /// # Errors
    ///
    /// If it has not ended 2 s later.
    pub fn kill(&mut self) -> Result<(), DaemonError> {
        self.may_end = true;
        self.signal(Signal::KILL);
        match self.ended_within(LAST) {
            Some(_) => Ok(()),
            None => Err(self.error("cannot be killed", LAST)),
        }
    }

    /// Ends it, as dropping it does, and says what went wrong.
    ///
    /// # Errors
    ///
    /// If it had ended before, or does not end as it should.
    pub fn stop(&mut self) -> Result<(), DaemonError> {
        let wrong = self.end();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(self.error(&wrong.join("\nand it "), self.stops_within)),
        }
    }

    /// Fails all requests of its mount, which frees their callers.
    pub fn abort(&self) {
        if let Some(place) = self.place.as_ref().filter(|place| place.exists()) {
            place.abort(Instant::now() + LAST);
        }
    }

    fn signal(&mut self, signal: Signal) {
        // Not reaped yet, the number is still its own.
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(pid) = Pid::from_raw(self.id().cast_signed())
        {
            let _gone = kill_process(pid, signal);
        }
    }

    fn ended_within(&mut self, most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + most;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(LOOK);
        }
    }

    fn error(&self, what: &str, waited: Duration) -> DaemonError {
        let report = scene::report(None, test_name::known().as_deref());
        DaemonError {
            what: format!("daemon {}[{}] {what}", self.name, self.id()),
            said: self.said(),
            threads: scene::threads(self.id(), None),
            report: Some(Box::new(scene::judged(report, waited))),
        }
    }

    // What is in flight, and where its threads sleep.
    fn details(&self, waited: Duration) -> String {
        let error = self.error("", waited);
        let report = error.report.map(|report| report.to_string());
        let report = scene::section("", &report.unwrap_or_default());
        report + &scene::section("Its threads", &error.threads)
    }

    fn wait_until_ready(&mut self, builder: &DaemonBuilder) -> Result<(), DaemonError> {
        let line = match &builder.ready_line {
            None => self.line(builder.ready_within),
            Some(begin) => self.wait_for_line(begin, builder.ready_within),
        };
        let line = line.map_err(|mut error| {
            error.what += &format!(", and was not ready within {:?}", builder.ready_within);
            error
        })?;
        self.url = url_in(&line).or_else(|| url_in(&self.said()));
        if let Some(mount) = &self.mount {
            self.place = Place::find(mount);
            if self.place.is_none() {
                let what = "says it is ready, but has mounted nothing";
                return Err(self.error(what, builder.ready_within));
            }
            let noted = record(&self.files.path(RECORD), mount, self.place.as_ref());
            noted.map_err(|error| {
                let what = format!("cannot be noted down: {error}");
                self.error(&what, builder.ready_within)
            })?;
        }
        Ok(())
    }

    fn wait_for_line(&mut self, begin: &str, within: Duration) -> Result<String, DaemonError> {
        let until = Instant::now() + within;
        loop {
            let said = self.said();
            if let Some(line) = said.lines().find(|line| line.starts_with(begin)) {
                return Ok(line.to_owned());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.error(&format!("ended, {status}"), within));
            }
            if Instant::now() >= until {
                return Err(self.error(&format!("has not said {begin:?}"), within));
            }
            thread::sleep(LOOK);
        }
    }

    // TERM, report, KILL, abort, detach; each with a deadline. Returns what went wrong.
    fn end(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.is_over, true) {
            return Vec::new();
        }
        let mut wrong = Vec::new();
        if let Ok(Some(status)) = self.child.try_wait()
            && !self.may_end
        {
            wrong.push(format!("ended before it was told to, {status}"));
        }
        let mut status = self.ends_by_itself();
        if status.is_none() {
            let details = self.details(self.stops_within);
            let after = self.stops_within;
            wrong.push(format!("has not ended {after:?} after TERM{details}"));
            self.signal(Signal::KILL);
        }
        wrong.extend(self.end_mount());
        if status.is_none() {
            status = self.ended_within(LAST);
        }
        if status.is_some() {
            // Killed, it could not remove it.
            let _gone = fs::remove_file(self.socket());
        } else {
            let threads = scene::threads(self.id(), None);
            wrong.push(format!("cannot be killed, and is left behind:\n{threads}"));
        }
        wrong
    }

    fn ends_by_itself(&mut self) -> Option<ExitStatus> {
        let in_time = self.stops_at_eof.then(|| {
            drop(self.child.stdin.take());
            self.ended_within(self.stops_within)
        });
        in_time.flatten().or_else(|| {
            self.signal(Signal::TERM);
            self.ended_within(self.stops_within)
        })
    }

    // What TERM ends at once leaves its mount behind: that is no failure, but to be mended.
    fn end_mount(&mut self) -> Option<String> {
        let mount = self.mount.as_ref()?;
        let place = self.place.take().or_else(|| Place::find(mount))?;
        if !place.exists() {
            return None;
        }
        let until = Instant::now() + LAST;
        place.abort(until);
        let unmounted = place.unmount(until);
        let error = unmounted.err()?;
        Some(format!("left {} mounted: {error}", mount.display()))
    }
}

impl Drop for Daemon {
    // To be overheard is what a test must not: it panics, unless the test does already.
    #[expect(
        clippy::panic,
        reason = "a daemon that does not end as it should fails its test"
    )]
    fn drop(&mut self) {
        let wrong = self.end();
        let said = self.said();
        let what = format!("daemon {}[{}]", self.name, self.id());
        if thread::panicking() {
            let said = scene::section(&format!("{what} said"), &said);
            eprintln!(
                "{}{said}",
                wrong
                    .iter()
                    .map(|it| format!("{what} {it}\n"))
                    .collect::<String>()
            );
        } else if !wrong.is_empty() {
            let said = scene::section("It said", &said);
            panic!("{what} {}\n{said}", wrong.join("\nand it "));
        }
    }
}

fn url_in(text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    let is_url = |word: &&str| word.starts_with("http://") || word.starts_with("https://");
    words.find(is_url).map(str::to_owned)
}

impl DaemonBuilder {
    /// Says where it will mount a file system. Default: nowhere.
    ///
    /// It is ready only when something is mounted there; and it is unmounted whatever becomes of the daemon.
    pub fn mounts_at(mut self, path: impl Into<PathBuf>) -> Self {
        self.mount = Some(path.into());
        self
    }

    /// Says how a line of its output begins that says it is ready, for a program that knows of no ready pipe.
    pub fn ready_line(mut self, begin: impl Into<String>) -> Self {
        self.ready_line = Some(begin.into());
        self
    }

    /// Sets how long it may take to be ready. Default: 30 s.
    pub fn ready_within(mut self, time: Duration) -> Self {
        self.ready_within = time;
        self
    }

    /// Sets how long it may take to end after TERM. Default: 6 s.
    pub fn stops_within(mut self, time: Duration) -> Self {
        self.stops_within = time;
        self
    }

    /// Says that it ends when its standard input does: it gets TERM only if it has not ended by that. Default: TERM
    /// at once.
    pub fn stops_at_eof(mut self) -> Self {
        self.stops_at_eof = true;
        self
    }

    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it cannot be run, ends, is not ready in time, or has mounted nothing where it was to. It is ended then.
    pub fn start(self) -> Result<Daemon, DaemonError> {
        let name = self.command.get_program().to_string_lossy();
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        let failed = |error: io::Error| DaemonError {
            what: format!("daemon {name} cannot be run: {error}"),
            said: String::new(),
            threads: String::new(),
            report: None,
        };
        let files = Files::new(&self.command).map_err(failed)?;
        let mut command = self.wrapped(&files).map_err(failed)?;
        if let Some(mount) = &self.mount {
            record(&files.path(RECORD), mount, None).map_err(failed)?;
        }
        let mut child = command.spawn().map_err(failed)?;
        let lines = Lines::of(child.stdout.take());
        let mut daemon = Daemon {
            name,
            child,
            lines,
            files,
            mount: self.mount.clone(),
            place: None,
            url: None,
            stops_within: self.stops_within,
            stops_at_eof: self.stops_at_eof,
            may_end: false,
            is_over: false,
        };
        if let Err(mut error) = daemon.wait_until_ready(&self) {
            daemon.may_end = true;
            for wrong in daemon.end() {
                error.what += &format!("\nand it {wrong}");
            }
            return Err(error);
        }
        Ok(daemon)
    }

    // The child of a process that serves a mount must change no directory before it runs its program, and std passes
    // no descriptor on: a shell does both.
    fn wrapped(&self, files: &Files) -> io::Result<Command> {
        let mut command = clean_shell::command("/bin/sh", SCRIPT);
        let dir = self.command.get_current_dir().unwrap_or(Path::new("/"));
        command
            .arg(dir)
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .env("INFLIGHT_DIR", &files.sockets)
            .env(READY, "3")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(files.path("said"))?);
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ok(command)
    }
}

impl Files {
    fn new(command: &Command) -> io::Result<Self> {
        let directory = registry::directory()?;
        let told = command.get_envs().find(|(name, _)| *name == "INFLIGHT_DIR");
        let told = told.and_then(|(_, value)| value).map(PathBuf::from);
        if let Some(told) = &told {
            directory.add(told);
        }
        Ok(Self {
            sockets: told.unwrap_or_else(|| directory.path().to_path_buf()),
            number: STARTED.fetch_add(1, Relaxed),
            directory,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory
            .path()
            .join(format!("daemon-{}.{name}", self.number))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for name in ["said", RECORD] {
            let _gone = fs::remove_file(self.path(name));
        }
    }
}

impl DaemonError {
    /// What was in flight then, if it had been started at all.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.report.as_deref()
    }

    /// What it wrote to its standard output and error.
    #[must_use]
    pub fn said(&self) -> &str {
        &self.said
    }
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        if let Some(report) = &self.report {
            f.write_str(&scene::section("", &report.to_string()))?;
        }
        f.write_str(&scene::section("Its threads", &self.threads))?;
        f.write_str(&scene::section("It said", &self.said))
    }
}

// What `unwrap` shows is for people.
impl fmt::Debug for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for DaemonError {}
