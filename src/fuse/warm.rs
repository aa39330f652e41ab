//! Keeps `.diag` known to the kernel, through a child: no thread of this process may call into the mount.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use fuser::FileAttr;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::shared::directory;

/// A child that takes longer is left alone, and is the last one until it ends.
const PATIENCE: Duration = Duration::from_millis(300);

/// Looks the files up, again and again.
#[derive(Debug)]
pub(super) struct Warmer {
    mount: PathBuf,
    files: Vec<PathBuf>,
    // One that took too long.
    left: Option<Run>,
}

#[derive(Debug)]
struct Run {
    child: Child,
    out: ChildStdout,
    text: Vec<u8>,
}

impl Warmer {
    pub(super) fn new(mount: &Path, names: &[OsString]) -> Self {
        Self {
            mount: mount.to_owned(),
            files: names.iter().map(|name| mount.join(name)).collect(),
            left: None,
        }
    }

    /// Has the files looked up. Says why if that failed.
    pub(super) fn warm(&mut self) -> Result<(), String> {
        let files = self.files.clone();
        let lines = self.stat("%i", &files)?;
        if lines.lines().count() == files.len() {
            Ok(())
        } else {
            Err("`stat` did not find it".to_owned())
        }
    }

    /// Asks what the root is like.
    pub(super) fn root(&mut self) -> Option<FileAttr> {
        let root = [self.mount.clone()];
        let line = self.stat("%f %h %u %g %s %b %.9X %.9Y %.9Z", &root).ok()?;
        parse(line.trim())
    }

    fn stat(&mut self, format: &str, paths: &[PathBuf]) -> Result<String, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut run = match self.left.take() {
            Some(mut left) => {
                if !left.has_ended(Instant::now()) {
                    self.left = Some(left);
                    return Err("an earlier look-up hangs".to_owned());
                }
                left.reap();
                self.start(format, paths)?
            }
            None => self.start(format, paths)?,
        };
        if !run.has_ended(deadline) {
            self.left = Some(run);
            return Err("the look-up hangs".to_owned());
        }
        run.reap();
        Ok(String::from_utf8_lossy(&run.text).into_owned())
    }

    // Command closes every descriptor that is close-on-exec, as fuser's /dev/fuse is.
    fn start(&self, format: &str, paths: &[PathBuf]) -> Result<Run, String> {
        let program = ["/usr/bin/stat", "/bin/stat"];
        // Even to see whether it is there would be a call into a mount that covers it.
        let mut program = program.iter().map(Path::new);
        let program = program.find(|path| !path.starts_with(&self.mount) && path.exists());
        let program = program.ok_or("there is no /usr/bin/stat")?;
        let mut command = Command::new(program);
        command.arg("-c").arg(format).arg("--").args(paths);
        command.env_clear().env("LC_ALL", "C").current_dir("/");
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let spawned = command.stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("{}: {error}", program.display()))?;
        let out = child.stdout.take().ok_or("no pipe")?;
        Ok(Run {
            child,
            out,
            text: Vec::new(),
        })
    }
}

impl Drop for Warmer {
    fn drop(&mut self) {
        if let Some(mut run) = self.left.take() {
            let _gone = run.child.kill();
            run.reap();
        }
    }
}

impl Run {
    // The end of its output is its end. Whether it was reaped by others does not matter.
    fn has_ended(&mut self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match readable(&self.out, left) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => return true,
            }
            let mut part = [0; 1024];
            match self.out.read(&mut part) {
                Ok(0) => return true,
                Ok(read) => self.text.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    // Does not wait; if the child is not quite gone it stays a zombie until this process ends.
    fn reap(&mut self) {
        for _ in 0..100 {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                _ => return,
            }
        }
    }
}

/// Waits until there is something to read, or the end.
fn readable(out: &impl AsFd, at_most: Duration) -> Result<bool, Errno> {
    let time = Timespec::try_from(at_most).ok();
    let mut fds = [PollFd::new(out, PollFlags::IN)];
    match poll(&mut fds, time.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

fn parse(line: &str) -> Option<FileAttr> {
    let mut fields = line.split(' ');
    let mode = u32::from_str_radix(fields.next()?, 16).ok()?;
    let mut field = || fields.next();
    let mut number = || field()?.parse::<u64>().ok();
    let nlink = number()?;
    let uid = u32::try_from(number()?).ok()?;
    let gid = u32::try_from(number()?).ok()?;
    let mut attr = directory(mode, uid, gid);
    attr.nlink = u32::try_from(nlink).ok()?;
    attr.size = number()?;
    attr.blocks = number()?;
    let mut time = || {
        let (seconds, nanos) = field()?.split_once('.')?;
        let after = Duration::new(seconds.parse().ok()?, nanos.parse().ok()?);
        Some(SystemTime::UNIX_EPOCH + after)
    };
    attr.atime = time()?;
    attr.mtime = time()?;
    attr.ctime = time()?;
    Some(attr)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::parse;

    #[test]
    fn what_stat_prints_is_understood() {
        let attr = parse("41ed 3 1000 1001 4096 8 10.000000000 20.000000007 30.5").unwrap();

        assert_eq!((attr.perm, attr.nlink), (0o755, 3));
        assert_eq!((attr.uid, attr.gid), (1000, 1001));
        assert_eq!((attr.size, attr.blocks), (4096, 8));
        assert_eq!(attr.mtime, SystemTime::UNIX_EPOCH + Duration::new(20, 7));
        assert!(parse("41ed").is_none());
    }
}
