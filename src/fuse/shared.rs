//! What the wrapper, its helper threads and the handle of one mount share.

use std::{
    ffi::OsStr,
    fmt, fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyAttr, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    diag::{Diag, File},
    dispatch::{Dispatch, Duty, ROOT_PATIENCE},
    options::Options,
    paths::Paths,
};
use crate::{
    clock::Stamp,
    op::Op,
    place::Place,
    record::{Detail, Record, Target},
    snapshot::Kind,
    text,
    tracker::{Parent, Start, Tracker},
};

/// While something is parked, its callers are looked after this often.
const WATCH: Duration = Duration::from_millis(500);

const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

const ROOT: u64 = INodeNo::ROOT.0;

pub(super) const MAX_PATH: usize = 4096;

/// Bytes of a name that an op keeps.
const MAX_ENTRY: usize = 255;

pub(super) struct Shared<F> {
    pub(super) tracker: Tracker,
    pub(super) dispatch: Arc<Dispatch<F>>,
    pub(super) diag: Diag,
    pub(super) paths: Paths,
    /// Where it is mounted; empty if that is not known.
    pub(super) path: Arc<str>,
    /// The same as reports show it.
    pub(super) shown: String,
    pub(super) place: OnceLock<Place>,
    /// For the forgets that could not be delivered at once: the kernel says nothing in it.
    pub(super) forget_request: OnceLock<Request>,
    parallel_dirops: Option<bool>,
    /// The process that has a thread which looks after the parked.
    watch_of: AtomicU32,
    root: Mutex<Root>,
    /// A duplicate of the session's /dev/fuse, only to ask whether the connection is there.
    device: Mutex<Option<OwnedFd>>,
    pub(super) notes: Mutex<Vec<String>>,
    pub(super) ended: AtomicBool,
    /// It was seen to be unmounted: what is at its path now is not ours.
    unmounted: AtomicBool,
}

#[derive(Default)]
struct Root {
    /// What is said of it when the inner file system cannot be asked.
    known: Option<FileAttr>,
    /// It is changed, or has been since.
    is_stale: bool,
    asked: Option<(Arc<Record>, Stamp)>,
    changing: Option<Arc<Record>>,
    /// Grows with each change, and with each answer from memory: what is learnt across one may be old.
    version: u64,
}

impl<F: Send + Sync + 'static> Shared<F> {
    /// `path` is empty when it is not known, and `slots` is unlimited when it is not said.
    pub(super) fn new(
        tracker: &Tracker,
        path: &Path,
        slots: usize,
        options: &Options,
    ) -> Arc<Self> {
        let path_text = text::from_bytes(path.as_os_str().as_bytes(), MAX_PATH);
        let shown = text::visible(&path_text);
        let shared = Arc::new(Self {
            tracker: tracker.clone(),
            dispatch: Dispatch::new(slots),
            diag: Diag::new(options, tracker, &shown),
            paths: Paths::new(),
            shown,
            path: path_text.into(),
            place: OnceLock::new(),
            forget_request: OnceLock::new(),
            parallel_dirops: options.parallel_dirops,
            watch_of: AtomicU32::new(0),
            root: Mutex::new(Root::default()),
            device: Mutex::new(None),
            notes: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
            unmounted: AtomicBool::new(false),
        });
        tracker.add_source(&shared);
        shared
    }

    pub(super) fn wants_parallel_dirops(&self) -> bool {
        let by_default = self.dispatch.slots() == 1;
        self.parallel_dirops.unwrap_or(by_default)
    }

    /// Begins the op of one request.
    pub(super) fn begin(
        &self,
        name: &'static str,
        request: &Request,
        inode: INodeNo,
        entry: Option<&OsStr>,
    ) -> Op {
        let tid = request.pid();
        self.paths.used(tid, inode.0);
        if let Some(entry) = entry {
            match name {
                "unlink" | "rmdir" | "rename" => self.paths.dropped(inode.0, entry.as_bytes()),
                _ => self.paths.looked_up(tid, inode.0, entry.as_bytes()),
            }
        }
        let target = match entry {
            Some(entry) if inode == INodeNo::ROOT => {
                let entry = text::from_bytes(entry.as_bytes(), MAX_ENTRY);
                Target::Text(format!("/{entry}").into())
            }
            Some(entry) => {
                let entry = text::from_bytes(entry.as_bytes(), MAX_ENTRY);
                Target::Text(format!("inode {}/{entry}", inode.0).into())
            }
            None if inode == INodeNo::ROOT => Target::Text("/".into()),
            None => Target::Unknown,
        };
        let op = self.tracker.start(Start {
            kind: Kind::Fuse,
            name: name.into(),
            target,
            route: "",
            detail: Detail::Fuse {
                unique: request.unique().0,
                inode: inode.0,
                tid,
                uid: request.uid(),
                mount: Arc::clone(&self.path),
            },
            parent: Parent::Root,
            phase: None,
        });
        if inode == INodeNo::ROOT && name == "getattr" {
            let record = op.record().map(|record| (Arc::clone(record), Stamp::now()));
            lock(&self.root).asked = record;
        }
        if inode == INodeNo::ROOT && name == "setattr" {
            lock(&self.root).changes(op.record());
            self.dispatch.wake_watch();
        }
        op
    }

    /// Keeps what the file system told of a file when it was opened, for the ops on it that follow.
    pub(super) fn returned(&self, record: &Record) {
        if !matches!(&*record.name, "open" | "opendir") {
            return;
        }
        let Some(told) = record.told() else { return };
        let mut inode = ROOT;
        record.detail(|detail| {
            if let Detail::Fuse { inode: of, .. } = detail {
                inode = *of;
            }
        });
        if inode != ROOT {
            self.paths.told(inode, &told);
        }
    }

    /// Whether a GETATTR of the root would only wait: then path walks, that of `.diag` too, wait with it.
    pub(super) fn root_is_answered_from_memory(&self) -> bool {
        let root = lock(&self.root);
        if !root.is_known() {
            return false;
        }
        let hangs = root.asked.as_ref().is_some_and(|(record, since)| {
            !record.has_ended() && Stamp::now().since(*since) > ROOT_PATIENCE
        });
        drop(root);
        hangs || self.dispatch.hangs()
    }

    /// Answers without the inner file system.
    pub(super) fn getattr(&self, inode: INodeNo, reply: ReplyAttr) {
        if File::of(inode).is_some() {
            return self.diag.getattr(inode, reply);
        }
        let known = lock(&self.root).tell();
        match known {
            Some(attr) => reply.attr(&Duration::ZERO, &attr),
            None => reply.error(Errno::EIO),
        }
    }

    /// Whether GETATTRs of the root can be kept apart: they need an answer when they are.
    pub(super) fn knows_root(&self) -> bool {
        lock(&self.root).is_known()
    }

    /// Whether it has changed, and is to be asked for anew.
    pub(super) fn root_is_stale(&self) -> bool {
        lock(&self.root).is_stale
    }

    /// The version to name when what is asked for from now on is learnt; `None` while it changes.
    pub(super) fn root_version(&self) -> Option<u64> {
        lock(&self.root).version()
    }

    /// Learns what the root is like, unless it has changed since, or was told from memory.
    pub(super) fn learn_root(&self, attr: FileAttr, version: u64) {
        lock(&self.root).learn(attr, version);
    }

    pub(super) fn set_device(&self, device: OwnedFd) {
        *lock(&self.device) = Some(device);
    }

    pub(super) fn was_unmounted(&self) -> bool {
        self.unmounted.load(Relaxed)
    }

    /// Whether nobody is left to answer.
    pub(super) fn is_gone(&self) -> bool {
        match &*lock(&self.device) {
            Some(device) => has_failed(device),
            None => self.dispatch.has_loop_ended() || self.dispatch.is_closed(),
        }
    }

    pub(super) fn note(&self, note: Option<String>) {
        *lock(&self.notes) = note.into_iter().collect();
    }

    /// Starts the thread that looks after parked ops, unless this process has it. A mount made by
    /// [`mount`](super::mount) has a better one.
    pub(super) fn start_watch(self: &Arc<Self>) {
        let pid = std::process::id();
        if self.watch_of.load(Relaxed) == pid || self.watch_of.swap(pid, Relaxed) == pid {
            return;
        }
        let shared = Arc::clone(self);
        let watch = move || {
            let mut check_at = Instant::now();
            while !shared.dispatch.is_closed() {
                shared.look_after_parked(&mut check_at, FOREVER);
            }
        };
        // Without it killed callers wait for a slot like the others.
        let _none = thread::Builder::new()
            .name("inflight-mount".to_owned())
            .spawn(watch);
    }

    pub(super) fn has_watch(&self) {
        self.watch_of.store(std::process::id(), Relaxed);
    }

    /// Looks after parked ops for so long, or until it is closed. `check_at` is when their callers are
    /// next asked for.
    pub(super) fn look_after_parked(&self, check_at: &mut Instant, at_most: Duration) {
        match self.dispatch.watch(*check_at, at_most) {
            Duty::None | Duty::Closed => {}
            Duty::Late(ops) => {
                for op in ops {
                    op.set_aside();
                }
            }
            Duty::Check if self.is_gone() => {
                // An aborted connection is gone as well, but stays mounted.
                let is_mounted = self.place.get().is_some_and(Place::exists);
                self.unmounted.store(!is_mounted, Relaxed);
                self.close();
            }
            Duty::Check => {
                for op in self.dispatch.take_killed(is_killed) {
                    op.interrupt();
                }
                *check_at = Instant::now() + WATCH;
            }
        }
    }
}

impl<F> Shared<F> {
    /// Ends it: what is parked is dropped unrun, and the reader that stands by goes.
    pub(super) fn close(&self) {
        self.ended.store(true, Relaxed);
        // Held any longer, it would keep the connection of a session that is over.
        let device = lock(&self.device).take();
        drop(device);
        for op in self.dispatch.close() {
            op.refuse();
        }
    }
}

impl<F> fmt::Debug for Shared<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("path", &self.path)
            .field("dispatch", &self.dispatch)
            .field("diag", &self.diag)
            .finish_non_exhaustive()
    }
}

impl Root {
    // Until it has changed it is as it was; the kernel drops an answer that a change has overtaken.
    fn is_known(&self) -> bool {
        self.known.is_some() && (!self.is_stale || self.is_changing())
    }

    fn is_changing(&self) -> bool {
        self.changing.as_ref().is_some_and(|by| !by.has_ended())
    }

    // Told from memory afterwards it would be changed back: the kernel believes it.
    fn changes(&mut self, by: Option<&Arc<Record>>) {
        self.version += 1;
        self.is_stale = true;
        self.changing = by.map(Arc::clone);
    }

    fn tell(&mut self) -> Option<FileAttr> {
        self.version += 1;
        self.known
    }

    fn version(&self) -> Option<u64> {
        (!self.is_changing()).then_some(self.version)
    }

    fn learn(&mut self, attr: FileAttr, version: u64) {
        if version == self.version {
            self.known = Some(attr);
            self.is_stale = false;
            self.changing = None;
        }
    }
}

/// What a directory is taken for until more is known of it.
pub(super) fn directory(mode: u32, uid: u32, gid: u32) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INodeNo::ROOT,
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: FileType::Directory,
        perm: (mode & 0o7777) as u16,
        nlink: 2,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

// An aborted or unmounted connection answers poll(2) with POLLERR.
fn has_failed(device: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

// proc_pid_status(5): SIGKILL is signal 9, bit 8. A thread that is gone waits for nothing. The kernel gives a
// fatal signal to each thread of its own, and takes it back as the thread begins to die: only a thread that could
// still be freed by it has it. The process's own mask keeps it for ever, also while its files are closed.
fn is_killed(tid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    has_sigkill(&status)
}

fn has_sigkill(status: &str) -> bool {
    let mut masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:"));
    let mask = masks.next().unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & (1 << 8) != 0)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Root, directory, has_sigkill};
    use crate::tracker::Tracker;

    #[test]
    fn a_root_that_has_changed_is_not_told_from_memory_before_it_was_asked_again() {
        let tracker = Tracker::new("test");
        let mut root = Root::default();
        root.learn(directory(0o755, 0, 0), 0);
        assert!(root.is_known());
        let before = root.version().unwrap();
        let setattr = tracker.begin("setattr");

        root.changes(setattr.record());

        root.learn(directory(0o755, 0, 0), before);
        assert_eq!(root.version(), None, "it has yet to change");
        assert!(root.is_known(), "and is as it was");
        setattr.end();
        assert!(!root.is_known(), "what was asked before is old");
        root.learn(directory(0o700, 0, 0), root.version().unwrap());
        assert_eq!(root.known.map(|attr| attr.perm), Some(0o700));
        assert!(root.is_known());
    }

    // By the child that asks for it on a mount that is busy at that moment.
    #[test]
    fn what_was_told_from_memory_is_not_learnt_again() {
        let mut root = Root::default();
        root.learn(directory(0o755, 0, 0), 0);
        let version = root.version().unwrap();
        assert!(root.tell().is_some());

        root.learn(directory(0o700, 0, 0), version);

        assert_eq!(root.known.map(|attr| attr.perm), Some(0o755));
    }

    #[test]
    fn sigkill_is_seen_while_the_thread_has_yet_to_die() {
        let status = |own: &str, shared: &str| {
            format!("Name:\tcat\nSigQ:\t1/9\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\tffff\n")
        };

        assert!(has_sigkill(&status("0000000000000100", "0000000000000000")));
        assert!(has_sigkill(&status("0000000000000102", "0000000000000100")));
        assert!(
            !has_sigkill(&status("0000000000000000", "0000000000000100")),
            "it closes its files"
        );
        assert!(!has_sigkill(&status(
            "0000000000004002",
            "0000000000000000"
        )));
        assert!(!has_sigkill(""));
    }
}
