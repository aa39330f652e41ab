//! A search for guidance files that enters no FUSE mount: each step is taken without touching what it leads to.
//!
//! A file opened with `O_PATH` is not asked anything, and /proc/self/fdinfo says which mount it is on. So a mount is known
//! before the first call reaches it, however it came into the way: by a link, by a bind, or a moment ago.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat};

use crate::gate::Gates;
use crate::walk::{Guidance, is_guidance, is_skipped};

/// As the kernel has it for a path.
const MOST_LINKS: usize = 40;

const DEEPEST: usize = 64;

const LARGEST: u64 = 1 << 20;

/// Puts what is found under `dir` into `so_far`, until somebody takes that away.
pub(crate) fn search(dir: &Path, gates: &Gates, so_far: &Mutex<Option<Guidance>>) {
    let search = Search { gates, so_far };
    let Some(way) = search.resolve(Vec::new(), dir) else {
        return;
    };
    let has_git = |place: &&Place| search.step(place, OsStr::new(".git")).is_some();
    let root = way.iter().rev().find(has_git).or(way.last());
    if let Some(root) = root {
        search.under(root, way.len());
    }
}

struct Search<'a> {
    gates: &'a Gates,
    so_far: &'a Mutex<Option<Guidance>>,
}

/// A file that is held and was not touched, and a path that leads there without links.
struct Place {
    at: OwnedFd,
    path: PathBuf,
    mount: u64,
}

impl Search<'_> {
    /// The places on the way to `path`, from the root on; none if there is a FUSE mount on it.
    fn resolve(&self, mut way: Vec<Place>, path: &Path) -> Option<Vec<Place>> {
        let mut links = 0;
        let mut todo: Vec<OsString> = Vec::new();
        push(&mut todo, path);
        if way.is_empty() || path.is_absolute() {
            way = vec![root()?];
        }
        while let Some(name) = todo.pop() {
            if name == ".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let next = self.step(way.last()?, &name)?;
            if next.kind() != Some(FileType::Symlink) {
                way.push(next);
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            let target = readlinkat(&next.at, "", Vec::new()).ok()?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                way.truncate(1);
            }
            push(&mut todo, &target);
        }
        Some(way)
    }

    /// One name further, unless that is on a FUSE mount.
    fn step(&self, from: &Place, name: &OsStr) -> Option<Place> {
        let at = held(&from.at, name)?;
        let place = Place {
            mount: mount_of(&at)?,
            path: from.path.join(name),
            at,
        };
        // The number is that of a mount which is held: no other can have it now.
        if place.mount != from.mount && is_fuse(place.mount) != Some(false) {
            self.note(|guidance| guidance.left_out.push(place.path.clone()));
            return None;
        }
        Some(place)
    }

    /// False: nobody waits for the search any more.
    fn under(&self, dir: &Place, depth: usize) -> bool {
        inflight::phase(dir.path.display().to_string());
        self.gates
            .pass_blocking("dir", &dir.path.display().to_string());
        if depth > DEEPEST {
            return true;
        }
        for name in names(dir) {
            let lossy = name.to_string_lossy();
            if is_skipped(&lossy) {
                continue;
            }
            let Some(place) = self.step(dir, &name) else {
                continue;
            };
            let goes_on = match place.kind() {
                Some(FileType::Directory) => self.under(&place, depth + 1),
                Some(_) if is_guidance(&lossy) && self.is_read(dir, &place, &name) => {
                    self.note(|guidance| guidance.found.push(place.path.clone()))
                }
                _ => self.note(|_| ()),
            };
            if !goes_on {
                return false;
            }
        }
        true
    }

    /// Whether it could be read, through links if need be.
    fn is_read(&self, dir: &Place, place: &Place, name: &OsStr) -> bool {
        match place.kind() {
            Some(FileType::RegularFile) => place.read(),
            Some(FileType::Symlink) => {
                let way = self.resolve(Vec::new(), &dir.path.join(name));
                let target = way.as_ref().and_then(|way| way.last());
                target.is_some_and(|target| {
                    target.kind() == Some(FileType::RegularFile) && target.read()
                })
            }
            _ => false,
        }
    }

    fn note(&self, note: impl FnOnce(&mut Guidance)) -> bool {
        let mut so_far = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
        so_far.as_mut().map(note).is_some()
    }
}

impl Place {
    fn kind(&self) -> Option<FileType> {
        let stat = fstat(&self.at).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }

    // The very file that is held, whatever has its name by now.
    fn read(&self) -> bool {
        let file = File::open(format!("/proc/self/fd/{}", self.at.as_raw_fd()));
        file.is_ok_and(|file| file.take(LARGEST).read_to_end(&mut Vec::new()).is_ok())
    }
}

/// Where every path begins; what is mounted there cannot be avoided.
fn root() -> Option<Place> {
    let at = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some(Place {
        mount: mount_of(&at)?,
        path: "/".into(),
        at,
    })
}

fn held(dir: &OwnedFd, name: &OsStr) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).ok()
}

/// In order; "." is the directory that is held, even if something was mounted over it since.
fn names(dir: &Place) -> Vec<OsString> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(&dir.at, ".", flags, Mode::empty()).and_then(Dir::new);
    let mut names: Vec<OsString> = opened
        .into_iter()
        .flatten()
        .map_while(Result::ok)
        .map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

/// What is to be done next stands last.
fn push(todo: &mut Vec<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => todo.push(name.to_owned()),
            Component::ParentDir => todo.push("..".into()),
            _ => {}
        }
    }
}

/// The number of the mount that a file is on, from proc_pid_fdinfo(5): the file itself is not asked.
fn mount_of(file: &OwnedFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    line?.trim().parse().ok()
}

/// None if the kernel's list does not have it.
fn is_fuse(mount: u64) -> Option<bool> {
    let list = fs::read("/proc/self/mountinfo").ok()?;
    let kind = kind_of(&String::from_utf8_lossy(&list), mount)?;
    Some(kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse."))
}

/// The type of a file system, behind a lone dash in proc_pid_mountinfo(5).
fn kind_of(list: &str, mount: u64) -> Option<String> {
    let mut lines = list.lines().filter_map(|line| line.split_once(' '));
    let (_, line) = lines.find(|(id, _)| id.parse() == Ok(mount))?;
    let (_, kind) = line.split_once(" - ")?;
    kind.split(' ').next().map(str::to_owned)
}
