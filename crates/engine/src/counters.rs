//! What a shard counts. Plain numbers that only grow; a reader takes a copy and adds shards together.

use std::collections::BTreeMap;
use std::fmt;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The peer sent a close frame, with this code if it gave one.
    Peer(Option<u16>),
    /// The peer closed the socket without a close frame.
    Eof,
    /// The socket was reset or failed.
    Reset,
    /// TLS failed after the handshake.
    Tls,
    /// The peer broke the protocol; the name of the violation.
    Violation(&'static str),
    /// Its outbound queue was full under [`crate::Overflow::Disconnect`].
    SlowConsumer,
    /// It did not take a write in time.
    WriteTimeout,
    /// It answered no ping in time.
    PongTimeout,
    /// It sent no message for the idle timeout.
    Idle,
    /// It was not established in time.
    HandshakeTimeout,
    /// The application closed it, with this code.
    Application(u16),
    /// The shard is shutting down.
    Shutdown,
}

impl Cause {
    /// One word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Cause::Peer(_) => "peer",
            Cause::Eof => "eof",
            Cause::Reset => "reset",
            Cause::Tls => "tls",
            Cause::Violation(_) => "violation",
            Cause::SlowConsumer => "slow_consumer",
            Cause::WriteTimeout => "write_timeout",
            Cause::PongTimeout => "pong_timeout",
            Cause::Idle => "idle",
            Cause::HandshakeTimeout => "handshake_timeout",
            Cause::Application(_) => "application",
            Cause::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Peer(Some(code)) => write!(formatter, "closed by the peer with code {code}"),
            Cause::Peer(None) => formatter.write_str("closed by the peer"),
            Cause::Eof => formatter.write_str("socket closed by the peer without a close frame"),
            Cause::Reset => formatter.write_str("connection reset"),
            Cause::Tls => formatter.write_str("TLS failure"),
            Cause::Violation(name) => write!(formatter, "protocol violation: {name}"),
            Cause::SlowConsumer => formatter.write_str("outbound queue full"),
            Cause::WriteTimeout => formatter.write_str("did not read what was sent in time"),
            Cause::PongTimeout => formatter.write_str("no pong in time"),
            Cause::Idle => formatter.write_str("no message within the idle timeout"),
            Cause::HandshakeTimeout => formatter.write_str("not established in time"),
            Cause::Application(code) => write!(formatter, "closed by the application with code {code}"),
            Cause::Shutdown => formatter.write_str("server shutting down"),
        }
    }
}

/// The counters of one shard since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections opened.
    pub opened: u64,
    /// Connections refused because the shard was full or draining.
    pub refused: u64,
    /// Connections ended, by [`Cause::label`]. Counted when the end begins; the socket may close later.
    pub closed: BTreeMap<&'static str, u64>,
    /// Protocol violations by name.
    pub violations: BTreeMap<&'static str, u64>,
    /// Sockets cut because the close handshake did not end in time, or the peer kept sending after a violation.
    pub close_timeouts: u64,
    /// Messages received, whole.
    pub messages_in: u64,
    /// Messages handed to the driver, one for each receiver.
    pub messages_out: u64,
    /// Bytes received on sockets, frame headers included.
    pub bytes_in: u64,
    /// Bytes handed to the driver, frame headers included.
    pub bytes_out: u64,
    /// Writes handed to the driver: system calls, when each goes alone.
    pub writes: u64,
    /// Writes that the driver could not finish at once.
    pub writes_pending: u64,
    /// Waiting messages dropped for newer ones.
    pub dropped_oldest: u64,
    /// Messages dropped because a queue was full.
    pub dropped_newest: u64,
    /// Waiting messages replaced by a newer one of the same key.
    pub conflated: u64,
    /// Messages dropped because their connection ended: it is gone, or it is being ended for a full queue.
    pub dropped_closed: u64,
    /// Pings sent by the heartbeat.
    pub pings_out: u64,
    /// Pongs received.
    pub pongs_in: u64,
    /// Pings received.
    pub pings_in: u64,
    /// Pings that were not answered because a newer one came first (RFC 6455 section 5.5.3).
    pub pongs_skipped: u64,
    /// Messages given a sequence number by rooms homed here.
    pub sequenced: u64,
    /// Batches mailed to other shards.
    pub batches_mailed: u64,
}

impl Counters {
    /// Adds another shard's counters to these.
    pub fn merge(&mut self, other: &Counters) {
        for (sums, addends) in [
            (&mut self.closed, &other.closed),
            (&mut self.violations, &other.violations),
        ] {
            for (name, addend) in addends {
                *sums.entry(name).or_default() += addend;
            }
        }
        let Counters {
            opened,
            refused,
            closed: _,
            violations: _,
            close_timeouts,
            messages_in,
            messages_out,
            bytes_in,
            bytes_out,
            writes,
            writes_pending,
            dropped_oldest,
            dropped_newest,
            conflated,
            dropped_closed,
            pings_out,
            pongs_in,
            pings_in,
            pongs_skipped,
            sequenced,
            batches_mailed,
        } = other;
        for (sum, addend) in [
            (&mut self.opened, opened),
            (&mut self.refused, refused),
            (&mut self.close_timeouts, close_timeouts),
            (&mut self.messages_in, messages_in),
            (&mut self.messages_out, messages_out),
            (&mut self.bytes_in, bytes_in),
            (&mut self.bytes_out, bytes_out),
            (&mut self.writes, writes),
            (&mut self.writes_pending, writes_pending),
            (&mut self.dropped_oldest, dropped_oldest),
            (&mut self.dropped_newest, dropped_newest),
            (&mut self.conflated, conflated),
            (&mut self.dropped_closed, dropped_closed),
            (&mut self.pings_out, pings_out),
            (&mut self.pongs_in, pongs_in),
            (&mut self.pings_in, pings_in),
            (&mut self.pongs_skipped, pongs_skipped),
            (&mut self.sequenced, sequenced),
            (&mut self.batches_mailed, batches_mailed),
        ] {
            *sum += addend;
        }
    }

    /// All messages that did not reach a connection they were meant for.
    pub fn dropped(&self) -> u64 {
        self.dropped_oldest + self.dropped_newest + self.conflated + self.dropped_closed
    }
}
