//! A programmable system for tests: servers, file systems and proxies, each a process of its own, and gates that force an order.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use inflight::{
    Report,
    report::PeerFailed,
    snapshot::{Filter, LiveOp},
    testing::{Daemon, Watch},
};
use tempfile::TempDir;

use crate::{
    mounted::guard,
    rig_roles::{Changes, File, ROLE, Role},
    stage::{DEADLINE, cat, inflight, run_dir, skipped, until},
};

/// Everything that was started, ended when it is dropped, however it hangs.
pub(crate) struct Rig {
    arrivals: Receiver<(String, UnixStream)>,
    early: Vec<(String, UnixStream)>,
    processes: Vec<Actor>,
    dir: TempDir,
    _watch: Watch,
}

pub(crate) struct Actor {
    daemon: Daemon,
    /// Where it can be reached, or is mounted.
    at: String,
}

/// A program that may hang in a mount; killed when it is dropped, which the end of the rig lets it notice.
pub(crate) struct Caller(Child);

/// Which of the processes, in the order they were started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(usize);

impl Rig {
    /// `None` if mount tests are to be skipped.
    pub(crate) fn new() -> Option<Self> {
        if skipped() {
            return None;
        }
        let guard = guard();
        let dir = tempfile::Builder::new().prefix("rig-").tempdir().unwrap();
        let gate = UnixListener::bind(dir.path().join("gates")).unwrap();
        let (arrived, arrivals) = channel();
        // Ends with the process: nothing is joined.
        thread::spawn(move || {
            for stream in gate.incoming().map_while(Result::ok) {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                if stream.read_line(&mut line).is_err() {
                    continue;
                }
                let gate = line.trim().to_owned();
                if arrived.send((gate, stream.into_inner())).is_err() {
                    break;
                }
            }
        });
        Some(Self {
            arrivals,
            early: Vec::new(),
            processes: Vec::new(),
            dir,
            _watch: guard,
        })
    }

    pub(crate) fn server(&mut self, name: &str) -> Id {
        let gates = self.dir.path().join("gates");
        let name = name.to_owned();
        let run_dir = self.run_dir();
        self.start(&[], &run_dir, None, &Role::Server { name, gates })
    }

    /// A server that another program starts, with its socket elsewhere.
    pub(crate) fn server_in(&mut self, starter: &[&str], run_dir: &Path) -> Id {
        let gates = self.dir.path().join("gates");
        let name = "server".to_owned();
        self.start(starter, run_dir, None, &Role::Server { name, gates })
    }

    pub(crate) fn proxy(&mut self, to: Id, how: Changes) -> Id {
        let to = self.at(to).to_owned();
        let run_dir = self.run_dir();
        self.start(&[], &run_dir, None, &Role::Proxy { to, how })
    }

    /// Mounts a file system at [`path`](Self::path)`(name)`.
    pub(crate) fn files(&mut self, name: &str, slots: usize, files: &[(&str, File)]) -> Id {
        self.files_in(&[], name, slots, files)
    }

    /// A file system that another program starts.
    pub(crate) fn files_in(
        &mut self,
        starter: &[&str],
        name: &str,
        slots: usize,
        files: &[(&str, File)],
    ) -> Id {
        let mount = self.path(name);
        fs::create_dir(&mount).unwrap();
        let files = files.iter().cloned();
        let files: BTreeMap<String, File> =
            files.map(|(name, file)| (name.to_owned(), file)).collect();
        let gates = self.dir.path().join("gates");
        let role = Role::Files {
            name: name.to_owned(),
            gates,
            mount: mount.clone(),
            slots,
            files,
        };
        let run_dir = self.run_dir();
        self.start(starter, &run_dir, Some(&mount), &role)
    }

    fn start(&mut self, starter: &[&str], run_dir: &Path, mount: Option<&Path>, role: &Role) -> Id {
        let own = std::env::current_exe().unwrap();
        let mut program = starter.iter().map(OsStr::new).chain([own.as_os_str()]);
        let mut command = Command::new(program.next().unwrap());
        command
            .args(program)
            .args(["--exact", "rig_roles::plays_its_role_if_told_to"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ROLE, serde_json::to_string(role).unwrap())
            .env("INFLIGHT_DIR", run_dir)
            .env_remove("INFLIGHT")
            .env_remove("INFLIGHT_PEERS");
        let daemon = Daemon::builder(command).stops_at_eof();
        let daemon = match mount {
            Some(mount) => daemon.mounts_at(mount),
            None => daemon,
        };
        let daemon = daemon.start().unwrap();
        let at = match mount {
            Some(mount) => mount.display().to_string(),
            None => daemon.url().to_owned(),
        };
        self.processes.push(Actor { daemon, at });
        Id(self.processes.len() - 1)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(self.dir.path())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self, id: Id) -> u32 {
        self.processes[id.0].daemon.id()
    }

    pub(crate) fn at(&self, id: Id) -> &str {
        &self.processes[id.0].at
    }

    pub(crate) fn connection(&self, id: Id) -> u64 {
        self.processes[id.0].daemon.connection().unwrap()
    }

    /// The request that has a server take these steps.
    pub(crate) fn ask(&self, server: Id, steps: &str) -> String {
        format!("{}/?do={steps}", self.at(server))
    }

    /// A file that sends one request and waits for the answer.
    pub(crate) fn asks(&self, server: Id, steps: &str) -> File {
        File {
            urls: vec![self.ask(server, steps)],
            ..File::default()
        }
    }

    /// Reads a file of a mount, in a shell of its own.
    pub(crate) fn read(&self, file: &str) -> Caller {
        Caller::start(&format!(
            "exec cat {} >/dev/null",
            self.path(file).display()
        ))
    }

    /// Asks a server as a stranger would.
    pub(crate) fn curl(&self, url: &str) -> Caller {
        Caller::start(&format!("exec curl -s '{url}' >/dev/null"))
    }

    /// Waits until somebody stands at a gate; whoever does stays until the stream is dropped.
    pub(crate) fn arrive(&mut self, gate: &str) -> UnixStream {
        let is_it = |(name, _): &(String, UnixStream)| name == gate;
        if let Some(at) = self.early.iter().position(is_it) {
            return self.early.remove(at).1;
        }
        loop {
            let come = self.arrivals.recv_timeout(DEADLINE);
            let come = come.unwrap_or_else(|e| panic!("nobody came to gate {gate}: {e}"));
            if is_it(&come) {
                return come.1;
            }
            self.early.push(come);
        }
    }

    /// The program, run to its end; it must come to one whatever hangs.
    pub(crate) fn inflight(&self, arguments: &[&str]) -> Output {
        inflight(&self.run_dir(), arguments)
    }

    /// What the mount says, without the processes of other tests.
    pub(crate) fn report(&self, files: Id) -> Report {
        let text = cat(&Path::new(self.at(files)).join(".diag.json"));
        let mut report: Report = serde_json::from_str(&text).unwrap();
        let ours: Vec<u32> = self.processes.iter().map(|it| it.daemon.id()).collect();
        report.peers.retain(|peer| ours.contains(&peer.process.pid));
        // One of another test that is just ending does not answer.
        let run_dir = self.run_dir();
        let is_ours = |failed: &PeerFailed| Path::new(&failed.address).starts_with(&run_dir);
        report.peers_failed.retain(is_ours);
        report.filtered(&Filter::default())
    }

    /// Asks until the report is as wanted.
    pub(crate) fn report_when(&self, files: Id, is_so: impl Fn(&Report) -> bool) -> Report {
        let until = Instant::now() + DEADLINE;
        loop {
            let report = self.report(files);
            if is_so(&report) {
                return report;
            }
            assert!(Instant::now() < until, "it did not come to that:\n{report}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self, id: Id) {
        self.processes[id.0].daemon.kill().unwrap();
    }
}

impl Drop for Rig {
    // Whoever is stuck in a mount is freed before anybody is told to end.
    fn drop(&mut self) {
        self.processes.iter().for_each(|actor| actor.daemon.abort());
    }
}

impl Caller {
    fn start(command: &str) -> Self {
        let mut sh = Command::new("sh");
        Self(
            sh.args(["-c", command])
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Waits for its end: whether it ended well.
    pub(crate) fn ended(&mut self) -> bool {
        until(|| self.0.try_wait().unwrap()).success()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.try_wait();
    }
}

/// All ops of a report.
pub(crate) fn ops(report: &Report) -> impl Iterator<Item = &LiveOp> {
    let snapshots = std::iter::once(&report.local).chain(&report.peers);
    snapshots.flat_map(|snapshot| &snapshot.ops)
}
