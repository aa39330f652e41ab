//! Guesses which path an inode has, from what its callers looked up and from what they have open.

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use dashmap::DashMap;
use smallvec::SmallVec;

const ROOT: u64 = 1;

// Threads share a place when there are more; then the older lookup is forgotten.
const RECENT: usize = 64;

const MOST_KNOWN: usize = 8192;

const MOST_DEPTH: usize = 64;

const MOST_FILES: usize = 64;

/// What is known of the paths in one mount. All of it is a guess: replies cannot be seen.
#[derive(Debug)]
pub(super) struct Paths {
    recent: [Recent; RECENT],
    known: Mutex<Known>,
    // What an op on the inode was told to work on. Each op of a file system that says its paths looks here, from
    // all slots at once.
    told: DashMap<u64, Box<str>>,
    hasher: RandomState,
}

// The last entry a thread looked up, until it asks for something else.
#[derive(Debug, Default)]
struct Recent {
    tid: AtomicU32,
    entry: Mutex<Entry>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    tid: u32,
    parent: u64,
    name: SmallVec<[u8; 32]>,
}

#[derive(Debug, Default)]
struct Known {
    names: HashMap<u64, (u64, Box<[u8]>)>,
    // By directory and hash of the name.
    inodes: HashMap<(u64, u64), u64>,
}

impl Paths {
    pub(super) fn new() -> Self {
        Self {
            recent: std::array::from_fn(|_| Recent::default()),
            known: Mutex::new(Known::default()),
            told: DashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// A request of this thread is about `inode`: it may be what it looked up just before.
    pub(super) fn used(&self, tid: u32, inode: u64) {
        let recent = self.recent_of(tid);
        if recent.tid.load(Relaxed) != tid || tid == 0 {
            return;
        }
        let entry = {
            let mut entry = lock(&recent.entry);
            if entry.tid != tid {
                return;
            }
            recent.tid.store(0, Relaxed);
            entry.tid = 0;
            entry.clone()
        };
        if inode != ROOT && inode != entry.parent {
            self.learn(inode, entry.parent, &entry.name);
        }
    }

    /// This thread looks an entry up, or makes it.
    pub(super) fn looked_up(&self, tid: u32, parent: u64, name: &[u8]) {
        if tid == 0 {
            return;
        }
        let recent = self.recent_of(tid);
        let mut entry = lock(&recent.entry);
        entry.tid = tid;
        entry.parent = parent;
        entry.name.clear();
        entry.name.extend_from_slice(name);
        recent.tid.store(tid, Relaxed);
    }

    /// The file system said what path an inode has.
    pub(super) fn told(&self, inode: u64, path: &str) {
        let is_known = self.told.get(&inode).is_some_and(|told| **told == *path);
        if is_known {
            return;
        }
        if self.told.len() >= MOST_KNOWN {
            self.told.clear();
        }
        self.told.insert(inode, path.into());
    }

    /// An entry is removed, renamed or replaced.
    pub(super) fn dropped(&self, parent: u64, name: &[u8]) {
        let key = (parent, self.hasher.hash_one(name));
        // Which of these are below the entry is not known.
        self.told.clear();
        let mut known = lock(&self.known);
        if let Some(inode) = known.inodes.remove(&key) {
            known.names.remove(&inode);
        }
    }

    /// The kernel knows the inode no more.
    pub(super) fn forgotten(&self, inode: u64) {
        self.told.remove(&inode);
        let mut known = lock(&self.known);
        if let Some((parent, name)) = known.names.remove(&inode) {
            known.inodes.remove(&(parent, self.hasher.hash_one(&*name)));
        }
    }

    /// The path of an inode within the mount, if all of it is known.
    pub(super) fn of(&self, inode: u64) -> Option<Vec<u8>> {
        if let Some(told) = self.told.get(&inode) {
            return Some(told.as_bytes().to_vec());
        }
        let known = lock(&self.known);
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = inode;
        while at != ROOT {
            let (parent, name) = known.names.get(&at)?;
            names.push(name);
            at = *parent;
            if names.len() > MOST_DEPTH {
                return None;
            }
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Some(path)
    }

    // What was learnt first stays: after a lookup that failed the next request is about another one.
    fn learn(&self, inode: u64, parent: u64, name: &[u8]) {
        let key = (parent, self.hasher.hash_one(name));
        let mut known = lock(&self.known);
        if known.names.contains_key(&inode) {
            return;
        }
        if known.names.len() >= MOST_KNOWN {
            known.names.clear();
            known.inodes.clear();
        }
        if let Some(before) = known.inodes.insert(key, inode) {
            known.names.remove(&before);
        }
        known.names.insert(inode, (parent, name.into()));
    }

    fn recent_of(&self, tid: u32) -> &Recent {
        &self.recent[tid as usize % RECENT]
    }
}

/// The path within the mount of an inode that a thread has open.
///
/// Only /proc is asked, which asks no file system.
pub(super) fn open_file(tid: u32, inode: u64, mount: &Path, mount_id: u64) -> Option<Vec<u8>> {
    let files = fs::read_dir(format!("/proc/{tid}/fd")).ok()?;
    for file in files.take(MOST_FILES).flatten() {
        let number = file.file_name();
        let info = Path::new("/proc").join(tid.to_string()).join("fdinfo");
        let Ok(info) = fs::read_to_string(info.join(&number)) else {
            continue;
        };
        if !is_about(&info, inode, mount_id) {
            continue;
        }
        let target = fs::read_link(file.path()).ok()?;
        let within = target.strip_prefix(mount).ok()?;
        let within = std::os::unix::ffi::OsStrExt::as_bytes(within.as_os_str());
        if within.ends_with(b" (deleted)") {
            return None;
        }
        return Some([b"/", within].concat());
    }
    None
}

// proc_pid_fdinfo(5).
fn is_about(info: &str, inode: u64, mount_id: u64) -> bool {
    let field = |name: &str| {
        let mut lines = info.lines();
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    field("ino:") == Some(inode) && field("mnt_id:") == Some(mount_id)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{MOST_KNOWN, Paths, is_about};

    fn path(paths: &Paths, inode: u64) -> Option<String> {
        paths
            .of(inode)
            .map(|path| String::from_utf8_lossy(&path).into_owned())
    }

    // One thread walks to /a/b, and opens it.
    fn walked() -> Paths {
        let paths = Paths::new();
        paths.used(9, 1);
        paths.looked_up(9, 1, b"a");
        paths.used(9, 5);
        paths.looked_up(9, 5, b"b");
        paths.used(9, 6);
        paths
    }

    #[test]
    fn what_a_thread_asks_for_next_is_what_it_looked_up() {
        let paths = walked();

        assert_eq!(path(&paths, 6).as_deref(), Some("/a/b"));
        assert_eq!(path(&paths, 5).as_deref(), Some("/a"));
        assert_eq!(path(&paths, 7), None);
    }

    #[test]
    fn only_the_next_request_of_the_same_thread_counts() {
        let paths = Paths::new();
        paths.looked_up(9, 1, b"a");
        paths.used(8, 5);
        paths.looked_up(9 + 64, 1, b"other");
        paths.used(9, 6);
        paths.used(9 + 64, 7);
        paths.used(9 + 64, 8);

        assert_eq!(path(&paths, 5), None);
        assert_eq!(path(&paths, 6), None);
        assert_eq!(path(&paths, 7).as_deref(), Some("/other"));
        assert_eq!(path(&paths, 8), None);
    }

    #[test]
    fn a_directory_is_not_its_own_entry() {
        let paths = Paths::new();
        paths.looked_up(9, 5, b"a");
        paths.used(9, 5);
        paths.looked_up(9, 1, b"a");
        paths.used(9, 1);

        assert_eq!(path(&paths, 5), None);
        assert_eq!(path(&paths, 1).as_deref(), Some(""));
    }

    #[test]
    fn a_rename_an_unlink_and_a_forget_drop_what_was_known() {
        let paths = walked();
        paths.dropped(1, b"a");
        assert_eq!((path(&paths, 5), path(&paths, 6)), (None, None));

        let paths = walked();
        paths.dropped(5, b"b");
        assert_eq!(path(&paths, 6), None);
        assert_eq!(path(&paths, 5).as_deref(), Some("/a"));

        let paths = walked();
        paths.forgotten(6);
        assert_eq!(path(&paths, 6), None);
    }

    #[test]
    fn what_was_told_goes_before_what_is_guessed() {
        let paths = walked();
        paths.told(6, "/x/y");
        assert_eq!(path(&paths, 6).as_deref(), Some("/x/y"));

        paths.dropped(1, b"z");
        assert_eq!(path(&paths, 6).as_deref(), Some("/a/b"));
    }

    #[test]
    fn a_circle_has_no_path_and_the_table_has_an_end() {
        let paths = Paths::new();
        paths.learn(5, 6, b"a");
        paths.learn(6, 5, b"b");
        assert_eq!(path(&paths, 5), None);

        for inode in 10..10 + 2 * MOST_KNOWN as u64 {
            paths.learn(inode, 1, inode.to_string().as_bytes());
        }
        assert!(super::lock(&paths.known).names.len() <= MOST_KNOWN);
        assert!(super::lock(&paths.known).inodes.len() <= MOST_KNOWN);
    }

    #[test]
    fn fdinfo_tells_mount_and_inode() {
        let info = "pos:\t0\nflags:\t0100000\nmnt_id:\t43\nino:\t7\n";

        assert!(is_about(info, 7, 43));
        assert!(!is_about(info, 7, 44));
        assert!(!is_about("pos:\t0\n", 7, 43));
    }
}
