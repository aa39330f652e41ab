//! Ends all that a run of tests has started and left: processes by their mark, mounts, files.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::run_id::RunId;
use crate::{
    machine::{self, Group, Server},
    mountinfo,
    place::Place,
};

/// What the name of a file ends with that says where a daemon is to mount.
pub(super) const RECORD: &str = "mount";

/// What a mount is given to answer.
const ANSWER: Duration = Duration::from_millis(300);

const LOOK: Duration = Duration::from_millis(5);

/// What was removed, and what is left.
#[derive(Debug, Default)]
pub(super) struct Cleared {
    pub(super) processes: Vec<u32>,
    pub(super) mounts: Vec<PathBuf>,
    pub(super) left: Vec<String>,
}

/// Notes down where a daemon mounts: as soon as it is known, and again with what is mounted there.
pub(super) fn record(file: &Path, mount: &Path, place: Option<&Place>) -> std::io::Result<()> {
    let ids = place.map(|place| format!("{} {}", place.mount_id(), place.connection()));
    let mut line = ids.unwrap_or_else(|| "? ?".to_owned()).into_bytes();
    line.push(b' ');
    line.extend(mount.as_os_str().as_bytes());
    fs::write(file, line)
}

/// Ends all of a run but this process. Takes as long as it takes to die, at most until then.
pub(super) fn clear(run: &RunId, until: Instant) -> Cleared {
    let mut cleared = Cleared::default();
    let places = places(run);
    loop {
        let marked = run.processes();
        if marked.is_empty() {
            break;
        }
        for pid in marked {
            kill(pid, run);
            if !cleared.processes.contains(&pid) {
                cleared.processes.push(pid);
            }
        }
        // One that waits in its own mount cannot die before.
        for place in &places {
            place.abort(until);
        }
        if Instant::now() >= until {
            for pid in run.processes() {
                cleared.left.push(format!("process {pid}"));
            }
            break;
        }
        thread::sleep(LOOK);
    }
    for place in places {
        place.abort(until);
        match place.unmount(until) {
            Ok(()) => cleared.mounts.push(place.path().to_path_buf()),
            Err(error) => {
                let left = format!("mount {}: {error}", place.path().display());
                cleared.left.push(left);
            }
        }
    }
    remove(&run.directory());
    cleared
}

/// Sends KILL to a process of a run, and to no other that has its number by now.
fn kill(pid: u32, run: &RunId) {
    let Some(id) = Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    let Ok(descriptor) = pidfd_open(id, PidfdFlags::empty()) else {
        return;
    };
    if run.processes().contains(&pid) {
        // Whoever is gone needs no signal.
        let _ = pidfd_send_signal(&descriptor, Signal::KILL);
    }
}

// Those that its daemons said they would mount, and those that its processes serve.
fn places(run: &RunId) -> BTreeSet<Place> {
    let mut found = BTreeSet::new();
    let processes = run.processes();
    let mounts = machine::fuse_mounts();
    for mount in &mounts {
        if matches!(&mount.server, Server::Process(pid, _) if processes.contains(pid)) {
            found.extend(Place::of_connection(mount.connection));
        }
    }
    for (ids, path) in records(&run.directory()) {
        let Some(place) = Place::find(&path) else {
            continue;
        };
        let mut of_connection = mounts
            .iter()
            .filter(|it| it.connection == place.connection());
        if ids == Some((place.mount_id(), place.connection()))
            && of_connection.any(|mount| is_ours(&mount.server, &processes, || answers(&path)))
        {
            found.insert(place);
        }
    }
    found
}

// Both numbers are used again, and paths are: what was recorded may be somebody's own mount by now. That of a run
// whose processes are gone answers nobody.
fn is_ours(server: &Server, processes: &[u32], answers: impl FnOnce() -> bool) -> bool {
    match server {
        Server::Process(pid, _) => processes.contains(pid),
        Server::Dead => true,
        Server::Unknown(_) => !processes.is_empty() || !answers(),
    }
}

// One that hangs has somebody to answer.
fn answers(mount: &Path) -> bool {
    let mut stat = Command::new("/usr/bin/stat");
    stat.arg("-f").arg("--").arg(mount).current_dir("/");
    stat.stdin(Stdio::null()).stdout(Stdio::null());
    let Ok(mut stat) = Group::spawn(stat.stderr(Stdio::null())) else {
        return true;
    };
    let ended = stat.ended_within(ANSWER);
    stat.signal(Signal::KILL);
    !matches!(ended, Ok(Some(status)) if !status.success())
}

type Record = (Option<(u64, u64)>, PathBuf);

fn records(directory: &Path) -> Vec<Record> {
    let of_tests = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = of_tests.flat_map(|of_test| fs::read_dir(of_test.path()).into_iter().flatten());
    let files = files.flatten().map(|file| file.path());
    let files = files.filter(|file| file.extension().is_some_and(|it| it == RECORD));
    files
        .filter_map(|file| parse(&fs::read(file).ok()?))
        .collect()
}

fn parse(line: &[u8]) -> Option<Record> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let ids = (number(), number());
    let path = fields.next()?.to_vec();
    let path = PathBuf::from(std::ffi::OsString::from_vec(path));
    Some((ids.0.zip(ids.1), path))
}

// Two levels, and nothing that something is mounted in.
fn remove(directory: &Path) {
    let mounts = mountinfo::read().unwrap_or_default();
    if mounts.iter().any(|it| it.path.starts_with(directory)) {
        return;
    }
    // Never one that another run still uses: its name is this run's alone.
    let _gone = fs::remove_dir_all(directory);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{is_ours, parse, record};
    use crate::machine::Server;

    #[test]
    fn a_mount_that_somebody_else_has_by_now_is_left_alone() {
        let served = |pid| Server::Process(pid, "cat".to_owned());
        let unknown = Server::Unknown("needs Linux 6.18".to_owned());

        assert!(is_ours(&served(7), &[7], || true));
        assert!(!is_ours(&served(8), &[7], || false));
        assert!(!is_ours(&served(8), &[], || false));
        assert!(is_ours(&Server::Dead, &[], || true));
        assert!(is_ours(&unknown, &[7], || true), "it may hang");
        assert!(is_ours(&unknown, &[], || false));
        assert!(!is_ours(&unknown, &[], || true), "its own is dead");
    }

    #[test]
    fn a_record_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("1.mount");

        record(&file, Path::new("/mnt/a b"), None).unwrap();

        let line = std::fs::read(&file).unwrap();
        assert_eq!(parse(&line), Some((None, "/mnt/a b".into())));
        assert_eq!(parse(b"40 41 /x"), Some((Some((40, 41)), "/x".into())));
        assert_eq!(parse(b"40"), None);
    }
}
