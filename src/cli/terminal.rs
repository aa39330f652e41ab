//! The terminal, lent to the command that is run: in the background it could not read, nor be interrupted from there.

use std::io::{IsTerminal, stdin};

use inflight::machine::Group;
use nix::sys::signal::{SigSet, Signal};
use rustix::{
    process::{self, Pid, getpgrp},
    termios::{tcgetpgrp, tcsetpgrp},
};

/// While it lives, the command has the terminal.
pub(super) struct Foreground(());

impl Foreground {
    /// `None` if there is none to give.
    pub(super) fn give(group: &Group) -> Option<Self> {
        let stdin = stdin();
        let is_ours = stdin.is_terminal() && tcgetpgrp(&stdin).is_ok_and(|it| it == getpgrp());
        let to = Pid::from_raw(group.id().cast_signed()).filter(|_| is_ours)?;
        tcsetpgrp(&stdin, to).ok()?;
        // It may have tried to read before, and was stopped.
        group.signal(process::Signal::CONT);
        Some(Self(()))
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Whoever takes it from the background is stopped by this, unless it is blocked.
        let blocked = SigSet::from(Signal::SIGTTOU).thread_block();
        // A terminal that has gone is nobody's.
        let _ = blocked.map(|()| tcsetpgrp(stdin(), getpgrp()));
    }
}
