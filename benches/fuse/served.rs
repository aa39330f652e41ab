//! A mount and the process that serves it, both gone when the bench is.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::child::Child;

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

pub(crate) struct Served {
    pub(crate) child: Child,
    connection: String,
    dir: TempDir,
}

impl Served {
    /// `by` is `bare` or `wrapped`.
    pub(crate) fn new(by: &str, threads: usize, checks_permissions: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir();
        let dir = dir.expect("a directory");
        let mount = dir.path().join("mnt");
        fs::create_dir(&mount).expect("a directory");
        let permissions = match checks_permissions {
            true => "default_permissions",
            false => "-",
        };
        let threads = threads.to_string();
        let mount = mount.to_str().expect("a path that is text");
        let args = ["serve", by, &threads, permissions, mount];
        let mut child = Child::start_alone(&args, &dir.path().join("inflight"));
        let connection = child.expect("mounted");
        Self {
            child,
            connection,
            dir,
        }
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Requests that the kernel counts as not answered.
    pub(crate) fn kernel_waiting(&self) -> u64 {
        let path = format!("{CONNECTIONS}/{}/waiting", self.connection);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

/// Sees to it that connections can be looked at and aborted.
pub(crate) fn mount_fusectl() {
    if fs::read_dir(CONNECTIONS).is_ok_and(|mut entries| entries.next().is_none()) {
        let mut mount = Command::new("mount");
        mount.args(["-t", "fusectl", "none", CONNECTIONS]);
        // Empty is also one that is mounted and has no connection: then there is nothing to say. Without one the bench
        // fails where it needs it.
        let _not_root = mount.stderr(Stdio::null()).status();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It unmounts by itself; what follows is for one that cannot.
        if self.child.end_within(Duration::from_secs(5)) {
            return;
        }
        // The number is used again at once by others when a connection is gone.
        let here = format!(" 0:{} / {} ", self.connection, self.mount().display());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if mounts.contains(&here) {
            let abort = format!("{CONNECTIONS}/{}/abort", self.connection);
            let _gone_already = fs::write(abort, "1");
        }
        self.child.kill();
        let mut umount = Command::new("umount");
        umount.arg("-l").arg(self.mount()).stderr(Stdio::null());
        let _gone_already = umount.status();
    }
}
