//! `inflight run`: a command with a deadline, and the report if it hangs.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use inflight::{
    Report, Tracker,
    machine::{Group, Sleeper},
};
use rustix::process::{Signal, kill_current_process_group};

use super::{
    signals::{Signals, die_of},
    stops::Stops,
    terminal::Terminal,
};

/// What a command is given to end after TERM, and after KILL.
const LAST: Duration = Duration::from_secs(1);

const LOOK: Duration = Duration::from_millis(20);

/// Why nobody waits for the command any more.
enum Over {
    Ended(ExitStatus),
    Signalled(Signal),
    TimedOut,
}

pub(crate) fn run(tracker: &Tracker, timeout: Duration, command: &[OsString]) -> ExitCode {
    let [program, arguments @ ..] = command else {
        return ExitCode::from(125);
    };
    // Before there is anyone to pass them on to.
    let signals = Signals::catch();
    let mut child = match Group::spawn(Command::new(program).args(arguments)) {
        Ok(child) => child,
        Err(error) => {
            say(&format!(
                "inflight: cannot run {}: {error}\n",
                Path::new(program).display()
            ));
            return ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => 127,
                io::ErrorKind::PermissionDenied => 126,
                _ => 125,
            });
        }
    };
    let stops = Stops::hold();
    let mut terminal = Terminal::lend(&child);
    let over = wait(&mut child, &signals, &stops, &mut terminal, timeout);
    match over {
        Ok(Over::Ended(status)) => {
            let was_lent = terminal.take();
            match status.signal().and_then(Signal::from_named_raw) {
                // Typed where it is not lent, it reaches the whole job: a script with its loop as well.
                Some(signal @ (Signal::INT | Signal::QUIT)) if was_lent => {
                    let _ = kill_current_process_group(signal);
                    die_of(signal)
                }
                _ => code_of(status),
            }
        }
        Ok(Over::Signalled(signal)) => {
            child.signal(signal);
            let status = child.ended_within(LAST).ok().flatten();
            let left = match status {
                None => child.end(LAST),
                Some(_) => Vec::new(),
            };
            terminal.take();
            say(&left_behind(&left));
            match status {
                Some(status) if status.signal() != Some(signal.as_raw()) => code_of(status),
                _ => die_of(signal),
            }
        }
        Ok(Over::TimedOut) => {
            let mut text = format!(
                "inflight: {} has not ended after {} s\n",
                Path::new(program).display(),
                timeout.as_secs_f64()
            );
            text += &lines(&child.threads());
            text += &format!("\n{}\n", Report::collect(tracker));
            // First of all: whoever reads this may have gone, or may never read on.
            let left = child.end(LAST);
            terminal.take();
            say(&(text + &left_behind(&left)));
            ExitCode::from(124)
        }
        Err(error) => {
            let left = child.end(LAST);
            say(&format!(
                "inflight: cannot wait for it: {error}\n{}",
                left_behind(&left)
            ));
            ExitCode::from(125)
        }
    }
}

// Never waits for one that cannot die.
fn wait(
    child: &mut Group,
    signals: &Signals,
    stops: &Stops,
    terminal: &mut Terminal,
    timeout: Duration,
) -> io::Result<Over> {
    // One that the clock does not reach is none.
    let mut until = Instant::now().checked_add(timeout);
    let mut told_to_stop: Option<Instant> = None;
    loop {
        let left = until.map_or(LOOK, |until| {
            until.saturating_duration_since(Instant::now())
        });
        if let Some(status) = child.ended_within(left.min(LOOK))? {
            return Ok(Over::Ended(status));
        }
        if told_to_stop.is_none() && stops.has_come() {
            child.signal(Signal::TSTP);
            told_to_stop = Some(Instant::now());
        }
        let by = child.stopped_by();
        let since = Instant::now();
        // Ctrl-Z gives the terminal back even if the command takes no notice of it.
        let is_due = |told: Instant| by.is_some() || told.elapsed() >= LAST;
        if told_to_stop.is_some_and(is_due) {
            terminal.stop_too(child, stops);
            told_to_stop = None;
        } else if let Some(by) = by {
            terminal.stopped(by, child, stops);
        }
        // Who is stopped by the user does not hang.
        until = until.and_then(|until| until.checked_add(since.elapsed()));
        if let Some(signal) = signals.next() {
            return Ok(Over::Signalled(signal));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(Over::TimedOut);
        }
    }
}

/// Where nobody listens any more it is not said: what is left to do is done all the same.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn left_behind(threads: &[Sleeper]) -> String {
    if threads.is_empty() {
        return String::new();
    }
    "inflight: left behind, since it cannot be killed now (inflight abort would free it):\n"
        .to_owned()
        + &lines(threads)
}

fn lines(threads: &[Sleeper]) -> String {
    threads
        .iter()
        .map(|thread| format!("  {thread}\n"))
        .collect()
}

fn code_of(status: ExitStatus) -> ExitCode {
    let of_signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(of_signal).unwrap_or(125);
    ExitCode::from(u8::try_from(code).unwrap_or(125))
}
