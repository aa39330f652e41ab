//! The file system that does nothing, and holds up what it is told to.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime},
};

use inflight::{
    Op,
    fuse::fuser::{
        Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
        LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
        ReplyOpen, ReplyWrite, Request, WriteFlags,
    },
};

use crate::child::say;

/// How many entries the directory `d` has.
pub(crate) const ENTRIES: u64 = 1000;

const ROOT: u64 = 1;
const DIRECTORY: u64 = 2;
/// Read and written without the page cache, so that each call is a request.
const FILE: u64 = 3;
/// Read through the page cache.
const CACHED: u64 = 4;

const NOW: Duration = Duration::ZERO;
/// Names are looked up once: what is measured is the op that is named, and nothing beside it.
const KEPT: Duration = Duration::from_secs(3600);

const MOST: usize = 1 << 20;
static ZEROS: [u8; MOST] = [0; MOST];

#[derive(Clone)]
pub(crate) struct Null(Arc<Inner>);

struct Inner {
    /// Looked at by each request: nothing that all share is written to while rates are measured.
    is_counting: AtomicBool,
    counted: AtomicU64,
    is_holding: AtomicBool,
    held: Mutex<HashSet<String>>,
    changed: Condvar,
}

impl Null {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            is_counting: AtomicBool::new(false),
            counted: AtomicU64::new(0),
            is_holding: AtomicBool::new(false),
            held: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// `count` begins to count requests, `counted` says how many and ends it, `hold OP` and `free` hold.
    pub(crate) fn told(&self, line: &str) {
        let inner = &*self.0;
        match line.split_once(' ') {
            None if line == "count" => {
                inner.counted.store(0, Relaxed);
                inner.is_counting.store(true, Relaxed);
                say("counting");
            }
            None if line == "counted" => {
                inner.is_counting.store(false, Relaxed);
                say(&format!("counted {}", inner.counted.load(Relaxed)));
            }
            None if line == "free" => {
                inner.held().clear();
                inner.is_holding.store(false, Relaxed);
                inner.changed.notify_all();
                say("freed");
            }
            Some(("hold", op)) => {
                inner.held().insert(op.to_owned());
                inner.is_holding.store(true, Relaxed);
                say("held");
            }
            _ => panic!("what is {line}?"),
        }
    }

    fn pass(&self, op: &str) {
        let inner = &*self.0;
        if inner.is_counting.load(Relaxed) {
            inner.counted.fetch_add(1, Relaxed);
        }
        if inner.is_holding.load(Relaxed) {
            inner.wait(op);
        }
    }
}

impl Inner {
    #[cold]
    fn wait(&self, op: &str) {
        let mut held = self.held();
        if held.contains(op) {
            say(&format!("begun {op}"));
        }
        while held.contains(op) {
            let waited = self.changed.wait(held);
            held = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn attr(ino: u64) -> FileAttr {
    let is_dir = matches!(ino, ROOT | DIRECTORY);
    let at = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: MOST as u64,
        blocks: 1,
        atime: at,
        mtime: at,
        ctime: at,
        crtime: at,
        kind: match is_dir {
            true => FileType::Directory,
            false => FileType::RegularFile,
        },
        perm: if is_dir { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Null {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.pass("lookup");
        let ino = match name.as_bytes() {
            b"d" => DIRECTORY,
            b"f" => FILE,
            b"c" => CACHED,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry_with_ttls(&NOW, &KEPT, &attr(ino), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.pass(if ino.0 == ROOT {
            "getattr-root"
        } else {
            "getattr"
        });
        reply.attr(&NOW, &attr(ino.0));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.pass("mkdir");
        reply.error(Errno::EEXIST);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.pass("open");
        let flags = match ino.0 {
            FILE => FopenFlags::FOPEN_DIRECT_IO,
            _ => FopenFlags::empty(),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = move |reply: ReplyData| reply.data(&ZEROS[..MOST.min(size as usize)]);
        if self.0.is_holding.load(Relaxed) && self.0.held().contains("later") {
            let (this, op) = (self.clone(), Op::current());
            thread::spawn(move || {
                this.pass("later");
                answer(reply);
                drop(op);
            });
            return;
        }
        self.pass("read");
        answer(reply);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.pass("write");
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.pass("flush");
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.pass("release");
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.pass("readdir");
        let entries = if ino.0 == DIRECTORY { ENTRIES } else { 1 };
        for n in offset..entries {
            let name = format!("entry-{n:04}");
            if reply.add(INodeNo(100 + n), n + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}
