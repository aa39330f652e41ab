//! Unmounts in bounded time, and only what is ours.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use super::paths;

/// Ops get this long to end by themselves before they are failed.
pub(super) const GRACE: Duration = Duration::from_millis(500);

const RETRY: Duration = Duration::from_millis(10);

/// A FUSE mount as /proc/self/mountinfo has it.
///
/// Both numbers are used again once it is gone: a place is to be trusted only as long as it was not seen
/// to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    path: PathBuf,
    mount_id: u64,
    /// Major and minor; the minor is the number of the connection.
    device: (u32, u32),
}

struct Line {
    place: Place,
    is_fuse: bool,
}

impl Place {
    /// Finds what is mounted at `path`, if it is a FUSE file system.
    pub(super) fn find(path: &Path) -> Option<Self> {
        let lines = fs::read("/proc/self/mountinfo").ok()?;
        topmost(&lines, path).flatten()
    }

    pub(super) fn connection(&self) -> u64 {
        u64::from(self.device.1)
    }

    /// The path within the mount of an inode that a thread has open.
    pub(super) fn open_file(&self, tid: u32, inode: u64) -> Option<Vec<u8>> {
        paths::open_file(tid, inode, &self.path, self.mount_id)
    }

    /// Whether it is this mount that is seen at its path.
    pub(super) fn is_there(&self) -> bool {
        Self::find(&self.path).as_ref() == Some(self)
    }

    /// Whether it is mounted at all, and maybe covered by another one.
    pub(super) fn exists(&self) -> bool {
        let lines = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mut lines = lines.split(|byte| *byte == b'\n').filter_map(parse);
        lines.any(|line| line.is_fuse && line.place == *self)
    }

    /// Whether it is another one.
    pub(super) fn is_strangers(&self) -> bool {
        let Ok(lines) = fs::read("/proc/self/mountinfo") else {
            return true;
        };
        match topmost(&lines, &self.path) {
            None => false,
            Some(top) => top.as_ref() != Some(self),
        }
    }

    /// Unmounts: gently, then after failing its requests, then by detaching it.
    ///
    /// # Errors
    ///
    /// What the last try said, when the mount is still there at the deadline.
    pub(super) fn unmount(&self, deadline: Instant) -> io::Result<()> {
        let began = Instant::now();
        let mut aborted = false;
        let mut result = Ok(());
        while self.is_there() {
            let now = Instant::now();
            let detach = now + (deadline - began) / 4 >= deadline;
            if now >= deadline {
                return result;
            }
            if !aborted && (now >= began + GRACE || detach) {
                aborted = true;
                self.abort(deadline);
            }
            let flags = if detach {
                UnmountFlags::DETACH
            } else {
                UnmountFlags::empty()
            };
            result = self.unmount_once(flags, deadline);
            if result.is_ok() {
                return Ok(());
            }
            thread::sleep(RETRY);
        }
        if self.exists() {
            self.abort(deadline);
            let covered =
                "another file system is mounted over it: its requests are failed, it stays";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, covered));
        }
        Ok(())
    }

    // Fails all requests, which frees their callers.
    fn abort(&self, deadline: Instant) {
        if !self.abort_connection() && self.is_there() {
            let _busy = self.unmount_once(UnmountFlags::FORCE, deadline);
        }
    }

    /// The same where fusectl is mounted, and only there. The connection must be known to live: its
    /// number is used again.
    pub(super) fn abort_connection(&self) -> bool {
        let control = format!("/sys/fs/fuse/connections/{}/abort", self.connection());
        fs::write(control, "1").is_ok()
    }

    // The kernel may write pages back first, and wait for the file system in that.
    fn unmount_once(&self, flags: UnmountFlags, deadline: Instant) -> io::Result<()> {
        let path = self.path.clone();
        let done = within(deadline, GRACE, move || unmount(&path, flags));
        match done {
            Some(Ok(())) => Ok(()),
            Some(Err(Errno::PERM)) => self.fusermount(flags, deadline),
            Some(Err(error)) => Err(error.into()),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    // Without privileges, the helper of the package fuse3 does it.
    fn fusermount(&self, flags: UnmountFlags, deadline: Instant) -> io::Result<()> {
        // As fuser finds it.
        let helper = std::env::var_os("FUSERMOUNT_PATH");
        let mut command = Command::new(helper.unwrap_or_else(|| "fusermount3".into()));
        command.args(["-u", "-q"]);
        if flags.contains(UnmountFlags::DETACH) {
            command.arg("-z");
        }
        command.arg("--").arg(&self.path);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::null()).spawn()?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(_)) => return Err(io::ErrorKind::ResourceBusy.into()),
                Ok(None) if Instant::now() < deadline => thread::sleep(RETRY),
                Ok(None) => return Err(io::ErrorKind::TimedOut.into()),
                // Somebody else reaps the children of this process: mountinfo tells.
                Err(_) => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }
}

/// Runs `f` on a thread of its own; `None` if it takes longer than `most` or up to the deadline.
fn within<T: Send + 'static>(
    deadline: Instant,
    most: Duration,
    f: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    let thread = thread::Builder::new().name("inflight-umount".to_owned());
    let spawned = thread.spawn(move || {
        let _nobody_waits = done.send(f());
    });
    spawned.ok()?;
    let left = deadline.saturating_duration_since(Instant::now());
    is_done.recv_timeout(left.min(most)).ok()
}

// What is seen at a path is the last line about it: `Some(None)` if it is no FUSE file system, `None` if
// nothing is mounted there.
fn topmost(lines: &[u8], path: &Path) -> Option<Option<Place>> {
    let mut lines = lines.rsplit(|byte| *byte == b'\n').filter_map(parse);
    let top = lines.find(|line| line.place.path == path)?;
    Some(top.is_fuse.then_some(top.place))
}

// proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mount_id = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let path = unescape(fields.nth(1)?).into();
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Line {
        place: Place {
            path,
            mount_id,
            device: (major.parse().ok()?, minor.parse().ok()?),
        },
        is_fuse: kind == b"fuse" || kind == b"fuseblk" || kind.starts_with(b"fuse."),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

// Blanks and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Place, topmost};

    const LINES: &[u8] = b"\
36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw
40 36 0:41 / /mnt/a\\040b rw - fuse /dev/fuse rw,user_id=0
41 36 0:42 / /mnt/two rw shared:3 - fuse.sshfs host: rw
42 41 0:43 / /mnt/two rw - tmpfs none rw
";

    #[test]
    fn what_is_seen_at_a_path_is_the_last_line_about_it() {
        let place = |path| topmost(LINES, Path::new(path));

        assert_eq!(
            place("/mnt/a b"),
            Some(Some(Place {
                path: "/mnt/a b".into(),
                mount_id: 40,
                device: (0, 41),
            }))
        );
        assert_eq!(place("/mnt/two"), Some(None));
        assert_eq!(place("/mnt/three"), None);
    }
}
