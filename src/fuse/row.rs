//! What a mount adds to a snapshot: its row, what its parked ops wait for, and paths.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    paths,
    shared::{MAX_PATH, Shared, lock},
};
use crate::{
    clock::Stamp,
    live::{Listed, Source},
    machine,
    place::Place,
    record::{Detail, Record},
    snapshot::{LiveOp, Mount, On, Snapshot},
    text,
};

const READINGS: u32 = 5;

/// Above so many ops, one more of the kernel's is no news, and counting them again takes long.
const FEW: u64 = 1000;

const BETWEEN_READINGS: Duration = Duration::from_millis(1);

/// Of younger ops nobody asks which file it is.
const YOUNG_MS: f64 = 100.0;

/// Callers that are asked for their open files in one report, and how long that may take.
const MOST_ASKED: u32 = 64;

const ASKING: Duration = Duration::from_millis(20);

impl<F: Send + Sync + 'static> Source for Shared<F> {
    fn describe(&self, snapshot: &mut Snapshot, listed: &Listed, _now: Stamp) {
        let view = self.dispatch.view();
        let parked: HashSet<_> = view.parked.iter().copied().collect();
        let running = view.running.iter().filter_map(|running| running.op);
        let running: Vec<_> = running.collect();
        let mut budget = Budget::new();
        let mut tracked = 0;
        for (op, record) in snapshot.ops.iter_mut().zip(&listed.ops) {
            if !self.is_of_this_mount(op, record) {
                continue;
            }
            tracked += 1;
            self.infer_target(op, &mut budget);
            if let Some(wait) = &mut op.phase.wait
                && wait.on == On::Queue
                && parked.contains(&op.id)
            {
                // A slot whose op is not on record is a way out that cannot be named.
                wait.others += (view.running.len() - running.len()) as u64;
                wait.all = running.len() == 1 && wait.others == 0;
                wait.ops.clone_from(&running);
            }
        }
        for (ended, record) in snapshot.recent.iter_mut().zip(&listed.recent) {
            if self.is_of_this_mount(&ended.op, record) {
                self.infer_target(&mut ended.op, &mut Budget::none());
            }
        }
        if snapshot.totals.left_out > 0 {
            tracked = self.tracked();
        }
        if self.ended.load(Relaxed) && tracked == 0 {
            return;
        }
        let kernel_waiting = self.kernel_waiting(tracked);
        let mut notes = lock(&self.notes).clone();
        let unread = kernel_waiting.unwrap_or(0).saturating_sub(tracked);
        if unread > 0 && self.dispatch.view().begun != view.begun {
            notes.push(format!(
                "{unread} more wait in the kernel to be read: the mount is busy, and moves"
            ));
        }
        snapshot.mounts.push(Mount {
            path: self.shown.clone(),
            connection: self.place.get().map(Place::connection),
            kernel_waiting,
            tracked,
            queued: view.parked_count as u64,
            queued_bytes: view.parked_bytes as u64,
            slots: match self.dispatch.slots() {
                usize::MAX => 0,
                slots => slots as u64,
            },
            notes,
        });
    }
}

impl<F> Shared<F> {
    // Another one may have been at the same path before, and those that are mounted by hand have none.
    fn is_of_this_mount(&self, op: &LiveOp, record: &Record) -> bool {
        let fuse = op.fuse.as_ref();
        let mut is_ours = fuse.is_some_and(|fuse| fuse.mount == self.shown);
        if is_ours {
            record.detail(|detail| is_ours = self.is_ours(detail));
        }
        is_ours
    }

    // Ops in flight now.
    fn tracked(&self) -> u64 {
        self.tracker.count_live(|detail| self.is_ours(detail))
    }

    fn is_ours(&self, detail: &Detail) -> bool {
        match detail {
            Detail::Fuse { mount, .. } => Arc::ptr_eq(mount, &self.path),
            _ => false,
        }
    }

    // Requests come and go while the kernel's count is read, so a difference to ours is believed only
    // if it stands in several readings; else what is `tracked` is what the kernel has.
    fn kernel_waiting(&self, tracked: u64) -> Option<u64> {
        let connection = self.place.get()?.connection();
        let mut difference = i64::MAX;
        for reading in 0..READINGS {
            let tracked = match reading {
                0 => tracked,
                _ => {
                    thread::sleep(BETWEEN_READINGS);
                    self.tracked()
                }
            };
            // Those who wait for this very report do not count.
            let kernel = machine::kernel_waiting(connection)?.saturating_sub(self.diag.pending());
            let now = kernel.cast_signed() - tracked.cast_signed();
            if now.abs() < difference.abs() {
                difference = now;
            }
            if difference == 0 || tracked > FEW {
                break;
            }
        }
        Some(tracked.saturating_add_signed(difference))
    }

    // What was told is kept; without that the op has the number of its inode, and maybe a name in it.
    fn infer_target(&self, op: &mut LiveOp, budget: &mut Budget) {
        let untold = op.fuse.as_ref().and_then(|fuse| {
            let rest = op.target.strip_prefix("inode ")?;
            let entry = rest.strip_prefix(fuse.inode.as_str())?;
            let is_entry = entry.is_empty() || entry.starts_with('/');
            is_entry.then_some((fuse.inode.parse().ok()?, entry))
        });
        let Some((inode, entry)) = untold else {
            return;
        };
        let path = self.paths.of(inode).or_else(|| {
            let (place, caller) = (self.place.get()?, op.caller.as_ref()?);
            budget.spend(op.age_ms)?;
            paths::open_file(caller.tid, inode, place.path(), place.mount_id())
        });
        if let Some(path) = path {
            let path = text::clean(&text::from_bytes(&path, MAX_PATH));
            op.target = format!("~{path}{entry}");
        }
    }
}

// How much of /proc may still be read for one report.
struct Budget {
    until: Instant,
    left: u32,
}

impl Budget {
    fn new() -> Self {
        Self {
            until: Instant::now() + ASKING,
            left: MOST_ASKED,
        }
    }

    fn none() -> Self {
        Self {
            until: Instant::now(),
            left: 0,
        }
    }

    fn spend(&mut self, age_ms: f64) -> Option<()> {
        if age_ms < YOUNG_MS {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        (Instant::now() < self.until).then_some(())
    }
}
