//! The child that serves one mount, bare or wrapped, until its stdin ends.

use std::{
    fs,
    io::stdin,
    path::Path,
    process::{Command, Stdio, exit},
};

use inflight::{
    Tracker, debug,
    fuse::{
        self,
        fuser::{self, Config, MountOption},
    },
    watchdog,
};

use crate::{
    child::{say, stay_on},
    null::Null,
};

/// `bare` or `wrapped`, n_threads, `default_permissions` or `-`, and where.
pub(crate) fn serve(args: &[String]) {
    let [by, threads, permissions, dir] = args else {
        panic!("what is {args:?}?");
    };
    let dir = Path::new(dir);
    let mut config = Config::default();
    config.n_threads = Some(threads.parse().expect("a number of threads"));
    if permissions == "default_permissions" {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    // With more threads than one, which runs where is left to the kernel, as it is for users.
    if threads == "1" {
        stay_on(0);
    }
    let null = Null::new();
    let tracker = Tracker::new("bench");
    let mut bare = None;
    let mut wrapped = None;
    if by == "bare" {
        bare = Some(fuser::spawn_mount(null.clone(), dir, &config).expect("mounting bare"));
    } else {
        // All that the README tells a file system to have.
        let rest = (debug::serve(&tracker), watchdog::spawn(&tracker));
        let mount = fuse::spawn_mount(null.clone(), dir, &config, &tracker);
        wrapped = Some((mount.expect("mounting wrapped"), rest));
    }
    let connection = connection_of(dir).expect("it is mounted");
    say(&format!("mounted {connection}"));
    for line in stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "begun" => say(&format!("begun {}", tracker.snapshot().totals.begun)),
            line => null.told(line),
        }
    }
    // The bench has ended, however it did: nobody is owed anything, and nothing may be left.
    let _gone = fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1");
    let mut umount = Command::new("umount");
    umount.arg("-l").arg(dir).current_dir("/");
    let _gone = umount.stdout(Stdio::null()).stderr(Stdio::null()).status();
    std::mem::forget((bare, wrapped));
    // Not removed is what is still mounted.
    if fs::remove_dir(dir).is_ok()
        && let Some(own) = dir.parent()
    {
        let _not_empty = fs::remove_dir_all(own);
    }
    exit(0);
}

/// From the kernel's list: a look at the mount would be a call into it.
fn connection_of(dir: &Path) -> Option<u32> {
    let list = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut lines = list.lines().rev();
    lines.find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let is_here = Path::new(fields.get(4)?) == dir;
        let (_, minor) = fields.get(2)?.split_once(':')?;
        is_here.then(|| minor.parse().ok()).flatten()
    })
}
