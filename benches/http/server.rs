//! The child that serves: bare axum, or with one of the layers.

use std::{
    convert::Infallible,
    io::stdin,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use axum::{Router, body::Body, extract::Path, routing::get};
use bytes::Bytes;
use futures_util::stream;
use inflight::{Tracker, debug, http::ServerLayer, watchdog};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tower::{ServiceBuilder, layer::layer_fn};
use tower_http::{
    map_request_body::MapRequestBodyLayer, map_response_body::MapResponseBodyLayer,
    trace::TraceLayer,
};
use tracing::Subscriber;
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use crate::{
    SERVES_ON,
    child::{say, stay_on},
    holding::{Holding, same},
};

const CHUNKS: usize = 16;
static CHUNK: [u8; 4096] = [b'x'; 4096];

/// How many spans were closed, and how many left.
static CLOSED: AtomicU64 = AtomicU64::new(0);
static EXPORTED: AtomicU64 = AtomicU64::new(0);

/// Counts the spans that end.
struct CountClosed;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for CountClosed {
    fn on_close(&self, _: tracing::span::Id, _: Context<'_, S>) {
        CLOSED.fetch_add(1, Relaxed);
    }
}

/// Takes spans, and keeps none.
#[derive(Debug)]
struct CountExported;

impl SpanExporter for CountExported {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        EXPORTED.fetch_add(batch.len() as u64, Relaxed);
        Ok(())
    }
}

pub(crate) fn serve(by: &str) {
    let tracker = Tracker::new("bench");
    let app = Router::new()
        .route(
            "/small/{n}",
            get(async |Path(n): Path<u32>| format!("hello, {n}\n")),
        )
        .route("/streamed/{n}", get(streamed));
    let app = match by {
        "bare" => app,
        "bodies" => app.layer(
            ServiceBuilder::new()
                .layer(MapRequestBodyLayer::new(same))
                .layer(MapResponseBodyLayer::new(same)),
        ),
        "op" => {
            let tracker = tracker.clone();
            app.layer(layer_fn(move |inner| Holding {
                inner,
                tracker: tracker.clone(),
            }))
        }
        "inflight" => app.layer(ServerLayer::new(&tracker)),
        "tower-http" => {
            let subscriber = Registry::default().with(CountClosed);
            tracing::subscriber::set_global_default(subscriber).expect("the first");
            app.layer(TraceLayer::new_for_http())
        }
        "otel" => {
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(CountExported)
                .build();
            let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
            // Held on to, or it shuts down.
            std::mem::forget(provider);
            let subscriber = Registry::default().with(spans).with(CountClosed);
            tracing::subscriber::set_global_default(subscriber).expect("the first");
            app.layer(TraceLayer::new_for_http())
        }
        _ => panic!("what is {by}?"),
    };
    // All that the README tells a server to have.
    let _rest = (by == "inflight").then(|| (debug::serve(&tracker), watchdog::spawn(&tracker)));
    let by: Arc<str> = by.into();
    std::thread::spawn(move || {
        stay_on(SERVES_ON);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a port");
            say(&format!(
                "listening {}",
                listener.local_addr().expect("its address")
            ));
            let app = app.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, app).await.expect("to serve");
        });
    });
    for line in stdin().lines().map_while(Result::ok) {
        assert_eq!(line, "recorded");
        let closed = CLOSED.load(Relaxed);
        let (recorded, lost) = match &*by {
            "inflight" | "op" => (tracker.snapshot().totals.ended, 0),
            "otel" => (closed, closed - EXPORTED.load(Relaxed)),
            _ => (closed, 0),
        };
        say(&format!("recorded {recorded} {lost}"));
    }
}

async fn streamed() -> Body {
    let chunks = (0..CHUNKS).map(|_| Ok::<_, Infallible>(Bytes::from_static(&CHUNK)));
    Body::from_stream(stream::iter(chunks))
}
