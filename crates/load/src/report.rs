//! What a run found, as a value: for the table, for `--json`, for `--html`.
//!
//! The JSON form is stable: fields are added, never renamed or removed without a new `schema` number. What could
//! not be measured is `null`.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use hdrhistogram::Histogram;
use reactor::DriverKind;
use serde::Serialize;

use crate::checker::Violations;
use crate::client::CLOSED_WITH;
use crate::findings::{Findings, Mark};
use crate::plan::{Format, Pace, Plan, Protocol, Scenario};
use crate::process::Memory;
use crate::stalled::StalledEnd;

/// The number of this form of the JSON.
const SCHEMA: u32 = 1;
/// Above this share of its CPU the loader may be what limits the run.
const LOADER_BUSY: f64 = 0.9;

/// Below this growth of the server's memory nothing is said of it for each connection: a server that had served
/// others before takes new ones into memory that it already has.
const GROWTH_BYTES_MIN: u64 = 1 << 20;
/// Nor with fewer connections, whose share the server's other needs would blur.
const MEMORY_CONNECTIONS_MIN: u64 = 1_000;

/// Percentiles of a time, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// The mean.
    pub mean: f64,
    /// Half were faster.
    pub p50: f64,
    /// 95 of 100 were faster.
    pub p95: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// 999 of 1,000 were faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// One storm of connects.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RoundReport {
    /// Connections opened.
    pub opened: u64,
    /// From the first dial to the last one open, seconds.
    pub seconds: f64,
    /// Server CPU for each, ns.
    pub server_cpu_ns_per_connect: Option<f64>,
}

/// A moment of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Since the measurement began (negative before it), seconds.
    pub t_s: f64,
    /// Deliveries a second since the point before.
    pub deliveries_per_s: f64,
    /// Server CPU since the point before, in cores.
    pub server_cpu_share: Option<f64>,
    /// Resident memory of the server.
    pub server_rss_bytes: Option<u64>,
}

/// The result of a run. Field names are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The number of this form.
    pub schema: u32,
    /// The version of the loader.
    pub loader_version: &'static str,
    /// `fanout`, `echo`, `idle`, `connect`, `churn` or `slow`.
    pub scenario: &'static str,
    /// The server's address.
    pub url: String,
    /// What clients spoke.
    pub protocol: Protocol,
    /// What carried the payload.
    pub format: Format,
    /// The loader's driver: `epoll` or `uring`.
    pub driver: String,
    /// Connections asked for.
    pub connections: u32,
    /// Of these, how many sent; 0 in scenarios without messages.
    pub senders: u32,
    /// Length of a payload, bytes.
    pub size: usize,
    /// Messages of one sender under way at a time, if that was the pace.
    pub in_flight: Option<u32>,
    /// Messages a second in all, if that was the pace.
    pub rate: Option<f64>,
    /// How long the measurement took, seconds.
    pub duration_s: f64,
    /// Messages sent while measuring.
    pub messages: u64,
    /// Messages received while measuring.
    pub deliveries: u64,
    /// The same for each second.
    pub deliveries_per_s: f64,
    /// Server CPU time for each delivery while measuring, ns.
    pub server_cpu_ns_per_delivery: Option<f64>,
    /// Server CPU time for each connection opened, ns; of `connect`, the median of the rounds.
    pub server_cpu_ns_per_connect: Option<f64>,
    /// Server CPU time over the measurement, in cores.
    pub server_cpu_share: Option<f64>,
    /// Growth of the server's resident memory by all connections, divided by their number. `None` also if the growth
    /// is below 1 MiB or of fewer than 1,000 connections, which tells nothing.
    pub server_rss_bytes_per_connection: Option<f64>,
    /// The same of its proportional memory.
    pub server_pss_bytes_per_connection: Option<f64>,
    /// Most resident memory seen.
    pub server_rss_bytes_max: Option<u64>,
    /// From send to receive; with a rate, from when the message was due.
    pub latency_us: Option<Percentiles>,
    /// From dial to open.
    pub connect_latency_us: Option<Percentiles>,
    /// CPU time of the loader's thread over the measurement, in cores.
    pub loader_cpu_share: Option<f64>,
    /// Connections opened, with those of `churn` and all rounds of `connect`.
    pub connections_opened: u64,
    /// Of them, how many the server ended before their time.
    pub connections_dropped: u64,
    /// Connections whose closing handshake did not end in time.
    pub connections_unclosed: u64,
    /// `churn`: connections that came and went as they should.
    pub guests_served: u64,
    /// `slow`: how many did not read.
    pub stalled: u32,
    /// `slow`: how many of these the server let go.
    pub stalled_dropped: Option<u64>,
    /// Messages that could not be sent at the rate.
    pub unsent: u64,
    /// What was wrong with deliveries.
    pub violations: Violations,
    /// Connections that failed, by reason.
    pub failures: BTreeMap<String, u64>,
    /// `connect`: the rounds.
    pub rounds: Vec<RoundReport>,
    /// True if nothing was wrong.
    pub passed: bool,
    /// What was wrong, one sentence each.
    pub errors: Vec<String>,
    /// What the reader should know, one sentence each.
    pub notes: Vec<String>,
    /// The latency at quantiles that come ever closer to 1: pairs of quantile and microseconds.
    pub latency_curve: Vec<(f64, f64)>,
    /// The run over time.
    pub series: Vec<Point>,
}

/// What a report is made of.
pub(crate) struct Evidence {
    pub(crate) findings: Findings,
    /// The server's memory before the first connection.
    pub(crate) memory_empty: Option<Memory>,
    pub(crate) driver: DriverKind,
    pub(crate) stalled_end: Option<StalledEnd>,
}

impl Report {
    pub(crate) fn new(plan: &Plan, evidence: Evidence) -> Report {
        let Evidence {
            findings,
            memory_empty,
            driver,
            stalled_end,
        } = evidence;
        let traffic = plan.scenario.traffic();
        let span = Span::new(&findings);
        let deliveries = findings.counts.deliveries;
        let held = u64::from(plan.stalled()) + findings.members_full;
        let (resident, proportional) = memory_growth(memory_empty, findings.memory_full, held);
        let rounds = rounds(&findings);
        let mut report = Report {
            schema: SCHEMA,
            loader_version: env!("CARGO_PKG_VERSION"),
            scenario: plan.scenario.name(),
            url: plan.target.to_string(),
            protocol: plan.protocol,
            format: plan.format,
            driver: driver.to_string(),
            connections: plan.connections,
            senders: traffic.map_or(0, |traffic| traffic.senders),
            size: plan.size,
            in_flight: traffic.and_then(|traffic| match traffic.pace {
                Pace::InFlight(window) => Some(window),
                Pace::Rate(_) => None,
            }),
            rate: traffic.and_then(|traffic| match traffic.pace {
                Pace::InFlight(_) => None,
                Pace::Rate(rate) => Some(rate),
            }),
            duration_s: span.seconds,
            messages: findings.counts.sent,
            deliveries,
            deliveries_per_s: if span.seconds > 0.0 {
                deliveries as f64 / span.seconds
            } else {
                0.0
            },
            server_cpu_ns_per_delivery: span
                .server_cpu_ns
                .filter(|_| deliveries > 0)
                .map(|cpu_ns| cpu_ns / deliveries as f64),
            server_cpu_ns_per_connect: median(
                rounds
                    .iter()
                    .filter_map(|round| round.server_cpu_ns_per_connect)
                    .collect(),
            ),
            server_cpu_share: span.server_cpu_ns.map(|cpu_ns| cpu_ns / 1e9 / span.seconds),
            server_rss_bytes_per_connection: resident,
            server_pss_bytes_per_connection: proportional,
            server_rss_bytes_max: findings
                .series
                .iter()
                .filter_map(|mark| mark.sample.server_rss_bytes)
                .max(),
            latency_us: percentiles(&findings.latency),
            connect_latency_us: percentiles(&findings.connect_latency),
            loader_cpu_share: span.loader_cpu_share,
            connections_opened: findings.opened,
            connections_dropped: findings.dropped,
            connections_unclosed: findings.unclosed,
            guests_served: findings.guests_served,
            stalled: plan.stalled(),
            stalled_dropped: stalled_end.map(|end| end.dropped),
            unsent: findings.counts.unsent,
            violations: findings.violations,
            rounds,
            passed: false,
            errors: Vec::new(),
            notes: Vec::new(),
            latency_curve: curve(&findings.latency),
            series: series(&findings),
            failures: findings.failures,
        };
        report.judge(plan, findings.broke);
        if let Some(end) = stalled_end {
            let sent = findings.counts.deliveries_ever / u64::from(plan.members() - 1).max(1);
            report.note_stalled(end, sent);
        }
        report
    }

    /// Says what was wrong and what is worth knowing.
    fn judge(&mut self, plan: &Plan, broke: Option<String>) {
        self.errors = causes(&self.failures, broke, self.connections_dropped > 0);
        let violations = self.violations;
        if violations.total() > 0 {
            self.errors.push(format!(
                "deliveries were wrong: {} lost, {} doubled, {} reordered, {} malformed, {} misdirected",
                violations.lost,
                violations.doubled,
                violations.reordered,
                violations.malformed,
                violations.misdirected
            ));
        }
        if self.unsent > 0 {
            self.errors.push(format!(
                "{} messages could not be sent: the server does not take {} a second",
                self.unsent,
                self.rate.unwrap_or(0.0)
            ));
        }
        if self.errors.is_empty() && plan.scenario.traffic().is_some() && self.deliveries == 0 {
            self.errors
                .push("no message was delivered while measuring".to_owned());
        }
        self.passed = self.errors.is_empty();
        if plan.server_pid.is_none() {
            self.notes
                .push("server CPU and memory are unknown: give --server-pid".to_owned());
        } else if self.duration_s > 0.0 && self.server_cpu_share.is_none() {
            self.notes
                .push("server CPU could not be read: the process ended or hides it".to_owned());
        }
        if let Some(share) = self.loader_cpu_share.filter(|share| *share > LOADER_BUSY)
            && !matches!(plan.scenario, Scenario::Connect { .. })
        {
            self.notes.push(format!(
                "the loader used {:.0}% of its core: it may limit deliveries per second and latency, but not server \
                 CPU for each delivery",
                share * 100.0
            ));
        }
        if self.connections_unclosed > 0 {
            self.notes.push(format!(
                "{} connections did not end their closing handshake in time and were cut",
                self.connections_unclosed
            ));
        }
    }

    /// Says so if nobody got stuck: the run then tells nothing of slow readers. `sent` messages went to each.
    fn note_stalled(&mut self, end: StalledEnd, sent: u64) {
        let all_bytes = sent * self.size as u64 * u64::from(self.stalled);
        if sent > 0 && end.dropped == 0 && self.connections_dropped == 0 && end.received_bytes >= all_bytes {
            self.notes.push(
                "no reader filled up: the server dropped no message and disconnected nobody; give a longer --duration \
                 or a larger --size"
                    .to_owned(),
            );
        }
    }

    /// What was wrong in one line, or `None` if nothing.
    pub fn verdict(&self) -> Option<String> {
        (!self.passed).then(|| self.errors.join("; "))
    }

    /// The JSON form, indented.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has string keys and finite numbers only")
    }
}

/// Why connections failed and the run ended, the cause before what came of it: a server that ended open connections is
/// why the rest went wrong, above all if it said so with a code. Why none opened at all, `broke` tells best.
fn causes(failures: &BTreeMap<String, u64>, broke: Option<String>, dropped: bool) -> Vec<String> {
    let mut reasons: Vec<_> = failures.iter().collect();
    reasons.sort_by_key(|(reason, _)| !reason.starts_with(CLOSED_WITH));
    let failed = reasons
        .into_iter()
        .map(|(reason, count)| format!("failed connections: {count} ({reason})"));
    if dropped {
        failed.chain(broke).collect()
    } else {
        broke.into_iter().chain(failed).collect()
    }
}

/// The measurement from its begin to its end.
struct Span {
    seconds: f64,
    server_cpu_ns: Option<f64>,
    loader_cpu_share: Option<f64>,
}

impl Span {
    fn new(findings: &Findings) -> Span {
        let (Some(begin), Some(end)) = (findings.begin, findings.end) else {
            return Span {
                seconds: 0.0,
                server_cpu_ns: None,
                loader_cpu_share: None,
            };
        };
        let wall_ns = (end.at_ns - begin.at_ns).max(1) as f64;
        let loader_ns = difference(begin.sample.loader_cpu_ns, end.sample.loader_cpu_ns);
        // Turns that only waited for a message to become due are no work.
        let polling_ns = (end.polling_cpu_ns - begin.polling_cpu_ns) as f64;
        Span {
            seconds: wall_ns / 1e9,
            server_cpu_ns: difference(begin.sample.server_cpu_ns, end.sample.server_cpu_ns),
            loader_cpu_share: loader_ns.map(|cpu_ns| (cpu_ns - polling_ns).max(0.0) / wall_ns),
        }
    }
}

/// Growth of resident and proportional memory for each of `held` connections, where it tells something.
fn memory_growth(before: Option<Memory>, after: Option<Memory>, held: u64) -> (Option<f64>, Option<f64>) {
    let Some((before, after)) = before.zip(after) else {
        return (None, None);
    };
    let resident_bytes = after.resident_bytes.saturating_sub(before.resident_bytes);
    if held < MEMORY_CONNECTIONS_MIN || resident_bytes < GROWTH_BYTES_MIN {
        return (None, None);
    }
    let proportional = difference(before.proportional_bytes, after.proportional_bytes);
    (
        Some(resident_bytes as f64 / held as f64),
        proportional.map(|bytes| bytes / held as f64),
    )
}

fn difference(before: Option<u64>, after: Option<u64>) -> Option<f64> {
    before
        .zip(after)
        .map(|(before, after)| after.saturating_sub(before) as f64)
}

fn rounds(findings: &Findings) -> Vec<RoundReport> {
    findings
        .rounds
        .iter()
        .map(|round| RoundReport {
            opened: round.opened,
            seconds: round.wall_ns as f64 / 1e9,
            server_cpu_ns_per_connect: round
                .server_cpu_ns
                .map(|cpu_ns| cpu_ns as f64 / round.opened.max(1) as f64),
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The percentiles of a histogram in ns.
fn percentiles(histogram: &Histogram<u64>) -> Option<Percentiles> {
    if histogram.is_empty() {
        return None;
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Some(Percentiles {
        mean: histogram.mean() / 1e3,
        p50: at(0.5),
        p95: at(0.95),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max() as f64 / 1e3,
    })
}

fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    histogram
        .iter_quantiles(5)
        .map(|step| (step.quantile(), step.value_iterated_to() as f64 / 1e3))
        .take_while(|(quantile, _)| *quantile < 1.0)
        .collect()
}

fn series(findings: &Findings) -> Vec<Point> {
    let origin_ns = findings.begin.map_or(0, |mark| mark.at_ns) as f64;
    let point = |pair: &[Mark]| {
        let [before, after] = pair else { return None };
        let wall_ns = (after.at_ns - before.at_ns).max(1) as f64;
        Some(Point {
            t_s: (after.at_ns as f64 - origin_ns) / 1e9,
            deliveries_per_s: (after.deliveries - before.deliveries) as f64 / wall_ns * 1e9,
            server_cpu_share: difference(before.sample.server_cpu_ns, after.sample.server_cpu_ns)
                .map(|cpu_ns| cpu_ns / wall_ns),
            server_rss_bytes: after.sample.server_rss_bytes,
        })
    };
    findings.series.windows(2).filter_map(point).collect()
}

/// The table for people.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.rows() {
            writeln!(formatter, "{name:<22} {value}")?;
        }
        for error in &self.errors {
            writeln!(formatter, "FAILED: {error}")?;
        }
        for note in &self.notes {
            writeln!(formatter, "note: {note}")?;
        }
        Ok(())
    }
}

impl Report {
    /// What the table says: names and values, without those that do not matter here.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("scenario", format!("{} on {}", self.scenario, self.url))];
        let mut connections = format!("{} asked, {} opened", self.connections, self.connections_opened);
        if self.connections_dropped > 0 {
            let _ = write!(connections, ", {} dropped", self.connections_dropped);
        }
        if self.stalled > 0 {
            let _ = write!(connections, ", {} more stopped reading on purpose", self.stalled);
        }
        rows.push(("connections", connections));
        if let Some(times) = self.connect_latency_us {
            rows.push(("connect latency", times.to_string()));
        }
        for (number, round) in self.rounds.iter().enumerate().filter(|_| self.rounds.len() > 1) {
            let cpu = round.server_cpu_ns_per_connect.map_or(String::new(), |ns| {
                format!(", {} server CPU each", time(ns / 1e3))
            });
            rows.push((
                "round",
                format!("{}: {} in {:.2} s{cpu}", number + 1, round.opened, round.seconds),
            ));
        }
        if self.senders > 0 {
            self.traffic_rows(&mut rows);
        }
        if self.scenario == "churn" {
            rows.push(("came and went", format!("{} connections", self.guests_served)));
        }
        if let Some(dropped) = self.stalled_dropped {
            rows.push((
                "stalled readers",
                format!("{}, of which the server let go {dropped}", self.stalled),
            ));
        }
        let per_delivery = self
            .server_cpu_ns_per_delivery
            .map(|ns| ("CPU for a delivery", time(ns / 1e3)));
        let per_connect = self
            .server_cpu_ns_per_connect
            .map(|ns| ("CPU for a connect", time(ns / 1e3)));
        let share = self.server_cpu_share.map(|share| ("server CPU", cores(share)));
        let memory = self.memory_for_each().map(|text| ("memory for each", text));
        let memory_max = self
            .server_rss_bytes_max
            .map(|bytes| ("server memory", format!("{} at most", size(bytes as f64))));
        let loader = self
            .loader_cpu_share
            .map(|share| ("loader CPU", format!("{} ({})", cores(share), self.driver)));
        rows.extend(
            [per_delivery, per_connect, share, memory, memory_max, loader]
                .into_iter()
                .flatten(),
        );
        rows
    }

    /// The server's memory for a connection, or why it is not known, where that is of interest.
    fn memory_for_each(&self) -> Option<String> {
        if let Some(bytes) = self.server_rss_bytes_per_connection {
            let proportional = self
                .server_pss_bytes_per_connection
                .map_or(String::new(), |pss| format!(" ({} proportional)", size(pss)));
            return Some(format!("{} resident{proportional}", size(bytes)));
        }
        self.server_rss_bytes_max?;
        if u64::from(self.connections) >= MEMORY_CONNECTIONS_MIN {
            Some("not measurable: start the server anew".to_owned())
        } else if self.scenario == "idle" {
            Some("not measurable: open 1,000 connections or more".to_owned())
        } else {
            None
        }
    }

    fn traffic_rows(&self, rows: &mut Vec<(&'static str, String)>) {
        let pace = match (self.in_flight, self.rate) {
            (Some(window), _) => format!("{window} in flight each"),
            (_, Some(rate)) => format!("{rate} messages/s in all"),
            _ => String::new(),
        };
        rows.push((
            "senders",
            format!("{}, {} bytes, {pace}", self.senders, self.size),
        ));
        if self.duration_s == 0.0 {
            return;
        }
        rows.push((
            "measured",
            format!("{:.2} s, {} messages sent", self.duration_s, self.messages),
        ));
        rows.push((
            "deliveries",
            format!("{} ({:.0}/s)", self.deliveries, self.deliveries_per_s),
        ));
        if let Some(times) = self.latency_us {
            rows.push(("latency", times.to_string()));
        }
        let wrong = match self.violations.total() {
            0 => "none: all in order, once, whole".to_owned(),
            total => format!("{total}"),
        };
        rows.push(("violations", wrong));
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "P50 {}  P95 {}  P99 {}  P99.9 {}  max {}",
            time(self.p50),
            time(self.p95),
            time(self.p99),
            time(self.p999),
            time(self.max)
        )
    }
}

/// A time given in us, in the unit that suits it.
fn time(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.2} us"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// A share of a core. What is above 0 is never said to be 0.
fn cores(share: f64) -> String {
    if share > 0.0 && share < 0.0005 {
        "below 0.1% of a core".to_owned()
    } else {
        format!("{:.1}% of a core", share * 100.0)
    }
}

/// A size in the unit that suits it.
fn size(bytes: f64) -> String {
    match bytes {
        ..10_240.0 => format!("{bytes:.0} B"),
        ..1_048_576.0 => format!("{:.1} KiB", bytes / 1024.0),
        _ => format!("{:.1} MiB", bytes / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(resident_bytes: u64) -> Option<Memory> {
        Some(Memory {
            resident_bytes,
            proportional_bytes: None,
        })
    }

    #[test]
    fn memory_for_each_is_told_where_growth_tells_something() {
        let start = 20 << 20;
        let grown = |bytes: u64, held| memory_growth(memory(start), memory(start + bytes), held).0;
        assert_eq!(grown(400 * 16_000, 16_000), Some(400.0));
        assert_eq!(grown(GROWTH_BYTES_MIN, 1_000), Some(1_048.576));
        assert_eq!(grown(0, 16_000), None);
        assert_eq!(grown(GROWTH_BYTES_MIN - 1, 16_000), None);
        assert_eq!(grown(100 << 20, 999), None);
        assert_eq!(memory_growth(memory(start), memory(start / 2), 16_000).0, None);
    }

    #[test]
    fn the_verdict_begins_with_the_cause() {
        let failures = BTreeMap::from([
            ("connection reset or refused".to_owned(), 7),
            (format!("{CLOSED_WITH}1009"), 1),
        ]);
        let broke = Some("the server does not fan out".to_owned());
        let lines = causes(&failures, broke.clone(), true);
        assert_eq!(lines[0], "failed connections: 1 (server closed with 1009)");
        assert_eq!(lines[2], "the server does not fan out");
        assert_eq!(causes(&failures, broke, false)[0], "the server does not fan out");
    }

    #[test]
    fn figures_have_the_unit_that_suits_them() {
        assert_eq!(size(400.0), "400 B");
        assert_eq!(size(20_480.0), "20.0 KiB");
        assert_eq!(size(7_376_896.0), "7.0 MiB");
        assert_eq!(cores(0.0001), "below 0.1% of a core");
        assert_eq!(cores(0.148), "14.8% of a core");
    }
}
