//! What a shard is told at its start.

use std::time::Duration;

use crate::ShardId;
use crate::lanes::Overflow;
use crate::limits::Limits;

/// Close codes of this server. 3000-3499 ask the client to reconnect, 3500-3999 tell it not to.
pub mod close_code {
    /// Going away (RFC 6455 section 7.4.1): the server shuts down, reconnect.
    pub const GOING_AWAY: u16 = 1001;
    /// The connection's outbound queue was full: it reads too slowly.
    pub const SLOW_CONSUMER: u16 = 3008;
    /// Nothing was sent by the client for the idle timeout.
    pub const IDLE: u16 = 3010;
    /// The client answered no ping in time.
    pub const PONG_TIMEOUT: u16 = 3012;
    /// The client did not establish itself in time.
    pub const HANDSHAKE_TIMEOUT: u16 = 3014;
}

/// Deadlines of connections. All are kept to the grain of [`crate::wheel::TICK`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// A connection that was silent this long is pinged (spread: each one up to a quarter earlier). `None`: never.
    pub ping_interval: Option<Duration>,
    /// A pinged connection that stays silent this long is closed.
    pub pong_timeout: Duration,
    /// A connection that does not take a write within this time is cut off: it reads too slowly, or not at all. Queues bound what
    /// it holds until then.
    pub write_timeout: Duration,
    /// A connection that sent no message this long is closed. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// A connection held by [`crate::Core::hold`] is closed if it is not established in this time.
    pub handshake_timeout: Duration,
    /// How long the closing handshake may take before the socket is cut.
    pub close_timeout: Duration,
}

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat {
            ping_interval: Some(Duration::from_secs(25)),
            pong_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            idle_timeout: None,
            handshake_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
        }
    }
}

/// How long frames due to a connection may wait so that more of them leave in one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushDelay {
    /// Always this long after the first frame became due; zero: they leave with the turn.
    Fixed(Duration),
    /// None while there is little to do; after a flush of many writes, [`FlushDelay::REST_FOR_WRITE`] for each of them, so that
    /// writing never takes more than a share of the time.
    Auto {
        /// The longest wait.
        max: Duration,
    },
}

impl FlushDelay {
    /// What one write earns in waiting under [`FlushDelay::Auto`]: about twice what it costs.
    pub const REST_FOR_WRITE: Duration = Duration::from_micros(8);
}

impl Default for FlushDelay {
    fn default() -> FlushDelay {
        FlushDelay::Fixed(Duration::ZERO)
    }
}

/// The settings of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many shards the node has.
    pub shards: u16,
    /// Seeds the hash of room names; the same for all shards of a node, secret to peers.
    pub seed: u64,
    /// The bounds.
    pub limits: Limits,
    /// The deadlines.
    pub heartbeat: Heartbeat,
    /// How long frames wait for company.
    pub flush_delay: FlushDelay,
    /// What happens when a connection's queue is full.
    pub overflow: Overflow,
}

impl Default for ShardConfig {
    fn default() -> ShardConfig {
        ShardConfig {
            shard: ShardId(0),
            shards: 1,
            seed: 0,
            limits: Limits::default(),
            heartbeat: Heartbeat::default(),
            flush_delay: FlushDelay::default(),
            overflow: Overflow::default(),
        }
    }
}
