//! `inflight abort`: fails the requests of one connection, and says whom that freed.

use std::{
    io::{self, IsTerminal},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use inflight::{Report, Tracker, machine};

use super::print::print;

/// How long callers get to leave, so that it can be said how many have.
const LEAVING: Duration = Duration::from_secs(2);

pub(crate) fn abort(tracker: &Tracker, mount: &str, yes: bool, detach: bool) -> ExitCode {
    let mounts = machine::fuse_mounts();
    // The last of several at one path is the one that is seen.
    let of_path = mounts
        .iter()
        .rfind(|known| known.path == mount.trim_end_matches('/'));
    let Some(connection) = of_path
        .map(|known| known.connection)
        .or_else(|| mount.parse().ok())
    else {
        eprintln!("inflight: {mount} is no FUSE mount and no number of a connection. There are");
        for known in &mounts {
            eprintln!("  {}   connection {}", known.path, known.connection);
        }
        return ExitCode::from(2);
    };
    let report = Report::collect_from(tracker, &[]);
    let mut callers = callers_of(&report, connection);
    let of_mount = report.held_up.iter().filter(|held_up| {
        let path = of_path.map(|known| &known.path);
        path.is_some() && held_up.mount.as_ref() == path
    });
    callers.extend(of_mount.map(|it| format!("{}[{}]", it.comm, it.pid)));
    callers.sort();
    callers.dedup();
    let waiting = machine::kernel_waiting(connection);
    if !yes {
        let many = waiting.map_or_else(|| "all".to_owned(), |waiting| waiting.to_string());
        eprintln!(
            "This fails {many} requests of connection {connection}, and the mount serves nothing any more. What they \
             asked for may be carried out all the same, by the server behind it."
        );
        if !io::stdin().is_terminal() {
            eprintln!("inflight: say --yes, since nobody is here to be asked");
            return ExitCode::from(2);
        }
        eprint!("Go on? [y/N] ");
        let mut answer = String::new();
        if io::stdin().read_line(&mut answer).is_err() || !answer.trim().eq_ignore_ascii_case("y") {
            return ExitCode::from(2);
        }
    }
    if let Err(error) = machine::abort(connection) {
        eprintln!("inflight: cannot abort connection {connection}: {error}");
        eprintln!("{}", advice_on_abort(&error, mount));
        return ExitCode::from(2);
    }
    // The callers leave by themselves; the count shows when they have.
    let until = Instant::now() + LEAVING;
    while machine::kernel_waiting(connection).unwrap_or(0) > 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    let left = machine::kernel_waiting(connection).unwrap_or(0);
    let freed = waiting.unwrap_or(0).saturating_sub(left);
    let named = match callers.is_empty() {
        true => String::new(),
        false => format!(": {}", callers.join(", ")),
    };
    print(&format!(
        "Aborted connection {connection}. Freed {freed} requests{named}\n"
    ));
    if detach && of_path.is_some() {
        return detach_mount(mount);
    }
    ExitCode::SUCCESS
}

fn callers_of(report: &Report, connection: u64) -> Vec<String> {
    let mut callers = Vec::new();
    for snapshot in std::iter::once(&report.local).chain(&report.peers) {
        let mut mounts = snapshot.mounts.iter();
        let Some(mount) = mounts.find(|mount| mount.connection == Some(connection)) else {
            continue;
        };
        for op in &snapshot.ops {
            let is_here = op
                .fuse
                .as_ref()
                .is_some_and(|fuse| fuse.mount == mount.path);
            if let Some(caller) = op.caller.as_ref().filter(|_| is_here) {
                let name = caller.comm.as_deref().unwrap_or("?");
                callers.push(format!("{name}[{}]", caller.pid.unwrap_or(caller.tid)));
            }
        }
    }
    callers
}

fn advice_on_abort(error: &io::Error, mount: &str) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "Only root and whoever mounted it may.".to_owned(),
        io::ErrorKind::NotFound => format!(
            "If /sys/fs/fuse/connections is empty: mount -t fusectl none /sys/fs/fuse/connections, or try umount -f {mount}"
        ),
        _ => String::new(),
    }
}

fn detach_mount(mount: &str) -> ExitCode {
    use rustix::mount::{UnmountFlags, unmount};

    let detached = unmount(mount, UnmountFlags::DETACH).is_ok()
        || Command::new("fusermount3")
            .args(["-uz", mount])
            .status()
            .is_ok_and(|status| status.success());
    match detached {
        true => {
            print(&format!("Detached {mount}\n"));
            ExitCode::SUCCESS
        }
        false => {
            eprintln!("inflight: cannot detach {mount}; as root: umount -l {mount}");
            ExitCode::from(2)
        }
    }
}
