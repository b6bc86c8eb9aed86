//! Ready-made layers: [`Logging`], [`Recovery`], [`Metrics`], [`Tracking`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;

use super::{Context, Event, Layer, Next};
use crate::control::Control;

/// The close code of a connection whose handling failed (RFC 6455 section 7.4.1).
const INTERNAL_ERROR: u16 = 1011;

/// Logs each connection at level debug and each message at level trace: its kind and size, never its payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logging;

impl Layer for Logging {
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        let (shard, connection) = (context.shard().0, context.connection());
        match event {
            Event::Open(opened) => {
                tracing::debug!(shard, %connection, peer = %opened.peer, path = opened.path, "opened");
            }
            Event::Message(message) => {
                tracing::trace!(shard, %connection, kind = ?message.kind, bytes = message.payload.len(), "message");
            }
            Event::Close(cause) => tracing::debug!(shard, %connection, %cause, "closed"),
        }
        next.run(context, event);
    }
}

/// Catches a panic of what lies inside: the event is dropped, the panic counted and logged, the connection closed
/// with 1011, and the shard goes on. Registers the probe `panics`.
///
/// Layers inside must be able to go on after a panic of their own; the room is.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    panics: Arc<AtomicU64>,
}

impl Recovery {
    /// A layer that has caught nothing yet.
    pub fn new() -> Recovery {
        Recovery::default()
    }

    /// Panics caught so far.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}

impl Layer for Recovery {
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| next.run(context, event)));
        if outcome.is_err() {
            self.panics.fetch_add(1, Ordering::Relaxed);
            let (shard, connection) = (context.shard().0, context.connection());
            tracing::error!(shard, %connection, "a handler panicked: its message is dropped and its connection closed");
            context.close(INTERNAL_ERROR, "the server failed to handle this message");
        }
    }

    fn started(&self, control: &Control) {
        let panics = Arc::clone(&self.panics);
        control.register_probe("panics", move || panics.load(Ordering::Relaxed));
    }
}

/// Counts live connections, connections and messages in all. Registers the probes `connections`,
/// `total_connections` and `total_messages`.
#[derive(Clone, Debug, Default)]
pub struct Tracking {
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    opened: AtomicU64,
    closed: AtomicU64,
    messages: AtomicU64,
}

impl Totals {
    fn live(&self) -> u64 {
        // Closed first: a connection that closes in between is then counted as live, never as less than none.
        let closed = self.closed.load(Ordering::Acquire);
        self.opened.load(Ordering::Acquire) - closed
    }
}

impl Tracking {
    /// A layer that has seen nothing yet.
    pub fn new() -> Tracking {
        Tracking::default()
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        self.totals.live()
    }

    /// Connections opened so far.
    pub fn total_connections(&self) -> u64 {
        self.totals.opened.load(Ordering::Relaxed)
    }

    /// Messages received so far.
    pub fn total_messages(&self) -> u64 {
        self.totals.messages.load(Ordering::Relaxed)
    }
}

impl Layer for Tracking {
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        match event {
            Event::Open(_) => self.totals.opened.fetch_add(1, Ordering::Release),
            Event::Message(_) => self.totals.messages.fetch_add(1, Ordering::Relaxed),
            Event::Close(_) => self.totals.closed.fetch_add(1, Ordering::Release),
        };
        next.run(context, event);
    }

    fn started(&self, control: &Control) {
        let totals = || Arc::clone(&self.totals);
        let [first, second, third] = [totals(), totals(), totals()];
        control.register_probe("connections", move || first.live());
        control.register_probe("total_connections", move || second.opened.load(Ordering::Relaxed));
        control.register_probe("total_messages", move || third.messages.load(Ordering::Relaxed));
    }
}

/// Upper bounds of the handling time's buckets, in microseconds.
const HANDLING_US_BOUNDS: [u64; 8] = [1, 5, 10, 50, 100, 1_000, 10_000, 100_000];

/// Measures how long what lies inside takes for a message, and how large messages are. Adds
/// `tidegate_handling_seconds` and `tidegate_payload_bytes_total` by kind to `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    measured: Arc<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    text_bytes: AtomicU64,
    binary_bytes: AtomicU64,
    handling_ns: AtomicU64,
    /// One for each bound, and one for all above.
    handling: [AtomicU64; HANDLING_US_BOUNDS.len() + 1],
}

impl Metrics {
    /// A layer that has measured nothing yet.
    pub fn new() -> Metrics {
        Metrics::default()
    }
}

impl Layer for Metrics {
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        let Event::Message(message) = event else {
            return next.run(context, event);
        };
        let by_kind = match message.kind {
            wire::Kind::Text => &self.measured.text_bytes,
            wire::Kind::Binary => &self.measured.binary_bytes,
        };
        by_kind.fetch_add(message.payload.len() as u64, Ordering::Relaxed);
        let start = Instant::now();
        next.run(context, event);
        let taken = start.elapsed();
        let us = taken.as_micros() as u64;
        let bucket = HANDLING_US_BOUNDS
            .iter()
            .position(|&bound| us <= bound)
            .unwrap_or(HANDLING_US_BOUNDS.len());
        self.measured.handling[bucket].fetch_add(1, Ordering::Relaxed);
        self.measured
            .handling_ns
            .fetch_add(taken.as_nanos() as u64, Ordering::Relaxed);
    }

    fn started(&self, control: &Control) {
        control.register_collector(Box::new(Exposed(Arc::clone(&self.measured))));
    }
}

/// What [`Metrics`] measured, as Prometheus reads it.
#[derive(Debug)]
struct Exposed(Arc<Measured>);

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Payload received, by kind of message";
        let mut metric =
            encoder.encode_descriptor("tidegate_payload", help, Some(&Unit::Bytes), MetricType::Counter)?;
        for (kind, bytes) in [("text", &self.0.text_bytes), ("binary", &self.0.binary_bytes)] {
            let labels = [("kind", kind)];
            ConstCounter::new(bytes.load(Ordering::Relaxed)).encode(metric.encode_family(&labels)?)?;
        }
        let help = "Time taken to handle one message, on the shard";
        let mut metric = encoder.encode_descriptor(
            "tidegate_handling",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        let bounds = HANDLING_US_BOUNDS
            .iter()
            .map(|&us| us as f64 / 1e6)
            .chain([f64::INFINITY]);
        let counts = self.0.handling.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = self.0.handling_ns.load(Ordering::Relaxed) as f64 / 1e9;
        metric.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}
