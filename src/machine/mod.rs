//! The FUSE mounts of this machine, instrumented or not: who serves them, and what the kernel waits for.
//!
//! Read from /proc and fusectl; no mount is touched.
//!
//! ```
//! for mount in inflight::machine::fuse_mounts() {
//!     println!("{} {:?} waits for {:?}", mount.path, mount.server, mount.kernel_waiting);
//! }
//! ```

mod group;

use std::{collections::HashMap, fmt, fs, io, path::Path};

pub use self::group::Group;

use crate::{mountinfo, proc, text};

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
    let members = proc::processes()
        .filter(|(_, path)| proc::stat(path).is_some_and(|stat| stat.group == process_group));
    members.flat_map(|(pid, _)| threads(pid)).collect()
}

/// Lists the threads of a process, and where they sleep.
#[must_use]
pub fn threads(pid: u32) -> Vec<Sleeper> {
    let threads = proc::threads(&Path::new("/proc").join(pid.to_string()));
    let sleepers = threads.into_iter().filter_map(|(tid, task)| {
        let stat = proc::stat(&task)?;
        Some(Sleeper {
            pid,
            tid,
            name: stat.name,
            state: stat.state,
            wchan: proc::wchan(&task),
        })
    });
    sleepers.collect()
}

impl fmt::Display for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid,
            tid,
            name,
            state,
            wchan,
        } = self;
        write!(f, "{name}[{pid}] thread {tid}, state {state}")?;
        match wchan {
            Some(wchan) => write!(f, " in {wchan}"),
            None => Ok(()),
        }
    }
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
    for (pid, path) in proc::processes() {
        let descriptors = match proc::descriptors(&path) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                is_hidden |= error.kind() == io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        for fd in descriptors {
            // Of a link in /proc only the text is read.
            let link = fs::read_link(path.join(format!("fd/{fd}")));
            if link.is_ok_and(|to| to == Path::new("/dev/fuse"))
                && let Ok(info) = fs::read_to_string(path.join(format!("fdinfo/{fd}")))
                && let Some(connection) = proc::field(&info, "fuse_connection:")
                && let Ok(connection) = connection.parse()
            {
                is_told = true;
                let name = proc::stat(&path).map(|stat| stat.name);
                found.insert(connection, (pid, name.unwrap_or_default()));
            }
        }
    }
    let unknown = if is_hidden || !rustix::process::geteuid().is_root() {
        Some("needs root".to_owned())
    } else if !sees_all_processes() {
        Some("may be outside of this container".to_owned())
    } else if is_told || tells_connections() {
        None
    } else {
        Some("needs Linux 6.18".to_owned())
    };
    Servers { found, unknown }
}

// The first pid namespace has a number of its own (PROC_PID_INIT_INO); what serves a mount from outside of another
// one is not in its /proc.
fn sees_all_processes() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new("pid:[4026531836]"))
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

#[cfg(test)]
mod tests {
    use super::sleepers;

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
