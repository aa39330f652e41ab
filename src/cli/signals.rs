//! Signals that would end this program, kept for the command that it runs: it is in a process group of its own.

use std::{
    fs,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior};
use signal_hook::{flag, low_level::emulate_default_handler};

const ENDING: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// From now on these end nobody by themselves.
///
/// They are caught, not blocked: a command would get the mask of whoever starts it.
pub(super) struct Signals(Arc<AtomicUsize>);

impl Signals {
    pub(super) fn catch() -> Self {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in ENDING {
            // What nohup has set is for the command too, and one that is caught is not inherited.
            if is_in("SigIgn", signal) {
                continue;
            }
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

/// Whether a set of signals of this process, as `/proc` names it, has this one.
pub(super) fn is_in(set: &str, signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut sets = status.lines().filter_map(|line| line.split_once(':'));
    let signals = sets.find(|(name, _)| *name == set);
    let signals = signals.and_then(|(_, hex)| u64::from_str_radix(hex.trim(), 16).ok());
    signals.is_some_and(|signals| (signals >> (signal.as_raw() - 1)) & 1 == 1)
}

/// Ends this program by a signal: a shell whose step has only exited would go on with the next.
pub(super) fn die_of(signal: Signal) -> ExitCode {
    // The core, if there is to be one, is the command's.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = emulate_default_handler(signal.as_raw());
    // One that ends nobody.
    ExitCode::from(u8::try_from(128 + signal.as_raw()).unwrap_or(125))
}
