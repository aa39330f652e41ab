//! Which process and which thread this is, also after a fork.

use std::{
    cell::Cell,
    fs,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::snapshot::Process;

// Grows with each fork that was noticed, so that threads read their id anew.
static FORKS: AtomicU32 = AtomicU32::new(1);
static PID: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static TID: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// The id of this thread. A system call only the first time; 0 while the thread is being torn down.
pub(crate) fn tid() -> u32 {
    let forks = FORKS.load(Relaxed);
    TID.try_with(|cell| {
        let (read_at, tid) = cell.get();
        if read_at == forks {
            return tid;
        }
        let tid = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        cell.set((forks, tid));
        tid
    })
    .unwrap_or(0)
}

/// Notices that this is another process than at the last call.
pub(crate) fn notice_fork() {
    let pid = std::process::id();
    let before = PID.swap(pid, Relaxed);
    if before != 0 && before != pid {
        FORKS.fetch_add(1, Relaxed);
    }
}

/// Reads who this process is. What cannot be read stays empty.
pub(crate) fn identify(service: &str) -> Process {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let namespace = |name: &str| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
        let link = link.to_string_lossy();
        link.chars().filter(char::is_ascii_digit).collect()
    };
    let exe = fs::read_link("/proc/self/exe").unwrap_or_default();
    Process {
        service: service.to_owned(),
        pid: std::process::id(),
        start_ticks: start_ticks(&read("/proc/self/stat")).unwrap_or_default(),
        boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        pid_ns: namespace("pid"),
        time_ns: namespace("time"),
        host: crate::text::visible(read("/proc/sys/kernel/hostname").trim()),
        exe: crate::text::visible(&exe.to_string_lossy()),
    }
}

/// When a process began, if it lives: with its number it tells it from all others of this boot.
#[cfg(feature = "testing")]
pub(crate) fn start_ticks_of(pid: u32) -> Option<String> {
    start_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

// proc_pid_stat(5): the name in parentheses may hold anything; starttime is field 22.
fn start_ticks(stat: &str) -> Option<String> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{identify, start_ticks, tid};

    #[test]
    fn a_thread_name_cannot_shift_the_fields_of_stat() {
        let stat = "7 (a) b) R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 88123 1 2 3 4 5 6 7 8 9";

        assert_eq!(start_ticks(stat).as_deref(), Some("88123"));
        assert_eq!(start_ticks("7 (a"), None);
    }

    #[test]
    fn this_process_is_known() {
        let process = identify("test");

        assert_eq!(process.pid, std::process::id());
        assert_eq!(process.boot_id.len(), 36);
        assert!(process.pid_ns.parse::<u64>().is_ok());
        assert!(process.start_ticks.parse::<u64>().is_ok());
    }

    #[test]
    fn each_thread_has_its_own_id() {
        let other = std::thread::spawn(tid).join().unwrap();

        assert_ne!(tid(), other);
        assert!(std::path::Path::new(&format!("/proc/self/task/{}", tid())).exists());
    }
}
