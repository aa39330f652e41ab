//! The wrapper itself: every method of `fuser::Filesystem`, as an op in a slot.

use std::{
    any::Any,
    collections::HashMap,
    ffi::OsStr,
    fmt, io,
    mem::{needs_drop, size_of_val},
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::{
    diag::File,
    dispatch::{Fate, Job, Next, Parked, Running, Slot},
    shared::Shared,
};
use crate::{
    op::{Entered, Op},
    record::WaitsFor,
    snapshot::Outcome,
};

/// Middleware over a file system: each request is an op, and `.diag` is answered beside it.
///
/// [`mount`](super::mount) and its kin make one. One that is mounted by hand, through fuser, answers
/// `.diag` while all its event loops are busy only if it has one to spare: see
/// [`Options::slots`](super::Options::slots).
pub struct Tracked<F> {
    inner: F,
    shared: Arc<Shared<F>>,
}

impl<F: Filesystem> Tracked<F> {
    pub(super) fn sharing(inner: F, shared: Arc<Shared<F>>) -> Self {
        Self { inner, shared }
    }

    // Calls the inner file system, in a slot, and then runs what waited for the slot.
    fn run(&self, slot: Slot, op: Op, call: impl FnOnce(&F)) {
        self.call(op, call);
        self.hand_on(slot);
    }

    // No reply is seen from here: what its panic leaves unanswered fuser's reply answers with EIO.
    fn call(&self, op: Op, call: impl FnOnce(&F)) {
        let entered = Entered::with(op);
        let result = catch_unwind(AssertUnwindSafe(|| call(&self.inner)));
        let op = entered.leave();
        if let Some(record) = op.as_ref().and_then(Op::record) {
            self.shared.returned(record);
        }
        if let Err(panic) = result {
            if let Some(op) = op {
                op.fail(format!("panicked: {}", panic_text(&*panic)));
                op.finish(Outcome::Panicked);
            }
            forget_panic(panic);
        }
    }

    fn hand_on(&self, slot: Slot) {
        if self.work_off(slot, true) {
            self.shared.dispatch.stand_by();
        }
    }

    // Whether this thread must stand by now.
    fn work_off(&self, mut slot: Slot, may_stand_by: bool) -> bool {
        let dispatch = &self.shared.dispatch;
        loop {
            match dispatch.next(slot, may_stand_by) {
                Next::Done => return false,
                Next::StandBy => return true,
                Next::Forgets(same, forgets) => {
                    slot = same;
                    self.deliver(forgets);
                }
                Next::Run(same, parked) => {
                    slot = same;
                    if self.shared.is_gone() {
                        parked.refuse();
                    } else {
                        self.run_parked(parked);
                    }
                }
            }
        }
    }

    fn run_parked(&self, mut parked: Parked<F>) {
        parked.admitted();
        let Parked { op, job, .. } = parked;
        self.call(op, |inner| job(Fate::Run(inner)));
    }

    #[cold]
    fn park(&self, running: Running, op: Op, tid: u32, bytes: usize, job: Job<F>) {
        let wait = op.wait_for(WaitsFor::Slot);
        let parked = Parked::new(running, op, wait, tid, bytes, job);
        self.shared.start_watch();
        match self.shared.dispatch.park(parked) {
            None => {}
            Some((Some(slot), parked)) => {
                self.run_parked(parked);
                self.hand_on(slot);
            }
            Some((None, parked)) => parked.refuse(),
        }
    }

    fn deliver(&self, forgets: HashMap<u64, u64>) {
        let Some(request) = self.shared.forget_request.get() else {
            return;
        };
        for (inode, lookups) in forgets {
            let forget = || self.inner.forget(request, INodeNo(inode), lookups);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(forget)) {
                forget_panic(panic);
            }
        }
    }

    // What is answered without a slot still shows that this reader is one too many.
    fn answered(&self) {
        if self.shared.dispatch.is_one_too_many() {
            self.shared.dispatch.stand_by();
        }
    }

    fn answers_getattr(&self, inode: INodeNo) -> bool {
        File::of(inode).is_some()
            || (inode == INodeNo::ROOT && self.shared.root_is_answered_from_memory())
    }
}

impl<F> Parked<F> {
    /// Ends an op whose caller was killed.
    pub(super) fn interrupt(self) {
        self.op.fail("not run: its caller was killed");
        (self.job)(Fate::Interrupted);
    }

    /// Answers an op from memory.
    pub(super) fn set_aside(self) {
        (self.job)(Fate::Aside);
    }

    /// Ends an op when there is nobody left to answer.
    pub(super) fn refuse(self) {
        self.op.fail("not run: the connection is gone");
        (self.job)(Fate::Gone);
    }
}

impl<F> fmt::Debug for Tracked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl<F> Drop for Tracked<F> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

// How an argument is kept while its op is parked, and lent when it runs.
macro_rules! keep {
    (val $x:ident) => {
        $x
    };
    (borrowed $x:ident) => {
        $x.to_owned()
    };
}

macro_rules! lend {
    (val $x:ident) => {
        $x
    };
    (borrowed $x:ident) => {
        &$x
    };
}

macro_rules! kept_bytes {
    (val $x:ident) => {
        0
    };
    (borrowed $x:ident) => {
        size_of_val($x)
    };
}

macro_rules! plain {
    (val $ty:ty) => {
        $ty
    };
    (borrowed $ty:ty) => {
        &$ty
    };
}

// One method each: `inode` (and `entry` in it) are what the op is about; `ours` is answered here.
macro_rules! operations {
    ($(
        $method:ident($self:ident, $request:ident $(, $arg:ident: $how:ident $ty:ty)*; $reply:ident: $reply_ty:ty)
            $(first { $($first:tt)* })?
            on $inode:expr, $entry:expr;
            ours $ours:expr => $answer:expr;
    )*) => {$(
        #[allow(clippy::too_many_arguments)]
        fn $method(&$self, $request: &Request, $($arg: plain!($how $ty),)* $reply: $reply_ty) {
            $self.shared.dispatch.on_loop();
            if $ours {
                $answer;
                return $self.answered();
            }
            $($($first)*)?
            let op = $self.shared.begin(stringify!($method), $request, $inode, $entry);
            let running = Running::new(stringify!($method), &op);
            if let Some(slot) = $self.shared.dispatch.enter(running) {
                return $self.run(slot, op, |inner| inner.$method($request, $($arg,)* $reply));
            }
            let bytes = 0 $(+ kept_bytes!($how $arg))*;
            let tid = caller_to_ask(stringify!($method), $request);
            let request = copy_of($request);
            $(let $arg = keep!($how $arg);)*
            $self.park(running, op, tid, bytes, Box::new(move |fate| match fate {
                Fate::Run(inner) => inner.$method(&request, $(lend!($how $arg),)* $reply),
                Fate::Interrupted => $reply.error(Errno::EINTR),
                Fate::Gone | Fate::Aside => $reply.error(Errno::ENOTCONN),
            }));
        }
    )*};
}

impl<F: Filesystem> Filesystem for Tracked<F> {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.inner.init(request, config)?;
        // A file system that runs one op at a time cannot tell.
        if self.shared.wants_parallel_dirops() {
            let _not_offered = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.shared.close();
        self.inner.destroy();
    }

    // As all others, but two of the root never run side by side: a third would find no slot.
    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let shared = &self.shared;
        shared.dispatch.on_loop();
        if self.answers_getattr(ino) {
            shared.getattr(ino, reply);
            return self.answered();
        }
        let op = shared.begin("getattr", request, ino, None);
        let mut running = Running::new("getattr", &op);
        running.root = ino == INodeNo::ROOT && shared.knows_root();
        if let Some(slot) = shared.dispatch.enter(running) {
            return self.run(slot, op, |inner| inner.getattr(request, ino, fh, reply));
        }
        let tid = request.pid();
        let request = copy_of(request);
        let memory = Arc::downgrade(shared);
        let job = move |fate: Fate<'_, F>| match fate {
            Fate::Run(inner) => inner.getattr(&request, ino, fh, reply),
            Fate::Interrupted => reply.error(Errno::EINTR),
            Fate::Gone => reply.error(Errno::ENOTCONN),
            Fate::Aside => match memory.upgrade() {
                Some(shared) => shared.getattr(ino, reply),
                None => reply.error(Errno::ENOTCONN),
            },
        };
        self.park(running, op, tid, 0, Box::new(job));
    }

    fn forget(&self, request: &Request, ino: INodeNo, nlookup: u64) {
        let shared = &self.shared;
        shared.dispatch.on_loop();
        if is_ours(ino) {
            return;
        }
        shared.paths.forgotten(ino.0);
        shared.forget_request.get_or_init(|| copy_of(request));
        if let Some(slot) = shared.dispatch.forget(ino.0, nlookup) {
            let forget = || self.inner.forget(request, ino, nlookup);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(forget)) {
                forget_panic(panic);
            }
            // Asleep here, this thread would keep the rest of a batch.
            self.work_off(slot, false);
        }
    }

    operations! {
        lookup(self, request, parent: val INodeNo, name: borrowed OsStr; reply: ReplyEntry)
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some() => self.shared.diag.lookup(parent, name, reply);

        setattr(
            self, request, ino: val INodeNo, mode: val Option<u32>, uid: val Option<u32>, gid: val Option<u32>,
            size: val Option<u64>, atime: val Option<TimeOrNow>, mtime: val Option<TimeOrNow>,
            ctime: val Option<SystemTime>, fh: val Option<FileHandle>, crtime: val Option<SystemTime>,
            chgtime: val Option<SystemTime>, bkuptime: val Option<SystemTime>, flags: val Option<BsdFileFlags>;
            reply: ReplyAttr
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EPERM);

        readlink(self, request, ino: val INodeNo; reply: ReplyData)
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EINVAL);

        mknod(
            self, request, parent: val INodeNo, name: borrowed OsStr, mode: val u32, umask: val u32, rdev: val u32;
            reply: ReplyEntry
        )
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some() => reply.error(Errno::EEXIST);

        mkdir(
            self, request, parent: val INodeNo, name: borrowed OsStr, mode: val u32, umask: val u32;
            reply: ReplyEntry
        )
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some() => reply.error(Errno::EEXIST);

        unlink(self, request, parent: val INodeNo, name: borrowed OsStr; reply: ReplyEmpty)
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some() => reply.error(Errno::EPERM);

        rmdir(self, request, parent: val INodeNo, name: borrowed OsStr; reply: ReplyEmpty)
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some() => reply.error(Errno::ENOTDIR);

        symlink(
            self, request, parent: val INodeNo, link_name: borrowed OsStr, target: borrowed Path;
            reply: ReplyEntry
        )
            on parent, Some(link_name);
            ours self.shared.diag.named(parent, link_name).is_some() => reply.error(Errno::EEXIST);

        rename(
            self, request, parent: val INodeNo, name: borrowed OsStr, newparent: val INodeNo,
            newname: borrowed OsStr, flags: val RenameFlags; reply: ReplyEmpty
        )
            first { self.shared.paths.dropped(newparent.0, newname.as_bytes()); }
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some()
                || self.shared.diag.named(newparent, newname).is_some() => reply.error(Errno::EPERM);

        link(
            self, request, ino: val INodeNo, newparent: val INodeNo, newname: borrowed OsStr;
            reply: ReplyEntry
        )
            on ino, None;
            ours is_ours(ino) || self.shared.diag.named(newparent, newname).is_some()
                => reply.error(Errno::EPERM);

        open(self, request, ino: val INodeNo, flags: val OpenFlags; reply: ReplyOpen)
            on ino, None;
            ours is_ours(ino) => self.shared.diag.open(request, ino, flags, reply);

        read(
            self, request, ino: val INodeNo, fh: val FileHandle, offset: val u64, size: val u32, flags: val OpenFlags,
            lock_owner: val Option<LockOwner>; reply: ReplyData
        )
            on ino, None;
            ours is_ours(ino) => self.shared.diag.read(fh, offset, size, reply);

        write(
            self, request, ino: val INodeNo, fh: val FileHandle, offset: val u64, data: borrowed [u8],
            write_flags: val WriteFlags, flags: val OpenFlags, lock_owner: val Option<LockOwner>; reply: ReplyWrite
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EBADF);

        flush(
            self, request, ino: val INodeNo, fh: val FileHandle, lock_owner: val LockOwner;
            reply: ReplyEmpty
        )
            on ino, None;
            ours is_ours(ino) => reply.ok();

        release(
            self, request, ino: val INodeNo, fh: val FileHandle, flags: val OpenFlags, lock_owner: val Option<LockOwner>,
            flush: val bool; reply: ReplyEmpty
        )
            on ino, None;
            ours is_ours(ino) => self.shared.diag.release(fh, reply);

        fsync(self, request, ino: val INodeNo, fh: val FileHandle, datasync: val bool; reply: ReplyEmpty)
            on ino, None;
            ours is_ours(ino) => reply.ok();

        opendir(self, request, ino: val INodeNo, flags: val OpenFlags; reply: ReplyOpen)
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENOTDIR);

        readdir(self, request, ino: val INodeNo, fh: val FileHandle, offset: val u64; reply: ReplyDirectory)
            first {
                let mut reply = reply;
                let offset = self.shared.diag.list(ino, offset, &mut reply);
            }
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENOTDIR);

        readdirplus(
            self, request, ino: val INodeNo, fh: val FileHandle, offset: val u64;
            reply: ReplyDirectoryPlus
        )
            first {
                let mut reply = reply;
                let offset = self.shared.diag.list_plus(ino, offset, &mut reply);
            }
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENOTDIR);

        releasedir(
            self, request, ino: val INodeNo, fh: val FileHandle, flags: val OpenFlags;
            reply: ReplyEmpty
        )
            on ino, None;
            ours is_ours(ino) => reply.ok();

        fsyncdir(self, request, ino: val INodeNo, fh: val FileHandle, datasync: val bool; reply: ReplyEmpty)
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENOTDIR);

        statfs(self, request, ino: val INodeNo; reply: ReplyStatfs)
            on ino, None;
            ours is_ours(ino) => reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);

        setxattr(
            self, request, ino: val INodeNo, name: borrowed OsStr, value: borrowed [u8], flags: val i32,
            position: val u32; reply: ReplyEmpty
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EPERM);

        getxattr(self, request, ino: val INodeNo, name: borrowed OsStr, size: val u32; reply: ReplyXattr)
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENODATA);

        listxattr(self, request, ino: val INodeNo, size: val u32; reply: ReplyXattr)
            on ino, None;
            ours is_ours(ino) => if size == 0 { reply.size(0) } else { reply.data(&[]) };

        removexattr(self, request, ino: val INodeNo, name: borrowed OsStr; reply: ReplyEmpty)
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EPERM);

        access(self, request, ino: val INodeNo, mask: val AccessFlags; reply: ReplyEmpty)
            on ino, None;
            ours is_ours(ino) => self.shared.diag.access(request, mask, reply);

        create(
            self, request, parent: val INodeNo, name: borrowed OsStr, mode: val u32, umask: val u32, flags: val i32;
            reply: ReplyCreate
        )
            on parent, Some(name);
            ours self.shared.diag.named(parent, name).is_some() => reply.error(Errno::EEXIST);

        getlk(
            self, request, ino: val INodeNo, fh: val FileHandle, lock_owner: val LockOwner, start: val u64,
            end: val u64, typ: val i32, pid: val u32; reply: ReplyLock
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EINVAL);

        setlk(
            self, request, ino: val INodeNo, fh: val FileHandle, lock_owner: val LockOwner, start: val u64,
            end: val u64, typ: val i32, pid: val u32, sleep: val bool; reply: ReplyEmpty
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EINVAL);

        bmap(self, request, ino: val INodeNo, blocksize: val u32, idx: val u64; reply: ReplyBmap)
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EINVAL);

        ioctl(
            self, request, ino: val INodeNo, fh: val FileHandle, flags: val IoctlFlags, cmd: val u32,
            in_data: borrowed [u8], out_size: val u32; reply: ReplyIoctl
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENOTTY);

        poll(
            self, request, ino: val INodeNo, fh: val FileHandle, ph: val PollNotifier, events: val PollEvents,
            flags: val PollFlags; reply: ReplyPoll
        )
            on ino, None;
            ours is_ours(ino) => reply.poll(events & (PollEvents::POLLIN | PollEvents::POLLRDNORM));

        fallocate(
            self, request, ino: val INodeNo, fh: val FileHandle, offset: val u64, length: val u64, mode: val i32;
            reply: ReplyEmpty
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::EPERM);

        lseek(
            self, request, ino: val INodeNo, fh: val FileHandle, offset: val i64, whence: val i32;
            reply: ReplyLseek
        )
            on ino, None;
            ours is_ours(ino) => reply.error(Errno::ENXIO);

        copy_file_range(
            self, request, ino_in: val INodeNo, fh_in: val FileHandle, offset_in: val u64, ino_out: val INodeNo,
            fh_out: val FileHandle, offset_out: val u64, len: val u64, flags: val CopyFileRangeFlags; reply: ReplyWrite
        )
            on ino_in, None;
            ours is_ours(ino_in) || is_ours(ino_out) => reply.error(Errno::EXDEV);
    }
}

fn is_ours(inode: INodeNo) -> bool {
    File::of(inode).is_some()
}

// A release has no caller to wait for it, and a flush one that the kernel does not let go: both must reach the
// file system once, or what it wrote and the locks it held are lost.
fn caller_to_ask(name: &str, request: &Request) -> u32 {
    match name {
        "flush" | "release" | "releasedir" => 0,
        _ => request.pid(),
    }
}

// A parked op needs its request later, and fuser lends it only for the call.
#[allow(unsafe_code)]
fn copy_of(request: &Request) -> Request {
    const fn is_plain<T: Send + Sync + 'static>() {}
    const {
        assert!(!needs_drop::<Request>());
        assert!(size_of::<Request>() == 40);
        is_plain::<Request>();
    }
    // SAFETY: `request` is valid to read. Without a destructor and, being 'static, without borrows, a
    // copy of its bytes is a value like it; that it owns nothing else is pinned by its size and by
    // the exact version of fuser.
    unsafe { std::ptr::read(request) }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<&str>() {
        Some(text) => text,
        None => panic
            .downcast_ref::<String>()
            .map_or("no text", String::as_str),
    }
}

// The payload is the user's, and so is what its drop does.
fn forget_panic(panic: Box<dyn Any + Send>) {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(panic)));
    std::mem::forget(dropped);
}
