//! What the story plays on: a server and a file system, processes of their own, in a directory that is cleared away.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::needs::found_in_path;

/// For what takes milliseconds: whoever is later than this will not come.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A server and a file system over it, each its own process, in a directory of their own.
pub(crate) struct Stage {
    pub(crate) dir: PathBuf,
    /// Closed, it holds nobody up any more.
    gate: Option<UnixListener>,
    pub(crate) server: Daemon,
    mount: Daemon,
}

impl Stage {
    /// The server is started with `options`; after `timeout` the file system gives up on it.
    pub(crate) async fn set(options: &[&str], timeout: Duration) -> Result<Self, Trouble> {
        let dir = tempfile::Builder::new()
            .prefix("shelley-")
            .rand_bytes(4)
            .tempdir()?;
        // Removed by clear(), which looks first whether something is still mounted in it.
        let dir = dir.keep();
        let mnt = dir.join("mnt");
        std::fs::create_dir(&mnt)?;
        std::fs::create_dir(dir.join(".run"))?;
        // The server's search leaves out names with a dot.
        let gate_path = dir.join(".gate");
        let gate = UnixListener::bind(&gate_path)?;

        let gates = ["locked", "list"].map(|point| format!("{point}={}", gate_path.display()));
        let mut serve = vec!["serve", "--gate", &gates[0], "--gate", &gates[1]];
        serve.extend(options);
        let server = Daemon::start(&dir, &serve).await?;
        let url = server.line.trim_start_matches("serving ").to_owned();
        let seconds = timeout.as_secs().to_string();
        let mount = match Daemon::start(
            &dir,
            &[
                "mount",
                &mnt.display().to_string(),
                "--server",
                &url,
                "--http-timeout",
                &seconds,
                "--fresh",
            ],
        )
        .await
        {
            Ok(mount) => mount,
            Err(_) => {
                server.stop().await;
                remove(&dir);
                return Err(Trouble::CannotMount);
            }
        };
        println!(
            "  shelley[{}]       an HTTP server on {url}: it keeps conversations, under one lock",
            server.pid
        );
        println!(
            "  shelley-fuse[{}]  a file system over it, mounted on {}\n",
            mount.pid,
            mnt.display()
        );
        Ok(Self {
            dir,
            gate: Some(gate),
            server,
            mount,
        })
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Plays, then clears, whatever happens meanwhile.
    pub(crate) async fn play(
        mut self,
        act: impl AsyncFnOnce(&mut Self) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let told = tokio::select! {
            told = act(&mut self) => told,
            _ = tokio::signal::ctrl_c() => Err(Trouble::Other("interrupted".to_owned())),
        };
        self.clear().await;
        told
    }

    /// Leaves everything as it is until the person at the terminal has seen it.
    pub(crate) async fn look(&self) -> Result<(), Trouble> {
        println!("Kept as it is, until Enter. In another terminal:");
        println!("  cat {}", self.mnt().join(".diag").display());
        println!("  INFLIGHT_DIR={} inflight", run_dir(&self.dir).display());
        println!("  {} is the server\n", self.url());
        let mut line = String::new();
        BufReader::new(tokio::io::stdin())
            .read_line(&mut line)
            .await?;
        Ok(())
    }

    /// Runs a command in the directory, and shows it and what it says.
    pub(crate) async fn show(&self, command: &str) -> Result<String, Trouble> {
        println!("  $ {command}");
        let said = self.output("sh", &["-c".into(), command.into()]).await?;
        for line in said.lines() {
            println!("  {line}");
        }
        Ok(said.trim().to_owned())
    }

    /// Waits until the model has answered.
    pub(crate) async fn settled(&self, id: &str) -> Result<(), Trouble> {
        let is_working = format!("if test -e mnt/conversation/{id}/working; then echo yes; fi");
        let deadline = Instant::now() + SOON;
        while !self
            .output("sh", &["-c".into(), is_working.clone().into()])
            .await?
            .is_empty()
        {
            if Instant::now() > deadline {
                return Err(Trouble::Other("the model does not answer".to_owned()));
            }
        }
        Ok(())
    }

    pub(crate) fn url(&self) -> &str {
        self.server.line.trim_start_matches("serving ")
    }

    pub(crate) fn shell(&self, command: &str) -> Result<Child, Trouble> {
        println!("  $ {command}");
        Ok(Command::new("sh")
            .args(["-c", command])
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Waits until the server stands at a gate; it goes on when what is returned is dropped.
    pub(crate) async fn arrival(&self, point: &str) -> Result<UnixStream, Trouble> {
        let Some(gate) = &self.gate else {
            return Err(Trouble::Other(format!("gate {point} is open")));
        };
        let arrived = timeout(SOON, async {
            let (stream, _) = gate.accept().await?;
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            io::Result::Ok((line, stream.into_inner()))
        });
        match arrived.await {
            Ok(Ok((line, stream))) if line.starts_with(point) => Ok(stream),
            Ok(Ok((line, _))) => Err(Trouble::Other(format!(
                "the server came to gate {line:?} before {point}"
            ))),
            Ok(Err(e)) => Err(e.into()),
            Err(_) => Err(Trouble::Other(format!(
                "the server did not come to gate {point} within {} s",
                SOON.as_secs()
            ))),
        }
    }

    /// From here on the server stops at no gate.
    pub(crate) fn open_gates(&mut self) {
        self.gate = None;
    }

    pub(crate) async fn end_of(
        &self,
        shell: &mut Child,
        within: Duration,
    ) -> Result<ExitStatus, Trouble> {
        match timeout(within, shell.wait()).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Trouble::Other(format!(
                "the shell still hangs after {} s",
                within.as_secs()
            ))),
        }
    }

    pub(crate) async fn diag(&self) -> Result<String, Trouble> {
        self.output("cat", &[self.mnt().join(".diag")]).await
    }

    /// A deadlock is only called one after it has stood for a second, so the first look may come too early.
    pub(crate) async fn diag_of(&self, verdict: &str) -> Result<(String, Duration), Trouble> {
        let deadline = Instant::now() + SOON / 2;
        loop {
            let asked = Instant::now();
            let report = self.diag().await?;
            if report.starts_with(verdict) {
                return Ok((report, asked.elapsed()));
            }
            if Instant::now() > deadline {
                return Err(Trouble::Other(format!(
                    "no {verdict} was reported:\n{report}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What one of the processes says of itself, on its own socket.
    pub(crate) async fn debug(&self, daemon: &Daemon) -> Result<String, Trouble> {
        let socket = run_dir(&self.dir).join(format!("{}.sock", daemon.pid));
        if found_in_path("curl") {
            println!(
                "$ curl --unix-socket {} http://localhost/debug/inflight",
                socket.display()
            );
            let args = [
                "--silent".into(),
                "--unix-socket".into(),
                socket,
                "http://localhost/debug/inflight".into(),
            ];
            return self.output("curl", &args).await;
        }
        println!(
            "GET /debug/inflight over {} (curl is not installed)",
            socket.display()
        );
        let asked = timeout(SOON, async {
            let mut stream = UnixStream::connect(&socket).await?;
            stream
                .write_all(b"GET /debug/inflight HTTP/1.0\r\nHost: localhost\r\n\r\n")
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        });
        let answer = asked
            .await
            .map_err(|_| Trouble::Other("the debug socket does not answer".to_owned()))??;
        Ok(answer
            .split_once("\r\n\r\n")
            .map_or(String::new(), |(_, body)| body.to_owned()))
    }

    /// Runs a program that touches the mount, so that it hangs if something does, and this one does not.
    pub(crate) async fn output(&self, program: &str, args: &[PathBuf]) -> Result<String, Trouble> {
        let ran = Command::new(program)
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(SOON, ran)
            .await
            .map_err(|_| Trouble::Other(format!("{program} hangs")))??;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Trouble::Other(format!(
                "{program} ended with {}: {why}",
                said(output.status)
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends both processes, the mount first, and says what is left of them.
    async fn clear(self) {
        self.mount.stop().await;
        if is_mounted(&self.dir) {
            free(&self.dir.join("mnt")).await;
        }
        self.server.stop().await;
        let sockets = std::fs::read_dir(run_dir(&self.dir)).map_or(0, |entries| entries.count());
        match (is_mounted(&self.dir), sockets) {
            (false, 0) => println!(
                "Both processes have ended. Nothing is left: no process, no mount, no socket.\n"
            ),
            (mounted, sockets) => println!(
                "Both processes have ended. Left: mounted {mounted}, {sockets} sockets, in {}\n",
                self.dir.display()
            ),
        }
        remove(&self.dir);
    }
}

/// This program once more, as a server or as a file system.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) pid: u32,
    /// What it said when it was up.
    line: String,
}

impl Daemon {
    async fn start(dir: &Path, args: &[&str]) -> Result<Self, Trouble> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            // If this process dies, however it does, stdin ends, and so do they.
            .arg("--stop-at-eof")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("INFLIGHT_DIR", run_dir(dir))
            .env_remove("INFLIGHT")
            .env_remove("INFLIGHT_PEERS")
            .process_group(0)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = timeout(SOON, BufReader::new(stdout).read_line(&mut line)).await;
        }
        let daemon = Self {
            child,
            pid,
            line: line.trim().to_owned(),
        };
        if daemon.line.is_empty() {
            daemon.stop().await;
            return Err(Trouble::Other(format!(
                "`shelley {}` did not start",
                args.join(" ")
            )));
        }
        Ok(daemon)
    }

    async fn stop(mut self) {
        drop(self.child.stdin.take());
        if timeout(SOON, self.child.wait()).await.is_err() {
            let _ = self.child.start_kill();
            let _ = timeout(SOON, self.child.wait()).await;
        }
    }
}

/// Why the story cannot go on.
pub(crate) enum Trouble {
    CannotMount,
    Other(String),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Other(e.to_string())
    }
}

/// By its name the program `inflight` finds it, and by its dot the server's search does not.
fn run_dir(dir: &Path) -> PathBuf {
    dir.join(".run/inflight")
}

/// Whether something is mounted in `dir`; read from the kernel's list, since a look into the mount may hang.
fn is_mounted(dir: &Path) -> bool {
    let below = format!(" {}/", dir.display());
    std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|list| list.lines().any(|line| line.contains(&below)))
}

/// Takes away a mount whose process is gone.
async fn free(mnt: &Path) {
    for (program, option) in [("umount", "-l"), ("fusermount3", "-uz")] {
        if let Ok(mut child) = Command::new(program)
            .arg(option)
            .arg(mnt)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
        {
            let _ = timeout(SOON, child.wait()).await;
        }
    }
}

fn remove(dir: &Path) {
    if !is_mounted(dir)
        && let Err(e) = std::fs::remove_dir_all(dir)
    {
        eprintln!("{} is left: {e}", dir.display());
    }
}

pub(crate) fn said(status: ExitStatus) -> String {
    status
        .code()
        .map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}
