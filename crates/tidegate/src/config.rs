//! What a broadcast server is told at its start, and whether it holds together.
//!
//! Values only: nothing here looks at files, sockets or the machine.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use engine::{FlushDelay, Heartbeat, LimitError, Limits, Overflow};

use crate::units::Size;

/// Most [`BroadcastConfig::workers`].
pub const WORKERS_MAX: u16 = 1_024;
/// Most [`BroadcastConfig::batch`] and [`BroadcastConfig::ring`].
pub const BATCH_MAX: usize = 65_536;
/// See [`BATCH_MAX`].
pub const RING_MAX: usize = 65_536;
/// Longest [`BroadcastConfig::flush_delay`]: a longer one would look like a server that hangs.
pub const FLUSH_DELAY_MAX: Duration = Duration::from_secs(10);
/// Memory that the rings between workers may take, empty or full. They are two for each ordered pair of workers.
pub const RINGS_BYTES_MAX: usize = 256 << 20;

/// A letter in a ring: itself and its weight.
const RING_ENTRY_BYTES: usize = size_of::<(engine::Mail, usize)>();

/// The largest [`BroadcastConfig::ring`] with which so many workers stay within [`RINGS_BYTES_MAX`].
pub fn ring_max(workers: usize) -> usize {
    let rings = 2 * workers * workers.saturating_sub(1);
    (RINGS_BYTES_MAX / RING_ENTRY_BYTES)
        .checked_div(rings)
        .map_or(RING_MAX, |most| most.clamp(1, RING_MAX))
}

/// The settings of a [`BroadcastServer`](crate::BroadcastServer). [`Default`] is what `tidegate broadcast` does
/// without flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroadcastConfig {
    /// `host:port` to listen on. An empty host is every interface; port 0 takes a free one.
    pub address: String,
    /// Serve TLS with these files; `None`: plain.
    pub tls: Option<TlsFiles>,
    /// Open connections at most, all shards together. `None`: the limit of open files less
    /// [`descriptors_reserved`](crate::process::descriptors_reserved).
    pub connections_max: Option<usize>,
    /// Shards, one thread each; 0: one for each core the process may use.
    pub workers: u16,
    /// Events taken in one turn of a shard.
    pub batch: usize,
    /// Entries of a shard's rings; fewer where `workers` is 0 and there are so many cores that [`ring_max`] is less.
    pub ring: usize,
    /// The NUMA node whose cores shards are pinned to; `None`: chosen by the reactor.
    pub numa_node: Option<u32>,
    /// How sockets are driven.
    pub driver: reactor::DriverKind,
    /// How long frames due to a connection may wait to leave together.
    pub flush_delay: FlushDelay,
    /// Whether permessage-deflate is agreed to when a client offers it.
    pub compression: Compression,
    /// What happens when a connection's queue is full.
    pub overflow: Overflow,
    /// The bounds of each shard. `connections_max` in it is overwritten by the server's own.
    pub limits: Limits,
    /// The deadlines of connections.
    pub heartbeat: Heartbeat,
    /// How often a line of statistics is logged; `None`: never.
    pub stats_interval: Option<Duration>,
    /// How long a shutdown lets connections finish.
    pub drain: Duration,
}

/// Where the certificate is, both files PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key of the first.
    pub key: PathBuf,
}

/// What becomes of an offer of permessage-deflate (RFC 7692).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// It is declined.
    Off,
    /// It is accepted without context takeover by the server, so that one compressed message serves all receivers.
    Shared,
}

impl Default for BroadcastConfig {
    fn default() -> BroadcastConfig {
        BroadcastConfig {
            address: ":9002".to_owned(),
            tls: None,
            connections_max: None,
            workers: 0,
            batch: 64,
            ring: 2048,
            numa_node: None,
            driver: reactor::DriverKind::Auto,
            flush_delay: FlushDelay::Fixed(Duration::ZERO),
            compression: Compression::Off,
            overflow: Overflow::Disconnect,
            limits: Limits::default(),
            heartbeat: Heartbeat::default(),
            stats_interval: Some(Duration::from_secs(2)),
            drain: Duration::from_secs(10),
        }
    }
}

/// Settings that cannot hold, or not together. Its text is one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The named setting must be at least one.
    Zero(&'static str),
    /// The named setting is above its ceiling.
    TooLarge(&'static str, usize),
    /// So many workers with rings this long take more than [`RINGS_BYTES_MAX`].
    Rings {
        /// As set.
        workers: u16,
        /// As set.
        ring: usize,
    },
    /// Frames would wait longer than [`FLUSH_DELAY_MAX`].
    FlushDelay,
    /// A pinged connection would be closed at once.
    NoPongTimeout,
    /// A connection would be cut for any write that does not leave at once.
    NoWriteTimeout,
    /// The limits contradict each other.
    Limits(LimitError),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Zero(flag) => write!(formatter, "{flag} must be at least 1"),
            ConfigError::TooLarge(flag, most) => write!(formatter, "{flag} must be at most {most}"),
            ConfigError::Rings { workers, ring } => write!(
                formatter,
                "--workers {workers} with --ring {ring} would take more than {} for the rings between workers: lower --ring to at most {}, or --workers",
                Size(RINGS_BYTES_MAX),
                ring_max(usize::from(*workers))
            ),
            ConfigError::FlushDelay => write!(
                formatter,
                "--flush-delay and --flush-delay-max must be at most {FLUSH_DELAY_MAX:?}"
            ),
            ConfigError::NoPongTimeout => {
                formatter.write_str("--pong-timeout 0 would close each connection with its first ping: give it time, or turn pings off with --ping-interval 0")
            }
            ConfigError::NoWriteTimeout => formatter.write_str(
                "--write-timeout 0 would cut each connection that does not read at once: give it time, such as 60s",
            ),
            ConfigError::Limits(LimitError::QueueSmallerThanMessage { queue_bytes_max, least }) => write!(
                formatter,
                "--queue-bytes {} cannot hold one largest message: raise it to at least {}, leave it out, or lower --max-message",
                Size(*queue_bytes_max),
                Size(*least)
            ),
            ConfigError::Limits(LimitError::Zero(name)) => {
                write!(formatter, "{} must be at least 1", flag_of(name))
            }
            ConfigError::Limits(LimitError::TooLarge(name, most)) => {
                write!(formatter, "{} must be at most {}", flag_of(name), Size(*most))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// The flag that sets a limit of the engine; limits without a flag keep their own name.
fn flag_of(limit: &'static str) -> &'static str {
    match limit {
        "connections_max" => "--max-connections",
        "message_bytes_max" => "--max-message",
        "queue_messages_max" => "--queue-messages",
        "queue_bytes_max" => "--queue-bytes",
        other => other,
    }
}

impl BroadcastConfig {
    /// Checks that the settings fit each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (flag, value) in [
            ("--batch", self.batch),
            ("--ring", self.ring),
            ("--max-connections", self.connections_max.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(flag));
            }
        }
        for (flag, value, most) in [
            ("--workers", usize::from(self.workers), usize::from(WORKERS_MAX)),
            ("--batch", self.batch, BATCH_MAX),
            ("--ring", self.ring, RING_MAX),
        ] {
            if value > most {
                return Err(ConfigError::TooLarge(flag, most));
            }
        }
        if self.ring > ring_max(usize::from(self.workers)) {
            return Err(ConfigError::Rings {
                workers: self.workers,
                ring: self.ring,
            });
        }
        let (FlushDelay::Fixed(delay) | FlushDelay::Auto { max: delay }) = self.flush_delay;
        if delay > FLUSH_DELAY_MAX {
            return Err(ConfigError::FlushDelay);
        }
        if self.heartbeat.ping_interval.is_some() && self.heartbeat.pong_timeout.is_zero() {
            return Err(ConfigError::NoPongTimeout);
        }
        if self.heartbeat.write_timeout.is_zero() {
            return Err(ConfigError::NoWriteTimeout);
        }
        self.limits.validate().map_err(ConfigError::Limits)
    }

    /// Lifts `limits.queue_bytes_max` so that one largest message fits.
    pub fn fit_queue_to_message(&mut self) {
        let least = self
            .limits
            .message_bytes_max
            .saturating_add(wire::HEADER_BYTES_MAX);
        self.limits.queue_bytes_max = self.limits.queue_bytes_max.max(least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_ring_shrinks_with_the_square_of_the_workers() {
        assert_eq!(ring_max(1), RING_MAX);
        for workers in [2, 8, 64, usize::from(WORKERS_MAX)] {
            let bytes = 2 * workers * (workers - 1) * ring_max(workers) * RING_ENTRY_BYTES;
            assert!(bytes <= RINGS_BYTES_MAX, "{workers} workers: {bytes}");
        }
        assert!(ring_max(16) >= BroadcastConfig::default().ring);
    }
}
