//! What this process has under test: the guards that are armed, and a directory for the daemons of each test.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    panic::Location,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{run_id::RunId, test_name};
use crate::tracker::Tracker;

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    guards: Vec::new(),
    directories: Vec::new(),
    made: 0,
});

struct Registry {
    guards: Vec<Arc<Guarded>>,
    directories: Vec<(Option<String>, Weak<Directory>)>,
    made: u32,
}

/// A test under a guard.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) test: String,
    pub(super) at: &'static Location<'static>,
    pub(super) tid: u32,
    pub(super) began: Instant,
    pub(super) deadline: Mutex<Duration>,
    pub(super) tracker: Tracker,
    /// Its deadline is near, and the process ends.
    pub(super) is_over: AtomicBool,
}

/// A directory that the daemons of one test share: their sockets, and what they say. Removed with the last of them.
///
/// It is not called `inflight..`, so that no process finds the sockets of another test in it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Where daemons of the test were told to have their sockets instead.
    others: Mutex<Vec<PathBuf>>,
}

pub(super) fn arm(guarded: &Arc<Guarded>) {
    lock().guards.push(Arc::clone(guarded));
}

pub(super) fn disarm(guarded: &Arc<Guarded>) {
    lock().guards.retain(|it| !Arc::ptr_eq(it, guarded));
}

/// The tests under a guard, this one excepted.
pub(super) fn others(than: &Arc<Guarded>) -> Vec<Arc<Guarded>> {
    let guards = lock().guards.clone().into_iter();
    guards.filter(|it| !Arc::ptr_eq(it, than)).collect()
}

/// The tracker of the test that this thread runs, if it is under a guard.
pub(super) fn tracker() -> Option<Tracker> {
    let test = test_name::known();
    let registry = lock();
    let mut guards = registry.guards.iter();
    let of_test = guards.find(|it| Some(&it.test) == test.as_ref());
    let only = match registry.guards.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    Some(of_test.or(only)?.tracker.clone())
}

/// The directory of the test that this thread runs.
pub(super) fn directory() -> io::Result<Arc<Directory>> {
    let test = test_name::known();
    let mut registry = lock();
    let mut known = registry.directories.iter();
    if let Some(directory) = known.find_map(|(of, it)| it.upgrade().filter(|_| *of == test)) {
        return Ok(directory);
    }
    registry.made += 1;
    let path = RunId::own().directory().join(format!("t{}", registry.made));
    // The way into it is for this user alone.
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&path)?;
    let directory = Arc::new(Directory {
        path,
        others: Mutex::default(),
    });
    registry.directories.retain(|(_, it)| it.strong_count() > 0);
    registry
        .directories
        .push((test, Arc::downgrade(&directory)));
    Ok(directory)
}

/// The directories of all daemons but those of other tests under a guard.
pub(super) fn directories(test: Option<&str>) -> Vec<PathBuf> {
    let registry = lock();
    let is_guarded = |name: &str| registry.guards.iter().any(|guard| guard.test == name);
    let is_others = |of: &Option<String>| {
        let others = of.as_deref().filter(|of| Some(*of) != test);
        others.is_some_and(is_guarded)
    };
    let wanted = registry.directories.iter().filter(|(of, _)| !is_others(of));
    let alive: Vec<Arc<Directory>> = wanted.filter_map(|(_, it)| it.upgrade()).collect();
    drop(registry);
    alive.iter().flat_map(|it| it.with_others()).collect()
}

impl Directory {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes in a directory of sockets that is not this run's.
    pub(super) fn add(&self, other: &Path) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.push(other.to_path_buf());
    }

    fn with_others(&self) -> Vec<PathBuf> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = vec![self.path.clone()];
        all.extend(others.iter().cloned());
        all
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Others of this run may be in it.
        let _not_empty = fs::remove_dir(&self.path);
        let _not_empty = fs::remove_dir(RunId::own().directory());
    }
}

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}
