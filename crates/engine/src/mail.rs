//! What shards of a node, and the threads around them, say to each other.

use std::sync::Arc;
use std::time::Duration;

use crate::ShardId;
use crate::batch::Batch;
use crate::machine::Letter;

/// A letter to a shard.
#[derive(Clone, Debug)]
pub enum Mail {
    /// To a room's home: a shard has its first member, or lost its last.
    Interest {
        /// The room's name.
        room: Arc<str>,
        /// Whose members.
        shard: ShardId,
        /// Whether it wants the room's messages from now on.
        wanted: bool,
    },
    /// To a room's home: messages to be put in order.
    Publish {
        /// The room's name.
        room: Arc<str>,
        /// The messages, encoded.
        batch: Arc<Batch>,
    },
    /// From a room's home to a shard with members.
    Deliver {
        /// The room's name.
        room: Arc<str>,
        /// Which life of the room at its home: sequence numbers start again with a new one.
        epoch: u32,
        /// The sequence number of the batch's first message; the others follow without a gap.
        first_sequence: u64,
        /// The messages, encoded.
        batch: Arc<Batch>,
    },
    /// From outside: close every connection with 1001 and be finished, by force when the time is over.
    Drain {
        /// How long what is in flight may take.
        within: Duration,
    },
}

impl Letter for Mail {
    fn bytes(&self) -> usize {
        match self {
            Mail::Interest { .. } | Mail::Drain { .. } => size_of::<Mail>(),
            Mail::Publish { batch, .. } | Mail::Deliver { batch, .. } => size_of::<Mail>() + batch.bytes(),
        }
    }

    /// A home answers what is published with deliveries, and puts it behind the interest that came before it.
    fn is_request(&self) -> bool {
        !matches!(self, Mail::Deliver { .. })
    }
}
