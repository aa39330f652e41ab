//! A file system that writes down what it is asked, and answers each method with values of its own.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use inflight::fuse::fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

/// Inodes from here on: a `getattr` of it waits until the gate is opened.
pub(crate) const GATED: u64 = 1000;

const DEADLINE: Duration = Duration::from_secs(20);

/// What was asked, and the gate.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    calls: Vec<String>,
    is_open: bool,
}

pub(crate) struct Recorder(pub(crate) Log);

impl Log {
    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.0.lock().unwrap().calls.clone()
    }

    pub(crate) fn open_gate(&self) {
        self.0.0.lock().unwrap().is_open = true;
        self.0.1.notify_all();
    }

    /// Waits until this many calls have come.
    pub(crate) fn wait_for_calls(&self, count: usize) {
        let state = self.0.0.lock().unwrap();
        let waited = self
            .0
            .1
            .wait_timeout_while(state, DEADLINE, |state| state.calls.len() < count)
            .unwrap();
        assert!(!waited.1.timed_out(), "calls so far: {:?}", waited.0.calls);
    }

    fn add(&self, request: &Request, call: String) {
        let (uid, gid, pid) = (request.uid(), request.gid(), request.pid());
        let unique = request.unique().0;
        self.note(format!("{call} by {uid} {gid} {pid} #{unique}"));
    }

    fn note(&self, call: String) {
        self.0.0.lock().unwrap().calls.push(call);
        self.0.1.notify_all();
    }

    fn pass_gate(&self) {
        let state = self.0.0.lock().unwrap();
        drop(
            self.0
                .1
                .wait_timeout_while(state, DEADLINE, |state| !state.is_open)
                .unwrap(),
        );
    }
}

fn attr(ino: u64, size: u64) -> FileAttr {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 7);
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 3,
        atime: at(11),
        mtime: at(12),
        ctime: at(13),
        crtime: at(14),
        kind: FileType::RegularFile,
        perm: 0o641,
        nlink: 2,
        uid: 21,
        gid: 22,
        rdev: 23,
        blksize: 512,
        flags: 0,
    }
}

const TTL: Duration = Duration::new(5, 6);

macro_rules! record {
    ($self:ident, $request:ident, $name:literal $(, $argument:expr)*) => {
        $self.0.add($request, [$name.to_owned() $(, format!("{:?}", $argument))*].join(" "))
    };
}

impl Filesystem for Recorder {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(65_536);
        self.0.note("init".to_owned());
        Ok(())
    }

    fn destroy(&mut self) {
        self.0.note("destroy".to_owned());
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        record!(self, request, "lookup", parent, name);
        reply.entry(&TTL, &attr(31, 1), Generation(41));
    }

    fn forget(&self, request: &Request, ino: INodeNo, nlookup: u64) {
        record!(self, request, "forget", ino, nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        record!(self, request, "getattr", ino, fh);
        if ino.0 >= GATED {
            self.0.pass_gate();
        }
        reply.attr(&TTL, &attr(32, 2));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        crtime: Option<SystemTime>,
        chgtime: Option<SystemTime>,
        bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        record!(
            self, request, "setattr", ino, mode, uid, gid, size, atime, mtime, ctime, fh, crtime,
            chgtime, bkuptime, flags
        );
        reply.attr(&TTL, &attr(33, 3));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        record!(self, request, "readlink", ino);
        reply.data(b"a/link");
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        record!(self, request, "mknod", parent, name, mode, umask, rdev);
        reply.entry(&TTL, &attr(34, 4), Generation(42));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        record!(self, request, "mkdir", parent, name, mode, umask);
        reply.entry(&TTL, &attr(35, 5), Generation(43));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        record!(self, request, "unlink", parent, name);
        reply.error(Errno::EBUSY);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        record!(self, request, "rmdir", parent, name);
        reply.error(Errno::ENOTEMPTY);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        record!(self, request, "symlink", parent, link_name, target);
        reply.entry(&TTL, &attr(36, 6), Generation(44));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        record!(
            self, request, "rename", parent, name, newparent, newname, flags
        );
        reply.error(Errno::EXDEV);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        record!(self, request, "link", ino, newparent, newname);
        reply.entry(&TTL, &attr(37, 7), Generation(45));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        record!(self, request, "open", ino, flags);
        reply.opened(FileHandle(51), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        record!(
            self, request, "read", ino, fh, offset, size, flags, lock_owner
        );
        reply.data(b"what was read");
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        record!(
            self,
            request,
            "write",
            ino,
            fh,
            offset,
            data,
            write_flags,
            flags,
            lock_owner
        );
        reply.written(4);
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "flush", ino, fh, lock_owner);
        reply.error(Errno::EDQUOT);
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        flush: bool,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "release", ino, fh, flags, lock_owner, flush);
        reply.ok();
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "fsync", ino, fh, datasync);
        reply.error(Errno::EIO);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        record!(self, request, "opendir", ino, flags);
        reply.opened(FileHandle(52), FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        record!(self, request, "readdir", ino, fh, offset);
        let _full = reply.add(INodeNo(61), 1, FileType::Directory, "one");
        let _full = reply.add(INodeNo(62), 2, FileType::Symlink, "two");
        reply.ok();
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        record!(self, request, "readdirplus", ino, fh, offset);
        let _full = reply.add(INodeNo(63), 3, "three", &TTL, &attr(63, 8), Generation(46));
        reply.ok();
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "releasedir", ino, fh, flags);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "fsyncdir", ino, fh, datasync);
        reply.error(Errno::EINVAL);
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        record!(self, request, "statfs", ino);
        reply.statfs(71, 72, 73, 74, 75, 76, 77, 78);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "setxattr", ino, name, value, flags, position);
        reply.error(Errno::EEXIST);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        record!(self, request, "getxattr", ino, name, size);
        reply.data(b"value");
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        record!(self, request, "listxattr", ino, size);
        reply.size(81);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        record!(self, request, "removexattr", ino, name);
        reply.error(Errno::ENODATA);
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        record!(self, request, "access", ino, mask);
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        record!(self, request, "create", parent, name, mode, umask, flags);
        reply.created(
            &TTL,
            &attr(38, 9),
            Generation(47),
            FileHandle(53),
            FopenFlags::FOPEN_DIRECT_IO,
        );
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        record!(
            self, request, "getlk", ino, fh, lock_owner, start, end, typ, pid
        );
        reply.locked(91, 92, 1, 93);
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        record!(
            self, request, "setlk", ino, fh, lock_owner, start, end, typ, pid, sleep
        );
        reply.error(Errno::EAGAIN);
    }

    fn bmap(&self, request: &Request, ino: INodeNo, blocksize: u32, idx: u64, reply: ReplyBmap) {
        record!(self, request, "bmap", ino, blocksize, idx);
        reply.bmap(101);
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        record!(
            self, request, "ioctl", ino, fh, flags, cmd, in_data, out_size
        );
        reply.ioctl(111, b"out");
    }

    fn poll(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        record!(self, request, "poll", ino, fh, ph.handle(), events, flags);
        reply.poll(PollEvents::POLLOUT);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        record!(self, request, "fallocate", ino, fh, offset, length, mode);
        reply.error(Errno::ENOSPC);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        record!(self, request, "lseek", ino, fh, offset, whence);
        reply.offset(121);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        record!(
            self,
            request,
            "copy_file_range",
            ino_in,
            fh_in,
            offset_in,
            ino_out,
            fh_out,
            offset_out,
            len,
            flags
        );
        reply.written(131);
    }
}
