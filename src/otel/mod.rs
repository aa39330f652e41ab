//! Every ended op as a span, and stuck ones while they are stuck, to any OpenTelemetry (OTLP) endpoint: Jaeger,
//! a collector.
//!
//! The ids of an op are those of its span, so what `.diag` shows is found in Jaeger, and the other way round.
//! Its phases are child spans, what it waited for and what is known of it are attributes, its outcome is the
//! status. A FUSE op that a request of another process made carries a link to that request's span, when that
//! is certain by the time it ends (peers are asked with feature `debug` only).
//!
//! ```
//! use inflight::{Tracker, otel::Exporter};
//!
//! let tracker = Tracker::new("indexer");
//! // Without `endpoint` the standard variables say where: OTEL_EXPORTER_OTLP_ENDPOINT and the like.
//! let exporter = Exporter::builder(&tracker).endpoint("http://127.0.0.1:4318").start();
//!
//! let op = tracker.begin("reindex");
//! op.phase("open index");
//! drop(op);
//!
//! // Nobody listens there: the span is not sent, which is counted and costs the op nothing.
//! exporter.shutdown();
//! assert_eq!(tracker.snapshot().totals.spans_dropped, 1);
//! ```
//!
//! # Stuck ops
//!
//! A span is sent when its op has ended, and a stuck op does not end. So once an op is stuck a *partial* span is sent,
//! again after twice that time and so on, up to every ten minutes: with an id of its own, under the op's span,
//! as long as the op has lasted, with status `Error` and the attributes `inflight.partial` = true,
//! `inflight.op.id`, `inflight.phase` and what it waits for. The op's own span comes when it has ended.
//!
//! # Sampling
//!
//! An op begun under an active OpenTelemetry span (`opentelemetry::Context`) joins its trace as its child, one that
//! answers a request with a `traceparent` joins that. Such a trace keeps the decision made elsewhere: what is
//! not sampled is not sent, unless [`Builder::unsampled_trouble`]. A trace that begins with an op is sampled.
//! Requests that a layer sends carry a `traceparent` while an exporter runs, if they have none.
//!
//! # What it never does
//!
//! An op that ends is put into a bounded queue; a thread of the exporter's own, with a runtime of its own, does
//! the rest. When the queue is full, or the endpoint is down, slow or refuses, spans are lost,
//! counted (`spans_dropped`) and said in every report. A batch whose answer is lost is sent again, so that a span may come
//! twice; an endpoint that says it took a batch is believed, even if it adds that it rejected a part. What no report shows, no span shows.

use std::{
    fmt,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{otel::run::Run, tracker::Tracker};

mod active;
mod run;
mod settings;
mod spans;
mod stuck;

/// So long [`Builder::start`] waits for its thread to get going.
const START: Duration = Duration::from_secs(2);

/// What the thread gets beyond the time to flush, to come to an end.
const MOMENT: Duration = Duration::from_millis(300);

/// Sends spans until it is dropped.
///
/// Dropped, it does as [`shutdown`](Self::shutdown).
#[must_use = "dropped at once, it stops at once"]
pub struct Exporter {
    running: Option<Running>,
    problem: Option<String>,
}

/// Settings of an [`Exporter`].
#[derive(Clone)]
#[must_use = "nothing is sent until it is started"]
pub struct Builder {
    tracker: Tracker,
    settings: settings::Settings,
}

/// How spans travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// OTLP over gRPC, usually on port 4317.
    Grpc,
    /// OTLP over HTTP/1.1, as protobuf, usually on port 4318.
    HttpProtobuf,
}

struct Running {
    /// Until when to flush, once it is to stop.
    stop: watch::Sender<Option<Instant>>,
    /// Hangs up when the thread is done.
    over: Receiver<()>,
    flush_within: Duration,
}

impl Exporter {
    /// Starts to set up an exporter of a tracker's ops. A tracker has one at a time.
    pub fn builder(tracker: &Tracker) -> Builder {
        Builder {
            tracker: tracker.clone(),
            settings: settings::Settings::default(),
        }
    }

    /// Why it does not run, if it does not. Reports say it too, and what becomes of the endpoint later on.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Sends what has ended so far, and stops.
    ///
    /// It takes [`Builder::flush_within`] and a moment at most, and no time worth naming if the endpoint does not
    /// answer anyway. What could not be sent is counted as dropped; ops in flight are not sent.
    pub fn shutdown(self) {
        drop(self);
    }

    /// Lets it run as long as the process does. What has not been sent by then is lost.
    pub fn forever(self) {
        std::mem::forget(self);
    }
}

impl Builder {
    /// Sets where spans go: `http://127.0.0.1:4318`. Default: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`, else the usual port of the protocol on this machine.
    ///
    /// Over HTTP, `/v1/traces` is added where there is no path. `https` needs a TLS feature of `opentelemetry-otlp`,
    /// and works over gRPC only.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.settings.endpoint = Some(url.into());
        self
    }

    /// Sets how spans travel. Default: `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, else `OTEL_EXPORTER_OTLP_PROTOCOL`, else
    /// [`Protocol::HttpProtobuf`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.settings.protocol = Some(protocol);
        self
    }

    /// Adds a header to each request to the endpoint. Default: those in `OTEL_EXPORTER_OTLP_HEADERS`, which win.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.headers.insert(name.into(), value.into());
        self
    }

    /// Sets the name of the service. Default: `OTEL_SERVICE_NAME`, else `service.name` of
    /// `OTEL_RESOURCE_ATTRIBUTES`, else the tracker's.
    pub fn service_name(mut self, name: impl Into<String>) -> Self {
        self.settings.service_name = Some(name.into());
        self
    }

    /// Sets how many ended ops may wait to be sent; about half a KiB each. Default: `OTEL_BSP_MAX_QUEUE_SIZE`, else 16,384.
    pub fn queue(mut self, ops: usize) -> Self {
        self.settings.queue = Some(ops);
        self
    }

    /// Sets how long an ended op waits for others before it is sent, a minute at most. Default:
    /// `OTEL_BSP_SCHEDULE_DELAY`, else 0.5 s.
    pub fn every(mut self, delay: Duration) -> Self {
        self.settings.every = Some(delay);
        self
    }

    /// Sets how long the endpoint may take for an answer, an hour at most. Default: `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`, else
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`, else 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// Sets how long the exporter may take to send the rest when it is to stop, an hour at most. Default: 1 s.
    pub fn flush_within(mut self, time: Duration) -> Self {
        self.settings.flush_within = time.min(Duration::from_secs(3600));
        self
    }

    /// Sets whether partial spans of stuck ops are sent. Default: yes.
    pub fn partial(mut self, send: bool) -> Self {
        self.settings.partial = send;
        self
    }

    /// Sets whether an op of a trace that is not sampled is sent all the same if it was stuck or failed.
    /// Default: no.
    pub fn unsampled_trouble(mut self, send: bool) -> Self {
        self.settings.unsampled_trouble = send;
        self
    }

    /// Starts it, on a thread of its own, which a later fork would not take along: daemons fork first.
    ///
    /// Never fails: [`Exporter::problem`] and the reports say why it does not run. `OTEL_SDK_DISABLED=true` and
    /// `OTEL_TRACES_EXPORTER=none` keep it from running.
    pub fn start(self) -> Exporter {
        let tracker = self.tracker.clone();
        match self.run() {
            Ok(running) => Exporter {
                running: Some(running),
                problem: None,
            },
            Err(why) => {
                tracker.outlet().set_problem(Some(why.clone()));
                Exporter {
                    running: None,
                    problem: Some(why),
                }
            }
        }
    }

    fn run(self) -> Result<Running, String> {
        let settings = self.settings.with_environment()?;
        let flush_within = settings.flush_within;
        let outlet = self.tracker.outlet();
        if !outlet.open(settings.queue(), settings.batch(), active::find) {
            return Err("another exporter is attached to this tracker".to_owned());
        }
        let (stop, stopped) = watch::channel(None);
        let (say_over, over) = channel();
        let (say_ready, ready) = channel();
        let tracker = self.tracker.clone();
        let thread = thread::Builder::new().name("inflight-otel".to_owned());
        let spawned = thread.spawn(move || {
            let _hangs_up = say_over;
            Run::new(tracker, settings, stopped).on_this_thread(&say_ready);
        });
        let started = match spawned {
            Err(error) => Err(error.to_string()),
            Ok(_) => match ready.recv_timeout(START) {
                Ok(ready) => ready,
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => Err("its thread panicked".to_owned()),
            },
        };
        if let Err(why) = started {
            outlet.close();
            return Err(why);
        }
        Ok(Running {
            stop,
            over,
            flush_within,
        })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        let until = Instant::now() + running.flush_within;
        running.stop.send_replace(Some(until));
        // The thread keeps to the time by itself; should it be stuck, nobody is stuck with it.
        let _ = running.over.recv_timeout(running.flush_within + MOMENT);
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("problem", &self.problem)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("tracker", &self.tracker)
            .finish_non_exhaustive()
    }
}
