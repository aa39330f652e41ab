//! `inflight run`: a command with a deadline, and the report if it hangs.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use inflight::{
    Report, Tracker,
    machine::{Group, Sleeper},
};
use rustix::process::Signal;

use super::{signals::Signals, terminal::Terminal};

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
    let mut terminal = Terminal::lend(&child);
    let over = wait(&mut child, &signals, &mut terminal, timeout);
    drop(terminal);
    match over {
        Ok(Over::Ended(status)) => code_of(status),
        Ok(Over::Signalled(signal)) => {
            child.signal(signal);
            if let Ok(Some(status)) = child.ended_within(LAST) {
                return code_of(status);
            }
            left_behind(&child.end(LAST));
            ExitCode::from(u8::try_from(128 + signal.as_raw()).unwrap_or(125))
        }
        Ok(Over::TimedOut) => {
            eprintln!(
                "inflight: {} has not ended after {} s",
                Path::new(program).display(),
                timeout.as_secs_f64()
            );
            for thread in child.threads() {
                eprintln!("  {thread}");
            }
            eprintln!("\n{}", Report::collect(tracker));
            left_behind(&child.end(LAST));
            ExitCode::from(124)
        }
        Err(error) => {
            eprintln!("inflight: cannot wait for it: {error}");
            ExitCode::from(125)
        }
    }
}

// Never waits for one that cannot die.
fn wait(
    child: &mut Group,
    signals: &Signals,
    terminal: &mut Terminal,
    timeout: Duration,
) -> io::Result<Over> {
    let mut until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if let Some(status) = child.ended_within(left.min(LOOK))? {
            return Ok(Over::Ended(status));
        }
        if let Some(signal) = child.stopped_by() {
            let stopped = Instant::now();
            terminal.stop(signal, child);
            // Who is stopped by the user does not hang.
            until += stopped.elapsed();
        }
        if let Some(signal) = signals.next() {
            return Ok(Over::Signalled(signal));
        }
        if left.is_zero() {
            return Ok(Over::TimedOut);
        }
    }
}

fn left_behind(threads: &[Sleeper]) {
    if threads.is_empty() {
        return;
    }
    eprintln!(
        "inflight: left behind, since it cannot be killed now (inflight abort would free it):"
    );
    for thread in threads {
        eprintln!("  {thread}");
    }
}

fn code_of(status: ExitStatus) -> ExitCode {
    let of_signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(of_signal).unwrap_or(125);
    ExitCode::from(u8::try_from(code).unwrap_or(125))
}
