//! What a comparison measures, in the order of its table.

use super::plan::Subject::{self, Limit, Tidegate, TidegateDelayed, TidegateTls, TidegateTwoWorkers};
use super::plan::{Experiment, Metric, Row};
use crate::peers::Peer;

const WS: Subject = Subject::Peer(Peer::Ws);
const SOCKET_IO: Subject = Subject::Peer(Peer::SocketIo);
const TUNGSTENITE: Subject = Subject::Peer(Peer::Tungstenite);

/// A fan-out of 128 bytes among 1,000 with this many messages in flight.
macro_rules! fanout {
    ($in_flight:literal) => {
        &[
            "fanout",
            "--connections",
            "1000",
            "--size",
            "128",
            "--in-flight",
            $in_flight,
        ]
    };
}

/// 100 senders to 100 connections at 2,000 messages a second in all.
const SENDERS: &[&str] = &[
    "fanout",
    "--connections",
    "100",
    "--senders",
    "100",
    "--size",
    "128",
    "--rate",
    "2000",
];

/// Every experiment, in the order of the table.
pub const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        id: "fanout-1",
        load: fanout!("1"),
        seconds_full: 5,
        runs_max: usize::MAX,
        metric: Metric::CpuPerDelivery,
        subjects: &[Limit, Tidegate, WS, SOCKET_IO, TUNGSTENITE],
        rows: &[
            Row::at_most(
                "1,000 connections, 128 bytes, 1 in flight: Tidegate / bare loop",
                Tidegate,
                Limit,
                1.15,
            ),
            Row::at_least("the same: ws / Tidegate", WS, Tidegate, 1.6),
            Row::to_know("the same: Socket.IO / Tidegate", SOCKET_IO, Tidegate),
            Row::to_know("the same: tokio-tungstenite / Tidegate", TUNGSTENITE, Tidegate),
        ],
    },
    Experiment {
        id: "fanout-8",
        load: fanout!("8"),
        seconds_full: 5,
        runs_max: usize::MAX,
        metric: Metric::CpuPerDelivery,
        subjects: &[Limit, Tidegate, WS, SOCKET_IO, TUNGSTENITE],
        rows: &[
            Row::at_most("8 in flight: Tidegate / bare loop", Tidegate, Limit, 1.20),
            Row::at_least("8 in flight: ws / Tidegate", WS, Tidegate, 8.0),
            Row::to_know("8 in flight: Socket.IO / Tidegate", SOCKET_IO, Tidegate),
            Row::to_know("8 in flight: tokio-tungstenite / Tidegate", TUNGSTENITE, Tidegate),
        ],
    },
    Experiment {
        id: "fanout-32",
        load: fanout!("32"),
        seconds_full: 5,
        runs_max: usize::MAX,
        metric: Metric::CpuPerDelivery,
        subjects: &[Limit, Tidegate],
        rows: &[Row::at_most(
            "32 in flight: Tidegate / bare loop",
            Tidegate,
            Limit,
            1.30,
        )],
    },
    Experiment {
        id: "fanout-16k",
        load: &[
            "fanout",
            "--connections",
            "16000",
            "--size",
            "128",
            "--in-flight",
            "1",
        ],
        seconds_full: 8,
        runs_max: usize::MAX,
        metric: Metric::CpuPerDelivery,
        subjects: &[Limit, Tidegate, WS],
        rows: &[
            Row::at_most(
                "16,000 connections, 1 in flight: Tidegate / bare loop",
                Tidegate,
                Limit,
                1.15,
            ),
            Row::to_know("the same: ws / Tidegate", WS, Tidegate),
        ],
    },
    Experiment {
        id: "senders-100",
        load: SENDERS,
        seconds_full: 5,
        runs_max: usize::MAX,
        metric: Metric::CpuPerDelivery,
        subjects: &[Limit, Tidegate, TidegateDelayed, WS],
        rows: &[
            Row::at_most(
                "100 senders to 100, 2,000 messages a second: Tidegate / bare loop",
                Tidegate,
                Limit,
                1.20,
            ),
            Row {
                p99_us_max: Some(6_000.0),
                ..Row::at_most(
                    "the same, --flush-delay 2ms, P99 under 6 ms: Tidegate / bare loop",
                    TidegateDelayed,
                    Limit,
                    0.45,
                )
            },
            Row::to_know("the same: ws / Tidegate", WS, Tidegate),
        ],
    },
    Experiment {
        id: "storm",
        load: &["connect", "--connections", "16000"],
        seconds_full: 0,
        runs_max: usize::MAX,
        metric: Metric::CpuPerConnect,
        subjects: &[Tidegate, WS],
        rows: &[Row::at_most(
            "upgrade storm, 16,000 connections: Tidegate / ws",
            Tidegate,
            WS,
            0.8,
        )],
    },
    Experiment {
        id: "memory",
        load: &["idle", "--connections", "16000"],
        seconds_full: 3,
        runs_max: 3,
        metric: Metric::MemoryPerConnection,
        subjects: &[Tidegate, TidegateTls, WS],
        rows: &[
            Row::figure(
                "memory of an idle connection, plain, 16,000 of them",
                Tidegate,
                1_024.0,
            ),
            Row::figure("the same over TLS", TidegateTls, 24.0 * 1_024.0),
        ],
    },
    Experiment {
        id: "idle",
        load: &["idle", "--connections", "16000"],
        // Two intervals of pings.
        seconds_full: 50,
        runs_max: 1,
        metric: Metric::CpuShare,
        subjects: &[Tidegate],
        rows: &[Row::figure(
            "16,000 idle connections with 25 s pings",
            Tidegate,
            0.03,
        )],
    },
    Experiment {
        id: "workers",
        load: fanout!("8"),
        seconds_full: 5,
        runs_max: usize::MAX,
        metric: Metric::CpuPerDelivery,
        subjects: &[Tidegate, TidegateTwoWorkers],
        rows: &[Row::at_least(
            // Deliveries per CPU second are the inverse of CPU per delivery.
            "two workers on two cores / one, deliveries per CPU second",
            Tidegate,
            TidegateTwoWorkers,
            0.9,
        )],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_judges_what_its_experiment_measures() {
        for experiment in EXPERIMENTS {
            for row in experiment.rows {
                assert!(
                    experiment.subjects.contains(&row.subject),
                    "{}: {}",
                    experiment.id,
                    row.text
                );
                let measured = row
                    .divided_by
                    .is_none_or(|other| experiment.subjects.contains(&other));
                assert!(measured, "{}: {}", experiment.id, row.text);
            }
        }
    }
}
