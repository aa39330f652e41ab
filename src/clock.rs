//! Moments on `CLOCK_MONOTONIC`, which the processes of one boot share.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment: nanoseconds on `CLOCK_MONOTONIC`, so that two processes of one boot compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(pub(crate) u64);

impl Stamp {
    pub(crate) fn now() -> Self {
        // The vdso answers: no system call. Instant shows no number that another process could use.
        Self::of(ClockId::Monotonic)
    }

    /// The moment of the last tick of the kernel's clock, up to 10 ms ago: for a quarter of the time.
    pub(crate) fn coarse() -> Self {
        Self::of(ClockId::MonotonicCoarse)
    }

    fn of(clock: ClockId) -> Self {
        let now = clock_gettime(clock);
        Self((now.tv_sec as u64).wrapping_mul(1_000_000_000) + now.tv_nsec as u64)
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
