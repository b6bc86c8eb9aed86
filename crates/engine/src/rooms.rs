//! Rooms: named sets of connections, indexed both ways, each with a home shard.
//!
//! A room's home is fixed by the hash of its name. The home gives every message its sequence number and knows which shards
//! have members; the others know only their own members. A room exists in a shard while it has members there, is wanted by
//! another shard, or has something to send.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use roaring::RoaringBitmap;
use smallvec::SmallVec;

use crate::ShardId;
use crate::batch::{Batch, BatchBuilder};
use crate::lanes::{Lane, Overflow};

/// A room of one shard. Valid while the room exists there: as long as a member of this shard holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoomId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Why a connection could not join a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// The connection is closing or gone.
    NotOpen,
    /// It is in as many rooms as it may be.
    TooManyRooms,
    /// The name is empty or too long.
    BadName,
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            JoinError::NotOpen => "the connection is closing or closed",
            JoinError::TooManyRooms => "the connection is in as many rooms as it may be: leave one first",
            JoinError::BadName => "a room's name must have at least 1 byte and at most the configured number",
        })
    }
}

impl std::error::Error for JoinError {}

/// How a room's messages wait for a connection that cannot take them at once. One lane for a whole room, so that priority
/// never changes the order inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomOptions {
    /// Where they queue.
    pub lane: Lane,
    /// What happens when the queue is full.
    pub overflow: Overflow,
}

/// One room as one shard sees it.
#[derive(Debug)]
pub(crate) struct Room {
    pub name: Arc<str>,
    pub generation: u32,
    pub home: ShardId,
    pub options: RoomOptions,
    /// Slots of this shard's members.
    pub members: RoaringBitmap,
    /// At home: the last sequence number given. Elsewhere: the last delivered.
    pub sequence: u64,
    /// Elsewhere than at home: in which life of the room, there, that was. A home that forgot a room counts from the start.
    pub epoch: u32,
    /// At home: the other shards that have members.
    pub wanted_by: SmallVec<[ShardId; 4]>,
    /// Published here, without a sequence number yet.
    pub outbox: BatchBuilder,
    /// With a sequence number, to be written to this shard's members.
    pub due: SmallVec<[Arc<Batch>; 2]>,
    /// It stands in the list of rooms to look at in the next flush.
    pub dirty: bool,
}

impl Room {
    fn is_abandoned(&self) -> bool {
        self.members.is_empty() && self.wanted_by.is_empty() && self.outbox.is_empty() && self.due.is_empty()
    }
}

/// All rooms of one shard.
#[derive(Debug)]
pub(crate) struct Rooms {
    names: HashMap<Arc<str>, u32, RandomState>,
    slots: Vec<Option<Room>>,
    free: Vec<u32>,
    generation: u32,
    homes: RandomState,
    shards: u16,
    /// Of new rooms.
    options: RoomOptions,
}

impl Rooms {
    pub fn new(seed: u64, shards: u16, options: RoomOptions) -> Rooms {
        // Two hashes, because all names of a home share the low bits of the one that chose it.
        let hasher = |salt: u64| {
            RandomState::with_seeds(
                seed,
                !seed,
                seed.rotate_left(17) ^ salt,
                seed.rotate_left(41) ^ 0x5bd1_e995,
            )
        };
        Rooms {
            names: HashMap::with_hasher(hasher(1)),
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            homes: hasher(2),
            shards,
            options,
        }
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The shard that orders a room's messages.
    pub fn home(&self, name: &str) -> ShardId {
        ShardId((self.homes.hash_one(name) % u64::from(self.shards)) as u16)
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub fn find_or_create(&mut self, name: &str) -> u32 {
        if let Some(index) = self.find(name) {
            return index;
        }
        let name: Arc<str> = Arc::from(name);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.generation = self.generation.wrapping_add(1);
        self.slots[index as usize] = Some(Room {
            name: Arc::clone(&name),
            generation: self.generation,
            home: self.home(&name),
            options: self.options,
            members: RoaringBitmap::new(),
            sequence: 0,
            epoch: 0,
            wanted_by: SmallVec::new(),
            outbox: BatchBuilder::default(),
            due: SmallVec::new(),
            dirty: false,
        });
        self.names.insert(name, index);
        index
    }

    /// Forgets a room that nothing holds any more.
    pub fn remove_if_abandoned(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if let Some(room) = slot.take_if(|room| room.is_abandoned()) {
            self.names.remove(&room.name);
            self.free.push(index);
        }
    }

    pub fn id(&self, index: u32) -> Option<RoomId> {
        let room = self.slots.get(index as usize)?.as_ref()?;
        Some(RoomId {
            index,
            generation: room.generation,
        })
    }

    pub fn get(&mut self, id: RoomId) -> Option<&mut Room> {
        self.at(id.index).filter(|room| room.generation == id.generation)
    }

    pub fn at(&mut self, index: u32) -> Option<&mut Room> {
        self.slots.get_mut(index as usize)?.as_mut()
    }
}
