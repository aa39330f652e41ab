//! What the program is asked about: a process, a socket, a URL or a mount, each asked in its own way.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use rustix::process::Signal;

use super::peers::{DEADLINE, Denied};
use crate::{
    bounded::within,
    machine::{self, Group},
    report::{PeerFailed, Report},
    snapshot::Filter,
    text,
    tracker::Tracker,
};

impl Report {
    /// Reports what the processes on the other side of these sources do, as they see it.
    ///
    /// A source is a process id, the path of a debug socket, the URL of a report, or the path of a FUSE
    /// mount, which is compared as text. Of a mount that no process with a debug socket serves, a child reads
    /// `.diag.json`, and is abandoned if there is no answer within 300 ms. A source that nobody stands behind is
    /// among [`peers_failed`](Self::peers_failed).
    #[must_use]
    pub fn collect_from(tracker: &Tracker, sources: &[String]) -> Self {
        if sources.is_empty() {
            // Whoever looks at the whole machine wants to see those, too, that no report tells of.
            let urls = tracker.peers().to_vec();
            return Self::collect_where(tracker, urls, &[], Denied::Failed, |_| true)
                .of_machine()
                .with_evidence(true);
        }
        let mounts: Vec<&String> = sources.iter().filter(|source| is_mount(source)).collect();
        let is_named = |socket: &Path| {
            let name = socket.file_stem().unwrap_or_default().to_string_lossy();
            let pid = name.split('-').next().unwrap_or_default();
            let mut sources = sources.iter();
            sources.any(|source| source == pid || Path::new(source) == socket)
        };
        let urls = sources.iter().filter(|source| is_url(source)).cloned();
        let urls = urls.collect();
        let mut report = Self::collect_where(tracker, urls, &[], Denied::Failed, |socket| {
            !mounts.is_empty() || is_named(socket)
        });
        for source in sources.iter().filter(|source| !is_url(source)) {
            if let Err(why) = report.find(source) {
                report.peers_failed.push(PeerFailed {
                    address: text::visible(source),
                    why,
                });
            }
        }
        let report = report.of_machine().with_evidence(true);
        match mounts.as_slice() {
            [mount] if sources.len() == 1 => report.about_mount(mount),
            _ => report.filtered(&Filter::new()),
        }
    }

    // Has the source among the peers, or says why it is not.
    fn find(&mut self, source: &str) -> Result<(), String> {
        let mut peers = self.peers.iter();
        let is_there = match is_mount(source) {
            true => peers.any(|peer| peer.mounts.iter().any(|mount| mount.path == source)),
            false => {
                let of_pid = peers.any(|peer| peer.process.pid.to_string() == source);
                of_pid || (source.ends_with(".sock") && !self.peers.is_empty())
            }
        };
        if is_there {
            return Ok(());
        }
        if !is_mount(source) || !machine::fuse_mounts().iter().any(|it| it.path == source) {
            return Err("no process that serves a report is behind it".to_owned());
        }
        let theirs = diag_of(source)?;
        for snapshot in std::iter::once(theirs.local).chain(theirs.peers) {
            let mut known = self.peers.iter();
            if !known.any(|peer| peer.process == snapshot.process) {
                self.peers.push(snapshot);
            }
        }
        Ok(())
    }
}

// Of a file system that may be anybody's: whoever reads it may never return.
fn diag_of(mount: &str) -> Result<Report, String> {
    let path = format!("{mount}/.diag.json");
    let mut cat = Command::new("cat");
    cat.arg(&path).current_dir("/").stdin(Stdio::null());
    cat.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut cat = Group::spawn(&mut cat).map_err(|error| format!("cannot run cat: {error}"))?;
    let stdout = cat.child().stdout.take();
    let read = within(Instant::now() + DEADLINE, DEADLINE, move || {
        let mut text = Vec::new();
        stdout.and_then(|mut stdout| stdout.read_to_end(&mut text).ok())?;
        Some(text)
    });
    // It has closed its output, or is abandoned.
    cat.signal(Signal::KILL);
    let no_socket = "no process with a debug socket serves it";
    let Some(text) = read else {
        let most = DEADLINE.as_millis();
        return Err(format!(
            "{no_socket}, and .diag.json was not answered within {most} ms"
        ));
    };
    serde_json::from_slice(&text.unwrap_or_default())
        .map_err(|_| format!("{no_socket}, and there is no .diag.json in it"))
}

fn is_mount(source: &str) -> bool {
    source.starts_with('/') && !source.ends_with(".sock")
}

fn is_url(source: &str) -> bool {
    source.contains("://")
}
