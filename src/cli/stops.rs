//! The signal of Ctrl-Z, held back until the command has been stopped as well.

use nix::sys::signal::{SigSet, SigmaskHow, Signal::SIGTSTP};
use rustix::process::Signal;

use super::signals::is_in;

/// Keeps TSTP from this program until it is let through.
pub(super) struct Stops {
    /// The mask that lets it through; `None` if it is ignored anyway.
    open: Option<SigSet>,
}

impl Stops {
    /// Blocks it, for only the kernel knows whether anybody would go on with this program: its own action for this
    /// signal stops none that nobody would, and whoever has caught a signal cannot safely get that action back.
    ///
    /// To be called once the command has started, since that would get the mask too.
    pub(super) fn hold() -> Self {
        let is_ignored = is_in("SigIgn", Signal::TSTP);
        Self {
            open: (!is_ignored).then(block).flatten(),
        }
    }

    /// Whether one has come.
    pub(super) fn has_come(&self) -> bool {
        self.open.is_some() && is_in("ShdPnd", Signal::TSTP)
    }

    /// Lets it through, and returns once this program goes on.
    pub(super) fn let_through(&self) {
        if let Some(open) = self.open {
            let _ = open.thread_set_mask();
            block();
        }
    }
}

fn block() -> Option<SigSet> {
    let stop = SigSet::from(SIGTSTP);
    stop.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()
}
