//! Signals that would end this program, kept for the command that it runs: it is in a process group of its own.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use rustix::process::Signal;
use signal_hook::flag;

const ENDING: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// From now on these end nobody by themselves.
///
/// They are caught, not blocked: a command would get the mask of whoever starts it.
pub(super) struct Signals(Arc<AtomicUsize>);

impl Signals {
    pub(super) fn catch() -> Self {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in ENDING {
            let number = signal.as_raw();
            // One that cannot be caught does what it always did.
            let _ = flag::register_usize(number, Arc::clone(&last), number.unsigned_abs() as usize);
        }
        Self(last)
    }

    /// One that has come.
    pub(super) fn next(&self) -> Option<Signal> {
        let number = self.0.swap(0, Relaxed);
        Signal::from_named_raw(i32::try_from(number).ok()?)
    }
}
