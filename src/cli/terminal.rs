//! The terminal, lent to the command that is run: in the background it could not read, nor be interrupted from there.

use std::{
    fs::File,
    io::{IsTerminal, stdin},
};

use inflight::machine::Group;
use nix::sys::signal::{SigSet, SigmaskHow, Signal::SIGTTOU};
use rustix::{
    process::{Pid, Signal, getpgrp, kill_current_process_group},
    termios::{tcgetpgrp, tcsetpgrp},
};

/// The terminal that this program was started on, if there is one.
pub(super) struct Terminal {
    file: Option<File>,
    is_lent: bool,
}

impl Terminal {
    /// Lends it to the command, if that reads from it and it is this program's to lend.
    pub(super) fn lend(group: &Group) -> Self {
        let mut terminal = Self {
            file: File::open("/dev/tty").ok(),
            is_lent: false,
        };
        if stdin().is_terminal() && terminal.give(group) {
            // It may have tried to read before, and was stopped.
            group.signal(Signal::CONT);
        }
        terminal
    }

    /// Does for both what this signal, which has stopped the command, means for a job of the shell.
    /// Returns once they go on.
    pub(super) fn stop(&mut self, by: Signal, group: &Group) {
        let goes_on = match by {
            // A password is read from it even by a command whose input is a file.
            Signal::TTIN | Signal::TTOU => self.has(group) || self.give(group),
            Signal::TSTP => false,
            // Somebody else's, who may say CONT too.
            _ => return,
        };
        if !goes_on {
            self.take();
            // Ctrl-Z would have stopped the rest of the job as well. Where there is no shell to go on with it,
            // the kernel drops this signal, and it goes on by itself.
            let _ = kill_current_process_group(Signal::TSTP);
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
        self.is_lent = to
            .zip(file)
            .is_some_and(|(to, file)| tcsetpgrp(file, to).is_ok());
        self.is_lent
    }

    fn take(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.is_lent) else {
            return;
        };
        // Whoever takes it from the background is stopped by this, unless it is blocked.
        if let Ok(before) = SigSet::from(SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK) {
            // A terminal that has gone is nobody's.
            let _ = tcsetpgrp(file, getpgrp());
            let _ = before.thread_set_mask();
        }
        self.is_lent = false;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take();
    }
}
