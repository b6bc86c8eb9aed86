//! Where connections live: a slab whose slots are used again under a new generation.
//!
//! What the fan-out looks at for every member (generation and flags) stands apart in a dense array, so that a message for
//! thousands of idle connections touches 8 bytes of each.

use smallvec::SmallVec;
use wire::Decoder;

use crate::lanes::Lanes;
use crate::{ConnectionId, Time};
use bytes::{Bytes, BytesMut};

/// What the fan-out must know of a connection. All clear: the next frames can be written at once, plain and all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hot {
    pub generation: u32,
    pub flags: u8,
}

/// A write is under way in the driver.
pub(crate) const PENDING: u8 = 1;
/// Messages wait in the lanes.
pub(crate) const QUEUED: u8 = 1 << 1;
/// It stands in the list of connections that have something of their own to send.
pub(crate) const DIRTY: u8 = 1 << 2;
/// It must not get some message of the batches being flushed.
pub(crate) const EXCLUDED: u8 = 1 << 3;
/// It negotiated compression.
pub(crate) const DEFLATE: u8 = 1 << 4;
/// It has runs in the flush under way.
pub(crate) const TOUCHED: u8 = 1 << 5;
/// Its socket failed in this flush.
pub(crate) const BROKEN: u8 = 1 << 6;

/// How far a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Opened, but held until the application establishes it.
    Handshaking,
    /// In use.
    Open,
    /// Our close frame waits or has left; `peer` when theirs has come.
    Closing { sent: bool, peer: bool },
    /// It broke the protocol: our close frame waits or has left, and what still comes is not looked at.
    Failing { sent: bool, discarded_bytes: u32 },
}

/// What has to leave that is not in a room's batch. Made when there is something, dropped when it is empty.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    /// What the connection begins with, before any frame.
    pub greeting: Bytes,
    pub lanes: Lanes,
    /// Pongs to leave with the next write. While a write is pending there is one at the most: a newer ping replaces it
    /// (RFC 6455 section 5.5.3).
    pub pongs: BytesMut,
    pub pongs_waiting: u32,
    /// The close frame: leaves last.
    pub close: Option<Bytes>,
}

/// The rest of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub decoder: Decoder,
    /// Indexes of the rooms it is in.
    pub rooms: SmallVec<[u32; 4]>,
    pub outbound: Option<Box<Outbound>>,
    /// When bytes last came.
    pub received_at: Time,
    /// When a whole message last came.
    pub message_at: Time,
    /// When the ping left that is not answered yet.
    pub pinged_at: Option<Time>,
    /// When the write began that is pending.
    pub pending_at: Time,
    /// The timer is set for the end of that write.
    pub write_watched: bool,
    pub phase: Phase,
    /// A ping has to leave with the next write.
    pub ping_due: bool,
    /// The window for compressed messages to it; 0: not negotiated.
    pub window_bits: u8,
}

impl Connection {
    pub fn outbound(&mut self) -> &mut Outbound {
        self.outbound.get_or_insert_default()
    }

    /// True when something of its own can leave now.
    pub fn has_own(&self) -> bool {
        self.ping_due || self.outbound.is_some()
    }
}

/// The slab.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub hot: Vec<Hot>,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    live: usize,
}

impl Slots {
    pub fn live(&self) -> usize {
        self.live
    }

    /// How many slots there are, used or not.
    pub fn len(&self) -> u32 {
        self.hot.len() as u32
    }

    pub fn insert(&mut self, connection: Connection) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.hot.push(Hot::default());
            self.connections.push(None);
            self.hot.len() as u32 - 1
        });
        let flags = if connection.window_bits == 0 { 0 } else { DEFLATE };
        self.hot[index as usize].flags = flags;
        self.connections[index as usize] = Some(connection);
        self.live += 1;
        self.id(index)
    }

    /// Frees a slot; its id never matches again.
    pub fn remove(&mut self, index: u32) -> Option<Connection> {
        let connection = self.connections[index as usize].take()?;
        let hot = &mut self.hot[index as usize];
        *hot = Hot {
            generation: hot.generation.wrapping_add(1),
            flags: 0,
        };
        self.free.push(index);
        self.live -= 1;
        Some(connection)
    }

    pub fn id(&self, index: u32) -> ConnectionId {
        ConnectionId {
            index,
            generation: self.hot[index as usize].generation,
        }
    }

    pub fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        if self.hot.get(id.index as usize)?.generation != id.generation {
            return None;
        }
        self.at(id.index)
    }

    pub fn at(&mut self, index: u32) -> Option<&mut Connection> {
        self.connections.get_mut(index as usize)?.as_mut()
    }

    pub fn has(&self, index: u32, flags: u8) -> bool {
        self.hot[index as usize].flags & flags != 0
    }

    pub fn set(&mut self, index: u32, flags: u8) {
        self.hot[index as usize].flags |= flags;
    }

    pub fn clear(&mut self, index: u32, flags: u8) {
        self.hot[index as usize].flags &= !flags;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::IDLE_CONNECTION_BYTES;

    #[test]
    fn an_idle_connection_holds_what_the_limits_say() {
        // A driver's socket entry and the connection's bit in a room's bitmap at its most expensive.
        let elsewhere = 32 + 4;
        let slot = size_of::<Hot>() + size_of::<Option<Connection>>() + size_of::<u32>();
        let timer = crate::wheel::NODE_BYTES;
        // A vector that just grew has room for as many again.
        let most = 2 * (slot + timer) + elsewhere;
        assert!(
            most <= IDLE_CONNECTION_BYTES,
            "{most} bytes: slot {slot}, timer {timer}"
        );
    }
}
