//! Where debug sockets are: the directories to write to and to read from, and the names in them.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs, io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use crate::{
    mountinfo::{self, Mounted, is_in_fuse},
    proc,
};

/// Processes of one id that share a directory, as containers may.
const MOST_NAMESAKES: u32 = 16;
/// So old is a socket before one that refuses is taken for a dead process's.
const YOUNG: Duration = Duration::from_secs(2);
/// Mount namespaces that are looked into.
const MOST_NAMESPACES: usize = 64;
/// To be gone through, not to be read.
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The directories, the best first.
pub(super) fn all() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let first_of_list = |list: std::ffi::OsString| {
        let first = list.as_bytes().split(|byte| *byte == b':').next()?.to_vec();
        let first = PathBuf::from(<std::ffi::OsStr as OsStrExt>::from_bytes(&first));
        (!first.as_os_str().is_empty()).then_some(first)
    };
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let below = |dir: PathBuf| dir.join("inflight");
    [
        named("INFLIGHT_DIR").map(PathBuf::from),
        named("RUNTIME_DIRECTORY")
            .and_then(first_of_list)
            .map(below),
        named("XDG_RUNTIME_DIR").map(PathBuf::from).map(below),
        Some(PathBuf::from(format!("/run/user/{uid}/inflight"))),
        Some(PathBuf::from(format!("/tmp/inflight-{uid}"))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where processes leave their sockets, as far as this one looks: for messages to people.
#[must_use]
pub fn looked_in() -> Vec<PathBuf> {
    all()
}

/// Listens in the first directory that serves. The error names them all.
pub(super) fn listen(dirs: &[PathBuf]) -> Result<(UnixListener, PathBuf), String> {
    let mut problems = Vec::new();
    for dir in dirs {
        match prepare(dir).and_then(|()| listen_in(dir)) {
            Ok(listening) => return Ok(listening),
            Err(error) => problems.push(format!("{}: {error}", dir.display())),
        }
    }
    Err(problems.join("; "))
}

/// Where paths lead: what is mounted there, and its root.
struct Namespace {
    mounts: Vec<Mounted>,
    root: OwnedFd,
}

impl Namespace {
    // Every process has a way to its own root, which only those who may trace it can go.
    fn of(process: &Path) -> Option<Self> {
        let mounts = proc::mounts(process);
        // An open of a root in FUSE may never return.
        if mounts.is_empty() || is_in_fuse(&mounts, Path::new("/")) {
            return None;
        }
        let root = openat(CWD, process.join("root"), PLACE, Mode::empty()).ok()?;
        Some(Self { mounts, root })
    }

    // Ours, and one for each other that a process of this machine lives in.
    fn all() -> Vec<Self> {
        let id = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
        let this = Path::new("/proc/self");
        let mut known = HashSet::from([id(this)]);
        let mut found: Vec<Self> = Self::of(this).into_iter().collect();
        for (_, process) in proc::processes() {
            let id = id(&process);
            if id.is_some() && known.insert(id) {
                found.extend(Self::of(&process));
            }
            if found.len() >= MOST_NAMESPACES {
                break;
            }
        }
        found
    }
}

/// A directory with sockets, opened so that nothing on the way led through a link or into FUSE.
///
/// A thread of a process that serves a mount must not call into it, and whose socket another process
/// has where is not ours to say.
pub(super) struct Opened {
    directory: OwnedFd,
    pub(super) sockets: Vec<PathBuf>,
}

impl Opened {
    fn new(namespace: &Namespace, path: &Path) -> Result<Self, Errno> {
        if is_in_fuse(&namespace.mounts, path) {
            return Err(Errno::XDEV);
        }
        let directory = openat2(
            &namespace.root,
            path.strip_prefix("/").map_err(|_| Errno::INVAL)?,
            PLACE,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS | ResolveFlags::IN_ROOT,
        )?;
        Ok(Self {
            directory,
            sockets: Vec::new(),
        })
    }

    /// The path to connect to.
    pub(super) fn way_to(&self, socket: &Path) -> PathBuf {
        let fd = self.directory.as_raw_fd();
        let name = socket.file_name().unwrap_or_default();
        Path::new(&format!("/proc/self/fd/{fd}")).join(name)
    }
}

/// Where processes can be asked, and where not.
pub(super) struct Sockets {
    pub(super) directories: Vec<Opened>,
    /// In directories that this user may not enter.
    pub(super) closed: Vec<PathBuf>,
}

/// The sockets of all processes that may be asked: in the directories and in `more`, and in others of this
/// network namespace.
pub(super) fn sockets(more: &[PathBuf]) -> Sockets {
    let listed = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut by_directory: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for socket in in_proc(&listed) {
        if let Some(dir) = socket.parent().map(Path::to_path_buf) {
            by_directory.entry(dir).or_default().push(socket);
        }
    }
    // Sockets of other network namespaces are not listed, but may be in our own directories.
    for dir in all().into_iter().chain(more.iter().cloned()) {
        by_directory.entry(dir).or_default();
    }
    let (mut directories, mut closed) = (Vec::new(), Vec::new());
    for (at, namespace) in Namespace::all().iter().enumerate() {
        for (path, listed) in &by_directory {
            let mut opened = match Opened::new(namespace, path) {
                Ok(opened) => opened,
                Err(error) => {
                    if at == 0 && error == Errno::ACCESS {
                        closed.extend(listed.iter().cloned());
                    }
                    continue;
                }
            };
            let entries = fs::read_dir(opened.way_to(Path::new("."))).into_iter();
            let entries = entries.flatten().flatten();
            let names = entries.map(|entry| path.join(entry.file_name()));
            let mut sockets: Vec<PathBuf> = names.filter(|name| is_socket(name)).collect();
            if at == 0 {
                // A directory that may be entered need not be one that may be read.
                sockets.extend(listed.iter().cloned());
            }
            sockets.sort();
            sockets.dedup();
            opened.sockets = sockets;
            directories.push(opened);
        }
    }
    Sockets {
        directories,
        closed,
    }
}

// `PID.sock` or `PID-1.sock`.
fn is_socket(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_suffix(".sock"))
        .is_some_and(|name| {
            let (pid, namesake) = name.split_once('-').unwrap_or((name, "1"));
            let is_number = |text: &str| text.parse::<u32>().is_ok();
            is_number(pid) && is_number(namesake)
        })
}

// proc_pid_net(5): the path is the last field. Only directories of ours, whatever else is called so.
fn in_proc(listed: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let paths = listed.lines().filter_map(|line| {
        let at = line.find(" /")?;
        Some(Path::new(&line[at + 1..]))
    });
    paths
        .filter(|path| {
            let dir = path.parent().and_then(Path::file_name);
            let is_ours = dir.is_some_and(|dir| dir.as_bytes().starts_with(b"inflight"));
            is_ours && is_socket(path)
        })
        .map(Path::to_path_buf)
}

// Ours alone: others could put a socket of their own there, or read what is in flight.
fn prepare(dir: &Path) -> io::Result<()> {
    if is_in_fuse(&mountinfo::read()?, dir) {
        return Err(io::Error::other("is in a FUSE file system"));
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir)?;
    let uid = rustix::process::geteuid().as_raw();
    let problem = if !metadata.is_dir() {
        "is no directory".to_owned()
    } else if metadata.uid() != uid {
        format!("belongs to user {}, not to {uid}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!(
            "others may enter it (mode {:o}): chmod 700 it",
            metadata.mode() & 0o7777
        )
    } else {
        return Ok(());
    };
    Err(io::Error::other(problem))
}

fn listen_in(dir: &Path) -> io::Result<(UnixListener, PathBuf)> {
    remove_stale(dir, YOUNG);
    let pid = std::process::id();
    let mut last = io::Error::other("too many processes of this id");
    for namesake in 0..MOST_NAMESAKES {
        let path = dir.join(match namesake {
            0 => format!("{pid}.sock"),
            n => format!("{pid}-{n}.sock"),
        });
        match UnixListener::bind(&path) {
            Ok(listener) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                return Ok((listener, path));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

// A process that was killed leaves its socket. One that refuses is nobody's; a dead pid proves nothing. One that
// was just made refuses as well, until its process listens.
fn remove_stale(dir: &Path, young: Duration) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_socket(&path) && !is_younger(&path, young) && is_refused(&path) {
            // Nothing depends on it: what is left is passed over by readers.
            let _ = fs::remove_file(&path);
        }
    }
}

// Either way: clocks are set back.
fn is_younger(path: &Path, than: Duration) -> bool {
    let Ok(made) = fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) else {
        return true;
    };
    let age = made.elapsed().unwrap_or_else(|error| error.duration());
    age < than
}

// Without waiting: one that is stopped, and was asked by many since, has no room for one more.
fn is_refused(path: &Path) -> bool {
    let connect = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    connect() == Err(Errno::CONNREFUSED)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt, net::UnixStream},
        path::{Path, PathBuf},
        time::Duration,
    };

    use super::{in_proc, is_socket, listen, remove_stale};

    #[test]
    fn only_names_of_debug_sockets_are_taken_for_one() {
        for (name, expected) in [
            ("/x/12.sock", true),
            ("/x/12-1.sock", true),
            ("/x/a.sock", false),
            ("/x/12.sock.bak", false),
            ("/x/12-.sock", false),
        ] {
            assert_eq!(is_socket(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn sockets_of_other_sessions_are_found_in_proc() {
        let listed = "Num RefCount Protocol Flags Type St Inode Path\n\
            0: 2 0 00010000 0001 01 1 /run/user/7/inflight/12.sock\n\
            0: 2 0 00010000 0001 01 2 /tmp/inflight-0/13-1.sock\n\
            0: 2 0 00010000 0001 01 3 /run/other/14.sock\n\
            0: 2 0 00010000 0001 01 4 @abstract\n\
            0: 2 0 00010000 0001 01 5\n";

        let found: Vec<PathBuf> = in_proc(listed).collect();

        assert_eq!(
            found,
            [
                Path::new("/run/user/7/inflight/12.sock"),
                Path::new("/tmp/inflight-0/13-1.sock")
            ]
        );
    }

    #[test]
    fn a_directory_that_others_may_enter_is_passed_over() {
        let temporary = tempfile::tempdir().unwrap();
        let open = temporary.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let good = temporary.path().join("good");

        let error = listen(std::slice::from_ref(&open)).unwrap_err();
        let (_listener, path) = listen(&[open, good.clone()]).unwrap();

        assert!(error.contains("chmod 700"), "{error}");
        assert_eq!(path.parent(), Some(good.as_path()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&good), mode(&path)), (0o700, 0o600));
    }

    #[test]
    fn a_socket_that_refuses_is_replaced_and_a_living_one_is_not() {
        let temporary = tempfile::tempdir().unwrap();
        let dirs = [temporary.path().join("dir")];
        let (first, path) = listen(&dirs).unwrap();

        let (_second, beside) = listen(&dirs).unwrap();
        drop(first);
        remove_stale(&dirs[0], Duration::from_secs(3600));
        assert!(path.exists(), "it may have yet to listen");
        remove_stale(&dirs[0], Duration::ZERO);
        let (_third, again) = listen(&dirs).unwrap();

        assert_ne!(path, beside);
        assert_eq!(path, again);
        assert!(UnixStream::connect(&again).is_ok());
    }
}
