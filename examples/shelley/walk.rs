//! The search for guidance files: as it was, and with a deadline in a thread that may be left behind.

use std::{
    fs, mem,
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use inflight::{FutureExt, Tracker};
use tokio::sync::oneshot;

use crate::careful;
use crate::gate::Gates;

/// Files that tell the model how to work in a folder, in lower case.
const GUIDANCE: [&str; 6] = [
    "agent.md",
    "agents.md",
    "claude.md",
    "dear_llm.md",
    "readme.md",
    "skill.md",
];

/// So many threads may be left behind in a file system; after that there is no search any more.
const MOST_LEFT: usize = 8;

/// How a new conversation looks for guidance files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// Under the one lock, into whatever is there, for as long as it takes: as it was.
    Naive,
    /// The same without the lock.
    Unlocked,
    /// Without the lock, into no FUSE mount, and not for long.
    Repaired,
}

impl FromStr for Walk {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "naive" => Ok(Self::Naive),
            "unlocked" => Ok(Self::Unlocked),
            "repaired" => Ok(Self::Repaired),
            _ => Err("not naive, unlocked or repaired"),
        }
    }
}

/// What a search has come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guidance {
    pub(crate) found: Vec<PathBuf>,
    /// Mounts that were left out.
    pub(crate) left_out: Vec<PathBuf>,
    /// Why there may be more, if that is so.
    pub(crate) unfinished: Option<String>,
}

impl Guidance {
    /// The system prompt that is made of it.
    pub(crate) fn prompt(&self) -> String {
        let list = |paths: &[PathBuf]| {
            let paths = paths.iter().map(|path| path.display().to_string());
            paths.collect::<Vec<_>>().join(", ")
        };
        let mut prompt = format!("Guidance: {}", list(&self.found));
        if !self.left_out.is_empty() {
            prompt += &format!("\nNot entered: {}", list(&self.left_out));
        }
        if let Some(why) = &self.unfinished {
            prompt += &format!("\nNot finished: {why}");
        }
        prompt
    }
}

/// Searches with a deadline.
#[derive(Debug)]
pub(crate) struct Searcher {
    tracker: Tracker,
    gates: Gates,
    deadline: Duration,
    searching: Arc<AtomicUsize>,
}

impl Searcher {
    pub(crate) fn new(tracker: &Tracker, gates: &Gates, deadline: Duration) -> Self {
        Self {
            tracker: tracker.clone(),
            gates: gates.clone(),
            deadline,
            searching: Arc::default(),
        }
    }

    /// Returns what was found until the deadline. A system call that blocks keeps its thread, but not the caller.
    pub(crate) async fn search(&self, dir: &Path) -> Guidance {
        let unfinished = |why: &str| Guidance {
            unfinished: Some(why.to_owned()),
            ..Guidance::default()
        };
        if self.searching.fetch_add(1, SeqCst) >= MOST_LEFT {
            self.searching.fetch_sub(1, SeqCst);
            return unfinished("too many searches hang");
        }
        // An op of its own: left behind, it still shows where it is, and that nobody waits for it.
        let op = self.tracker.begin(format!("search {}", dir.display()));
        let so_far = Arc::new(Mutex::new(Some(Guidance::default())));
        let (tell, done) = oneshot::channel();
        let (dir, gates) = (dir.to_owned(), self.gates.clone());
        let (shared, searching, of_thread) =
            (Arc::clone(&so_far), Arc::clone(&self.searching), op.clone());
        let begun = thread::Builder::new().spawn(move || {
            let _current = of_thread.enter();
            careful::search(&dir, &gates, &shared);
            searching.fetch_sub(1, SeqCst);
            let _ = tell.send(());
        });
        if let Err(e) = begun {
            self.searching.fetch_sub(1, SeqCst);
            return unfinished(&format!("no thread: {e}"));
        }
        let ended = tokio::time::timeout(self.deadline, done)
            .waiting_for(&op)
            .await;
        let mut so_far = so_far.lock().unwrap_or_else(PoisonError::into_inner);
        // None is left there: this ends a search that still goes on.
        let guidance = mem::take(&mut *so_far).unwrap_or_default();
        Guidance {
            unfinished: ended.err().map(|_| {
                op.fail("left behind at its deadline");
                format!("the deadline of {:?} has passed", self.deadline)
            }),
            ..guidance
        }
    }
}

/// Whether a file of this name is read for guidance.
pub(crate) fn is_guidance(name: &str) -> bool {
    GUIDANCE.contains(&name.to_lowercase().as_str())
}

/// Whether the search passes over this name.
pub(crate) fn is_skipped(name: &str) -> bool {
    name.starts_with('.') || name == "node_modules" || name == "vendor"
}

/// Searches in this thread, into whatever is mounted there.
pub(crate) fn naive(dir: &Path) -> Guidance {
    let mut guidance = Guidance::default();
    let root = dir.ancestors().find(|dir| dir.join(".git").exists());
    search(root.unwrap_or(dir), &mut guidance.found);
    guidance
}

fn search(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_skipped(&name) {
            continue;
        }
        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => search(&path, found),
            Ok(_) if is_guidance(&name) && fs::read(&path).is_ok() => found.push(path),
            _ => {}
        }
    }
}
