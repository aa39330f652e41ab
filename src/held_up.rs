//! Who is held up by a FUSE mount, by what /proc tells: open files, and threads that wait in the kernel with no request
//! of their own.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    machine,
    mountinfo::{self, Mounted},
    proc::{self, Descriptor, sleeps_in_fuse},
    snapshot::{HeldUp, OpenFile},
    text,
};

/// How long the threads of the machine may be looked at for one report.
const BUDGET: Duration = Duration::from_millis(30);
/// Files that are told of one process.
const MOST_FILES: usize = 16;
/// Descriptors above are no descriptors but addresses.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// What a process has open on FUSE mounts, also on such as were detached.
pub(crate) fn open_files(pid: u32, until: Instant) -> Vec<OpenFile> {
    let process = Path::new("/proc").join(pid.to_string());
    let Ok(mut descriptors) = proc::descriptors(&process) else {
        return Vec::new();
    };
    descriptors.sort_unstable();
    let mounts = proc::mounts(&process);
    let files = descriptors
        .into_iter()
        .take_while(|_| Instant::now() <= until)
        .filter_map(|fd| proc::descriptor(&process, fd))
        .filter_map(|descriptor| {
            let is_detached = match of(&mounts, &descriptor) {
                On::Fuse(_) => false,
                On::Detached => true,
                On::Other => return None,
            };
            Some(OpenFile {
                fd: descriptor.fd,
                path: text::visible(&descriptor.link.to_string_lossy()),
                closes_on_exec: descriptor.closes_on_exec,
                is_detached,
            })
        });
    files.take(MOST_FILES).collect()
}

/// Looks for threads that wait in the kernel for a FUSE mount and made none of the calls that are known. Returns as
/// well what could not be found out, a sentence each.
pub(crate) fn find(callers: &HashSet<u32>) -> (Vec<HeldUp>, Vec<String>) {
    let until = Instant::now() + BUDGET;
    let mounts = mountinfo::read().unwrap_or_default();
    if !mounts.iter().any(|mount| mount.is_fuse) {
        return (Vec::new(), Vec::new());
    }
    let only = only_one_that_waits(&mounts);
    let (mut found, mut unread, mut hidden) = (Vec::new(), 0, 0);
    let own = std::process::id();
    for (pid, process) in proc::processes().filter(|(pid, _)| *pid != own) {
        for (tid, thread) in proc::threads(&process) {
            if callers.contains(&tid) {
                continue;
            }
            if Instant::now() > until {
                unread += 1;
                continue;
            }
            let Some((state, wchan)) = waits(&thread) else {
                continue;
            };
            let mut held_up = HeldUp {
                pid,
                tid,
                comm: proc::read(process.join("comm")).unwrap_or_default(),
                state: state.to_string(),
                wchan,
                ..HeldUp::default()
            };
            match place(&process, &thread) {
                Ok(Some(place)) => {
                    held_up.mount = place.mount;
                    held_up.file = place.file;
                    held_up.is_likely = place.is_likely;
                }
                // Whoever waits for another disk is none of ours.
                Ok(None) if !is_of_a_directory(&held_up.wchan) => continue,
                Ok(None) => {
                    held_up.mount.clone_from(&only);
                    held_up.is_likely = true;
                }
                Err(error) => {
                    // Others have ended meanwhile.
                    hidden += u32::from(error.kind() == io::ErrorKind::PermissionDenied);
                    continue;
                }
            }
            found.push(held_up);
        }
    }
    let mut unknown = Vec::new();
    if unread > 0 {
        unknown.push(format!(
            "what {unread} more threads of this machine wait for, which there was no time to read"
        ));
    }
    if hidden > 0 {
        unknown.push(format!(
            "what {hidden} threads of others wait for in the kernel (needs root)"
        ));
    }
    (found, unknown)
}

// The letter of its state and where it sleeps, if that may be for a file.
fn waits(thread: &Path) -> Option<(char, String)> {
    let wchan = proc::wchan(thread)?;
    let stat = proc::stat(thread)?;
    // Threads of the kernel are children of the second.
    let is_blocked = stat.state == 'D' || sleeps_in_fuse(&wchan);
    (is_blocked && stat.parent != 2).then_some((stat.state, wchan))
}

// Locks and look-ups of directories, and what only FUSE waits in.
fn is_of_a_directory(wchan: &str) -> bool {
    let names = ["d_alloc_parallel", "d_wait_lookup", "lookup", "rwsem"];
    sleeps_in_fuse(wchan) || names.iter().any(|name| wchan.contains(name))
}

struct Place {
    mount: Option<String>,
    file: Option<String>,
    is_likely: bool,
}

// By the descriptor that its system call is about, else by the directory it is in.
fn place(process: &Path, thread: &Path) -> io::Result<Option<Place>> {
    let call = fs::read_to_string(thread.join("syscall"))?;
    let mounts = proc::mounts(process);
    let first = call.split_whitespace().nth(1);
    let first = first.and_then(|arg| u64::from_str_radix(arg.trim_start_matches("0x"), 16).ok());
    if let Some(fd) = first.filter(|fd| *fd < MOST_DESCRIPTORS)
        && let Some(descriptor) = proc::descriptor(process, fd as u32)
    {
        let file = Some(text::visible(&descriptor.link.to_string_lossy()));
        match of(&mounts, &descriptor) {
            On::Fuse(mount) => {
                return Ok(Some(Place {
                    mount: Some(shown(mount)),
                    file,
                    is_likely: false,
                }));
            }
            On::Detached => {
                return Ok(Some(Place {
                    mount: None,
                    file,
                    is_likely: true,
                }));
            }
            On::Other => {}
        }
    }
    let cwd = fs::read_link(process.join("cwd"))?;
    Ok(mountinfo::around(&mounts, &cwd)
        .filter(|mount| mount.is_fuse)
        .map(|mount| Place {
            mount: Some(shown(mount)),
            file: None,
            is_likely: true,
        }))
}

enum On<'a> {
    Fuse(&'a Mounted),
    /// Its mount stands in no list any more.
    Detached,
    Other,
}

fn of<'a>(mounts: &'a [Mounted], descriptor: &Descriptor) -> On<'a> {
    match mounts.iter().find(|mount| mount.id == descriptor.mount_id) {
        Some(mount) if mount.is_fuse => On::Fuse(mount),
        Some(_) => On::Other,
        None if is_internal(&descriptor.link.to_string_lossy()) => On::Other,
        None => On::Detached,
    }
}

// Mounts of the kernel's own, which are in no list either.
fn is_internal(link: &str) -> bool {
    let begins = ["/memfd:", "/SYSV", "/dev/zero", "/[aio]", "/anon_hugepage"];
    begins.iter().any(|begin| link.starts_with(begin))
}

fn only_one_that_waits(mounts: &[Mounted]) -> Option<String> {
    let waits = |mount: &&Mounted| {
        let waiting = machine::kernel_waiting(u64::from(mount.device.1));
        mount.is_fuse && waiting.is_some_and(|waiting| waiting > 0)
    };
    let mut waiting = mounts.iter().filter(waits);
    let first = waiting.next()?;
    waiting.next().is_none().then(|| shown(first))
}

fn shown(mount: &Mounted) -> String {
    let path: &PathBuf = &mount.path;
    text::visible(&path.to_string_lossy())
}
