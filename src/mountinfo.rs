//! The kernel's list of what is mounted, read as text: no mount is touched.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    pub(crate) id: u64,
    /// Major and minor; of a FUSE mount the minor is the number of its connection.
    pub(crate) device: (u32, u32),
    pub(crate) is_fuse: bool,
}

/// What is mounted in the mount namespace of this process, in the order of the list.
pub(crate) fn read() -> io::Result<Vec<Mounted>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount that a path without `..` or links leads into.
pub(crate) fn around<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    // What hides another mount stands behind it; the deepest path is the nearest.
    let around = mounts.iter().filter(|mount| path.starts_with(&mount.path));
    around.max_by_key(|mount| mount.path.components().count())
}

/// Whether such a path leads into a FUSE file system.
#[cfg(any(feature = "debug", feature = "fuse", feature = "testing", test))]
pub(crate) fn is_in_fuse(mounts: &[Mounted], path: &Path) -> bool {
    around(mounts, path).is_some_and(|mount| mount.is_fuse)
}

/// Reads lines of such a list.
pub(crate) fn parse(lines: &[u8]) -> Vec<Mounted> {
    let lines = lines.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

// proc_pid_mountinfo(5).
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let path = unescape(fields.nth(1)?).into();
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mounted {
        path,
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
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

    use super::{Mounted, is_in_fuse, parse};

    const LINES: &[u8] = b"\
36 35 98:0 / / rw,noatime master:1 - ext3 /dev/root rw
40 36 0:41 / /mnt/a\\040b rw - fuse /dev/fuse rw,user_id=0
41 36 0:42 / /mnt/two rw shared:3 - fuse.sshfs host: rw
42 41 0:43 / /mnt/two rw - tmpfs none rw
43 36 0:20 / /sys/fs/fuse/connections rw - fusectl none rw
";

    #[test]
    fn a_line_is_read() {
        assert_eq!(
            parse(LINES)[1],
            Mounted {
                path: "/mnt/a b".into(),
                id: 40,
                device: (0, 41),
                is_fuse: true,
            }
        );
        assert_eq!(parse(LINES).len(), 5);
        assert!(parse(b"36 35 98:0\n\n x").is_empty());
    }

    #[test]
    fn the_nearest_mount_that_is_not_hidden_says_whose_a_path_is() {
        let mounts = parse(LINES);

        for (path, expected) in [
            ("/mnt/a b/c/d", true),
            ("/mnt/a bc", false),
            ("/mnt/two/x", false),
            ("/sys/fs/fuse/connections/1", false),
            ("/x", false),
        ] {
            assert_eq!(is_in_fuse(&mounts, Path::new(path)), expected, "{path}");
        }
    }
}
