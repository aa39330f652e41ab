//! The file system: the server's conversations as directories; what is written to `send` is said when the file is closed.
//!
//! ```text
//! /README.md
//! /conversation/                     listing it asks the server for all conversations
//! /conversation/{id}/                made by looking it up; the server hears of it at the first `send`
//! /conversation/{id}/send            write-only; close(2) waits for the server's answer
//! /conversation/{id}/messages/       all.json and one NNN-TYPE.md for each message
//! ```

use std::{
    collections::HashMap,
    ffi::OsStr,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use inflight::fuse::fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use inflight::fuse::{Mount, spawn_mount};
use inflight::{FutureExt, Op, Tracker, debug};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::api::{Client, Failed, Transcript};

const README: &str = "\
Conversations as files.

    echo hello > conversation/1b9b/send
    cat conversation/1b9b/messages/001-user.md
";

/// How long the kernel may trust what it was told.
const LIFETIME: Duration = Duration::from_secs(1);

/// What the file system is started with.
#[derive(Debug)]
pub(crate) struct Options {
    /// The server's URL.
    pub(crate) server: String,
    /// Where the server looks for guidance files.
    pub(crate) cwd: PathBuf,
    /// How many callbacks may run at once.
    pub(crate) slots: usize,
    /// Whether a callback waits for the server itself, instead of leaving that to a task.
    pub(crate) inline: bool,
    /// After how long the server's silence is an error.
    pub(crate) timeout: Duration,
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
    let conversations = Arc::new(Conversations {
        api: Client::new(&options.server, options.timeout, &tracker).map_err(io::Error::other)?,
        cwd: options.cwd,
        tracker: tracker.clone(),
        known: Mutex::default(),
        handles: Mutex::default(),
        next_handle: AtomicU64::new(1),
        fetches: Arc::default(),
    });
    let fs = Shelley {
        conversations,
        runtime: runtime.clone(),
        inline: options.inline,
        since: SystemTime::now(),
    };
    let mount = spawn_mount(fs, dir, &config, &tracker)?;
    Ok(Mounted {
        mount,
        _debug,
        _spans,
    })
}

/// The callbacks: what can be answered from memory is, the rest is a future that owes the answer.
struct Shelley {
    conversations: Arc<Conversations>,
    runtime: Handle,
    inline: bool,
    since: SystemTime,
}

impl Shelley {
    fn answer(&self, answer: impl Future<Output = ()> + Send + 'static) {
        if self.inline {
            self.runtime.block_on(answer);
        } else {
            // The op goes with the future: it is in flight until the future has answered.
            self.runtime.spawn(answer.in_current_op());
        }
    }

    /// Finds what an inode stands for, and tells the op its path: the wrapper cannot know it.
    fn node(&self, inode: INodeNo) -> Option<Node> {
        let node = Node::from(inode)?;
        inflight::target(self.conversations.path(node));
        Some(node)
    }

    fn attr(&self, node: Node) -> FileAttr {
        let (kind, perm) = match node {
            Node::Root | Node::Conversations | Node::Conversation(_) | Node::Messages(_) => {
                (FileType::Directory, 0o755)
            }
            Node::Send(_) => (FileType::RegularFile, 0o222),
            Node::Readme | Node::All(_) | Node::Message(..) => (FileType::RegularFile, 0o444),
        };
        FileAttr {
            ino: node.inode(),
            size: if node == Node::Readme {
                README.len() as u64
            } else {
                0
            },
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
}

impl Filesystem for Shelley {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = name.to_str().and_then(|name| match Node::from(parent)? {
            Node::Root if name == "README.md" => Some(Node::Readme),
            Node::Root if name == "conversation" => Some(Node::Conversations),
            Node::Conversations => self.conversations.by_name(name).map(Node::Conversation),
            Node::Conversation(n) if name == "send" => Some(Node::Send(n)),
            Node::Conversation(n) if name == "messages" => Some(Node::Messages(n)),
            Node::Messages(n) if name == "all.json" => Some(Node::All(n)),
            Node::Messages(n) => Some(Node::Message(
                n,
                name.strip_suffix(".md")?.split('-').next()?.parse().ok()?,
            )),
            _ => None,
        });
        match found.and_then(|node| self.node(node.inode())) {
            Some(node) => reply.entry(&LIFETIME, &self.attr(node), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(inode) {
            Some(node) => reply.attr(&LIFETIME, &self.attr(node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    // `>` truncates before it writes.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
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
        self.getattr(request, inode, handle, reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.node(inode).is_none() {
            return reply.error(Errno::ENOENT);
        }
        reply.opened(self.conversations.handle(), FopenFlags::FOPEN_DIRECT_IO);
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
        let conversations = Arc::clone(&self.conversations);
        self.answer(async move {
            match conversations.text(node, handle).await {
                Ok(text) => {
                    let from = text.len().min(offset as usize);
                    let to = text.len().min(from + size as usize);
                    reply.data(&text.as_bytes()[from..to]);
                }
                Err(failed) => reply.error(failed.told()),
            }
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
        match self.node(inode) {
            Some(Node::Send(_)) => {
                self.conversations
                    .with_handle(handle, |open| open.to_send.extend_from_slice(data));
                reply.written(data.len() as u32);
            }
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
            .conversations
            .with_handle(handle, |open| std::mem::take(&mut open.to_send));
        let (Some(Node::Send(n)), false) = (self.node(inode), to_send.is_empty()) else {
            return reply.ok();
        };
        let conversations = Arc::clone(&self.conversations);
        self.answer(async move {
            match conversations.send(n, &to_send).await {
                Ok(()) => reply.ok(),
                Err(failed) => reply.error(failed.told()),
            }
        });
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
        self.conversations.close(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.node(inode).is_none() {
            return reply.error(Errno::ENOENT);
        }
        reply.opened(self.conversations.handle(), FopenFlags::empty());
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
        let conversations = Arc::clone(&self.conversations);
        self.answer(async move {
            let entries = match conversations.entries(node, handle, offset == 0).await {
                Ok(entries) => entries,
                Err(failed) => return reply.error(failed.told()),
            };
            for (at, (name, node)) in entries.iter().enumerate().skip(offset as usize) {
                let kind = if node.is_dir() {
                    FileType::Directory
                } else {
                    FileType::RegularFile
                };
                if reply.add(node.inode(), at as u64 + 1, kind, name) {
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
        self.conversations.close(handle);
        reply.ok();
    }
}

impl Failed {
    /// The errno, after telling the op why: nobody else will, `echo` does not look at what close(2) says.
    fn told(self) -> Errno {
        inflight::fail(format!("EIO: {self}"));
        Errno::EIO
    }
}

/// What is known of the server's conversations, and who has which file open.
struct Conversations {
    api: Client,
    cwd: PathBuf,
    tracker: Tracker,
    known: Mutex<Vec<Known>>,
    handles: Mutex<HashMap<u64, Open>>,
    next_handle: AtomicU64,
    fetches: Arc<Mutex<HashMap<String, Fetch>>>,
}

/// One directory under `conversation`.
struct Known {
    name: String,
    /// None until something was sent.
    server_id: Option<String>,
}

#[derive(Default)]
struct Open {
    to_send: Vec<u8>,
    text: Option<Arc<str>>,
    entries: Arc<Vec<(String, Node)>>,
}

/// A transcript on its way, for all who wait for it.
#[derive(Clone)]
struct Fetch {
    op: Op,
    done: watch::Receiver<Option<Result<Arc<Transcript>, Failed>>>,
}

impl Conversations {
    /// Finds a conversation; an id that nobody used yet is a new one.
    fn by_name(&self, name: &str) -> Option<u32> {
        let mut known = lock(&self.known);
        if let Some(at) = known.iter().position(|one| one.name == name) {
            return Some(at as u32);
        }
        let id = (4..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
        id.then(|| {
            known.push(Known {
                name: name.to_owned(),
                server_id: None,
            });
            known.len() as u32 - 1
        })
    }

    fn path(&self, node: Node) -> String {
        let conversation = |n: u32| {
            format!(
                "/conversation/{}",
                lock(&self.known)
                    .get(n as usize)
                    .map_or("?", |one| &one.name)
            )
        };
        match node {
            Node::Root => "/".to_owned(),
            Node::Readme => "/README.md".to_owned(),
            Node::Conversations => "/conversation".to_owned(),
            Node::Conversation(n) => conversation(n),
            Node::Send(n) => conversation(n) + "/send",
            Node::Messages(n) => conversation(n) + "/messages",
            Node::All(n) => conversation(n) + "/messages/all.json",
            Node::Message(n, at) => format!("{}/messages/{at:03}", conversation(n)),
        }
    }

    async fn send(&self, n: u32, message: &[u8]) -> Result<(), Failed> {
        let message = String::from_utf8_lossy(message).into_owned();
        if let Some(id) = self.server_id(n) {
            return self.api.chat(&id, message).await.map(drop);
        }
        let begun = self.api.begin(message, &self.cwd).await?;
        if let Some(one) = lock(&self.known).get_mut(n as usize) {
            one.server_id = begun.conversation_id;
        }
        Ok(())
    }

    async fn entries(
        &self,
        node: Node,
        handle: FileHandle,
        from_start: bool,
    ) -> Result<Arc<Vec<(String, Node)>>, Failed> {
        if !from_start {
            return Ok(self.with_handle(handle, |open| Arc::clone(&open.entries)));
        }
        let named = |name: &str, node| (name.to_owned(), node);
        let entries = Arc::new(match node {
            Node::Root => vec![
                named("README.md", Node::Readme),
                named("conversation", Node::Conversations),
            ],
            Node::Conversations => self.list().await?,
            Node::Conversation(n) => vec![
                named("messages", Node::Messages(n)),
                named("send", Node::Send(n)),
            ],
            Node::Messages(n) => {
                let mut entries = vec![named("all.json", Node::All(n))];
                if let Some(id) = self.server_id(n) {
                    let messages = &self.transcript(&id).await?.messages;
                    entries.extend(messages.iter().enumerate().map(|(at, message)| {
                        (
                            format!("{at:03}-{}.md", message.kind),
                            Node::Message(n, at as u32),
                        )
                    }));
                }
                entries
            }
            _ => Vec::new(),
        });
        self.with_handle(handle, |open| open.entries = Arc::clone(&entries));
        Ok(entries)
    }

    /// All that the server has, under the name it was made with here, or else the server's.
    async fn list(&self) -> Result<Vec<(String, Node)>, Failed> {
        let listed = self.api.conversations().await?;
        let archived = self.api.archived().await?;
        let mut known = lock(&self.known);
        let mut entries = Vec::new();
        for conversation in listed {
            let id = conversation.conversation_id;
            if archived.iter().any(|other| other.conversation_id == id) {
                continue;
            }
            let at = known
                .iter()
                .position(|one| one.server_id.as_ref() == Some(&id))
                .unwrap_or_else(|| {
                    known.push(Known {
                        name: id.clone(),
                        server_id: Some(id),
                    });
                    known.len() - 1
                });
            entries.push((known[at].name.clone(), Node::Conversation(at as u32)));
        }
        Ok(entries)
    }

    /// What a file holds, as it was when this handle first read it.
    async fn text(&self, node: Node, handle: FileHandle) -> Result<Arc<str>, Failed> {
        if let Some(text) = self.with_handle(handle, |open| open.text.clone()) {
            return Ok(text);
        }
        let text: Arc<str> = match node {
            Node::Readme => README.into(),
            Node::All(n) | Node::Message(n, _) => {
                let id = self
                    .server_id(n)
                    .ok_or_else(|| Failed::new("nothing was sent yet"))?;
                let transcript = self.transcript(&id).await?;
                match node {
                    Node::Message(_, at) => transcript
                        .messages
                        .get(at as usize)
                        .ok_or_else(|| Failed::new("no such message"))?
                        .text
                        .as_str()
                        .into(),
                    _ => serde_json::to_string_pretty(&*transcript)
                        .map_err(Failed::new)?
                        .into(),
                }
            }
            _ => "".into(),
        };
        self.with_handle(handle, |open| open.text = Some(Arc::clone(&text)));
        Ok(text)
    }

    /// Asks for a transcript, or waits for the answer to whoever asked before: no lock is held meanwhile.
    async fn transcript(&self, id: &str) -> Result<Arc<Transcript>, Failed> {
        let mut fetch = lock(&self.fetches)
            .entry(id.to_owned())
            .or_insert_with(|| self.fetch(id))
            .clone();
        let done = fetch
            .done
            .wait_for(Option::is_some)
            .waiting_for(&fetch.op)
            .await;
        done.ok()
            .and_then(|done| done.clone())
            .unwrap_or_else(|| Err(Failed::new("the fetch was given up")))
    }

    /// Begins to ask, under an op of its own: whoever is first may be killed, the others still wait.
    fn fetch(&self, id: &str) -> Fetch {
        let op = self.tracker.begin(format!("fetch {id}"));
        let (tell, done) = watch::channel(None);
        let (api, fetches, id) = (self.api.clone(), Arc::clone(&self.fetches), id.to_owned());
        let asked = async move {
            let answer = api.transcript(&id).await.map(Arc::new);
            lock(&fetches).remove(&id);
            tell.send_replace(Some(answer));
        };
        tokio::spawn(asked.in_op(&op));
        Fetch { op, done }
    }

    fn server_id(&self, n: u32) -> Option<String> {
        lock(&self.known).get(n as usize)?.server_id.clone()
    }

    fn handle(&self) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.handles).insert(handle, Open::default());
        FileHandle(handle)
    }

    fn with_handle<T>(&self, handle: FileHandle, f: impl FnOnce(&mut Open) -> T) -> T {
        f(lock(&self.handles).entry(handle.0).or_default())
    }

    fn close(&self, handle: FileHandle) {
        lock(&self.handles).remove(&handle.0);
    }
}

/// A file or directory, and its inode: the conversation in the upper half, what of it in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Root,
    Readme,
    Conversations,
    Conversation(u32),
    Send(u32),
    Messages(u32),
    All(u32),
    Message(u32, u32),
}

impl Node {
    fn inode(self) -> INodeNo {
        let of = |n: u32, what: u32| (u64::from(n) + 1) << 32 | u64::from(what);
        INodeNo(match self {
            Self::Root => 1,
            Self::Readme => 2,
            Self::Conversations => 3,
            Self::Conversation(n) => of(n, 0),
            Self::Send(n) => of(n, 1),
            Self::Messages(n) => of(n, 2),
            Self::All(n) => of(n, 3),
            Self::Message(n, at) => of(n, 16 + at),
        })
    }

    fn from(inode: INodeNo) -> Option<Self> {
        let n = (inode.0 >> 32) as u32;
        Some(match (n.checked_sub(1), inode.0 as u32) {
            (None, 1) => Self::Root,
            (None, 2) => Self::Readme,
            (None, 3) => Self::Conversations,
            (Some(n), 0) => Self::Conversation(n),
            (Some(n), 1) => Self::Send(n),
            (Some(n), 2) => Self::Messages(n),
            (Some(n), 3) => Self::All(n),
            (Some(n), what) => Self::Message(n, what.checked_sub(16)?),
            _ => return None,
        })
    }

    fn is_dir(self) -> bool {
        matches!(
            self,
            Self::Root | Self::Conversations | Self::Conversation(_) | Self::Messages(_)
        )
    }
}

/// None of these locks is ever held while something is waited for.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
