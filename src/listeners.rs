//! Which process listens at an address that a call waits on.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use crate::{proc, snapshot::Listener};

/// Finds who listens at these addresses on this machine, as far as this user may see it.
///
/// An address is looked for on behalf of a process: in another network namespace it is another's.
pub(crate) fn find(calls: &[(u32, String)]) -> Vec<Listener> {
    let mut namespaces: BTreeMap<PathBuf, Vec<(u32, SocketAddr)>> = BTreeMap::new();
    for (pid, peer) in calls {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/net"));
        if let (Ok(address), Ok(namespace)) = (peer.parse(), namespace) {
            let calls = namespaces.entry(namespace).or_default();
            if !calls.contains(&(*pid, address)) {
                calls.push((*pid, address));
            }
        }
    }
    let mut asked: HashMap<String, Asked> = HashMap::new();
    for calls in namespaces.values() {
        let one = calls[0].0;
        for table in ["tcp", "tcp6"] {
            // Of the namespace that this process lives in.
            let text = fs::read_to_string(format!("/proc/{one}/net/{table}")).unwrap_or_default();
            for (local, inode) in text.lines().filter_map(parse_listening) {
                let calls = calls.iter().filter(|(_, address)| is_at(local, *address));
                for (pid, address) in calls {
                    let entry = asked.entry(format!("socket:[{inode}]"));
                    let asked = entry.or_insert_with(|| (*address, Vec::new()));
                    asked.1.push(*pid);
                }
            }
        }
    }
    match asked.is_empty() {
        true => Vec::new(),
        false => owners(&asked),
    }
}

// The address, and who calls there.
type Asked = (SocketAddr, Vec<u32>);

// Listens on all addresses, or on this one.
fn is_at(local: SocketAddr, peer: SocketAddr) -> bool {
    let ip = local.ip().to_canonical();
    let is_any = ip.is_unspecified() && peer.ip().is_loopback();
    local.port() == peer.port() && (is_any || ip == peer.ip().to_canonical())
}

fn owners(asked: &HashMap<String, Asked>) -> Vec<Listener> {
    let mut found = Vec::new();
    for (pid, process) in proc::processes() {
        for fd in proc::descriptors(&process).unwrap_or_default() {
            let link = fs::read_link(process.join(format!("fd/{fd}"))).unwrap_or_default();
            let Some(asked) = link.to_str().and_then(|link| asked.get(link)) else {
                continue;
            };
            found.push(listener(pid, &process, asked));
            break;
        }
    }
    found
}

fn listener(pid: u32, process: &Path, (address, callers): &Asked) -> Listener {
    let stat = proc::stat(process);
    Listener {
        peer: address.to_string(),
        callers: callers.clone(),
        pid,
        comm: proc::read(process.join("comm")).unwrap_or_default(),
        state: stat.map_or_else(String::new, |stat| stat.state.to_string()),
    }
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

#[cfg(test)]
mod tests {
    use super::{find, is_at, parse_listening};

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

        let found = find(&[(std::process::id(), peer.clone())]);

        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].peer, found[0].pid), (&peer, std::process::id()));
        drop(listener);
        assert!(find(&[(std::process::id(), peer)]).is_empty());
    }
}
