//! What a string goes through before anyone sees it: bounded, secrets removed, nothing that moves a cursor.

use std::borrow::Cow;

/// Bytes kept of a target, a failure text or a file name.
pub(crate) const MAX_TEXT: usize = 512;

/// Bytes kept of the name of a phase, an op or a resource.
pub(crate) const MAX_NAME: usize = 128;

const CUT: &str = "...";

/// Stands where nothing may be shown.
const UNTOLD: &str = "..";

/// Keeps a string of up to `max` bytes as it is; of a longer one what [`clean`] shows, cut and marked.
#[inline]
pub(crate) fn bounded(text: impl Into<Cow<'static, str>>, max: usize) -> Cow<'static, str> {
    let text = text.into();
    if text.len() <= max {
        return text;
    }
    shortened(&text, max)
}

#[cold]
fn shortened(text: &str, max: usize) -> Cow<'static, str> {
    // Cleaned first: a cut through a password would hide the `@` that tells it from a host.
    Cow::Owned(cut(&clean(text), max))
}

/// Makes a string of bytes that may be no UTF-8: what is none is written `\xNN`.
#[cfg(feature = "fuse")]
pub(crate) fn from_bytes(bytes: &[u8], max: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(max));
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
        if text.len() > max {
            return cut(&text, max);
        }
    }
    text
}

/// Removes what contract 9 forbids from free text: only what looks like a URL is touched.
pub(crate) fn clean(text: &str) -> String {
    if is_harmless(text) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`'))
            .unwrap_or(tail.len());
        // A password may hold any of these; at the end they belong to the sentence.
        let url = tail[..end].trim_end_matches(['.', ',', ':', ';', '\'', ')']);
        let authority = &url[..url.find('/').unwrap_or(url.len())];
        let url = match host_and_port(authority) {
            (_, Some(_)) => url,
            // A password that goes on behind what ends a URL elsewhere.
            _ => tail.split(char::is_whitespace).next().unwrap_or_default(),
        };
        push_url(&mut out, url, true);
        rest = &tail[url.len()..];
    }
    out.push_str(rest);
    visible(&out)
}

/// Removes what contract 9 forbids from a whole URL or from a path with a query.
pub(crate) fn clean_url(url: &str) -> String {
    let mut out = String::with_capacity(url.len());
    match url.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => {
            out.push_str(scheme);
            out.push_str("://");
            push_url(&mut out, rest, true);
        }
        _ => push_url(&mut out, url, !url.starts_with('/')),
    }
    visible(&out)
}

// `url` begins behind the scheme. The values of a query are replaced, its names stay.
fn push_url(out: &mut String, url: &str, with_authority: bool) {
    let url = url.split('#').next().unwrap_or_default();
    let (before, query) = match url.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (url, None),
    };
    let authority = if with_authority {
        before.find('/').unwrap_or(before.len())
    } else {
        0
    };
    let (authority, path) = before.split_at(authority);
    let (host, port) = host_and_port(authority);
    match port {
        // Where the password ends and the path begins cannot be told.
        None if with_authority => return out.push_str(UNTOLD),
        Some(port) if !port.is_empty() => {
            out.push_str(host);
            out.push(':');
            out.push_str(port);
        }
        _ => out.push_str(host),
    }
    out.push_str(path);
    if let Some(query) = query {
        out.push('?');
        for (n, pair) in query.split('&').enumerate() {
            if n > 0 {
                out.push('&');
            }
            match pair.split_once('=') {
                Some((name, _)) => {
                    out.push_str(name);
                    out.push_str("=..");
                }
                None => out.push_str(pair),
            }
        }
    }
}

/// The host and the port of a whole URL, that of the scheme if it names none.
pub(crate) fn peer_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, port) = host_and_port(&rest[..end]);
    let port = match (scheme, port?) {
        ("https" | "wss", "") => ":443".to_owned(),
        ("http" | "ws", "") => ":80".to_owned(),
        (_, "") => String::new(),
        (_, port) => format!(":{port}"),
    };
    (!host.is_empty()).then(|| visible(&format!("{host}{port}")))
}

/// The host and the port of an authority, without userinfo. What follows the host is a port, or none (empty); what is
/// no port (`None`) may be a password that had a `/` in it.
pub(crate) fn host_and_port(authority: &str) -> (&str, Option<&str>) {
    let bare = match authority.bytes().rposition(|byte| byte == b'@') {
        Some(at) => &authority[at + 1..],
        None => authority,
    };
    let name = bare
        .bytes()
        .rposition(|byte| byte == b']')
        .map_or(0, |end| end + 1);
    let colon = bare[name..].bytes().position(|byte| byte == b':');
    let Some(colon) = colon.map(|at| name + at) else {
        return (bare, Some(""));
    };
    let port = Some(&bare[colon + 1..]);
    let port = port.filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    (&bare[..colon], port)
}

/// Writes out what a terminal would act on instead of showing it.
pub(crate) fn visible(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || is_invisible(c) => {
                out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => out.push(c),
        }
        if out.len() > MAX_TEXT {
            break;
        }
    }
    cut(&out, MAX_TEXT)
}

// Nearly every name: to look first costs a third of what it saves.
fn is_harmless(text: &str) -> bool {
    let is_harmless = |byte| matches!(byte, b' '..=b'~') && byte != b':';
    text.len() <= MAX_TEXT && text.bytes().all(is_harmless)
}

fn is_plain(text: &str) -> bool {
    text.len() <= MAX_TEXT && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

// Bidirectional controls, zero-width characters, separators that break lines, tags, and variation selectors.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut kept = String::with_capacity(max);
    kept.push_str(&text[..end]);
    kept.push_str(CUT);
    kept
}

#[cfg(test)]
mod tests {
    use super::{MAX_TEXT, bounded, clean, clean_url, peer_of, visible};

    #[test]
    fn secrets_leave_a_url() {
        for (url, shown) in [
            (
                "http://bob:s3cret@api:80/x?token=s3cret&limit=5#s3cret",
                "http://api:80/x?token=..&limit=..",
            ),
            ("http://bob:p@ss@[::1]:80?a=s3cret", "http://[::1]:80?a=.."),
            ("/x?token=s3cret#s3cret", "/x?token=.."),
            ("/x/http://u:kept@h", "/x/http://u:kept@h"),
            ("bob:s3cret@api:80", "api:80"),
            ("http://bob:s3/cret@10.0.0.7:99/x?a=s3cret", "http://.."),
            ("http://api:80/@scope/x", "http://api:80/@scope/x"),
            ("/plain", "/plain"),
        ] {
            assert_eq!(clean_url(url), shown);
        }
        assert_eq!(
            clean(
                "error for url (http://bob:s3cret@api/x?t=s3cret#f): timed out, see https://a?b=c"
            ),
            "error for url (http://api/x?t=..): timed out, see https://a?b=.."
        );
        assert_eq!(
            clean("'http://bob:s3c'r)et@api/x?t=s3c)r'et', \"http://a:s3cret@b\""),
            "'http://api/x?t=..', \"http://b\""
        );
        assert_eq!(
            clean("GET http://bob:s3\"cret@api/x failed"),
            "GET http://api/x failed"
        );
    }

    #[test]
    fn a_url_names_its_host_and_port() {
        for (url, named) in [
            ("http://u:s3cret@api/x:9", Some("api:80")),
            ("https://[::1]?a:1", Some("[::1]:443")),
            ("http://[::1]:8080/", Some("[::1]:8080")),
            ("unix://", None),
            ("http://bob:s3/cret@api", None),
            ("/x", None),
        ] {
            assert_eq!(peer_of(url).as_deref(), named);
        }
    }

    #[test]
    fn nothing_that_moves_a_cursor_comes_out() {
        assert_eq!(
            visible("a\nb\x1b[31m\u{202e}c\u{200b}\u{7f}\u{85}"),
            "a\\nb\\u{1b}[31m\\u{202e}c\\u{200b}\\u{7f}\\u{85}"
        );
        assert_eq!(visible("gr\u{fc}n"), "gr\u{fc}n");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let long = "\u{e9}".repeat(100_000);

        assert!(visible(&long).len() <= MAX_TEXT);
        assert!(bounded(long, 11).ends_with("..."));
    }

    #[cfg(feature = "fuse")]
    #[test]
    fn bytes_that_are_no_text_are_written_out() {
        assert_eq!(super::from_bytes(b"a\xff\xfeb", 100), "a\\xff\\xfeb");
        assert_eq!(super::from_bytes(&[0xff; 1000], 20).len(), 20);
    }
}
