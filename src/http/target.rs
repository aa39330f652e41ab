//! What a request is called: copies of bounded length, made so that no cut brings out a secret.

use std::borrow::Cow;

use http::{Method, Uri};

use crate::{record::Target, text};

// Longer ones are no method anybody uses.
const MAX_METHOD: usize = 32;
const MAX_SCHEME: usize = 32;

// A character more than is shown, so that what shows it marks the cut.
const MAX_URL: usize = text::MAX_TEXT + 4;

/// The whole URL of a request that is sent, without userinfo.
pub(super) fn of_uri(uri: &Uri) -> Target<'_> {
    let Some(authority) = uri.authority() else {
        return of_path(uri);
    };
    let (host, port) = text::host_and_port(authority.as_str());
    let both = match uri.path_and_query() {
        Some(both) => both.as_str(),
        None => "",
    };
    let mut out = String::with_capacity(MAX_URL.min(40 + host.len() + both.len()));
    if let Some(scheme) = uri.scheme_str() {
        push(&mut out, scheme);
        out.push_str("://");
    }
    push(&mut out, host);
    if let Some(port) = port.filter(|port| !port.is_empty()) {
        out.push(':');
        push(&mut out, port);
    }
    if both.starts_with('/') && out.len() + both.len() < MAX_URL {
        out.push_str(both);
    } else if !both.is_empty() {
        push_path(&mut out, uri.path());
        push_query(&mut out, uri.query());
    }
    Target::Url(out.into())
}

/// The path and query of a request that is served; of a CONNECT the host and port.
pub(super) fn of_path(uri: &Uri) -> Target<'_> {
    if uri.path_and_query().is_none() && uri.host().is_some() {
        return of_uri(uri);
    }
    let both = uri.path_and_query().map_or("", |both| both.as_str());
    if both.starts_with('/') && both.len() < MAX_URL {
        return Target::Url(both.into());
    }
    let mut out = String::with_capacity(MAX_URL.min(both.len()));
    push_path(&mut out, uri.path());
    push_query(&mut out, uri.query());
    Target::Url(out.into())
}

/// The URL of a call as its caller wrote it.
pub(super) fn of_text(url: &str) -> Target<'static> {
    parts(url.trim()).unwrap_or(Target::Text(Cow::Borrowed("(not a URL)")))
}

/// The name of an op for a request of this method.
pub(super) fn method(method: &Method) -> Cow<'static, str> {
    // Comparing texts took longer than all else that a layer asks of a request.
    Cow::Borrowed(match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => return method_text(method.as_str()),
    })
}

/// As [`method`], of what a caller wrote.
pub(super) fn method_text(method: &str) -> Cow<'static, str> {
    const KNOWN: [&str; 9] = [
        "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE",
    ];
    match KNOWN.iter().find(|known| **known == method) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(method[..method.floor_char_boundary(MAX_METHOD)].to_owned()),
    }
}

// What cannot be taken apart is not shown: a password with a `/` in it makes a URL that looks like that.
fn parts(url: &str) -> Option<Target<'static>> {
    let url = url.split('#').next().unwrap_or_default();
    let (before, query) = match url.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (url, None),
    };
    let mut out = String::with_capacity(MAX_URL.min(url.len()));
    if before.starts_with('/') {
        push_path(&mut out, before);
    } else {
        let (scheme, rest) = before.split_once("://")?;
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.len() > MAX_SCHEME || !scheme.chars().all(is_scheme) {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = text::host_and_port(authority);
        let port = port?;
        if host.is_empty() {
            return None;
        }
        out.push_str(scheme);
        out.push_str("://");
        push(&mut out, host);
        if !port.is_empty() {
            push(&mut out, ":");
            push(&mut out, port);
        }
        push_path(&mut out, path);
    }
    push_query(&mut out, query);
    Some(Target::Url(out.into()))
}

fn push_path(out: &mut String, path: &str) {
    push(out, path);
}

// The values go when the URL is shown; here only where they would crowd out the names.
fn push_query(out: &mut String, query: Option<&str>) {
    let Some(query) = query else {
        return;
    };
    push(out, "?");
    if out.len() + query.len() < MAX_URL {
        out.push_str(query);
        return;
    }
    for (n, pair) in query.split('&').enumerate() {
        if out.len() >= MAX_URL {
            return;
        }
        if n > 0 {
            out.push('&');
        }
        let (name, equals) = match pair.split_once('=') {
            Some((name, _)) => (name, "="),
            None => (pair, ""),
        };
        push(out, name);
        push(out, equals);
    }
}

fn push(out: &mut String, part: &str) {
    let room = MAX_URL.saturating_sub(out.len());
    out.push_str(&part[..part.floor_char_boundary(room)]);
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::{MAX_URL, of_path, of_text, of_uri};
    use crate::{record::Target, text};

    fn shown(target: Target<'_>) -> String {
        match target {
            Target::Url(url) => {
                assert!(url.len() < MAX_URL + 8, "{} bytes are kept", url.len());
                text::clean_url(&url)
            }
            Target::Text(text) => text.into_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_url_is_kept_without_its_secrets() {
        let long = "s3cret".repeat(20_000);
        for (url, is) in [
            (
                "http://bob:s3cret@api:80/x?token=s3cret&n=1#s3cret",
                "http://api:80/x?token=..&n=..",
            ),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://[::1]/", "http://[::1]/"),
            (" https://api?a=s3cret ", "https://api?a=.."),
            ("/x?token=s3cret", "/x?token=.."),
            ("http://bob:s3/cret@api/x", "(not a URL)"),
            ("http://bob:s3?cret@api/x", "(not a URL)"),
            ("http:///bob:s3cret@api/x", "(not a URL)"),
            ("http:/bob:s3cret@api/x", "(not a URL)"),
            ("bob:s3cret@api/x", "(not a URL)"),
            ("bob:s3cret@http://api/x", "(not a URL)"),
            ("", "(not a URL)"),
            (
                &format!("http://bob:{long}@api/x?a={long}&b=1"),
                "http://api/x?a=..&b=..",
            ),
            (&format!("http://api/x?a=1#{long}"), "http://api/x?a=.."),
        ] {
            assert_eq!(shown(of_text(url)), is, "{url:.80}");
        }
    }

    #[test]
    fn a_uri_is_kept_without_its_secrets() {
        let long = "s3cret".repeat(5_000);
        let client = |uri: String| shown(of_uri(&uri.parse::<Uri>().unwrap()));
        let server = |uri: String| shown(of_path(&uri.parse::<Uri>().unwrap()));

        assert_eq!(
            client(format!("http://bob:{long}@api:80/x?a=1&token=s3cret")),
            "http://api:80/x?a=..&token=.."
        );
        assert_eq!(client("http://api".to_owned()), "http://api/");
        assert_eq!(
            client("http://bob:s3c/ret@api/x".to_owned()),
            "http://bob/ret@api/x"
        );
        assert_eq!(client("http://[::1]:80/x".to_owned()), "http://[::1]:80/x");
        assert_eq!(client("http://api:?x=1".to_owned()), "http://api/?x=..");
        assert_eq!(client("api:443".to_owned()), "api:443");
        assert_eq!(server("bob:s3cret@api:443".to_owned()), "api:443");
        assert_eq!(server("http://bob:s3cret@api/x?a=1".to_owned()), "/x?a=..");
        assert_eq!(server(format!("/x?a={long}&b={long}")), "/x?a=..&b=..");
        assert_eq!(server("*".to_owned()), "*");
    }

    #[test]
    fn what_is_cut_is_marked() {
        let long = "/a\u{e9}".repeat(1_000);
        for target in [of_text(&format!("http://api{long}")), of_text(&long)] {
            let shown = shown(target);
            assert!(
                shown.len() <= text::MAX_TEXT && shown.ends_with("..."),
                "{shown}"
            );
        }
    }
}
