//! What /proc says of the threads in a snapshot: their names, where they sleep, whose they are.
//!
//! Read for a report, not for every snapshot, oldest op first and within a budget. No path of a mount
//! is opened.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    snapshot::{Caller, Listener, Snapshot, Thread},
    text,
};

/// How long one report may read.
const BUDGET: Duration = Duration::from_millis(50);

/// Adds to a snapshot of this process what the kernel knows of its threads and of its callers.
/// Returns what could not be found out, a sentence each.
pub(crate) fn add(snapshot: &mut Snapshot) -> Vec<String> {
    let until = Instant::now() + BUDGET;
    let (mut unread, mut foreign) = (0, 0);
    for op in &mut snapshot.ops {
        if Instant::now() > until {
            unread += 1;
            continue;
        }
        let threads = op.thread.iter_mut().chain(&mut op.more_threads);
        threads.for_each(read_thread);
        if let Some(caller) = &mut op.caller {
            foreign += usize::from(caller.tid == 0);
            read_caller(caller);
        }
    }
    for resource in &mut snapshot.resources {
        let parties = resource.holders.iter_mut().chain(&mut resource.waiters);
        let threads = parties.filter_map(|party| party.thread.as_mut());
        threads
            .take_while(|_| Instant::now() <= until)
            .for_each(read_thread);
    }
    let mut unknown = Vec::new();
    if unread > 0 {
        unknown.push(format!(
            "threads and callers of {unread} younger ops, which there was no time to read"
        ));
    }
    if foreign > 0 {
        unknown.push(format!(
            "callers of {foreign} ops, which are in another pid namespace, or in the kernel itself"
        ));
    }
    unknown
}

/// Finds who listens at these addresses on this machine, as far as this user may see it.
///
/// An address is looked for on behalf of a process: in another network namespace it is another's.
pub(crate) fn listeners(calls: &[(u32, String)]) -> Vec<Listener> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let is_here =
        |pid: u32| own.is_some() && fs::read_link(format!("/proc/{pid}/ns/net")).ok() == own;
    let mut wanted: Vec<(&str, SocketAddr)> = Vec::new();
    for (pid, peer) in calls {
        if let Ok(address) = peer.parse()
            && wanted.iter().all(|(known, _)| known != peer)
            && is_here(*pid)
        {
            wanted.push((peer, address));
        }
    }
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        sockets.extend(text.lines().filter_map(parse_listening));
    }
    let of_peer = wanted.into_iter().flat_map(|(peer, address)| {
        let sockets = sockets
            .iter()
            .filter(move |(local, _)| is_at(*local, address));
        sockets.map(move |(_, inode)| (format!("socket:[{inode}]"), peer))
    });
    let peers: HashMap<String, &str> = of_peer.collect();
    owners(&peers)
}

// Listens on all addresses, or on this one.
fn is_at(local: SocketAddr, peer: SocketAddr) -> bool {
    let ip = local.ip().to_canonical();
    let is_any = ip.is_unspecified() && peer.ip().is_loopback();
    local.port() == peer.port() && (is_any || ip == peer.ip().to_canonical())
}

fn owners(peers: &HashMap<String, &str>) -> Vec<Listener> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            // Of a link in /proc only the text is read.
            let link = fs::read_link(descriptor.path()).unwrap_or_default();
            let Some(peer) = link.to_str().and_then(|link| peers.get(link)) else {
                continue;
            };
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            found.push(Listener {
                peer: (*peer).to_owned(),
                pid,
                comm: read(&format!("/proc/{pid}/comm")).unwrap_or_default(),
                state: parse_status(&status).1.unwrap_or_default(),
            });
            break;
        }
    }
    found
}

// proc_pid_net(5): the address is written as words in the byte order of the machine; 0A is LISTEN.
fn parse_listening(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let words = (0..address.len()).step_by(8);
    let words: Option<Vec<[u8; 4]>> = words
        .map(|at| {
            let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect();
    let words = words?;
    let ip = match words.as_slice() {
        [word] => IpAddr::from(*word),
        [_, _, _, _] => IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?),
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(ip, port), fields.get(9)?.parse().ok()?))
}

fn read_thread(thread: &mut Thread) {
    let read = |file: &str| read(&format!("/proc/self/task/{}/{file}", thread.tid)).ok();
    thread.name = read("comm").unwrap_or_default();
    thread.wchan = read("wchan").and_then(wchan);
}

fn read_caller(caller: &mut Caller) {
    if caller.tid == 0 {
        caller.unknown = Some("other pid namespace, or the kernel itself".to_owned());
        return;
    }
    let status = match fs::read_to_string(format!("/proc/{}/status", caller.tid)) {
        Ok(status) => status,
        Err(error) => {
            caller.unknown = Some(match error.kind() {
                io::ErrorKind::NotFound => "gone".to_owned(),
                _ => error.to_string(),
            });
            return;
        }
    };
    let (pid, state) = parse_status(&status);
    caller.pid = pid;
    caller.state = state;
    // The process, not the thread: `ps` knows it by this name.
    caller.comm = pid.and_then(|pid| read(&format!("/proc/{pid}/comm")).ok());
    caller.wchan = read(&format!("/proc/{}/wchan", caller.tid))
        .ok()
        .and_then(wchan);
}

fn read(path: &str) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(text::visible(String::from_utf8_lossy(&bytes).trim_end()))
}

// "0" stands for a thread that runs, and for one that this process may not look at.
fn wchan(text: String) -> Option<String> {
    (!text.is_empty() && text != "0").then_some(text)
}

// proc_pid_status(5). The process id, and the letter of the state.
fn parse_status(status: &str) -> (Option<u32>, Option<String>) {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim()))
    };
    let pid = field("Tgid:").and_then(|pid| pid.parse().ok());
    let state = field("State:").and_then(|state| state.chars().next());
    (pid, state.map(String::from))
}

#[cfg(test)]
mod tests {
    use super::{add, is_at, listeners, parse_listening, parse_status, wchan};
    use crate::{
        snapshot::{Caller, Snapshot},
        tracker::Tracker,
    };

    #[test]
    fn a_thread_name_cannot_pass_for_a_field() {
        let status =
            "Name:\tx\\nTgid:\t1\nUmask:\t0022\nState:\tD (disk sleep)\nTgid:\t512\nPid:\t513\n";

        assert_eq!(parse_status(status), (Some(512), Some("D".to_owned())));
        assert_eq!(parse_status(""), (None, None));
        assert_eq!(wchan("0".to_owned()), None);
    }

    #[test]
    fn a_listening_socket_is_read() {
        let line = |address: &str, state: &str| {
            let rest = "00000000:00000000 00:00000000 00000000 0 0 4711 1 0 100 0 0 10 0";
            parse_listening(&format!("0: {address} 00000000:0000 {state} {rest}"))
        };
        let v4 = line("0100007F:1F90", "0A").unwrap();
        let any = line("00000000:1F90", "0A").unwrap().0;
        let v6 = line("00000000000000000000000001000000:1F90", "0A")
            .unwrap()
            .0;

        assert_eq!(v4, ("127.0.0.1:8080".parse().unwrap(), 4711));
        assert_eq!(v6, "[::1]:8080".parse().unwrap());
        assert!(line("0100007F:1F90", "01").is_none());
        assert!(line("0100007:1F90", "0A").is_none());
        assert!(is_at(any, v4.0) && !is_at(any, "10.0.0.1:8080".parse().unwrap()));
        assert!(!is_at(v4.0, v6) && !is_at(any, "127.0.0.1:81".parse().unwrap()));
    }

    #[test]
    fn who_listens_is_found_by_the_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap().to_string();

        let found = listeners(&[(std::process::id(), peer.clone())]);

        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].peer, found[0].pid), (&peer, std::process::id()));
        drop(listener);
        assert!(listeners(&[(std::process::id(), peer)]).is_empty());
    }

    #[test]
    fn a_thread_gets_its_name_and_a_caller_its_process() {
        let tracker = Tracker::new("test");
        let op = tracker.begin("x");
        let _entered = op.enter();
        let mut snapshot = tracker.snapshot();
        let tid = snapshot.ops[0].thread.as_ref().unwrap().tid;
        let caller = |tid| {
            let uid = 0;
            Some(Caller {
                tid,
                uid,
                ..Caller::default()
            })
        };
        snapshot.ops[0].caller = caller(tid);

        assert!(add(&mut snapshot).is_empty());

        let op = &snapshot.ops[0];
        assert!(!op.thread.as_ref().unwrap().name.is_empty());
        assert_eq!(op.caller.as_ref().unwrap().pid, Some(std::process::id()));

        let mut foreign = Snapshot::default();
        foreign.ops.push(snapshot.ops[0].clone());
        foreign.ops[0].caller = caller(0);
        assert_eq!(add(&mut foreign).len(), 1);
    }
}
