//! The terminal, lent to the command that is run: in the background it could not read, nor be interrupted from there.

use std::{
    fs::File,
    io::{IsTerminal, stdin, stdout},
};

use inflight::machine::Group;
use nix::sys::signal::{SigSet, SigmaskHow, Signal::SIGTTOU};
use rustix::{
    io::Errno,
    process::{Pid, Signal, getpgrp, kill_current_process_group, test_kill_process_group},
    termios::{tcgetpgrp, tcsetpgrp},
};

use super::stops::Stops;

/// The terminal that this program was started on, if there is one.
pub(super) struct Terminal {
    file: Option<File>,
    lent_to: Option<Pid>,
}

impl Terminal {
    /// Lends it to the command, if that both reads from it and writes to it, and it is this program's to lend.
    ///
    /// A pager behind the command, which is in this program's group, needs it itself.
    pub(super) fn lend(group: &Group) -> Self {
        let mut terminal = Self {
            file: File::open("/dev/tty").ok(),
            lent_to: None,
        };
        if stdin().is_terminal() && stdout().is_terminal() && terminal.give(group) {
            // It may have tried to read before, and was stopped.
            group.signal(Signal::CONT);
        }
        terminal
    }

    /// Does for both what this signal, which has stopped the command, means for a job of the shell.
    /// Returns once they go on.
    pub(super) fn stopped(&mut self, by: Signal, group: &Group, stops: &Stops) {
        // A password is read from it even by a command whose input is a file.
        let asks = matches!(by, Signal::TTIN | Signal::TTOU);
        if asks && (self.has(group) || self.give(group)) {
            group.signal(Signal::CONT);
            return;
        }
        // Somebody else's, who may say CONT too. With the terminal it is the command's own way to take Ctrl-Z,
        // or nobody could type anything any more.
        if by == Signal::STOP && !self.has(group) {
            return;
        }
        let had = self.take();
        // Ctrl-Z would have stopped the rest of the job as well.
        let _ = kill_current_process_group(Signal::TSTP);
        self.stop(had || asks, group, stops);
    }

    /// Stops this program as well, which was told to stop together with its command. Returns once both go on.
    pub(super) fn stop_too(&mut self, group: &Group, stops: &Stops) {
        let had = self.take();
        self.stop(had, group, stops);
    }

    fn stop(&mut self, lends: bool, group: &Group, stops: &Stops) {
        // Where there is no shell to go on with it, the kernel drops the signal, and it goes on by itself.
        stops.let_through();
        if lends {
            self.give(group);
        }
        group.signal(Signal::CONT);
    }

    fn has(&self, group: &Group) -> bool {
        self.owner() == Pid::from_raw(group.id().cast_signed())
    }

    fn owner(&self) -> Option<Pid> {
        tcgetpgrp(self.file.as_ref()?).ok()
    }

    fn give(&mut self, group: &Group) -> bool {
        let is_ours = self.owner() == Some(getpgrp());
        let to = Pid::from_raw(group.id().cast_signed()).filter(|_| is_ours);
        let file = self.file.as_ref();
        self.lent_to = to
            .zip(file)
            .and_then(|(to, file)| tcsetpgrp(file, to).is_ok().then_some(to));
        self.lent_to.is_some()
    }

    /// Takes it back from whom it was lent to, or what that has left of it; says whether it has. A shell that has
    /// gone on without this program keeps it.
    pub(super) fn take(&mut self) -> bool {
        let (Some(file), Some(to)) = (self.file.as_ref(), self.lent_to.take()) else {
            return false;
        };
        let is_still_lent = self
            .owner()
            .is_some_and(|owner| owner == to || test_kill_process_group(owner) == Err(Errno::SRCH));
        if !is_still_lent {
            return false;
        }
        // Whoever takes it from the background is stopped by this, unless it is blocked.
        let ttou = SigSet::from(SIGTTOU);
        let Ok(before) = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK) else {
            return false;
        };
        // A terminal that has gone is nobody's.
        let _ = tcsetpgrp(file, getpgrp());
        let _ = before.thread_set_mask();
        true
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take();
    }
}
