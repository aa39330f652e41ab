//! The program `inflight`: what is stuck on this machine, why, and the way out.
#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anstyle::{AnsiColor, Style};
use clap::{Args, Parser, Subcommand};
use inflight::{
    Filter, Kind, Report, Tracker, debug,
    machine::{self, FuseMount, Group, Server},
    report::Verdict,
};

/// What a program is given to end after TERM, and after KILL.
const LAST: Duration = Duration::from_secs(1);

const ABOUT: &str = "Shows why a system of FUSE file systems and HTTP services is stuck.

Without a SOURCE it asks all processes of this machine that serve a report (inflight::debug::serve),
joins what they say, and lists all FUSE mounts, with what to do about each.";

const EXAMPLES: &str = "Examples:
  inflight                       what is stuck on this machine, and why
  inflight /mnt/s                what one mount has to do with
  inflight 443 --json            what one process does, as data
  inflight check                 for scripts: 0 nothing is stuck, 1 something is, 2 could not tell
  inflight abort /mnt/s          frees all who wait for a mount; they get an error
  inflight run -t 60s -- make    runs a command, and shows the report if it hangs

Exit codes: 0 printed a report, 2 had none. Of `run`: 124 timed out, 125 own failure, 126 and 127 as
env(1), else the command's. See https://docs.rs/inflight for what the report says.";

#[derive(Parser)]
#[command(name = "inflight", version, about = "Shows why a system of FUSE file systems and HTTP services is stuck", long_about = ABOUT, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    show: Show,
}

#[derive(Args)]
struct Show {
    /// A process id, the path of a debug socket, the URL of a report, or the path of a FUSE mount
    /// [default: all of this machine]
    source: Vec<String>,
    /// Prints the report as JSON, schema inflight/1
    #[arg(long)]
    json: bool,
    /// Keeps ops of one kind: fuse, http.client, http.server or task
    #[arg(long, value_parser = kind)]
    kind: Option<Kind>,
    /// Keeps ops that are at least so old: 500ms, 2s, 1m
    #[arg(long, value_parser = duration)]
    min_age: Option<Duration>,
}

#[derive(Subcommand)]
enum Verb {
    /// Says by its exit code whether something is stuck: 0 no, 1 yes, 2 could not tell
    Check {
        /// A process id, the path of a debug socket, or the path of a FUSE mount [default: all]
        source: Vec<String>,
        /// Without progress for so long an op is stuck [default: what its process says, 10s]
        #[arg(long, value_parser = duration)]
        stuck_after: Option<Duration>,
    },
    /// Fails all requests of one FUSE connection, which frees all who wait for them
    Abort {
        /// The path of a mount, or the number of a connection: a mount that was detached has no path
        mount: String,
        /// Does not ask first
        #[arg(long)]
        yes: bool,
        /// Detaches the mount as well
        #[arg(long)]
        detach: bool,
    },
    /// Runs a command with a deadline; if it hangs, shows the report and its threads, and ends it
    Run {
        /// How long it may take: 500ms, 2s, 1m
        #[arg(short, long, value_parser = duration, default_value = "60s")]
        timeout: Duration,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let tracker = Tracker::new("inflight");
    match options.verb {
        None => show(&tracker, &options.show),
        Some(Verb::Check {
            source,
            stuck_after,
        }) => check(&tracker, &source, stuck_after),
        Some(Verb::Abort { mount, yes, detach }) => abort(&tracker, &mount, yes, detach),
        Some(Verb::Run { timeout, command }) => run(&tracker, timeout, &command),
    }
}

fn show(tracker: &Tracker, show: &Show) -> ExitCode {
    let mut report = Report::collect_from(tracker, &show.source);
    if show.kind.is_some() || show.min_age.is_some() {
        let mut filter = Filter::new().min_age(show.min_age.unwrap_or_default());
        if let Some(kind) = &show.kind {
            filter = filter.kind(kind.clone());
        }
        report = report.filtered(&filter);
    }
    let mounts = match show.source.is_empty() {
        true => machine::fuse_mounts(),
        false => Vec::new(),
    };
    if report.peers.is_empty() && mounts.is_empty() {
        return nothing_found(&report);
    }
    let text = match show.json {
        true => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        false => report.to_string() + &mounts_text(&report, &mounts),
    };
    print(&text);
    ExitCode::SUCCESS
}

fn check(tracker: &Tracker, sources: &[String], stuck_after: Option<Duration>) -> ExitCode {
    let mut report = Report::collect_from(tracker, sources);
    if let Some(after) = stuck_after {
        report = report.stuck_after(after);
    }
    let text = report.to_string();
    let first = text.lines().next().unwrap_or_default();
    match report.verdict() {
        Verdict::Deadlock | Verdict::LikelyDeadlock | Verdict::Stuck => {
            print(&text);
            ExitCode::FAILURE
        }
        _ if report.peers.is_empty() => nothing_found(&report),
        _ if !report.peers_failed.is_empty() => {
            print(&text);
            ExitCode::from(2)
        }
        _ => {
            print(&format!("{first}\n"));
            ExitCode::SUCCESS
        }
    }
}

fn nothing_found(report: &Report) -> ExitCode {
    eprintln!("inflight: no process serves a report here, as inflight::debug::serve does");
    for failed in &report.peers_failed {
        eprintln!("  {}: {}", failed.address, failed.why);
    }
    eprintln!("Looked for PID.sock in");
    for dir in debug::looked_in() {
        eprintln!("  {}", dir.display());
    }
    eprintln!("  and in every directory inflight* that stands in /proc/net/unix");
    if !rustix::process::geteuid().is_root() {
        eprintln!("Those of other users only root may ask.");
    }
    ExitCode::from(2)
}

// What the report cannot know of: mounts whose daemon has no tracker, and dead ones.
fn mounts_text(report: &Report, mounts: &[FuseMount]) -> String {
    if mounts.is_empty() {
        return String::new();
    }
    let mut text = String::from("\nFUSE mounts of this machine\n");
    let snapshots = || std::iter::once(&report.local).chain(&report.peers);
    let is_silent = |pid| {
        let mut failed = report.peers_failed.iter();
        failed.any(|failed| failed.pid() == Some(pid))
    };
    for mount in mounts {
        let waiting = match mount.kernel_waiting {
            Some(waiting) => format!("kernel {waiting} waiting"),
            None => "the kernel's count cannot be read".to_owned(),
        };
        let path = &mount.path;
        let connection = mount.connection;
        let has_tracker = snapshots().any(|snapshot| {
            let mut mounts = snapshot.mounts.iter();
            mounts.any(|known| known.connection == Some(connection) && known.path == *path)
        });
        let (server, advice) = match &mount.server {
            Server::Dead => (
                "DEAD: nobody serves it".to_owned(),
                format!("to remove it: umount -l {path}"),
            ),
            server => {
                let name = match server {
                    Server::Process(pid, name) => format!("served by {name}[{pid}]"),
                    Server::Unknown(why) => format!("who serves it is not known ({why})"),
                    _ => "who serves it is not known".to_owned(),
                };
                let advice = match (has_tracker, mount.kernel_waiting) {
                    (true, _) | (_, Some(0)) => String::new(),
                    _ => format!("if it hangs, to free its callers: inflight abort {path}"),
                };
                let inside = match server {
                    _ if has_tracker => "",
                    Server::Process(pid, _) if is_silent(*pid) => ", whose report is missing",
                    Server::Process(..) => ", which runs no inflight",
                    _ => "",
                };
                (format!("{name}{inside}"), advice)
            }
        };
        text.push_str(&format!(
            "     {path}   connection {connection}   {server}   {waiting}\n"
        ));
        if !advice.is_empty() {
            text.push_str(&format!("          {advice}\n"));
        }
    }
    text
}

fn abort(tracker: &Tracker, mount: &str, yes: bool, detach: bool) -> ExitCode {
    let mounts = machine::fuse_mounts();
    // The last of several at one path is the one that is seen.
    let of_path = mounts
        .iter()
        .rfind(|known| known.path == mount.trim_end_matches('/'));
    let Some(connection) = of_path
        .map(|known| known.connection)
        .or_else(|| mount.parse().ok())
    else {
        eprintln!("inflight: {mount} is no FUSE mount and no number of a connection. There are");
        for known in &mounts {
            eprintln!("  {}   connection {}", known.path, known.connection);
        }
        return ExitCode::from(2);
    };
    let report = Report::collect_from(tracker, &[]);
    let mut callers = callers_of(&report, connection);
    let of_mount = report.held_up.iter().filter(|held_up| {
        let path = of_path.map(|known| &known.path);
        path.is_some() && held_up.mount.as_ref() == path
    });
    callers.extend(of_mount.map(|it| format!("{}[{}]", it.comm, it.pid)));
    callers.sort();
    callers.dedup();
    let waiting = machine::kernel_waiting(connection);
    if !yes {
        let many = waiting.map_or_else(|| "all".to_owned(), |waiting| waiting.to_string());
        eprintln!(
            "This fails {many} requests of connection {connection}, and the mount serves nothing any more. What they \
             asked for may be carried out all the same, by the server behind it."
        );
        if !io::stdin().is_terminal() {
            eprintln!("inflight: say --yes, since nobody is here to be asked");
            return ExitCode::from(2);
        }
        eprint!("Go on? [y/N] ");
        let mut answer = String::new();
        if io::stdin().read_line(&mut answer).is_err() || !answer.trim().eq_ignore_ascii_case("y") {
            return ExitCode::from(2);
        }
    }
    if let Err(error) = machine::abort(connection) {
        eprintln!("inflight: cannot abort connection {connection}: {error}");
        eprintln!("{}", advice_on_abort(&error, mount));
        return ExitCode::from(2);
    }
    // The callers leave by themselves; the count shows when they have.
    let until = Instant::now() + 2 * LAST;
    while machine::kernel_waiting(connection).unwrap_or(0) > 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    let left = machine::kernel_waiting(connection).unwrap_or(0);
    let freed = waiting.unwrap_or(0).saturating_sub(left);
    let named = match callers.is_empty() {
        true => String::new(),
        false => format!(": {}", callers.join(", ")),
    };
    print(&format!(
        "Aborted connection {connection}. Freed {freed} requests{named}\n"
    ));
    if detach && of_path.is_some() {
        return detach_mount(mount);
    }
    ExitCode::SUCCESS
}

fn callers_of(report: &Report, connection: u64) -> Vec<String> {
    let mut callers = Vec::new();
    for snapshot in std::iter::once(&report.local).chain(&report.peers) {
        let mut mounts = snapshot.mounts.iter();
        let Some(mount) = mounts.find(|mount| mount.connection == Some(connection)) else {
            continue;
        };
        for op in &snapshot.ops {
            let is_here = op
                .fuse
                .as_ref()
                .is_some_and(|fuse| fuse.mount == mount.path);
            if let Some(caller) = op.caller.as_ref().filter(|_| is_here) {
                let name = caller.comm.as_deref().unwrap_or("?");
                callers.push(format!("{name}[{}]", caller.pid.unwrap_or(caller.tid)));
            }
        }
    }
    callers
}

fn advice_on_abort(error: &io::Error, mount: &str) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "Only root and whoever mounted it may.".to_owned(),
        io::ErrorKind::NotFound => format!(
            "If /sys/fs/fuse/connections is empty: mount -t fusectl none /sys/fs/fuse/connections, or try umount -f {mount}"
        ),
        _ => String::new(),
    }
}

fn detach_mount(mount: &str) -> ExitCode {
    use rustix::mount::{UnmountFlags, unmount};

    let detached = unmount(mount, UnmountFlags::DETACH).is_ok()
        || Command::new("fusermount3")
            .args(["-uz", mount])
            .status()
            .is_ok_and(|status| status.success());
    match detached {
        true => {
            print(&format!("Detached {mount}\n"));
            ExitCode::SUCCESS
        }
        false => {
            eprintln!("inflight: cannot detach {mount}; as root: umount -l {mount}");
            ExitCode::from(2)
        }
    }
}

fn run(tracker: &Tracker, timeout: Duration, command: &[OsString]) -> ExitCode {
    let [program, arguments @ ..] = command else {
        return ExitCode::from(125);
    };
    let mut child = match Group::spawn(Command::new(program).args(arguments)) {
        Ok(child) => child,
        Err(error) => {
            eprintln!(
                "inflight: cannot run {}: {error}",
                Path::new(program).display()
            );
            return ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => 127,
                io::ErrorKind::PermissionDenied => 126,
                _ => 125,
            });
        }
    };
    match child.ended_within(timeout) {
        Ok(Some(status)) => return code_of(status),
        Ok(None) => {}
        Err(error) => {
            eprintln!("inflight: cannot wait for it: {error}");
            return ExitCode::from(125);
        }
    }
    let seconds = timeout.as_secs_f64();
    eprintln!(
        "inflight: {} has not ended after {seconds} s",
        Path::new(program).display()
    );
    for thread in child.threads() {
        eprintln!("  {thread}");
    }
    eprintln!("\n{}", Report::collect(tracker));
    let left = child.end(LAST);
    if !left.is_empty() {
        eprintln!(
            "inflight: left behind, since it cannot be killed now (inflight abort would free it):"
        );
        left.iter().for_each(|thread| eprintln!("  {thread}"));
    }
    ExitCode::from(124)
}

fn code_of(status: ExitStatus) -> ExitCode {
    let of_signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(of_signal).unwrap_or(125);
    ExitCode::from(u8::try_from(code).unwrap_or(125))
}

// Whoever reads may have gone: that is no failure.
// Colours are for a terminal, and for those who did not say NO_COLOR.
fn print(text: &str) {
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

fn kind(text: &str) -> Result<Kind, String> {
    match serde_json::from_value(text.into()) {
        Ok(Kind::Other(_)) | Err(_) => {
            Err("it is fuse, http.client, http.server or task".to_owned())
        }
        Ok(kind) => Ok(kind),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    debug::parse_duration(text).ok_or_else(|| "a time is written 500ms, 2s or 1m".to_owned())
}
