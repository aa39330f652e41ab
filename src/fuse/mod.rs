//! A wrapper around any `fuser::Filesystem`: each request is an op, and `cat mnt/.diag` says what is stuck.
//!
//! [`mount`] and [`spawn_mount`] take the place of fuser's. They start one event loop more than
//! `Config::n_threads` says; it stands by, and reads when all others are busy, so that `.diag` is
//! answered whatever is stuck. The file system is not changed, and still runs at most as many
//! operations at once as `n_threads` allows (fuser's default is one).
//!
//! ```no_run
//! use inflight::{Tracker, fuse, fuse::fuser};
//!
//! struct Empty;
//!
//! impl fuser::Filesystem for Empty {}
//!
//! let tracker = Tracker::new("empty-fs");
//! fuse::mount(Empty, "/mnt/empty", &fuser::Config::default(), &tracker)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! An op ends when its last handle drops. The callback holds one; a file system that answers later,
//! from a task or another thread, has that hold another:
//! [`in_current_op`](crate::FutureExt::in_current_op) on the future, or
//! [`Op::current`](crate::Op::current) moved along. fuser's replies cannot be seen from outside, so no
//! outcome is known but what [`fail`](crate::fail) said.
//!
//! `.diag` is found through the root directory. The kernel keeps its entry, which a child process looks
//! up once a minute (no thread of this process ever calls into the mount). Under memory pressure the
//! entry may be gone, and then a directory operation that hangs in the root hides it: ask the debug
//! server. Give its full path: `cd mnt` asks the file system, and hangs with it.
//!
//! A panic in the file system is answered with EIO and the event loop lives on, where bare fuser would
//! lose it.

mod diag;
mod dispatch;
mod fs;
mod options;
mod paths;
mod row;
mod shared;
mod warm;

use std::{
    fmt, io, mem,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

pub use fuser;
use fuser::{BackgroundSession, Config, Filesystem, Notifier, Session};
use rustix::process::{geteuid, getgid, getuid};

pub use self::{fs::Tracked, options::Options};
use self::{
    shared::{Shared, directory},
    warm::Warmer,
};
use crate::{
    place::{self, Place},
    tracker::Tracker,
};

/// How long a mount may take to go, in all.
const TEARDOWN: Duration = Duration::from_secs(5);

/// How long mounting waits for the kernel to know `.diag`.
const FIRST_WARM: Duration = Duration::from_millis(500);

const WARM_AGAIN: Duration = Duration::from_secs(60);

const WARM_RETRY: Duration = Duration::from_secs(2);

const LOOK_FOR_END: Duration = Duration::from_secs(1);

const FINISH_POLL: Duration = Duration::from_millis(5);

/// A mounted file system; dropped, it is unmounted.
///
/// Unmounting takes at most 5 s, whatever is stuck: requests that do not end by themselves are failed,
/// then the mount is detached.
#[must_use = "dropped at once, it is unmounted at once"]
pub struct Mount {
    session: Option<BackgroundSession>,
    notifier: Notifier,
    path: PathBuf,
    place: Option<Place>,
    control: Arc<dyn Control>,
}

// What the handle of a mount asks of it, whatever its file system.
trait Control: Send + Sync {
    fn close(&self);
    fn is_gone(&self) -> bool;
    fn was_unmounted(&self) -> bool;
    fn wait_for_end(&self, at_most: Duration) -> bool;
    fn threads_left(&self) -> Vec<String>;
}

/// Mounts a file system, wrapped, and serves it until it is unmounted.
///
/// # Errors
///
/// If it could not be mounted, and what fuser says when the session ends.
pub fn mount<F: Filesystem>(
    file_system: F,
    dir: impl AsRef<Path>,
    config: &Config,
    tracker: &Tracker,
) -> io::Result<()> {
    mount_with(file_system, dir, config, tracker, Options::new())
}

/// [`mount`] with settings.
///
/// # Errors
///
/// As [`mount`].
pub fn mount_with<F: Filesystem>(
    file_system: F,
    dir: impl AsRef<Path>,
    config: &Config,
    tracker: &Tracker,
    options: Options,
) -> io::Result<()> {
    spawn_mount_with(file_system, dir, config, tracker, options)?.join()
}

/// Mounts a file system, wrapped, and serves it in the background.
///
/// # Errors
///
/// If it could not be mounted.
pub fn spawn_mount<F: Filesystem>(
    file_system: F,
    dir: impl AsRef<Path>,
    config: &Config,
    tracker: &Tracker,
) -> io::Result<Mount> {
    spawn_mount_with(file_system, dir, config, tracker, Options::new())
}

/// [`spawn_mount`] with settings.
///
/// # Errors
///
/// As [`spawn_mount`].
pub fn spawn_mount_with<F: Filesystem>(
    file_system: F,
    dir: impl AsRef<Path>,
    config: &Config,
    tracker: &Tracker,
    options: Options,
) -> io::Result<Mount> {
    tracker.begins_to_serve();
    // All that must be asked of the path is asked while nothing of ours is mounted there.
    let path = dir.as_ref().canonicalize()?;
    let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata()?);
    let slots = config.n_threads.unwrap_or(1);
    if slots == 0 {
        let none = "n_threads is 0: no thread would serve the mount";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, none));
    }
    let mut config = config.clone();
    config.n_threads = Some(slots + 1);

    let shared = Shared::new(tracker, &path, slots, &options);
    let root = directory(mode, getuid().as_raw(), getgid().as_raw());
    shared.learn_root(root, shared.root_version().unwrap_or_default());
    let tracked = Tracked::sharing(file_system, Arc::clone(&shared));
    let session = Session::new(tracked, &path, &config).map_err(|error| explain(&path, &error))?;
    let place = Place::find(&path);
    if let Some(place) = &place {
        let _only_once = shared.place.set(place.clone());
    }
    shared.set_device(session.as_fd().try_clone_to_owned()?);
    shared.diag.start_reporter()?;
    let session = session.spawn()?;
    let mount = Mount {
        notifier: session.notifier(),
        session: Some(session),
        path: path.clone(),
        place,
        control: Arc::clone(&shared) as Arc<dyn Control>,
    };
    let (warmed, is_warmed) = mpsc::channel();
    let warmer = Warmer::new(&path, shared.diag.names());
    shared.has_watch();
    thread::Builder::new()
        .name("inflight-mount".to_owned())
        .spawn(move || look_after(&shared, warmer, &warmed))?;
    let _too_slow = is_warmed.recv_timeout(FIRST_WARM);
    Ok(mount)
}

impl<F: Filesystem> Tracked<F> {
    /// Wraps a file system, to be mounted by hand.
    #[must_use]
    pub fn new(file_system: F, tracker: &Tracker) -> Self {
        Self::with(file_system, tracker, Options::new())
    }

    /// [`new`](Self::new) with settings.
    #[must_use]
    pub fn with(file_system: F, tracker: &Tracker, options: Options) -> Self {
        let slots = options.slots.unwrap_or(usize::MAX);
        let shared = Shared::new(tracker, Path::new(""), slots, &options);
        Self::sharing(file_system, shared)
    }
}

impl Mount {
    /// Returns an object that sends notifications to the kernel.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Returns where it is mounted, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of its FUSE connection, as under /sys/fs/fuse/connections.
    #[must_use]
    pub fn connection(&self) -> Option<u64> {
        self.place.as_ref().map(Place::connection)
    }

    /// Waits until it is unmounted by others, and then at most 5 s for its threads.
    ///
    /// # Errors
    ///
    /// What fuser says at the end of the session, or which thread is left.
    pub fn join(mut self) -> io::Result<()> {
        // An event loop that nothing was asked of ends without a word.
        while !self.control.wait_for_end(LOOK_FOR_END) && !self.control.is_gone() {}
        while !self.is_finished() && !self.control.is_gone() {
            thread::sleep(FINISH_POLL);
        }
        self.tear_down()
    }

    /// Unmounts and waits for its threads, 5 s in all: gently at first, then failing all requests,
    /// then detaching.
    ///
    /// # Errors
    ///
    /// Why it is still mounted, what fuser says at the end of the session, or which thread is left.
    pub fn umount_and_join(mut self) -> io::Result<()> {
        self.tear_down()
    }

    fn is_finished(&self) -> bool {
        let session = self.session.as_ref();
        session.is_none_or(|session| session.guard.is_finished())
    }

    fn tear_down(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + TEARDOWN;
        let unmounted = match &self.place {
            Some(place) if !self.control.was_unmounted() => place.unmount(deadline),
            _ => Ok(()),
        };
        // Detached by others, or mounted elsewhere as well, it may go on without its place.
        let mut lives_on = !self.control.is_gone();
        self.control.close();
        let abort_at = Instant::now() + place::GRACE;
        while !self.is_finished() && Instant::now() < deadline {
            if lives_on && Instant::now() >= abort_at {
                lives_on = false;
                let _no_fusectl = self.place.as_ref().map(Place::abort_connection);
            }
            thread::sleep(FINISH_POLL);
        }
        let finished = self.is_finished();
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        let left = self.control.threads_left();
        // Dropped, it would unmount whatever is at the path now.
        let touchable = self
            .place
            .as_ref()
            .is_none_or(|place| !place.is_there() && !place.is_strangers());
        let result = if !touchable {
            mem::forget(session);
            Ok(())
        } else if finished {
            session.join()
        } else {
            drop(session);
            Ok(())
        };
        unmounted?;
        if finished {
            return result;
        }
        let left = match left.is_empty() {
            true => "a thread of the session".to_owned(),
            false => left.join(", "),
        };
        let why = format!("unmounted, but after 5 s there is left: {left}");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_some() {
            let _nobody_to_tell = self.tear_down();
        }
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount")
            .field("path", &self.path)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl<F: Send + Sync + 'static> Control for Shared<F> {
    fn close(&self) {
        Self::close(self);
    }

    fn is_gone(&self) -> bool {
        Self::is_gone(self)
    }

    fn was_unmounted(&self) -> bool {
        Self::was_unmounted(self)
    }

    fn wait_for_end(&self, at_most: Duration) -> bool {
        self.dispatch.wait_for_end(at_most)
    }

    fn threads_left(&self) -> Vec<String> {
        let running = self.dispatch.view().running;
        let describe = |running: dispatch::Running| {
            format!("thread {}, which runs {}", running.tid, running.name)
        };
        running.into_iter().map(describe).collect()
    }
}

// What fuser says of a helper it did not find does not name it.
fn explain(path: &Path, error: &io::Error) -> io::Error {
    let missing = if !Path::new("/dev/fuse").exists() {
        ": there is no /dev/fuse here (`modprobe fuse`; in a container, `--device /dev/fuse`)"
    } else if !geteuid().is_root() {
        ": without root this needs fusermount3, of the package fuse3, and access to /dev/fuse"
    } else {
        ""
    };
    let what = format!("cannot mount at {}: {error}{missing}", path.display());
    io::Error::new(error.kind(), what)
}

// The thread that belongs to one mount.
fn look_after<F: Filesystem>(shared: &Shared<F>, mut warmer: Warmer, warmed: &mpsc::Sender<()>) {
    let mut next = Instant::now();
    let mut check_at = next;
    let mut begun = None;
    let mut is_stale = false;
    while !shared.dispatch.is_closed() {
        let now = Instant::now();
        if now >= next {
            let result = warmer.warm();
            // A file system that nobody uses is left alone.
            if begun != Some(shared.dispatch.view().begun) {
                if let Some(version) = shared.root_version()
                    && let Some(root) = warmer.root()
                {
                    shared.learn_root(root, version);
                }
                begun = Some(shared.dispatch.view().begun);
            }
            is_stale = shared.root_is_stale();
            next = now
                + if result.is_ok() && !is_stale {
                    WARM_AGAIN
                } else {
                    WARM_RETRY
                };
            shared.note(result.err().map(|why| {
                format!("{why}: this file may be out of reach while a directory operation hangs")
            }));
            let _nobody_waits = warmed.send(());
        }
        let pause = next.saturating_duration_since(Instant::now());
        shared.look_after_parked(&mut check_at, pause);
        if !is_stale && shared.root_is_stale() {
            next = Instant::now();
        }
    }
}
