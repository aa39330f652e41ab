//! Whether a file system can be mounted here, and what is missing if not.

use std::path::Path;

/// What a mount needs that is not here, as far as it can be known beforehand.
pub(crate) fn missing() -> Option<String> {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return Some("/dev/fuse is missing. Load the kernel module (modprobe fuse); in a container: --device /dev/fuse --cap-add SYS_ADMIN.".to_owned());
    }
    if let Err(e) = std::fs::File::options().read(true).write(true).open(device) {
        return Some(format!(
            "/dev/fuse cannot be opened: {e}. Make it readable and writable for this user, or run as root."
        ));
    }
    let root = rustix::process::geteuid().is_root();
    (!root && !found_in_path("fusermount3")).then(|| "fusermount3 is missing, which mounts for users. Install it (apt install fuse3), or run as root.".to_owned())
}

/// Why a mount may fail though all that it needs seems to be here.
pub(crate) fn may_not_mount() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "This root may not mount; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN."
    } else {
        "Run this as root, or look whether /etc/fuse.conf and fusermount3 let this user mount."
    }
}

pub(crate) fn found_in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
