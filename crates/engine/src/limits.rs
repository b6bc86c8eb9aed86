//! Every bound of a shard by name, with the memory it can cost.
//!
//! Whatever peers send, a shard's memory stays under [`Limits::shard_bytes_max`]: the parts are stated beside each field, and
//! [`Limits::validate`] refuses sets of limits that contradict each other.

use std::fmt;

use wire::HEADER_BYTES_MAX;
use wire::frame::CONTROL_PAYLOAD_BYTES_MAX;

/// Bytes that an idle connection holds in a shard: its slot, timer node, socket entry and room membership. Checked by a
/// test against the real sizes.
pub const IDLE_CONNECTION_BYTES: usize = 384;

/// Bytes that one queued message costs beside its frame: the queue's entry and the frame's reference count.
pub const QUEUED_MESSAGE_BYTES: usize = 96;

/// Bytes that a peer may still send after it broke the protocol, none of which are kept, before it is cut off. Enough for it
/// to finish a message that was too big and then read why it was closed.
pub const DISCARDED_BYTES_MAX: u32 = 64 << 20;

/// Bytes that one room costs a shard beside its name: its entry, bitmap and place in the index.
pub const ROOM_BYTES: usize = 640;

/// Bytes of pongs that wait for one connection in one turn. A peer that pings faster gets the newest ones only; one that does not
/// read gets the last.
pub const PONGS_BYTES_MAX: usize = 2_048;

const _: () = assert!(PONGS_BYTES_MAX >= CONTROL_PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX);

/// The bounds of one shard. Counts are plain numbers, sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of this shard. Each costs [`IDLE_CONNECTION_BYTES`] while idle and
    /// [`Limits::connection_bytes_max`] at the most.
    pub connections_max: usize,
    /// Payload of one message, after inflating. A partial message holds at most twice what has arrived of it.
    pub message_bytes_max: usize,
    /// Messages waiting for one connection in all its lanes together, each costing [`QUEUED_MESSAGE_BYTES`].
    pub queue_messages_max: usize,
    /// Bytes of the frames waiting for one connection in all its lanes together.
    pub queue_bytes_max: usize,
    /// Bytes taken from one connection's lanes for one write, or one message, if it is larger. What its rooms have for it in the same
    /// turn comes on top, at most `due_bytes_max` and one message.
    pub write_bytes_max: usize,
    /// Bytes of frames collected for one room before a new batch begins (or one message, if it is larger): what a
    /// partly written batch can keep alive for one stalled connection.
    pub batch_bytes_max: usize,
    /// Bytes of frames, and of their entries, collected for all rooms before they leave, whatever the flush delay says; and
    /// the same again for mail to other shards.
    pub due_bytes_max: usize,
    /// Rooms one connection may be in.
    pub rooms_per_connection_max: usize,
    /// Bytes of a room's name.
    pub room_name_bytes_max: usize,
    /// Timers that fire in one turn; the rest follow in the next.
    pub timers_per_turn_max: usize,
    /// Connections told to go in one turn while the shard drains.
    pub drain_per_turn_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 65_536,
            message_bytes_max: 1 << 20,
            queue_messages_max: 1_024,
            queue_bytes_max: (1 << 20) + HEADER_BYTES_MAX,
            write_bytes_max: 256 << 10,
            batch_bytes_max: 64 << 10,
            due_bytes_max: 4 << 20,
            rooms_per_connection_max: 128,
            room_name_bytes_max: 255,
            timers_per_turn_max: 1_024,
            drain_per_turn_max: 256,
        }
    }
}

/// Two limits that cannot hold together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitError {
    /// The named limit must be at least one.
    Zero(&'static str),
    /// A message of the largest size would never fit the queue.
    QueueSmallerThanMessage {
        /// `queue_bytes_max` as given.
        queue_bytes_max: usize,
        /// The least it must be: the largest message and its header.
        least: usize,
    },
    /// The named limit is past what the formats inside can count.
    TooLarge(&'static str, usize),
}

impl fmt::Display for LimitError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Zero(name) => write!(formatter, "{name} must be at least 1"),
            LimitError::QueueSmallerThanMessage {
                queue_bytes_max,
                least,
            } => write!(
                formatter,
                "queue_bytes_max is {queue_bytes_max} but the largest message needs {least}: raise it, or lower message_bytes_max"
            ),
            LimitError::TooLarge(name, most) => write!(formatter, "{name} must be at most {most}"),
        }
    }
}

impl std::error::Error for LimitError {}

impl Limits {
    /// The largest message or batch that the offsets inside a batch can count.
    const MESSAGE_BYTES_CEILING: usize = 1 << 30;
    /// Slots are counted in 32 bits, and drivers keep a few of them for themselves.
    const CONNECTIONS_CEILING: usize = 1 << 29;

    /// Checks that the limits fit each other.
    pub fn validate(&self) -> Result<(), LimitError> {
        for (name, value) in [
            ("connections_max", self.connections_max),
            ("message_bytes_max", self.message_bytes_max),
            ("queue_messages_max", self.queue_messages_max),
            ("queue_bytes_max", self.queue_bytes_max),
            ("write_bytes_max", self.write_bytes_max),
            ("batch_bytes_max", self.batch_bytes_max),
            ("due_bytes_max", self.due_bytes_max),
            ("rooms_per_connection_max", self.rooms_per_connection_max),
            ("room_name_bytes_max", self.room_name_bytes_max),
            ("timers_per_turn_max", self.timers_per_turn_max),
            ("drain_per_turn_max", self.drain_per_turn_max),
        ] {
            if value == 0 {
                return Err(LimitError::Zero(name));
            }
        }
        for (name, value, ceiling) in [
            ("connections_max", self.connections_max, Self::CONNECTIONS_CEILING),
            (
                "drain_per_turn_max",
                self.drain_per_turn_max,
                Self::CONNECTIONS_CEILING,
            ),
            (
                "message_bytes_max",
                self.message_bytes_max,
                Self::MESSAGE_BYTES_CEILING,
            ),
            (
                "batch_bytes_max",
                self.batch_bytes_max,
                Self::MESSAGE_BYTES_CEILING,
            ),
        ] {
            if value > ceiling {
                return Err(LimitError::TooLarge(name, ceiling));
            }
        }
        let least = self.message_bytes_max + HEADER_BYTES_MAX;
        if self.queue_bytes_max < least {
            return Err(LimitError::QueueSmallerThanMessage {
                queue_bytes_max: self.queue_bytes_max,
                least,
            });
        }
        Ok(())
    }

    /// What one connection can make the shard's logic hold at the worst: a partial message (twice its bytes while it
    /// grows), full lanes, rooms of its own, and what the driver still has to send. The driver's own buffers, TLS, and a
    /// decompressor kept between messages (48 KiB, only if context takeover was granted) come on top.
    pub fn connection_bytes_max(&self) -> usize {
        let largest_frame = self.message_bytes_max + HEADER_BYTES_MAX;
        let partial = 2 * self.message_bytes_max + CONTROL_PAYLOAD_BYTES_MAX;
        let queue = self.queue_bytes_max + self.queue_messages_max * QUEUED_MESSAGE_BYTES;
        let pongs_and_close = PONGS_BYTES_MAX + CONTROL_PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX;
        let rooms = self.rooms_per_connection_max * (ROOM_BYTES + 2 * self.room_name_bytes_max);
        // A write that stalls keeps whole batches alive of which only a part is still to be sent.
        let handed = self.queue_bytes_max + self.due_bytes_max + largest_frame;
        IDLE_CONNECTION_BYTES + partial + queue + pongs_and_close + rooms + handed
    }

    /// What the whole shard's logic can hold at the worst, if no two connections share a frame or a room (in practice they do):
    /// its connections, what is due to rooms and what is to be mailed, each with one read's worth of messages too much.
    pub fn shard_bytes_max(&self) -> usize {
        self.connections_max
            .saturating_mul(self.connection_bytes_max())
            .saturating_add(2 * (self.due_bytes_max + self.message_bytes_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_together() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    #[test]
    fn zero_is_refused_by_name() {
        let limits = Limits {
            due_bytes_max: 0,
            ..Limits::default()
        };
        assert_eq!(limits.validate(), Err(LimitError::Zero("due_bytes_max")));
    }

    #[test]
    fn a_queue_must_take_the_largest_message() {
        let limits = Limits {
            message_bytes_max: 100,
            queue_bytes_max: 100,
            ..Limits::default()
        };
        let error = limits.validate().expect_err("too small");
        assert!(error.to_string().contains("raise it"), "{error}");
    }
}
