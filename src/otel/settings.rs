//! What was said in code, what the standard variables say, and the exporter and the resource made of it.

use std::{collections::HashMap, env, time::Duration};

use http::HeaderMap;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::metadata::MetadataMap,
};
use opentelemetry_sdk::Resource;

use super::Protocol;
use crate::{snapshot::Process, text};

const QUEUE: usize = 16_384;
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(10);
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// What an exporter goes by. What is `None` was not said in code.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) endpoint: Option<String>,
    pub(super) protocol: Option<Protocol>,
    pub(super) headers: HashMap<String, String>,
    pub(super) service_name: Option<String>,
    pub(super) queue: Option<usize>,
    pub(super) batch: Option<usize>,
    pub(super) every: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) flush_within: Duration,
    pub(super) partial: bool,
    pub(super) unsampled_trouble: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: None,
            headers: HashMap::new(),
            service_name: None,
            queue: None,
            batch: None,
            every: None,
            timeout: None,
            flush_within: FLUSH_WITHIN,
            partial: true,
            unsampled_trouble: false,
        }
    }
}

impl Settings {
    /// Fills in what the environment says. What `opentelemetry-otlp` reads by itself is left to it.
    pub(super) fn with_environment(mut self) -> Result<Self, String> {
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err("OTEL_SDK_DISABLED=true".to_owned());
        }
        if variable("OTEL_TRACES_EXPORTER").as_deref() == Some("none") {
            return Err("OTEL_TRACES_EXPORTER=none".to_owned());
        }
        if self.protocol.is_none() {
            self.protocol = protocol()?;
        }
        self.queue = self.queue.or_else(|| number("OTEL_BSP_MAX_QUEUE_SIZE"));
        self.batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
        let delay = || number("OTEL_BSP_SCHEDULE_DELAY");
        let delay = || delay().map(|ms| Duration::from_millis(ms as u64));
        self.every = self.every.or_else(delay);
        Ok(self)
    }

    pub(super) fn queue(&self) -> usize {
        self.queue.unwrap_or(QUEUE)
    }

    /// So many spans are sent at once.
    pub(super) fn batch(&self) -> usize {
        self.batch.unwrap_or(BATCH).max(1)
    }

    pub(super) fn every(&self) -> Duration {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(60));
        self.every.unwrap_or(EVERY).clamp(least, most)
    }

    /// So long the endpoint may take for an answer.
    pub(super) fn timeout(&self) -> Duration {
        let variable = || number("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT");
        let variable = || variable().or_else(|| number("OTEL_EXPORTER_OTLP_TIMEOUT"));
        let most = Duration::from_secs(3600);
        let timeout = self.timeout;
        let timeout = timeout.or_else(|| Some(Duration::from_millis(variable()? as u64)));
        timeout.unwrap_or(TIMEOUT).min(most)
    }

    fn named_endpoint(&self) -> Option<String> {
        let named = self.endpoint.clone();
        let named = named.or_else(|| variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"));
        named.or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
    }

    /// Where spans go, as it may be shown.
    pub(super) fn shown_endpoint(&self) -> String {
        match (self.named_endpoint(), self.protocol) {
            (Some(named), _) => text::clean_url(&named),
            (None, Some(Protocol::Grpc)) => "http://localhost:4317".to_owned(),
            (None, _) => "http://localhost:4318".to_owned(),
        }
    }

    /// Makes what sends; within a runtime, whose tasks keep the connection.
    pub(super) fn exporter(&self) -> Result<SpanExporter, String> {
        let built = match self.protocol {
            Some(Protocol::Grpc) => {
                let headers: HeaderMap = (&self.headers).try_into().unwrap_or_default();
                let metadata = MetadataMap::from_headers(headers);
                let mut builder = SpanExporter::builder().with_tonic().with_metadata(metadata);
                if let Some(endpoint) = &self.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                builder.with_timeout(self.timeout()).build()
            }
            None | Some(Protocol::HttpProtobuf) => {
                let mut builder = SpanExporter::builder()
                    .with_http()
                    .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                    .with_headers(self.headers.clone());
                if let Some(endpoint) = &self.endpoint {
                    builder = builder.with_endpoint(with_path(endpoint));
                }
                builder.with_timeout(self.timeout()).build()
            }
        };
        built.map_err(|error| self.shown_error(&error.to_string()))
    }

    // One without a scheme looks like no URL, whatever it holds.
    fn shown_error(&self, error: &str) -> String {
        let error = match self.named_endpoint() {
            Some(named) => error.replace(named.trim(), &self.shown_endpoint()),
            None => error.to_owned(),
        };
        text::clean(&error)
    }

    /// Who sends: the service, this very instance of it, its process and host.
    pub(super) fn resource(&self, process: &Process) -> Resource {
        let known = Resource::builder().build();
        let named = known.get(&Key::from_static_str("service.name"));
        let named = named.map(|name| name.to_string());
        // Without a name the detector makes one up.
        let named = named.filter(|name| !name.starts_with("unknown_service"));
        let name = self.service_name.clone().or(named);
        let instance = format!(
            "{}-{}-{}-{}",
            process.boot_id, process.pid_ns, process.pid, process.start_ticks
        );
        Resource::builder()
            .with_service_name(name.unwrap_or_else(|| process.service.clone()))
            .with_attributes([
                KeyValue::new("service.instance.id", instance),
                KeyValue::new("process.pid", i64::from(process.pid)),
                KeyValue::new("process.executable.path", process.exe.clone()),
                KeyValue::new("host.name", process.host.clone()),
            ])
            .build()
    }
}

// The specification: one that is set and empty is as one that is not set.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn number(name: &str) -> Option<usize> {
    variable(name)?.trim().parse().ok()
}

fn protocol() -> Result<Option<Protocol>, String> {
    for name in [
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ] {
        match variable(name).as_deref().map(str::trim) {
            None => {}
            Some("grpc") => return Ok(Some(Protocol::Grpc)),
            Some("http/protobuf") => return Ok(Some(Protocol::HttpProtobuf)),
            Some(other) => {
                let other = text::clean(other);
                return Err(format!("{name}={other}: it speaks grpc and http/protobuf"));
            }
        }
    }
    Ok(None)
}

// As the variable OTEL_EXPORTER_OTLP_ENDPOINT is read.
fn with_path(endpoint: &str) -> String {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    match rest.split_once('/') {
        None | Some((_, "")) => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
        Some(_) => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::with_path;

    #[test]
    fn a_path_is_added_only_where_there_is_none() {
        assert_eq!(with_path("http://h:1"), "http://h:1/v1/traces");
        assert_eq!(with_path("http://h:1/"), "http://h:1/v1/traces");
        assert_eq!(
            with_path("http://h:1/x/v1/traces"),
            "http://h:1/x/v1/traces"
        );
    }
}
