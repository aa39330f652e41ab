//! An OTLP endpoint for tests, which keeps what it is sent.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use inflight::{OpId, Tracker, otel::Exporter};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use tokio::runtime::Runtime;

use crate::stage::DEADLINE;

/// An OTLP endpoint in this process, for gRPC and HTTP, with a runtime of its own.
pub(crate) struct Receiver {
    pub(crate) url: String,
    pub(crate) got: Arc<Got>,
    pub(crate) runtime: Runtime,
}

/// What came in, and what is answered.
#[derive(Default)]
pub(crate) struct Got {
    state: Mutex<Taken>,
    pub(crate) changed: Condvar,
    /// Answered instead of 200, unless 0.
    pub(crate) status: AtomicU16,
}

/// What was accepted so far; requests that were refused are counted only.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) spans: Vec<Span>,
    pub(crate) services: Vec<String>,
    pub(crate) headers: Vec<HeaderMap>,
    pub(crate) requests: usize,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let got = Arc::new(Got::default());
        let grpc = TraceServiceServer::new(Grpc(Arc::clone(&got)));
        let app = axum::Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&got))
            .merge(tonic::service::Routes::new(grpc).into_axum_router());
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { url, got, runtime }
    }

    pub(crate) fn exporter(&self, tracker: &Tracker) -> Exporter {
        let exporter = Exporter::builder(tracker)
            .endpoint(&self.url)
            .every(Duration::from_millis(10))
            .flush_within(DEADLINE)
            .start();
        assert_eq!(exporter.problem(), None);
        exporter
    }

    pub(crate) fn taken(&self) -> MutexGuard<'_, Taken> {
        self.got.state.lock().unwrap()
    }

    pub(crate) fn wait_for(&self, is_there: impl FnMut(&Taken) -> bool) -> MutexGuard<'_, Taken> {
        self.wait_within(DEADLINE, is_there)
    }

    pub(crate) fn wait_within(
        &self,
        time: Duration,
        mut is_there: impl FnMut(&Taken) -> bool,
    ) -> MutexGuard<'_, Taken> {
        let waited = self
            .got
            .changed
            .wait_timeout_while(self.taken(), time, |taken| !is_there(taken));
        let (taken, timeout) = waited.unwrap();
        assert!(!timeout.timed_out(), "{} spans", taken.spans.len());
        taken
    }
}

/// The same over gRPC.
struct Grpc(Arc<Got>);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let (metadata, _, request) = request.into_parts();
        match self.0.keep(metadata.into_headers(), request) {
            StatusCode::OK => Ok(tonic::Response::new(ExportTraceServiceResponse::default())),
            status => Err(tonic::Status::invalid_argument(status.to_string())),
        }
    }
}

async fn take(State(got): State<Arc<Got>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    got.keep(headers, ExportTraceServiceRequest::decode(body).unwrap())
}

impl Got {
    fn keep(&self, headers: HeaderMap, request: ExportTraceServiceRequest) -> StatusCode {
        let status = StatusCode::from_u16(self.status.load(Relaxed)).unwrap_or(StatusCode::OK);
        let mut taken = self.state.lock().unwrap();
        taken.requests += 1;
        if status.is_success() {
            for resource in request.resource_spans {
                let attributes = resource.resource.unwrap().attributes;
                taken
                    .services
                    .push(text(&attributes, "service.name").unwrap());
                let spans = resource.scope_spans.into_iter();
                taken.spans.extend(spans.flat_map(|scope| scope.spans));
            }
            taken.headers.push(headers);
        }
        drop(taken);
        self.changed.notify_all();
        status
    }
}

/// An attribute, as text.
pub(crate) fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::BoolValue(value) => Some(value.to_string()),
        Value::IntValue(value) => Some(value.to_string()),
        other => Some(format!("{other:?}")),
    }
}

pub(crate) fn attribute<'a>(spans: &'a [Span], key: &str, value: &str) -> Vec<&'a Span> {
    let has = |span: &&Span| text(&span.attributes, key).as_deref() == Some(value);
    spans.iter().filter(has).collect()
}

pub(crate) fn is_partial(span: &Span) -> bool {
    text(&span.attributes, "inflight.partial").as_deref() == Some("true")
}

pub(crate) fn id(op: OpId) -> Vec<u8> {
    op.value().to_be_bytes().to_vec()
}

pub(crate) const STUCK: Duration = Duration::from_millis(40);

/// Its ops are stuck after so little time.
pub(crate) fn soon_stuck(service: &str) -> Tracker {
    Tracker::builder(service)
        .slow_after(STUCK / 4)
        .stuck_after(STUCK)
        .build()
}
