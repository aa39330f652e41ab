//! Lines from a pipe, each with a deadline.

use std::{
    io::Read,
    process::ChildStdout,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whoever is to write may end without the pipe being closed: others may have it.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Lines {
    pipe: Option<ChildStdout>,
    read: Vec<u8>,
}

impl Lines {
    pub(super) fn of(pipe: Option<ChildStdout>) -> Self {
        Self {
            pipe,
            read: Vec::new(),
        }
    }

    /// Waits for a line; the error says why there is none.
    pub(super) fn next(
        &mut self,
        until: Instant,
        mut is_over: impl FnMut() -> bool,
    ) -> Result<String, String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            let was_over = is_over();
            if self.fill(until) {
                continue;
            }
            if was_over {
                return Err("has ended".to_owned());
            }
            if Instant::now() >= until {
                return Err("has said nothing".to_owned());
            }
        }
    }

    // Whether more was read.
    fn fill(&mut self, until: Instant) -> bool {
        let Some(pipe) = &mut self.pipe else {
            std::thread::sleep(LOOK);
            return false;
        };
        let left = until.saturating_duration_since(Instant::now()).min(LOOK);
        let left = Timespec {
            tv_sec: 0,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&*pipe, PollFlags::IN)];
        if !matches!(poll(&mut polled, Some(&left)), Ok(1)) {
            return false;
        }
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(read) => {
                self.read.extend_from_slice(&buffer[..read]);
                true
            }
            Err(_) => false,
        }
    }
}
