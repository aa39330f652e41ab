//! A program in a process group of its own, which nobody has to wait for without a deadline.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{Sleeper, sleepers};

const FIRST_LOOK: Duration = Duration::from_micros(500);

const LOOK: Duration = Duration::from_millis(20);

/// A program and what it started, as far as that has stayed in its process group.
///
/// Dropped, it is left alone.
#[derive(Debug)]
pub struct Group {
    child: Child,
}

impl Group {
    /// Starts a program as the leader of a new process group.
    ///
    /// # Errors
    ///
    /// If it cannot be run.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        Ok(Self { child })
    }

    /// The id of the program, which is that of the group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The program itself: its pipes are there.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the program, but not for ever; `None` if it goes on.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn ended_within(&mut self, most: Duration) -> io::Result<Option<ExitStatus>> {
        // One that the clock does not reach never comes.
        let until = Instant::now().checked_add(most);
        let mut pause = FIRST_LOOK;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            let left = until.map_or(Duration::MAX, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(None);
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(LOOK);
        }
    }

    /// The signal that has stopped the program since this was asked last.
    #[must_use]
    pub fn stopped_by(&self) -> Option<Signal> {
        let id = Pid::from_raw(self.id().cast_signed())?;
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::Pid(id), options).ok()??;
        Signal::from_named_raw(status.stopping_signal()?)
    }

    /// Lists the threads of the group, and where they sleep.
    #[must_use]
    pub fn threads(&self) -> Vec<Sleeper> {
        let mut threads = sleepers(self.id());
        threads.retain(|thread| thread.state != 'Z');
        threads
    }

    /// Sends a signal to the group; to nobody if it is gone.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.id().cast_signed()) {
            // Whoever is gone needs no signal.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Sends TERM to the group and, to whoever is left after `each`, KILL. Returns the threads that are left
    /// after `each` once more, since they cannot be killed now.
    pub fn end(&mut self, each: Duration) -> Vec<Sleeper> {
        for signal in [Signal::TERM, Signal::KILL] {
            if self.is_gone() {
                break;
            }
            self.signal(signal);
            let until = Instant::now().checked_add(each);
            let mut pause = FIRST_LOOK;
            while !self.is_gone() && until.is_none_or(|until| Instant::now() < until) {
                thread::sleep(pause);
                pause = (pause * 2).min(LOOK);
            }
        }
        self.threads()
    }

    fn is_gone(&mut self) -> bool {
        // Reaped, its id may soon be another's: only as long as others are in the group it is not.
        let _reaped = self.child.try_wait();
        self.threads().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        time::Duration,
    };

    use super::Group;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Group {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdout(Stdio::piped());
        Group::spawn(&mut shell).unwrap()
    }

    #[test]
    fn who_ignores_term_is_killed_and_its_children_are_too() {
        // The leader goes with TERM, its child does not.
        let mut group = shell("(trap '' TERM; echo up; while :; do sleep 60; done) & wait");
        let mut up = [0; 3];
        let out = group.child().stdout.as_mut().unwrap();
        std::io::Read::read_exact(out, &mut up).unwrap();
        assert_eq!(group.ended_within(Duration::ZERO).unwrap(), None);

        assert_eq!(group.end(Duration::from_millis(200)), []);

        assert!(group.ended_within(LONG).unwrap().is_some());
    }

    #[test]
    fn a_program_that_ends_is_noticed() {
        let mut group = shell("exit 7");

        let status = group.ended_within(LONG).unwrap().unwrap();

        assert_eq!(status.code(), Some(7));
        assert_eq!(group.threads(), []);
    }
}
