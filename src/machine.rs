//! The FUSE mounts of this machine, instrumented or not: who serves them, and what the kernel waits for.
//!
//! Read from /proc and fusectl; no mount is touched.
//!
//! ```
//! for mount in inflight::machine::fuse_mounts() {
//!     println!("{} {:?} waits for {:?}", mount.path, mount.server, mount.kernel_waiting);
//! }
//! ```

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{mountinfo, text};

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// One FUSE mount.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FuseMount {
    /// Where it is mounted.
    pub path: String,
    /// The number of its connection.
    pub connection: u64,
    /// Requests that the kernel has and that are not answered; `None` if it could not be read.
    pub kernel_waiting: Option<u64>,
    /// Who serves it.
    pub server: Server,
}

/// Who serves a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Server {
    /// A process, by its id and name.
    Process(u32, String),
    /// Nobody any more: all that is asked of the mount fails.
    Dead,
    /// It could not be found out.
    Unknown(String),
}

/// A thread and where it sleeps.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sleeper {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// The thread's name.
    pub name: String,
    /// The letter of its state.
    pub state: char,
    /// Where it sleeps in the kernel, if that may be read.
    pub wchan: Option<String>,
}

/// Lists the FUSE mounts that this process sees.
#[must_use]
pub fn fuse_mounts() -> Vec<FuseMount> {
    let mounts = mountinfo::read().unwrap_or_default();
    let mounts = mounts.into_iter().filter(|mount| mount.is_fuse);
    let mut mounts = mounts.peekable();
    if mounts.peek().is_none() {
        return Vec::new();
    }
    let servers = servers();
    mounts
        .map(|mount| {
            let connection = u64::from(mount.device.1);
            FuseMount {
                path: text::visible(&mount.path.to_string_lossy()),
                connection,
                kernel_waiting: kernel_waiting(connection),
                server: match servers.found.get(&connection) {
                    Some((pid, name)) => Server::Process(*pid, name.clone()),
                    None => match &servers.unknown {
                        Some(why) => Server::Unknown(why.clone()),
                        None => Server::Dead,
                    },
                },
            }
        })
        .collect()
}

/// Fails all requests of a connection.
///
/// # Errors
///
/// If fusectl is not mounted, or this user may not write there.
pub fn abort(connection: u64) -> io::Result<()> {
    fs::write(format!("{CONNECTIONS}/{connection}/abort"), "1")
}

/// What the kernel has and nobody has answered; `None` if it cannot be read.
#[must_use]
pub fn kernel_waiting(connection: u64) -> Option<u64> {
    let text = fs::read_to_string(format!("{CONNECTIONS}/{connection}/waiting"));
    text.ok()?.trim().parse().ok()
}

/// Lists the threads of a process group, and where they sleep.
#[must_use]
pub fn sleepers(process_group: u32) -> Vec<Sleeper> {
    let mut found = Vec::new();
    for (pid, path) in processes() {
        if stat(&path).is_none_or(|stat| stat.group != process_group) {
            continue;
        }
        for task in entries(&path.join("task")) {
            let Some(stat) = stat(&task) else {
                continue;
            };
            let tid = task
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            found.push(Sleeper {
                pid,
                tid: tid.unwrap_or(pid),
                name: stat.name,
                state: stat.state,
                wchan: fs::read_to_string(task.join("wchan"))
                    .ok()
                    .filter(|wchan| !wchan.is_empty() && wchan != "0"),
            });
        }
    }
    found
}

struct Servers {
    found: HashMap<u64, (u32, String)>,
    /// Why one that was not found may be there all the same.
    unknown: Option<String>,
}

// Which connection a descriptor of /dev/fuse belongs to stands in its fdinfo, from Linux 6.18 on.
fn servers() -> Servers {
    let mut found = HashMap::new();
    let (mut is_told, mut is_hidden) = (false, false);
    for (pid, path) in processes() {
        let descriptors = match fs::read_dir(path.join("fd")) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                is_hidden |= error.kind() == io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        for descriptor in descriptors.flatten() {
            // Of a link in /proc only the text is read.
            let is_fuse =
                fs::read_link(descriptor.path()).is_ok_and(|to| to == Path::new("/dev/fuse"));
            if !is_fuse {
                continue;
            }
            let info = path.join("fdinfo").join(descriptor.file_name());
            if let Some(connection) = connection(&fs::read_to_string(info).unwrap_or_default()) {
                is_told = true;
                let name = stat(&path).map(|stat| stat.name).unwrap_or_default();
                found.insert(connection, (pid, name));
            }
        }
    }
    let unknown = if is_hidden {
        Some("needs root".to_owned())
    } else if is_told || tells_connections() {
        None
    } else {
        Some("needs Linux 6.18".to_owned())
    };
    Servers { found, unknown }
}

// Without a daemon to see it on, the version says whether a kernel would have told.
fn tells_connections() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.trim().parse::<u32>());
    let version = (numbers.next(), numbers.next());
    matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 18))
}

fn connection(fdinfo: &str) -> Option<u64> {
    let mut lines = fdinfo.lines();
    let value = lines.find_map(|line| line.strip_prefix("fuse_connection:"))?;
    value.trim().parse().ok()
}

fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = entries(Path::new("/proc")).into_iter();
    entries.filter_map(|path| {
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        Some((pid, path))
    })
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

struct Stat {
    name: String,
    state: char,
    group: u32,
}

// proc_pid_stat(5): the name in parentheses may hold anything.
fn stat(path: &Path) -> Option<Stat> {
    let bytes = fs::read(path.join("stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

fn parse_stat(stat: &str) -> Option<Stat> {
    let (before, behind) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = behind.split_whitespace();
    Some(Stat {
        name: text::visible(name),
        state: fields.next()?.chars().next()?,
        group: fields.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{connection, parse_stat, sleepers};

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let stat = parse_stat("7 (a) R 9 9 (b) D 1 42 42 0 -1").unwrap();

        assert_eq!(
            (stat.name.as_str(), stat.state, stat.group),
            ("a) R 9 9 (b", 'D', 42)
        );
        assert!(parse_stat("7 (a").is_none());
    }

    #[test]
    fn the_connection_stands_in_fdinfo() {
        assert_eq!(connection("pos:\t0\nfuse_connection:\t40\n"), Some(40));
        assert_eq!(connection("pos:\t0\n"), None);
    }

    #[test]
    fn the_threads_of_this_group_are_found() {
        let group = rustix::process::getpgrp()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();

        let found = sleepers(group);

        assert!(found.iter().any(|thread| thread.pid == std::process::id()));
    }
}
