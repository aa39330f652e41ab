//! `GET /debug/inflight`: text, JSON, or the text in a page.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use tower_http::{
    catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer, timeout::TimeoutLayer,
};

use crate::{
    report::{Report, seen_from_inside},
    snapshot::{Filter, Kind},
    tracker::Tracker,
};

const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Desk {
    tracker: Tracker,
    last: Arc<Mutex<Option<Made>>>,
}

struct Made {
    begun: Instant,
    report: Arc<Report>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    format: Option<String>,
    peers: Option<String>,
    limit: Option<usize>,
    min_age: Option<String>,
    kind: Option<Kind>,
    count: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Text,
    Json,
    Page,
}

/// A router with `GET /debug/inflight`, to be merged into your own.
///
/// **It has no access control**: whoever reaches the app reads paths, URLs (without their secrets) and
/// what callers do. Put it behind what protects the rest of your administration, or use [`serve`].
///
/// It runs in the runtime of your app, and waits with it when all its threads are blocked: that is what
/// [`serve`] is for. Its own requests are never ops. An answer takes at most 2 s.
///
/// ```
/// use inflight::{Tracker, debug};
///
/// let tracker = Tracker::new("api");
/// let app: axum::Router = axum::Router::new().merge(debug::router(&tracker));
/// # let _ = app;
/// ```
///
/// [`serve`]: super::serve
pub fn router(tracker: &Tracker) -> Router {
    let desk = Desk {
        tracker: tracker.clone(),
        last: Arc::default(),
    };
    Router::new()
        .route("/debug/inflight", get(answer))
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            TIMEOUT,
        ))
        .layer(SetResponseHeaderLayer::overriding(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-store"),
        ))
        .with_state(desk)
}

async fn answer(
    State(desk): State<Desk>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let (format, filter, wanted) = match wanted.map_err(|error| error.body_text()) {
        Ok(Query(wanted)) => match (format(&headers, &wanted), filter(&wanted)) {
            (Ok(format), Ok(filter)) => (format, filter, wanted),
            (Err(why), _) | (_, Err(why)) => return refuse(&why),
        },
        Err(why) => return refuse(&why),
    };
    if wanted.count.is_some() {
        let count = desk.tracker.count(&filter);
        return match format {
            Format::Json => Json(serde_json::json!({ "ops": count })).into_response(),
            _ => format!("{count}\n").into_response(),
        };
    }
    let with_peers = wanted.peers.as_deref().is_some_and(|peers| peers != "0");
    match format {
        Format::Json if with_peers => Json(&*desk.report().await).into_response(),
        Format::Json => {
            let (snapshot, _) = seen_from_inside(desk.tracker.snapshot_of(&filter));
            Json(snapshot).into_response()
        }
        Format::Text => desk.report().await.to_string().into_response(),
        Format::Page => Html(page(&desk.report().await.to_string())).into_response(),
    }
}

impl Desk {
    // In a task of its own: whoever gives up leaves what he has begun to those who wait.
    async fn report(&self) -> Arc<Report> {
        let came = Instant::now();
        let desk = self.clone();
        let report = tokio::spawn(async move { desk.made_since(came).await });
        match report.await {
            Ok(report) => report,
            // The runtime is going down, or it panicked.
            Err(_) => Arc::new(Report::local(&self.tracker)),
        }
    }

    // One report for all who came before it was begun.
    async fn made_since(&self, came: Instant) -> Arc<Report> {
        let mut last = self.last.lock().await;
        match &*last {
            Some(made) if made.begun >= came => Arc::clone(&made.report),
            _ => {
                let begun = Instant::now();
                let report = Arc::new(Report::collect_async(&self.tracker).await);
                *last = Some(Made {
                    begun,
                    report: Arc::clone(&report),
                });
                report
            }
        }
    }
}

fn format(headers: &HeaderMap, wanted: &Wanted) -> Result<Format, String> {
    match wanted.format.as_deref() {
        Some("json") => return Ok(Format::Json),
        Some("text") => return Ok(Format::Text),
        Some("html") => return Ok(Format::Page),
        Some(other) => return Err(format!("format is json, text or html, not {other:?}")),
        None => {}
    }
    let accept = headers.get(header::ACCEPT);
    let accept = accept
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*");
    // The first that is named: browsers put text/html there.
    let types = accept.split(',').map(|part| part.split(';').next());
    let formats = types.filter_map(|name| match name?.trim() {
        "application/json" => Some(Format::Json),
        "text/html" => Some(Format::Page),
        "text/plain" | "text/*" | "*/*" => Some(Format::Text),
        _ => None,
    });
    Ok(formats.into_iter().next().unwrap_or(Format::Text))
}

fn filter(wanted: &Wanted) -> Result<Filter, String> {
    let mut filter = Filter::new();
    if let Some(limit) = wanted.limit {
        filter = filter.limit(limit);
    }
    if let Some(age) = &wanted.min_age {
        filter = filter.min_age(duration(age)?);
    }
    match &wanted.kind {
        Some(Kind::Other(kind)) => {
            return Err(format!(
                "kind is fuse, http.client, http.server or task, not {kind:?}"
            ));
        }
        Some(kind) => filter = filter.kind(kind.clone()),
        None => {}
    }
    Ok(filter)
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| format!("min_age is a time such as 500ms, 2s or 1m, not {text:?}"))
}

/// Reads a time such as `500ms`, `2s`, `1.5m` or `1h`; a bare number is seconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = number.trim().parse().ok()?;
    Duration::try_from_secs_f64(number * seconds).ok()
}

fn refuse(why: &str) -> Response {
    let help = "GET /debug/inflight takes format=json|text|html, peers=1, limit=N, min_age=500ms, kind=fuse, count";
    (StatusCode::BAD_REQUEST, format!("{why}\n{help}\n")).into_response()
}

fn page(text: &str) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let title = text.split(':').next().unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title} - inflight</title>\n\
         <style>:root {{ color-scheme: light dark }} pre {{ font: 14px/1.4 monospace }}</style>\n\
         <pre>{text}</pre>\n"
    )
}
