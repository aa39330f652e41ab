//! Runs what may never return, for a limited time.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Runs `f` on a thread of its own; `None` if it takes longer than `most` or up to the deadline.
pub(crate) fn within<T: Send + 'static>(
    deadline: Instant,
    most: Duration,
    f: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let thread = thread::Builder::new().name("inflight-bounded".to_owned());
    let spawned = thread.spawn(move || {
        let _nobody_waits = done.send(f());
    });
    spawned.ok()?;
    let left = deadline.saturating_duration_since(Instant::now());
    is_done.recv_timeout(left.min(most)).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        time::{Duration, Instant},
    };

    use super::within;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_does_not_return_is_left_behind() {
        let (_kept, never) = mpsc::channel::<()>();

        assert_eq!(within(Instant::now(), LONG, move || never.recv()), None);
        assert_eq!(within(Instant::now() + LONG, LONG, || 7), Some(7));
    }
}
