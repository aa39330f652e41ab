//! `inflight` and `inflight check`: the report, and every FUSE mount of the machine with what to do about it.

use std::{process::ExitCode, time::Duration};

use inflight::{
    Filter, Report, Tracker, debug,
    machine::{self, FuseMount, Server},
    report::Verdict,
};

use super::{options::Show, print::print};

pub(crate) fn show(tracker: &Tracker, show: &Show) -> ExitCode {
    let mut report = Report::collect_from(tracker, &show.source);
    if show.kind.is_some() || show.min_age.is_some() {
        let mut filter = Filter::new().min_age(show.min_age.unwrap_or_default());
        if let Some(kind) = &show.kind {
            filter = filter.kind(kind.clone());
        }
        report = report.filtered(&filter);
    }
    let mounts = match show.source.is_empty() {
        true => machine::fuse_mounts(),
        false => Vec::new(),
    };
    if report.peers.is_empty() && mounts.is_empty() {
        return nothing_found(&report);
    }
    let text = match show.json {
        true => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        false => report.to_string() + &mounts_text(&report, &mounts),
    };
    print(&text);
    ExitCode::SUCCESS
}

pub(crate) fn check(
    tracker: &Tracker,
    sources: &[String],
    stuck_after: Option<Duration>,
) -> ExitCode {
    let mut report = Report::collect_from(tracker, sources);
    if let Some(after) = stuck_after {
        report = report.stuck_after(after);
    }
    let text = report.to_string();
    let first = text.lines().next().unwrap_or_default();
    match report.verdict() {
        Verdict::Deadlock | Verdict::LikelyDeadlock | Verdict::Stuck => {
            print(&text);
            ExitCode::FAILURE
        }
        _ if report.peers.is_empty() => nothing_found(&report),
        _ if !report.peers_failed.is_empty() || report.peers.iter().any(|it| it.off.is_some()) => {
            print(&text);
            ExitCode::from(2)
        }
        _ => {
            print(&format!("{first}\n"));
            ExitCode::SUCCESS
        }
    }
}

fn nothing_found(report: &Report) -> ExitCode {
    eprintln!("inflight: no process serves a report here, as inflight::debug::serve does");
    for failed in &report.peers_failed {
        eprintln!("  {}: {}", failed.address, failed.why);
    }
    eprintln!("Looked for PID.sock in");
    for dir in debug::looked_in() {
        eprintln!("  {}", dir.display());
    }
    eprintln!("  and in every directory inflight* that stands in /proc/net/unix");
    if !rustix::process::geteuid().is_root() {
        eprintln!("Those of other users only root may ask.");
    }
    ExitCode::from(2)
}

// What the report cannot know of: mounts whose daemon has no tracker, and dead ones.
fn mounts_text(report: &Report, mounts: &[FuseMount]) -> String {
    if mounts.is_empty() {
        return String::new();
    }
    let mut text = String::from("\nFUSE mounts of this machine\n");
    let snapshots = || std::iter::once(&report.local).chain(&report.peers);
    let is_silent = |pid| {
        let mut failed = report.peers_failed.iter();
        failed.any(|failed| failed.pid() == Some(pid))
    };
    for mount in mounts {
        let waiting = match mount.kernel_waiting {
            Some(waiting) => format!("kernel {waiting} waiting"),
            None => "the kernel's count cannot be read".to_owned(),
        };
        let path = &mount.path;
        let connection = mount.connection;
        let has_tracker = snapshots().any(|snapshot| {
            let mut mounts = snapshot.mounts.iter();
            mounts.any(|known| known.connection == Some(connection) && known.path == *path)
        });
        let (server, advice) = match &mount.server {
            Server::Dead => (
                "DEAD: nobody serves it".to_owned(),
                format!("to remove it: umount -l {}", quoted(path)),
            ),
            server => {
                let name = match server {
                    Server::Process(pid, name) => format!("served by {name}[{pid}]"),
                    Server::Unknown(why) => format!("who serves it is not known ({why})"),
                    _ => "who serves it is not known".to_owned(),
                };
                let advice = match (has_tracker, mount.kernel_waiting) {
                    (true, _) | (_, Some(0)) => String::new(),
                    _ => format!(
                        "if it hangs, to free its callers: inflight abort {}",
                        quoted(path)
                    ),
                };
                let inside = match server {
                    _ if has_tracker => "",
                    Server::Process(pid, _) if is_silent(*pid) => ", whose report is missing",
                    Server::Process(..) => ", which runs no inflight",
                    _ => "",
                };
                (format!("{name}{inside}"), advice)
            }
        };
        text.push_str(&format!(
            "     {path}   connection {connection}   {server}   {waiting}\n"
        ));
        if !advice.is_empty() {
            text.push_str(&format!("          {advice}\n"));
        }
    }
    text
}

// As a shell takes it.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    match path.chars().all(is_plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_is_one_word_to_a_shell() {
        for (path, word) in [
            ("/mnt/s", "/mnt/s"),
            ("/mnt/a b; rm", "'/mnt/a b; rm'"),
            ("/mnt/it's", r"'/mnt/it'\''s'"),
        ] {
            assert_eq!(quoted(path), word);
        }
    }
}
