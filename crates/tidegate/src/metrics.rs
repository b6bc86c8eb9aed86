//! `/metrics`: all that is counted, as Prometheus reads it. Names are `tidegate_*` with base units.

use std::fmt;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::control::Control;
use crate::http::HttpStats;
use crate::process;
use crate::stats::{ShardStats, Stats};

/// The two forms that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposition {
    /// The classic text, for whoever did not ask for the other.
    Classic,
    OpenMetrics,
}

impl Exposition {
    /// What the values of the header `Accept` ask for.
    pub(crate) fn accepted<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Exposition {
        let asked = |value: &[u8]| {
            String::from_utf8_lossy(value)
                .to_ascii_lowercase()
                .contains("application/openmetrics-text")
        };
        match values.into_iter().any(asked) {
            true => Exposition::OpenMetrics,
            false => Exposition::Classic,
        }
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Exposition::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Upper bounds of the buckets of a turn's length, in microseconds.
const TURN_US_BOUNDS: [u64; 10] = [10, 50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];

/// Everything, as one text. Waits for the shards: not on the thread that serves HTTP.
pub(crate) fn text(control: &Control, http: HttpStats, exposition: Exposition) -> String {
    let mut own = Registry::default();
    own.register_collector(Box::new(Snapshot {
        stats: control.stats(),
        http,
    }));
    let mut text = String::new();
    encode(&mut text, &own).expect("a String takes all that is written");
    // Both texts end with the mark of the end, which may come only once.
    let end = text.len() - "# EOF\n".len();
    text.truncate(end);
    control
        .with_registry(|registry| encode(&mut text, registry))
        .expect("a String takes all that is written");
    match exposition {
        Exposition::Classic => classic(&text),
        Exposition::OpenMetrics => text,
    }
}

/// OpenMetrics in the classic form: there a family of counters is named as its samples are, units are part of names only, and
/// the end is not marked.
fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(named) = line.strip_prefix("# HELP ") {
            help = named;
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|named| named.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            let help = help.strip_prefix(name).unwrap_or_default();
            text.push_str(&format!(
                "# HELP {name}{suffix}{help}\n# TYPE {name}{suffix} {kind}\n"
            ));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[derive(Debug)]
struct Snapshot {
    stats: Stats,
    http: HttpStats,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Out(encoder);
        self.connections(&mut out)?;
        self.traffic(&mut out)?;
        self.drops(&mut out)?;
        self.turns(&mut out)?;
        self.upgrades(&mut out)?;
        process(&mut out)
    }
}

impl Snapshot {
    /// Values of a family with one label set `shard` each.
    fn by_shard(&self, value: impl Fn(&ShardStats) -> u64) -> Vec<(Vec<(&'static str, String)>, u64)> {
        let labelled = |stats: &ShardStats| (vec![("shard", stats.shard.to_string())], value(stats));
        self.stats.shards.iter().map(labelled).collect()
    }

    /// Values of a family with labels `shard` and another.
    fn by_shard_and<'a, I: IntoIterator<Item = (&'static str, u64)>>(
        &'a self,
        label: &'static str,
        values: impl Fn(&'a ShardStats) -> I,
    ) -> Vec<(Vec<(&'static str, String)>, u64)> {
        let mut labelled = Vec::new();
        for stats in &self.stats.shards {
            for (name, value) in values(stats) {
                labelled.push((
                    vec![("shard", stats.shard.to_string()), (label, name.to_owned())],
                    value,
                ));
            }
        }
        labelled
    }

    fn connections(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauges(
            "tidegate_connections",
            "Open connections",
            &self.by_shard(|stats| stats.connections as u64),
        )?;
        out.counters(
            "tidegate_opened",
            "Connections opened",
            None,
            &self.by_shard(|stats| stats.counters.opened),
        )?;
        let closed = self.by_shard_and("reason", |stats| stats.counters.closed.clone());
        out.counters("tidegate_closed", "Connections ended, by reason", None, &closed)?;
        let violations = self.by_shard_and("reason", |stats| {
            wire::Violation::ALL.map(|violation| {
                let count = stats.counters.violations.get(violation.name());
                (violation.name(), count.copied().unwrap_or(0))
            })
        });
        out.counters(
            "tidegate_violations",
            "Connections ended for breaking the protocol, by rule",
            None,
            &violations,
        )?;
        let timeouts = self.by_shard(|stats| stats.counters.close_timeouts);
        out.counters(
            "tidegate_close_timeouts",
            "Sockets cut because the close handshake did not end",
            None,
            &timeouts,
        )
    }

    fn traffic(&self, out: &mut Out<'_>) -> fmt::Result {
        let directions = |received: u64, sent: u64| [("in", received), ("out", sent)];
        let messages = self.by_shard_and("direction", |stats| {
            directions(stats.counters.messages_in, stats.counters.messages_out)
        });
        out.counters(
            "tidegate_messages",
            "Messages received, and handed out (one for each receiver)",
            None,
            &messages,
        )?;
        let bytes = self.by_shard_and("direction", |stats| {
            directions(stats.counters.bytes_in, stats.counters.bytes_out)
        });
        out.counters(
            "tidegate_traffic",
            "WebSocket bytes received and handed out",
            Some(Unit::Bytes),
            &bytes,
        )?;
        let pings = self.by_shard_and("direction", |stats| {
            directions(stats.counters.pings_in, stats.counters.pings_out)
        });
        out.counters(
            "tidegate_pings",
            "Pings received, and sent by the heartbeat",
            None,
            &pings,
        )?;
        out.counters(
            "tidegate_pongs",
            "Pongs received",
            None,
            &self.by_shard(|stats| stats.counters.pongs_in),
        )
    }

    fn drops(&self, out: &mut Out<'_>) -> fmt::Result {
        let dropped = self.by_shard_and("reason", |stats| {
            [
                ("oldest", stats.counters.dropped_oldest),
                ("newest", stats.counters.dropped_newest),
                ("conflated", stats.counters.conflated),
                ("closed", stats.counters.dropped_closed),
            ]
        });
        out.counters(
            "tidegate_dropped",
            "Messages that did not reach a connection, by reason",
            None,
            &dropped,
        )?;
        let skipped = self.by_shard(|stats| stats.counters.pongs_skipped);
        out.counters(
            "tidegate_pongs_skipped",
            "Pings left unanswered for a newer one",
            None,
            &skipped,
        )
    }

    fn turns(&self, out: &mut Out<'_>) -> fmt::Result {
        out.counters(
            "tidegate_turns",
            "Turns of a shard's loop",
            None,
            &self.by_shard(|stats| stats.turns.turns),
        )?;
        let writes = self.by_shard(|stats| stats.turns.writes);
        out.counters("tidegate_writes", "Writes to sockets", None, &writes)?;
        let reads = self.by_shard(|stats| stats.turns.reads);
        out.counters(
            "tidegate_reads",
            "Reads from sockets that brought bytes",
            None,
            &reads,
        )?;
        let pending = self.by_shard(|stats| stats.counters.writes_pending);
        out.counters(
            "tidegate_writes_pending",
            "Writes that the peer's window could not take at once",
            None,
            &pending,
        )?;
        let inbox = self.by_shard(|stats| stats.turns.inbox_depth as u64);
        out.gauges("tidegate_inbox_depth", "Letters of other threads waiting", &inbox)?;
        let held = self.by_shard(|stats| stats.turns.mails_held as u64);
        out.gauges(
            "tidegate_mails_held",
            "Mails to other shards waiting for room",
            &held,
        )?;
        let held = self.by_shard(|stats| stats.turns.mail_bytes_held as u64);
        out.gauges(
            "tidegate_mail_held_bytes",
            "Size of the mails to other shards that wait for room",
            &held,
        )?;
        let help = "Time a turn took, from waking to the next wait";
        let unit = Unit::Seconds;
        let mut metric =
            out.0
                .encode_descriptor("tidegate_turn", help, Some(&unit), MetricType::Histogram)?;
        for stats in &self.stats.shards {
            let labels = [("shard", stats.shard.to_string())];
            let buckets = buckets(&stats.turns.turn_us);
            let mut family = metric.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(
                stats.turns.busy.as_secs_f64(),
                stats.turns.turns,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn upgrades(&self, out: &mut Out<'_>) -> fmt::Result {
        let http = &self.http;
        out.counter(
            "tidegate_upgrades",
            "Connections upgraded and handed to a shard",
            http.upgrades,
        )?;
        let refused: Vec<_> = http
            .refusals
            .iter()
            .map(|(&reason, &count)| ([("reason", reason)], count))
            .collect();
        out.counters(
            "tidegate_upgrades_refused",
            "Handshakes that led to no connection, by reason",
            None,
            &refused,
        )?;
        let help = "Failures to accept a connection, such as too few file descriptors";
        out.counter("tidegate_accept_errors", help, http.accept_errors)?;
        out.counter(
            "tidegate_handshakes_full",
            "Times that connections had to wait because as many as may speak HTTP did",
            http.handshakes_full,
        )?;
        let help = "Connections that still speak HTTP or TLS handshake";
        out.gauge("tidegate_handshakes", help, http.handshakes as u64)?;
        out.gauge(
            "tidegate_draining",
            "1 while the server shuts down",
            u64::from(http.draining),
        )
    }
}

fn process(out: &mut Out<'_>) -> fmt::Result {
    if let Some(time) = process::cpu_time() {
        let help = "CPU time of the process, user and system";
        let metric = out.0.encode_descriptor(
            "tidegate_process_cpu",
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        ConstCounter::new(time.as_secs_f64()).encode(metric)?;
    }
    if let Some(bytes) = process::resident_bytes() {
        out.gauge(
            "tidegate_process_resident_bytes",
            "Resident memory of the process",
            bytes,
        )?;
    }
    if let Some(count) = process::open_descriptors() {
        out.gauge("tidegate_process_open_fds", "Open file descriptors", count)?;
    }
    Ok(())
}

/// The histogram's counts between [`TURN_US_BOUNDS`], in seconds, and all above.
fn buckets(turn_us: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut buckets = Vec::with_capacity(TURN_US_BOUNDS.len() + 1);
    let mut below = 0;
    for bound in TURN_US_BOUNDS {
        buckets.push((bound as f64 / 1e6, turn_us.count_between(below, bound)));
        below = bound + 1;
    }
    buckets.push((
        f64::INFINITY,
        turn_us.count_between(below, turn_us.high().max(below)),
    ));
    buckets
}

/// Writes whole families.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        values: &[(impl EncodeLabelSet, u64)],
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(*value).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn gauges(&mut self, name: &str, help: &str, values: &[(impl EncodeLabelSet, u64)]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }
}
