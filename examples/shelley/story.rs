//! The story: server and file system hang each other for real, what is seen while it lasts, how it ends, and the repair.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// After how long the file system gives up on the server: this is what ends the hang.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// For what takes milliseconds: whoever is later than this will not come.
const SOON: Duration = Duration::from_secs(10);

/// Tells the story. 0: it went as told. 1: it did not. 2: nothing can be mounted here.
pub(crate) fn tell() -> ExitCode {
    if let Some(missing) = missing() {
        eprintln!("Cannot mount a file system here.\n{missing}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let told = match runtime {
        Ok(runtime) => runtime.block_on(async {
            println!("Two processes that hang each other, and what inflight shows of it.\n");
            the_hang().await?;
            the_repair().await
        }),
        Err(e) => Err(Trouble::Other(format!("no runtime: {e}"))),
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::CannotMount) => {
            eprintln!("The mount failed. {}", may_not_mount());
            ExitCode::from(2)
        }
        Err(Trouble::Other(why)) => {
            eprintln!("The story stopped: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn the_hang() -> Result<(), Trouble> {
    println!("1. THE HANG\n");
    let mut stage = Stage::set("naive").await?;
    let told = stage.unless_interrupted(hang_on).await;
    stage.clear().await;
    told
}

async fn hang_on(stage: &mut Stage) -> Result<(), Trouble> {
    let send = stage.mnt().join("conversation/1b9b/send");
    println!("A shell sends a message, by writing to a file of the mount:");
    let mut shell = stage.shell(&format!("echo hello > {}", send.display()))?;
    let begun = Instant::now();

    let locked = stage.arrival("locked").await?;
    println!(
        "  The shell sits in close(2): the file system has sent POST /api/conversations/new, and waits."
    );
    println!(
        "  The server has taken its lock \"conversations\". Next it looks for guidance files under {}.",
        stage.dir.display()
    );
    drop(locked);
    let listing = stage.arrival("list").await?;
    println!(
        "  Its search has come into the mount. To list a directory the file system asks the server: GET /api/conversations."
    );
    drop(listing);
    stage.open_gates();
    println!("  The list needs the lock. Now each waits for the other, and nothing moves.\n");

    let (report, took) = stage.diag_of_the_deadlock().await?;
    println!(
        "What the mount says of it. Answered in {} ms, though everything behind it is stuck.",
        took.as_millis()
    );
    println!("Look at [1] to [4], each waits for the next, and at who holds the lock:\n");
    println!("$ cat {}", stage.mnt().join(".diag").display());
    println!("{report}");

    println!("The same seen from the server. Look at the traces: they are the same requests.\n");
    println!("{}", stage.debug(&stage.server).await?);

    println!(
        "Nobody does anything now. After {} s the file system gives up on the server, and the hang ends by itself:",
        HTTP_TIMEOUT.as_secs()
    );
    let status = stage.end_of(&mut shell, HTTP_TIMEOUT + SOON).await?;
    println!(
        "  The shell ended after {:.1} s, with {}.",
        begun.elapsed().as_secs_f32(),
        said(status)
    );
    println!(
        "  The file system answered EIO to its close(2), which no shell looks at: the end of a hang is silent."
    );
    let listed = stage
        .output("ls", &[stage.mnt().join("conversation")])
        .await?;
    println!(
        "  And the server has the message all the same, `ls {}/conversation` says: {}\n",
        stage.mnt().display(),
        listed.trim()
    );
    Ok(())
}

async fn the_repair() -> Result<(), Trouble> {
    println!("2. THE REPAIR\n");
    let mut stage = Stage::set("repaired").await?;
    let told = stage.unless_interrupted(go_well).await;
    stage.clear().await;
    told
}

async fn go_well(stage: &mut Stage) -> Result<(), Trouble> {
    let conversation = stage.mnt().join("conversation/1b9b");
    println!(
        "The same server, but it lets go of the lock before it looks for files, and enters no FUSE mount. The same message:"
    );
    let begun = Instant::now();
    let mut shell = stage.shell(&format!(
        "echo hello > {}",
        conversation.join("send").display()
    ))?;
    drop(stage.arrival("locked").await?);
    stage.open_gates();
    let status = stage.end_of(&mut shell, SOON).await?;
    println!(
        "  The shell ended after {} ms, with {}. The search has left the mount out.",
        begun.elapsed().as_millis(),
        said(status)
    );
    let reply = conversation.join("messages/last/1/0/content.md");
    println!("  $ cat {}", reply.display());
    println!("  {}", stage.output("cat", &[reply]).await?.trim());
    let report = stage.diag().await?;
    println!("  $ cat {}", stage.mnt().join(".diag").display());
    println!("  {}\n", report.lines().next().unwrap_or_default());
    Ok(())
}

/// A server and a file system over it, each its own process, in a directory of their own.
struct Stage {
    dir: PathBuf,
    /// Closed, it holds nobody up any more.
    gate: Option<UnixListener>,
    server: Daemon,
    mount: Daemon,
}

impl Stage {
    async fn set(walk: &str) -> Result<Self, Trouble> {
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
        let server = Daemon::start(
            &dir,
            &[
                "serve", "--walk", walk, "--gate", &gates[0], "--gate", &gates[1],
            ],
        )
        .await?;
        let url = server.line.trim_start_matches("serving ").to_owned();
        let seconds = HTTP_TIMEOUT.as_secs().to_string();
        let mount = match Daemon::start(
            &dir,
            &[
                "mount",
                &mnt.display().to_string(),
                "--server",
                &url,
                "--http-timeout",
                &seconds,
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

    fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    async fn unless_interrupted(
        &mut self,
        act: impl AsyncFnOnce(&mut Self) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        tokio::select! {
            told = act(self) => told,
            _ = tokio::signal::ctrl_c() => Err(Trouble::Other("interrupted".to_owned())),
        }
    }

    fn shell(&self, command: &str) -> Result<Child, Trouble> {
        println!("  $ {command}");
        Ok(Command::new("sh")
            .args(["-c", command])
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Waits until the server stands at a gate; it goes on when what is returned is dropped.
    async fn arrival(&self, point: &str) -> Result<UnixStream, Trouble> {
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
    fn open_gates(&mut self) {
        self.gate = None;
    }

    async fn end_of(&self, shell: &mut Child, within: Duration) -> Result<ExitStatus, Trouble> {
        match timeout(within, shell.wait()).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(Trouble::Other(format!(
                "the shell still hangs after {} s",
                within.as_secs()
            ))),
        }
    }

    async fn diag(&self) -> Result<String, Trouble> {
        self.output("cat", &[self.mnt().join(".diag")]).await
    }

    /// A deadlock is only called one after it has stood for a second, so the first look may come too early.
    async fn diag_of_the_deadlock(&self) -> Result<(String, Duration), Trouble> {
        let deadline = Instant::now() + HTTP_TIMEOUT / 2;
        loop {
            let asked = Instant::now();
            let report = self.diag().await?;
            if report.starts_with("DEADLOCK") {
                return Ok((report, asked.elapsed()));
            }
            if Instant::now() > deadline {
                return Err(Trouble::Other(format!(
                    "no deadlock was reported:\n{report}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What one of the processes says of itself, on its own socket.
    async fn debug(&self, daemon: &Daemon) -> Result<String, Trouble> {
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
    async fn output(&self, program: &str, args: &[PathBuf]) -> Result<String, Trouble> {
        let ran = Command::new(program)
            .args(args)
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
struct Daemon {
    child: Child,
    pid: u32,
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
enum Trouble {
    CannotMount,
    Other(String),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Other(e.to_string())
    }
}

/// What a mount needs that is not here, as far as it can be known beforehand.
fn missing() -> Option<String> {
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return Some("/dev/fuse is missing. Load the kernel module (modprobe fuse); in a container: --device /dev/fuse --cap-add SYS_ADMIN.".to_owned());
    }
    if let Err(e) = std::fs::File::options().read(true).write(true).open(device) {
        return Some(format!(
            "/dev/fuse cannot be opened: {e}. Make it readable and writable for this user, or run as root."
        ));
    }
    let root = rustix::process::geteuid().is_root();
    (!root && !found_in_path("fusermount3")).then(|| "fusermount3 is missing, which mounts for users. Install it (apt install fuse3), or run as root.".to_owned())
}

/// Why a mount may fail though all that it needs seems to be here.
fn may_not_mount() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "This root may not mount; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN."
    } else {
        "Run this as root, or look whether /etc/fuse.conf and fusermount3 let this user mount."
    }
}

fn found_in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
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

fn said(status: ExitStatus) -> String {
    status
        .code()
        .map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}
