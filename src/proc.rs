//! /proc, read as text: processes, their threads, descriptors and mounts. Nothing that stands in a mount is opened.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{mountinfo, text};

// PF_FORKNOEXEC of the kernel's include/linux/sched.h.
const FORKED: u64 = 0x40;

/// What a process or a thread says of itself in `stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) name: String,
    /// The letter of its state.
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    /// It was forked and has not run another program since.
    pub(crate) is_forked: bool,
}

/// A descriptor of a process, as far as /proc tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) fd: u32,
    /// Where it leads, as the kernel shows it.
    pub(crate) link: OsString,
    pub(crate) mount_id: u64,
    pub(crate) closes_on_exec: bool,
}

/// All processes: their ids and directories.
pub(crate) fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    numbered(Path::new("/proc")).into_iter()
}

/// The threads of a process: their ids and directories.
pub(crate) fn threads(process: &Path) -> Vec<(u32, PathBuf)> {
    numbered(&process.join("task"))
}

fn numbered(dir: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path()))
    });
    numbered.collect()
}

/// A short file of /proc, fit to be shown.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(text::visible(String::from_utf8_lossy(&bytes).trim_end()))
}

/// Where a thread sleeps. "0" stands for one that runs, and for one that this process may not look at.
pub(crate) fn wchan(thread: &Path) -> Option<String> {
    let wchan = read(thread.join("wchan")).ok()?;
    (!wchan.is_empty() && wchan != "0").then_some(wchan)
}

/// Whether a thread that sleeps here waits for the answer to a FUSE request. A daemon that waits for requests does not.
pub(crate) fn sleeps_in_fuse(wchan: &str) -> bool {
    let is_of_fuse = wchan.starts_with("fuse_") || wchan.starts_with("__fuse_");
    wchan == "request_wait_answer" || (is_of_fuse && !wchan.starts_with("fuse_dev_"))
}

pub(crate) fn stat(path: &Path) -> Option<Stat> {
    let bytes = fs::read(path.join("stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

// proc_pid_stat(5): the name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (before, behind) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = behind.split_whitespace();
    Some(Stat {
        name: text::visible(name),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        is_forked: fields.nth(3)?.parse::<u64>().ok()? & FORKED != 0,
    })
}

/// A descriptor that leads to a file with a path; of others `None`.
pub(crate) fn descriptor(process: &Path, fd: u32) -> Option<Descriptor> {
    // Of a link in /proc only the text is read.
    let link = fs::read_link(process.join(format!("fd/{fd}"))).ok()?;
    let link = link.into_os_string();
    if !link.as_bytes().starts_with(b"/") {
        return None;
    }
    let info = fs::read_to_string(process.join(format!("fdinfo/{fd}"))).ok()?;
    let flags = u32::from_str_radix(field(&info, "flags:")?, 8).ok()?;
    Some(Descriptor {
        fd,
        link,
        mount_id: field(&info, "mnt_id:")?.parse().ok()?,
        closes_on_exec: flags & rustix::fs::OFlags::CLOEXEC.bits() != 0,
    })
}

/// The numbers of all descriptors of a process.
pub(crate) fn descriptors(process: &Path) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(process.join("fd"))?.flatten();
    Ok(entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// A line `name value` of a file of such lines.
pub(crate) fn field<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = lines.lines();
    lines.find_map(|line| Some(line.strip_prefix(name)?.trim()))
}

/// What is mounted where a process lives.
pub(crate) fn mounts(process: &Path) -> Vec<mountinfo::Mounted> {
    let lines = fs::read(process.join("mountinfo")).unwrap_or_default();
    mountinfo::parse(&lines)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd, path::Path};

    use super::{descriptor, descriptors, field, mounts, parse_stat, sleeps_in_fuse};

    #[test]
    fn an_idle_daemon_is_not_stuck_in_fuse() {
        for (wchan, expected) in [
            ("request_wait_answer", true),
            ("fuse_readdir_uncached", true),
            ("__fuse_request_send", true),
            ("fuse_dev_do_read", false),
            ("futex_do_wait", false),
        ] {
            assert_eq!(sleeps_in_fuse(wchan), expected, "{wchan}");
        }
    }

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let stat = parse_stat("7 (a) R 9 9 (b) D 1 42 42 0 -1 4194624 0").unwrap();

        assert_eq!(
            (stat.name.as_str(), stat.state, stat.parent, stat.group),
            ("a) R 9 9 (b", 'D', 1, 42)
        );
        assert!(stat.is_forked);
        assert!(
            !parse_stat("7 (a) D 1 42 42 0 -1 4194560 0")
                .unwrap()
                .is_forked
        );
        assert!(parse_stat("7 (a").is_none());
    }

    #[test]
    fn a_descriptor_is_found_with_its_mount() {
        let this = Path::new("/proc/self");
        let file = File::open("/proc/self/exe").unwrap();
        let fd = u32::try_from(file.as_raw_fd()).unwrap();

        let found = descriptor(this, fd).unwrap();

        assert!(descriptors(this).unwrap().contains(&fd));
        assert_eq!(Path::new(&found.link), std::env::current_exe().unwrap());
        assert!(found.closes_on_exec);
        assert!(mounts(this).iter().any(|mount| mount.id == found.mount_id));
    }

    #[test]
    fn a_field_is_read() {
        let lines = "pos:\t0\nflags:\t02100000\nfuse_connection:\t40\n";

        assert_eq!(field(lines, "fuse_connection:"), Some("40"));
        assert_eq!(field(lines, "mnt_id:"), None);
    }
}
