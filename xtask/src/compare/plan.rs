//! The kinds of which a comparison is made: servers, metrics, targets, rows, experiments.

use crate::peers::Peer;

/// A server under measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `tidegate broadcast --workers 1`.
    Tidegate,
    /// The same with `--flush-delay 2ms`.
    TidegateDelayed,
    /// The same over TLS.
    TidegateTls,
    /// `tidegate broadcast --workers 2` on two CPUs.
    TidegateTwoWorkers,
    /// `tidegate bench limit`: the bare gathering loop.
    Limit,
    /// A server of someone else's.
    Peer(Peer),
}

impl Subject {
    /// Its name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Tidegate => "tidegate",
            Subject::TidegateDelayed => "tidegate --flush-delay 2ms",
            Subject::TidegateTls => "tidegate, TLS",
            Subject::TidegateTwoWorkers => "tidegate --workers 2",
            Subject::Limit => "bare loop",
            Subject::Peer(peer) => peer.name(),
        }
    }

    /// The CPUs it may run on; the loader has [`LOADER_CPU`].
    pub fn cpus(self) -> &'static str {
        match self {
            Subject::TidegateTwoWorkers => "0,1",
            _ => "0",
        }
    }
}

/// The CPU of the load generator.
pub const LOADER_CPU: &str = "1";

/// What is read from a measurement, and judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Server CPU for each delivery, in ns.
    CpuPerDelivery,
    /// Server CPU for each connect, in ns.
    CpuPerConnect,
    /// Growth of the server's resident memory for each connection, in bytes.
    MemoryPerConnection,
    /// The server's share of one core; 1 is a whole one.
    CpuShare,
}

impl Metric {
    /// Where the load generator's result holds it.
    pub fn field(self) -> &'static str {
        match self {
            Metric::CpuPerDelivery => "server_cpu_ns_per_delivery",
            Metric::CpuPerConnect => "server_cpu_ns_per_connect",
            Metric::MemoryPerConnection => "server_rss_bytes_per_connection",
            Metric::CpuShare => "server_cpu_share",
        }
    }

    /// A value without its unit.
    pub fn number(self, value: f64) -> String {
        match self {
            Metric::CpuPerDelivery => format!("{:.3}", value / 1e3),
            Metric::CpuPerConnect => format!("{:.1}", value / 1e3),
            Metric::MemoryPerConnection => format!("{value:.0}"),
            Metric::CpuShare => format!("{:.2}", value * 100.0),
        }
    }

    /// The unit of [`Metric::number`].
    pub fn unit(self) -> &'static str {
        match self {
            Metric::CpuPerDelivery => "us a delivery",
            Metric::CpuPerConnect => "us a connect",
            Metric::MemoryPerConnection => "bytes a connection",
            Metric::CpuShare => "% of a core",
        }
    }

    /// A value with its unit.
    pub fn show(self, value: f64) -> String {
        format!("{} {}", self.number(value), self.unit())
    }
}

/// What a row demands of its figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Nothing: for the reader.
    None,
}

impl Target {
    /// Whether the figure reaches it.
    pub fn is_met(self, figure: f64) -> bool {
        match self {
            Target::AtMost(bound) => figure <= bound,
            Target::AtLeast(bound) => figure >= bound,
            Target::None => true,
        }
    }
}

/// One row of the closing table: the ratio of two subjects in one experiment, or the figure of one.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What stands in the table.
    pub text: &'static str,
    /// Whose figure is judged.
    pub subject: Subject,
    /// By whose figure it is divided, run by run; without one the figure itself is judged.
    pub divided_by: Option<Subject>,
    /// What is demanded of it.
    pub target: Target,
    /// The subject's P99 latency must also stay below this, in us.
    pub p99_us_max: Option<f64>,
}

impl Row {
    /// `subject` against `other`, at most `bound` times as much.
    pub const fn at_most(text: &'static str, subject: Subject, other: Subject, bound: f64) -> Row {
        Row {
            text,
            subject,
            divided_by: Some(other),
            target: Target::AtMost(bound),
            p99_us_max: None,
        }
    }

    /// `subject` against `other`, at least `bound` times as much.
    pub const fn at_least(text: &'static str, subject: Subject, other: Subject, bound: f64) -> Row {
        Row {
            text,
            subject,
            divided_by: Some(other),
            target: Target::AtLeast(bound),
            p99_us_max: None,
        }
    }

    /// The figure of `subject` itself.
    pub const fn figure(text: &'static str, subject: Subject, bound: f64) -> Row {
        Row {
            text,
            subject,
            divided_by: None,
            target: Target::AtMost(bound),
            p99_us_max: None,
        }
    }

    /// `subject` against `other`, for the reader.
    pub const fn to_know(text: &'static str, subject: Subject, other: Subject) -> Row {
        Row {
            text,
            subject,
            divided_by: Some(other),
            target: Target::None,
            p99_us_max: None,
        }
    }
}

/// One load, the servers it is put to in turn, and what is made of their figures.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// Its name for `--only`.
    pub id: &'static str,
    /// Scenario and options of the load generator, without length and target.
    pub load: &'static [&'static str],
    /// Seconds of measurement, but for a quick run: see [`Experiment::seconds`].
    pub seconds_full: u32,
    /// Runs at most: what is slow and steady needs fewer.
    pub runs_max: usize,
    /// What is read from it.
    pub metric: Metric,
    /// Who is measured.
    pub subjects: &'static [Subject],
    /// What is judged.
    pub rows: &'static [Row],
}

impl Experiment {
    /// Seconds of measurement.
    pub fn seconds(&self, quick: bool) -> u32 {
        if quick {
            self.seconds_full.min(2)
        } else {
            self.seconds_full
        }
    }

    /// Whether the load generator takes a length for this scenario.
    pub fn has_duration(&self) -> bool {
        self.load[0] != "connect"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_include_themselves() {
        assert!(Target::AtMost(1.15).is_met(1.15) && !Target::AtMost(1.15).is_met(1.16));
        assert!(Target::AtLeast(8.0).is_met(8.0) && !Target::AtLeast(8.0).is_met(7.99));
        assert!(Target::None.is_met(f64::MAX));
    }
}
