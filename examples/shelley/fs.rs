//! The callbacks: what can be answered from memory is, the rest is a future that owes the answer.

use std::{
    ffi::OsStr,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use inflight::fuse::fuser::{
    BsdFileFlags, Config, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use inflight::fuse::{Mount, spawn_mount};
use inflight::{FutureExt, Tracker, debug};
use tokio::runtime::Handle;

use crate::client::Client;
use crate::files::{Files, Refused};
use crate::node::{Field, Node, OfModel};
use crate::tree::Tree;

/// What the file system is started with.
#[derive(Debug)]
pub(crate) struct Options {
    /// The server's URL.
    pub(crate) server: String,
    /// Where the server looks for guidance files, if nothing else is said.
    pub(crate) cwd: PathBuf,
    /// How many callbacks may run at once.
    pub(crate) slots: usize,
    /// Whether a callback waits for the server itself, instead of leaving that to a task.
    pub(crate) inline: bool,
    /// Whether the kernel shall keep nothing.
    pub(crate) fresh: bool,
    /// After how long the server's silence is an error.
    pub(crate) timeout: Duration,
    /// Sent with every request.
    pub(crate) header: Option<(String, String)>,
}

/// The file system as it is mounted, and what answers for it beside the mount.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// Unmounts in bounded time, whatever hangs.
    pub(crate) mount: Mount,
    _debug: debug::Server,
    _spans: Option<inflight::otel::Exporter>,
}

/// Mounts the file system on `dir`.
pub(crate) fn mount(dir: &Path, options: Options, runtime: &Handle) -> io::Result<Mounted> {
    let tracker = Tracker::new("shelley-fuse");
    let _debug = debug::serve(&tracker);
    let _spans = crate::spans(&tracker);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("shelley".to_owned()),
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    config.n_threads = Some(options.slots);
    let api = Client::new(&options.server, options.timeout, options.header, &tracker);
    let files = Files::new(
        api.map_err(io::Error::other)?,
        options.cwd,
        options.fresh,
        &tracker,
    );
    let tree = Tree::new(files, options.fresh);
    let fs = Shelley {
        tree: Arc::new(tree),
        runtime: runtime.clone(),
        inline: options.inline,
    };
    let mount = spawn_mount(fs, dir, &config, &tracker)?;
    Ok(Mounted {
        mount,
        _debug,
        _spans,
    })
}

struct Shelley {
    tree: Arc<Tree>,
    runtime: Handle,
    inline: bool,
}

impl Shelley {
    fn answer<F: Future<Output = ()> + Send + 'static>(&self, answer: impl FnOnce(Arc<Tree>) -> F) {
        let answer = answer(Arc::clone(&self.tree));
        if self.inline {
            self.runtime.block_on(answer);
        } else {
            // The op goes with the future: it is in flight until the future has answered.
            self.runtime.spawn(answer.in_current_op());
        }
    }

    /// Finds what an inode stands for, and tells the op its path: the wrapper cannot know it.
    fn node(&self, inode: INodeNo) -> Option<Node> {
        let node = self.tree.node(inode)?;
        inflight::target(self.tree.files.path(&node));
        Some(node)
    }

    /// The same for a name in a directory.
    fn parent(&self, inode: INodeNo, name: &OsStr) -> Option<(Node, String)> {
        let parent = self.tree.node(inode)?;
        let name = name.to_str()?.to_owned();
        let path = self.tree.files.path(&parent);
        inflight::target(format!("{}/{name}", path.trim_end_matches('/')));
        Some((parent, name))
    }
}

impl Filesystem for Shelley {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some((parent, name)) = self.parent(parent, name) else {
            return reply.error(Errno::ENOENT);
        };
        let is_known = self.tree.files.known_child(&parent, &name);
        match is_known {
            Some(found) => self.tree.entry(found.ok_or(Errno::ENOENT.into()), reply),
            None => self.answer(async move |tree| {
                let found = tree.files.child(&parent, &name).await;
                tree.entry(found, reply);
            }),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(inode) {
            Some(node) => reply.attr(&self.tree.lifetime(&node), &self.tree.attr(&node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    // `>` truncates before it writes, and `touch` sets times.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match (mode, uid, gid) {
            (None, None, None) => self.getattr(request, inode, handle, reply),
            _ => reply.error(Errno::EPERM),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        let Some(node) = self.node(inode) else {
            return reply.error(Errno::ENOENT);
        };
        self.answer(async move |tree| match tree.files.link(&node).await {
            Ok(target) => reply.data(target.as_bytes()),
            Err(refused) => reply.error(refused.told()),
        });
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(node) = self.node(inode) else {
            return reply.error(Errno::ENOENT);
        };
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let refused = match &node {
            Node::Field(n, Field::Ctl) if writes => match self.tree.files.one(*n) {
                Ok(one) => one.server_id.map(|_| Errno::EROFS),
                Err(refused) => Some(refused.errno),
            },
            Node::Field(_, Field::Send) => (!writes).then_some(Errno::EACCES),
            Node::Field(_, Field::Cancel | Field::Archived) => None,
            _ => writes.then_some(Errno::EACCES),
        };
        if let Some(errno) = refused {
            return reply.error(errno);
        }
        match node {
            Node::Field(n, Field::Cancel) if writes => {
                self.answer(async move |tree| match tree.files.act(n, "cancel").await {
                    Ok(()) => reply.opened(tree.handle(None), FopenFlags::FOPEN_DIRECT_IO),
                    Err(refused) => reply.error(refused.told()),
                })
            }
            Node::OfModel(model, OfModel::Clone) => {
                let id = self.tree.files.known.allocate(Some(&model));
                let handle = self.tree.handle(Some(id + "\n"));
                reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            // The kernel runs a script only if it may read it in pages.
            Node::OfModel(_, OfModel::Start) | Node::Readme => {
                reply.opened(self.tree.handle(None), FopenFlags::empty());
            }
            _ => reply.opened(self.tree.handle(None), FopenFlags::FOPEN_DIRECT_IO),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(node) = self.node(inode) else {
            return reply.error(Errno::ENOENT);
        };
        self.answer(async move |tree| match tree.text(&node, handle).await {
            Ok(text) => {
                let from = text.len().min(offset as usize);
                let to = text.len().min(from + size as usize);
                reply.data(&text.as_bytes()[from..to]);
            }
            Err(refused) => reply.error(refused.told()),
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = data.len() as u32;
        match self.node(inode) {
            Some(Node::Field(_, Field::Send)) => {
                self.tree
                    .with_handle(handle, |open| open.to_send.extend_from_slice(data));
                reply.written(written);
            }
            Some(Node::Field(n, Field::Ctl)) => {
                let text = data.to_vec();
                self.answer(async move |tree| match tree.files.set(n, text).await {
                    Ok(()) => reply.written(written),
                    Err(refused) => reply.error(refused.told()),
                });
            }
            // Opening it was enough.
            Some(Node::Field(_, Field::Cancel | Field::Archived)) => reply.written(written),
            _ => reply.error(Errno::EACCES),
        }
    }

    fn flush(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Every close of a duplicate comes here too: only the first one that has something to say says it.
        let to_send = self
            .tree
            .with_handle(handle, |open| std::mem::take(&mut open.to_send));
        let (Some(Node::Field(n, Field::Send)), false) = (self.node(inode), to_send.is_empty())
        else {
            return reply.ok();
        };
        self.answer(async move |tree| reply_with(reply, tree.files.send(n, to_send).await));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle);
        reply.ok();
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let n = match self.parent(parent, name) {
            Some((Node::Conversation(n), name)) if name == "archived" => n,
            _ => return reply.error(Errno::EACCES),
        };
        self.answer(async move |tree| match tree.files.act(n, "archive").await {
            Ok(()) => {
                let node = Node::Field(n, Field::Archived);
                let (lifetime, attr) = (tree.lifetime(&node), tree.attr(&node));
                let handle = tree.handle(None);
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&lifetime, &attr, Generation(0), handle, flags);
            }
            Err(refused) => reply.error(refused.told()),
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.parent(parent, name) {
            Some((Node::Conversation(n), name)) if name == "archived" => {
                self.answer(async move |tree| {
                    reply_with(reply, tree.files.act(n, "unarchive").await);
                });
            }
            _ => reply.error(Errno::EACCES),
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((parent, name)) = self.parent(parent, name) else {
            return reply.error(Errno::ENOENT);
        };
        let Some(Some(Node::Conversation(n))) = self.tree.files.known_child(&parent, &name) else {
            return reply.error(Errno::EACCES);
        };
        self.answer(async move |tree| reply_with(reply, tree.files.act(n, "delete").await));
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.node(inode).is_none() {
            return reply.error(Errno::ENOENT);
        }
        reply.opened(self.tree.handle(None), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(node) = self.node(inode) else {
            return reply.error(Errno::ENOENT);
        };
        self.answer(async move |tree| {
            let entries = match tree.entries(&node, handle, offset == 0).await {
                Ok(entries) => entries,
                Err(refused) => return reply.error(refused.told()),
            };
            for (at, (name, node)) in entries.iter().enumerate().skip(offset as usize) {
                let attr = tree.attr(node);
                if reply.add(attr.ino, at as u64 + 1, attr.kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle);
        reply.ok();
    }
}

fn reply_with(reply: ReplyEmpty, done: Result<(), Refused>) {
    match done {
        Ok(()) => reply.ok(),
        Err(refused) => reply.error(refused.told()),
    }
}
