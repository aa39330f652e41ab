//! The thread of an exporter: it empties the queue, sends batches, and looks after what is stuck.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::mpsc::Sender,
    task::Poll,
    time::{Duration, Instant},
};

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    error::OTelSdkError,
    trace::{SpanData, SpanExporter as _},
};
use tokio::{
    runtime::Builder,
    sync::watch,
    time::{sleep, sleep_until},
};

use super::{
    settings::Settings,
    spans::{self, Clock},
    stuck::Watch,
};
use crate::{record::Record, snapshot::Outcome, text, tracker::Tracker};

/// From one look at what is in flight to the next, at most.
const LOOK: Duration = Duration::from_secs(1);

/// How long to wait before a batch that was not taken is sent again; after the last it is lost.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// An endpoint that has taken so long does not get more time when the exporter is to stop.
const PATIENCE: Duration = Duration::from_millis(500);

/// An answer that takes so much longer than it may is not waited for: not all waits are under the client's timeout.
const OVERTIME: u32 = 3;

/// What an endpoint that does not answer still gets then.
const GRACE: Duration = Duration::from_millis(50);

/// All that the thread has.
pub(super) struct Run {
    tracker: Tracker,
    settings: Settings,
    /// Until when to flush, once it is to stop.
    stop: watch::Receiver<Option<Instant>>,
    endpoint: String,
    clock: Clock,
    watch: Watch,
    next_look: Instant,
    /// The last request was answered, and well.
    is_well: bool,
}

/// Spans to be sent together.
#[derive(Default)]
struct Batch {
    spans: Vec<SpanData>,
    /// The ops that have ended and whose spans these are.
    ops: u64,
}

/// Why a batch was not sent.
enum Unsent {
    Refused(String),
    /// The time to stop is over.
    Stopped,
}

impl Run {
    pub(super) fn new(
        tracker: Tracker,
        settings: Settings,
        stop: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            endpoint: settings.shown_endpoint(),
            tracker,
            settings,
            stop,
            clock: Clock::read(),
            watch: Watch::default(),
            next_look: Instant::now(),
            is_well: true,
        }
    }

    /// Runs until it is stopped; says first whether it could start.
    pub(super) fn on_this_thread(mut self, ready: &Sender<Result<(), String>>) {
        // What sends spans makes none.
        let _quiet = opentelemetry::Context::enter_telemetry_suppressed_scope();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error.to_string()))),
        };
        let exporter = {
            let _within = runtime.enter();
            self.settings.exporter()
        };
        let mut exporter = match exporter {
            Ok(exporter) => exporter,
            Err(why) => return drop(ready.send(Err(why))),
        };
        exporter.set_resource(&self.settings.resource(&self.tracker.process()));
        self.tracker.outlet().set_problem(None);
        let _ = ready.send(Ok(()));
        let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(self.run(&exporter))));
        if ran.is_err() {
            let why = "the exporter's thread panicked".to_owned();
            self.tracker.outlet().set_problem(Some(why));
        }
        self.tracker.outlet().close();
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
    }

    async fn run(&mut self, exporter: &SpanExporter) {
        loop {
            self.rest().await;
            self.clock.refresh();
            self.empty(exporter).await;
            if self.stop_by().is_some() {
                return;
            }
            if Instant::now() >= self.next_look {
                let (partial, trouble) = (self.settings.partial, self.settings.unsampled_trouble);
                let is_wanted = |record: &Record| partial && (trouble || is_sampled(record));
                let spans = self.watch.look(&self.tracker, self.clock, is_wanted);
                let stuck = self.tracker.stuck_after().div_f64(2.0);
                let pause = LOOK.min(stuck).max(self.settings.every());
                self.next_look = Instant::now() + pause;
                // They are sent once: the next ones say the same and more.
                if !spans.is_empty() {
                    let sent = self.send(exporter, spans).await;
                    self.note(&sent);
                }
            }
        }
    }

    // Until it is time, there is a batch to fetch, or it is to stop.
    async fn rest(&mut self) {
        if self.stop_by().is_some() {
            return;
        }
        let mut stopped = self.stop.clone();
        let outlet = self.tracker.outlet();
        let mut time = pin!(sleep(self.settings.every()));
        let mut stop = pin!(stopped.changed());
        poll_fn(|cx| {
            let full = outlet.poll_full(cx);
            match full.is_ready()
                || time.as_mut().poll(cx).is_ready()
                || stop.as_mut().poll(cx).is_ready()
            {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    // Sends what is in the queue: all of it, or until it is time to look again, should it never be empty.
    async fn empty(&mut self, exporter: &SpanExporter) {
        loop {
            let batch = self.batch();
            if batch.ops == 0 {
                return;
            }
            if batch.spans.is_empty() {
                continue;
            }
            let mut pauses = AGAIN.iter();
            loop {
                let sent = self.send(exporter, batch.spans.clone()).await;
                self.note(&sent);
                match (sent, pauses.next()) {
                    (Ok(()), _) => break,
                    (Err(Unsent::Refused(_)), Some(pause)) if !self.is_over() => {
                        self.pause(*pause).await;
                    }
                    (Err(_), _) => {
                        self.tracker.outlet().lose(batch.ops);
                        break;
                    }
                }
            }
            // What is left is counted when the outlet closes.
            let is_late = self.stop_by().is_none() && Instant::now() >= self.next_look;
            if is_late || self.is_over() {
                return;
            }
        }
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let most = self.settings.batch();
        while batch.spans.len() < most
            && let Some(record) = self.tracker.outlet().pop()
        {
            batch.ops += 1;
            if self.is_wanted(&record) {
                let link = self.watch.caller(record.id);
                batch.spans.extend(spans::ended(&record, self.clock, link));
            }
            // Of an unsampled trace nothing is made: it goes on without end otherwise.
            if batch.ops >= most as u64 {
                break;
            }
        }
        batch
    }

    // What others decided not to sample stays so.
    fn is_wanted(&self, record: &Record) -> bool {
        let is_trouble = || {
            let outcome = record.outcome();
            let is_well = matches!(outcome, Outcome::Completed | Outcome::Returned);
            !is_well || self.watch.was_stuck(record.id)
        };
        is_sampled(record) || (self.settings.unsampled_trouble && is_trouble())
    }

    // One request, which is given up when it is time to stop.
    async fn send(&mut self, exporter: &SpanExporter, spans: Vec<SpanData>) -> Result<(), Unsent> {
        let begun = Instant::now();
        let give_up = begun + self.settings.timeout().saturating_mul(OVERTIME);
        let mut stopped = self.stop.clone();
        let mut export = pin!(exporter.export(spans));
        let mut is_well = self.is_well;
        loop {
            let by = *stopped.borrow_and_update();
            let by = by.map(|by| {
                if is_well {
                    by
                } else {
                    by.min(Instant::now() + GRACE)
                }
            });
            let patience = begun + PATIENCE;
            let until = match by {
                Some(by) if is_well => by.min(patience),
                Some(by) => by,
                None if is_well => patience,
                None => give_up,
            };
            let mut time = pin!(sleep_until(until.into()));
            let mut stop = pin!(stopped.changed());
            let sent = poll_fn(|cx| {
                if let Poll::Ready(sent) = export.as_mut().poll(cx) {
                    return Poll::Ready(Some(sent));
                }
                match time.as_mut().poll(cx).is_ready() || stop.as_mut().poll(cx).is_ready() {
                    true => Poll::Ready(None),
                    false => Poll::Pending,
                }
            })
            .await;
            match sent {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(Unsent::Refused(words(&error))),
                None => {
                    let now = Instant::now();
                    if by.is_some_and(|by| now >= by) {
                        return Err(Unsent::Stopped);
                    }
                    if now >= give_up {
                        return Err(Unsent::Refused("no answer".to_owned()));
                    }
                    is_well &= now < patience;
                }
            }
        }
    }

    fn note(&mut self, sent: &Result<(), Unsent>) {
        self.is_well = sent.is_ok();
        let why = match sent {
            Ok(()) => None,
            Err(Unsent::Refused(why)) => Some(why.as_str()),
            Err(Unsent::Stopped) => Some("no answer before the exporter stopped"),
        };
        let problem = why.map(|why| format!("{} takes no spans: {why}", self.endpoint));
        self.tracker.outlet().set_problem(problem);
    }

    async fn pause(&self, pause: Duration) {
        let mut stopped = self.stop.clone();
        let mut time = pin!(sleep(pause));
        let mut stop = pin!(stopped.changed());
        poll_fn(|cx| {
            match time.as_mut().poll(cx).is_ready() || stop.as_mut().poll(cx).is_ready() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    fn stop_by(&self) -> Option<Instant> {
        *self.stop.borrow()
    }

    // To be stopped, and either out of time or without hope.
    fn is_over(&self) -> bool {
        self.stop_by()
            .is_some_and(|by| !self.is_well || Instant::now() >= by)
    }
}

fn is_sampled(record: &Record) -> bool {
    const SAMPLED: u8 = 1;
    let flags = record.trace_flags();
    flags.is_none_or(|flags| flags & SAMPLED != 0)
}

fn words(error: &OTelSdkError) -> String {
    text::clean(&text::bounded(error.to_string(), text::MAX_TEXT))
}
