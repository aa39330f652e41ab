//! One FUSE mount as the kernel lists it, unmounted in bounded time, and never a stranger's.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::{
    bounded::within,
    machine,
    mountinfo::{self, Mounted},
};

/// Ops get this long to end by themselves before they are failed.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

const RETRY: Duration = Duration::from_millis(10);

const NO_HELPER: &str =
    "fusermount3, of the package fuse3, is not in PATH, or on a FUSE mount itself";

/// A FUSE mount as /proc/self/mountinfo has it.
///
/// Both numbers are used again once it is gone: a place is to be trusted only as long as it was not seen
/// to go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    path: PathBuf,
    mount_id: u64,
    /// Major and minor; the minor is the number of the connection.
    device: (u32, u32),
}

impl Place {
    fn of(mounted: Mounted) -> Self {
        Self {
            path: mounted.path,
            mount_id: mounted.id,
            device: mounted.device,
        }
    }

    /// Finds what is mounted at `path`, if it is a FUSE file system.
    pub(crate) fn find(path: &Path) -> Option<Self> {
        topmost(mountinfo::read().ok()?, path).flatten()
    }

    /// Finds where a connection is mounted.
    #[cfg(feature = "testing")]
    pub(crate) fn of_connection(connection: u64) -> Vec<Self> {
        let mounts = mountinfo::read().unwrap_or_default().into_iter();
        let places = mounts.filter(|mount| mount.is_fuse).map(Self::of);
        places
            .filter(|place| place.connection() == connection)
            .collect()
    }

    pub(crate) fn connection(&self) -> u64 {
        u64::from(self.device.1)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its number in the list.
    pub(crate) fn mount_id(&self) -> u64 {
        self.mount_id
    }

    /// Whether it is this mount that is seen at its path.
    pub(crate) fn is_there(&self) -> bool {
        Self::find(&self.path).as_ref() == Some(self)
    }

    /// Whether it is mounted at all, and maybe covered by another one.
    pub(crate) fn exists(&self) -> bool {
        let mut mounts = mountinfo::read().unwrap_or_default().into_iter();
        mounts.any(|mount| mount.is_fuse && Self::of(mount) == *self)
    }

    /// Whether it is another one.
    #[cfg(feature = "fuse")]
    pub(crate) fn is_strangers(&self) -> bool {
        let Ok(mounts) = mountinfo::read() else {
            return true;
        };
        match topmost(mounts, &self.path) {
            None => false,
            Some(top) => top.as_ref() != Some(self),
        }
    }

    /// Unmounts: gently, then after failing its requests, then by detaching it.
    ///
    /// # Errors
    ///
    /// What the last try said, when the mount is still there at the deadline.
    pub(crate) fn unmount(&self, deadline: Instant) -> io::Result<()> {
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

    /// Fails all requests, which frees their callers.
    pub(crate) fn abort(&self, deadline: Instant) {
        if self.exists() && !self.abort_connection() && self.is_there() {
            let _busy = self.unmount_once(UnmountFlags::FORCE, deadline);
        }
    }

    /// The same where fusectl is mounted, and only there. The connection must be known to live: its
    /// number is used again.
    pub(crate) fn abort_connection(&self) -> bool {
        machine::abort(self.connection()).is_ok()
    }

    // The kernel may write pages back first, and wait for the file system in that.
    fn unmount_once(&self, flags: UnmountFlags, deadline: Instant) -> io::Result<()> {
        let place = self.clone();
        // The thread may begin late, when it is another one's.
        let unmount = move || match place.is_there() {
            true => unmount(&place.path, flags),
            false => Err(Errno::INVAL),
        };
        let done = within(deadline, GRACE, unmount);
        match done {
            Some(Ok(())) => Ok(()),
            Some(Err(Errno::PERM)) => self.fusermount(flags, deadline),
            Some(Err(error)) => Err(error.into()),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    // Without privileges, the helper of the package fuse3 does it.
    fn fusermount(&self, flags: UnmountFlags, deadline: Instant) -> io::Result<()> {
        let helper = std::env::var_os("FUSERMOUNT_PATH").map(PathBuf::from);
        let Some(helper) = helper.or_else(helper_in_path) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, NO_HELPER));
        };
        let mut command = Command::new(helper);
        command.current_dir("/");
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

// Not by its name alone: whoever starts a process waits until it has found its program, and a PATH may lead into
// the very mount that hangs.
fn helper_in_path() -> Option<PathBuf> {
    let mounts = mountinfo::read().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into()]);
    let mut helpers = dirs.map(|dir| dir.join("fusermount3"));
    helpers.find(|helper| {
        helper.is_absolute() && !mountinfo::is_in_fuse(&mounts, helper) && helper.is_file()
    })
}

// What is seen at a path is the last line about it: `Some(None)` if it is no FUSE file system, `None` if
// nothing is mounted there.
fn topmost(mounts: Vec<Mounted>, path: &Path) -> Option<Option<Place>> {
    let top = mounts.into_iter().rfind(|mount| mount.path == path)?;
    Some(top.is_fuse.then(|| Place::of(top)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Place, topmost};
    use crate::mountinfo::Mounted;

    fn mounted(path: &str, id: u64, is_fuse: bool) -> Mounted {
        Mounted {
            path: path.into(),
            id,
            device: (0, 42),
            is_fuse,
        }
    }

    #[test]
    fn what_is_seen_at_a_path_is_the_last_line_about_it() {
        let mounts = vec![
            mounted("/mnt/one", 40, true),
            mounted("/mnt/two", 41, true),
            mounted("/mnt/two", 42, false),
        ];
        let place = |path| topmost(mounts.clone(), Path::new(path));

        assert_eq!(
            place("/mnt/one"),
            Some(Some(Place {
                path: "/mnt/one".into(),
                mount_id: 40,
                device: (0, 42),
            }))
        );
        assert_eq!(place("/mnt/two"), Some(None));
        assert_eq!(place("/mnt/three"), None);
    }
}
