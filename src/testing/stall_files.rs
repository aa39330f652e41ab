//! A file system whose files hang, each in the operation that it is named for.

use std::{
    ffi::OsStr,
    time::{Duration, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};

use super::stall::Gate;

/// The names; the inode of the first is 2.
const NAMES: &[&str] = &[
    "healthy", "read", "open", "write", "flush", "readdir", "lookup",
];

const ROOT: u64 = 1;

/// Nothing is kept: each step is asked for.
const NOW: Duration = Duration::ZERO;

const DATA: &[u8] = b"healthy\n";

/// A file system with the files `healthy`, `read`, `open`, `write` and `flush`, the directory `readdir`, and
/// `lookup`: what is done to one that is named for an operation stands at the gate in that operation.
#[derive(Clone, Debug)]
pub struct StalledFiles {
    gate: Gate,
}

impl Gate {
    /// Returns a file system whose operations stand at this gate, on the files that are named for them.
    #[must_use]
    pub fn files(&self) -> StalledFiles {
        StalledFiles { gate: self.clone() }
    }
}

impl StalledFiles {
    fn pass(&self, inode: INodeNo, operation: &str) {
        let name = name(inode);
        if let Some(name) = name {
            crate::context::target(format!("/{name}"));
        }
        if name == Some(operation) {
            self.gate.pass();
        }
    }
}

fn name(inode: INodeNo) -> Option<&'static str> {
    let at = usize::try_from(inode.0).ok()?.checked_sub(2)?;
    NAMES.get(at).copied()
}

fn attributes(inode: INodeNo) -> FileAttr {
    let is_directory = inode.0 == ROOT || name(inode) == Some("readdir");
    FileAttr {
        ino: inode,
        size: if is_directory { 0 } else { DATA.len() as u64 },
        blocks: 1,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: match is_directory {
            true => FileType::Directory,
            false => FileType::RegularFile,
        },
        perm: if is_directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Filesystem for StalledFiles {
    fn lookup(&self, _: &Request, _: INodeNo, wanted: &OsStr, reply: ReplyEntry) {
        let Some(at) = NAMES.iter().position(|name| wanted == *name) else {
            return reply.error(Errno::ENOENT);
        };
        let inode = INodeNo(at as u64 + 2);
        self.pass(inode, "lookup");
        reply.entry(&NOW, &attributes(inode), Generation(0));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NOW, &attributes(inode));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&NOW, &attributes(inode));
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.pass(inode, "open");
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.pass(inode, "read");
        reply.data(if offset == 0 { DATA } else { &[] });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.pass(inode, "write");
        reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
    }

    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.pass(inode, "flush");
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.pass(inode, "readdir");
        let names = if inode.0 == ROOT { NAMES } else { &[] };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, name) in names.iter().enumerate().skip(skip) {
            let kind = attributes(INodeNo(at as u64 + 2)).kind;
            if reply.add(INodeNo(at as u64 + 2), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
