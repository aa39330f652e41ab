//! The thread that works for an op. Most have one at most, and it comes and goes with each poll of a future: it is
//! kept in one atomic number, so that it waits for nobody and nobody for it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Stamp;

// The kernel gives no id above this (PID_MAX_LIMIT). The other 42 bits count microseconds, for 50 days.
const TID_BITS: u32 = 22;
const MICROS: u64 = (1 << (u64::BITS - TID_BITS)) - 1;

/// A thread that works for an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) tid: u32,
    pub(super) since: Stamp,
}

/// The first of them; zero for none. Above the microseconds since the op began stands the id.
#[derive(Debug, Default)]
pub(super) struct Running(AtomicU64);

impl Running {
    /// Notes the thread, unless there is another or its id fits nowhere.
    pub(super) fn enter(&self, runner: Runner, begun: Stamp) -> bool {
        if runner.tid == 0 || runner.tid >> TID_BITS != 0 {
            return false;
        }
        let micros = (runner.since.0.saturating_sub(begun.0) / 1_000).min(MICROS);
        let noted = (u64::from(runner.tid) << (u64::BITS - TID_BITS)) | micros;
        let change = self.0.compare_exchange(0, noted, Relaxed, Relaxed);
        change.is_ok()
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    pub(super) fn runner(&self, begun: Stamp) -> Option<Runner> {
        let noted = self.0.load(Relaxed);
        let after = (noted & MICROS) * 1_000;
        let tid = (noted >> (u64::BITS - TID_BITS)) as u32;
        (noted != 0).then(|| Runner {
            tid,
            since: Stamp(begun.0.saturating_add(after)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MICROS, Runner, Running};
    use crate::clock::Stamp;

    const BEGUN: Stamp = Stamp(5_000_000);

    #[test]
    fn the_first_is_told_as_it_came() {
        let running = Running::default();
        let first = Runner {
            tid: (1 << 22) - 1,
            since: Stamp(7_123_000),
        };

        assert!(running.enter(first, BEGUN));
        assert!(!running.enter(Runner { tid: 2, ..first }, BEGUN));
        assert_eq!(running.runner(BEGUN), Some(first));

        running.clear();
        assert_eq!(running.runner(BEGUN), None);
    }

    #[test]
    fn what_fits_nowhere_is_refused_or_kept_at_the_most() {
        let running = Running::default();
        for tid in [0, 1 << 22] {
            let since = BEGUN;
            assert!(!running.enter(Runner { tid, since }, BEGUN));
        }
        let since = Stamp(u64::MAX);
        assert!(running.enter(Runner { tid: 7, since }, BEGUN));

        let told = running.runner(BEGUN).unwrap();
        assert_eq!((told.tid, told.since.0), (7, BEGUN.0 + MICROS * 1_000));
    }
}
