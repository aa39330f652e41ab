//! What the tests of the example share: a server alone, requests to it, and shells that cannot hang a test.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::stage::{DEADLINE, Daemon, Stage, example, output, until};

/// A server without a file system.
pub(crate) struct Server {
    pub(crate) daemon: Daemon,
    pub(crate) dir: TempDir,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::run(Command::new(example()).arg("serve").args(args))
    }

    /// One with this in its environment.
    pub(crate) fn with(variable: &str, value: &str) -> Self {
        Self::run(Command::new(example()).arg("serve").env(variable, value))
    }

    fn run(command: &mut Command) -> Self {
        let dir = TempDir::with_prefix("inflight-").unwrap();
        command.arg("--stop-at-eof");
        let daemon = Daemon::start(dir.path(), command);
        Self { daemon, dir }
    }

    pub(crate) fn address(&self) -> &str {
        self.daemon.line().strip_prefix("serving http://").unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        request(self.address(), "GET", path, &[], "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        post(self.address(), path, body)
    }

    /// Begins a conversation in a directory where nothing is.
    pub(crate) fn begin(&self, message: &str) -> String {
        let cwd = self.dir.path().display().to_string();
        let say = serde_json::json!({"message": message, "cwd": cwd});
        let answer = self.post("/api/conversations/new", &say.to_string());
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["conversation_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Status and body, for comparing.
    pub(crate) fn said(&self) -> (u16, &str) {
        (self.status, self.body.as_str())
    }
}

pub(crate) fn post(address: &str, path: &str, body: &str) -> Answer {
    request(address, "POST", path, &["X-Shelley-Request: 1"], body)
}

pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Answer {
    let mut stream = sent(address, method, path, headers, body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// A request on its way: the answer is still to be read.
pub(crate) fn sent(
    address: &str,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: x\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).unwrap();
    stream
}

/// What a shell said, and how it ended; `$mnt` is the mount.
pub(crate) fn sh(mnt: &Path, script: &str) -> (i32, String) {
    let shell = Command::new("sh")
        .args(["-c", script])
        .env("mnt", mnt)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output(shell, DEADLINE);
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), said)
}

/// The kernel keeps nothing, so that each step asks.
pub(crate) fn stage() -> Option<Stage> {
    Stage::set(&[], &["--fresh", "--cwd", "/proc/self/fdinfo"])
}

/// What a script says that ends well.
pub(crate) fn said(mnt: &Path, script: &str) -> String {
    let (code, said) = sh(mnt, script);
    assert_eq!(code, 0, "{script}: {said}");
    said
}

/// What a script says that does not.
pub(crate) fn refused(mnt: &Path, script: &str) -> String {
    let (code, said) = sh(mnt, script);
    assert_ne!(code, 0, "{script}: {said}");
    said
}

pub(crate) fn clone(mnt: &Path) -> String {
    said(mnt, "cat $mnt/model/predictable/new/clone")
        .trim()
        .to_owned()
}

/// A conversation that was begun and that has its reply.
pub(crate) fn begun(mnt: &Path, message: &str) -> String {
    let id = clone(mnt);
    said(
        mnt,
        &format!("echo '{message}' > $mnt/conversation/{id}/send"),
    );
    settle(mnt, &id);
    id
}

pub(crate) fn settle(mnt: &Path, id: &str) {
    until(|| {
        let (code, _) = sh(mnt, &format!("test -e $mnt/conversation/{id}/working"));
        (code == 1).then_some(())
    });
}
