//! What the callbacks share: inodes, attributes and open files, and how they are answered from the tree.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use inflight::fuse::fuser::{
    Errno, FileAttr, FileHandle, FileType, Generation, INodeNo, ReplyEntry,
};

use crate::files::{Files, Refused};
use crate::node::{Field, Inodes, NEGATIVE, Node, OfModel};

/// The files, and what the kernel was told of them.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) files: Files,
    inodes: Mutex<Inodes>,
    handles: Mutex<HashMap<u64, Open>>,
    next_handle: AtomicU64,
    is_fresh: bool,
    since: SystemTime,
}

/// An open file or directory.
#[derive(Debug, Default)]
pub(crate) struct Open {
    pub(crate) to_send: Vec<u8>,
    text: Option<Arc<str>>,
    entries: Arc<Vec<(String, Node)>>,
}

impl Tree {
    /// `is_fresh`: the kernel shall keep nothing.
    pub(crate) fn new(files: Files, is_fresh: bool) -> Self {
        Self {
            files,
            inodes: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            is_fresh,
            since: SystemTime::now(),
        }
    }

    pub(crate) fn node(&self, inode: INodeNo) -> Option<Node> {
        lock(&self.inodes).node(inode.0)
    }

    pub(crate) fn lifetime(&self, node: &Node) -> Duration {
        self.shortened(node.lifetime())
    }

    fn shortened(&self, lifetime: Duration) -> Duration {
        match self.is_fresh {
            true => Duration::ZERO,
            false => lifetime,
        }
    }

    pub(crate) fn attr(&self, node: &Node) -> FileAttr {
        let kind = match node {
            node if node.is_link() => FileType::Symlink,
            node if self.files.is_dir(node) => FileType::Directory,
            _ => FileType::RegularFile,
        };
        let perm = match (node, kind) {
            (_, FileType::Symlink) => 0o777,
            (_, FileType::Directory) => 0o755,
            (Node::Field(_, Field::Send | Field::Cancel), _) => 0o222,
            (Node::Field(_, Field::Archived), _) => 0o644,
            (Node::Field(n, Field::Ctl), _) => match self.files.known.one(*n) {
                Some(one) if one.server_id.is_none() => 0o644,
                _ => 0o444,
            },
            (Node::OfModel(_, OfModel::Start), _) => 0o555,
            _ => 0o444,
        };
        // What only the server knows is read until its end, whatever is said here.
        let text = self.files.known_text(node);
        let inode = lock(&self.inodes).number(node);
        FileAttr {
            ino: INodeNo(inode),
            size: text.map_or(0, |text| text.len() as u64),
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Answers a lookup; what is not there is not there for a while.
    pub(crate) fn entry(&self, found: Result<Node, Refused>, reply: ReplyEntry) {
        match found {
            Ok(node) => reply.entry(&self.lifetime(&node), &self.attr(&node), Generation(0)),
            Err(refused) => match refused.told() {
                Errno::ENOENT => {
                    let nothing = FileAttr {
                        ino: INodeNo(0),
                        ..self.attr(&Node::Root)
                    };
                    reply.entry(&self.shortened(NEGATIVE), &nothing, Generation(0));
                }
                errno => reply.error(errno),
            },
        }
    }

    /// As it was when this handle first read it.
    pub(crate) async fn entries(
        &self,
        node: &Node,
        handle: FileHandle,
        from_start: bool,
    ) -> Result<Arc<Vec<(String, Node)>>, Refused> {
        if !from_start {
            return Ok(self.with_handle(handle, |open| Arc::clone(&open.entries)));
        }
        let entries = Arc::new(self.files.entries(node).await?);
        self.with_handle(handle, |open| open.entries = Arc::clone(&entries));
        Ok(entries)
    }

    /// As it was when this handle first read it.
    pub(crate) async fn text(&self, node: &Node, handle: FileHandle) -> Result<Arc<str>, Refused> {
        if let Some(text) = self.with_handle(handle, |open| open.text.clone()) {
            return Ok(text);
        }
        let text: Arc<str> = self.files.text(node).await?.into();
        self.with_handle(handle, |open| open.text = Some(Arc::clone(&text)));
        Ok(text)
    }

    /// A new handle, which holds `text` if there is one.
    pub(crate) fn handle(&self, text: Option<String>) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let open = Open {
            text: text.map(Arc::from),
            ..Open::default()
        };
        lock(&self.handles).insert(handle, open);
        FileHandle(handle)
    }

    pub(crate) fn with_handle<T>(&self, handle: FileHandle, f: impl FnOnce(&mut Open) -> T) -> T {
        f(lock(&self.handles).entry(handle.0).or_default())
    }

    pub(crate) fn close(&self, handle: FileHandle) {
        lock(&self.handles).remove(&handle.0);
    }
}

/// None of these locks is ever held while something is waited for.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
