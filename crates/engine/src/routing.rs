//! How a message gets from the shard it was published in to all shards with members: by way of the room's home.

use std::sync::Arc;

use crate::ShardId;
use crate::batch::Batch;
use crate::core::Core;
use crate::mail::Mail;

impl Core {
    /// Sends what was published to rooms that other shards have a part in on its way. What only concerns this shard stays
    /// in its outbox, so that it gathers until the flush.
    pub(crate) fn route_shared(&mut self) {
        if self.config.shards == 1 {
            return;
        }
        for position in 0..self.dirty_rooms.len() {
            let index = self.dirty_rooms[position];
            let room = self
                .rooms
                .at(index)
                .expect("dirty rooms exist until they are flushed");
            if room.home != self.config.shard || !room.wanted_by.is_empty() {
                self.route(index);
            }
        }
    }

    /// Seals a room's outbox and sends it to the home shard, or, here at home, puts it in order.
    pub(crate) fn route(&mut self, index: u32) {
        let room = self.rooms.at(index).expect("the caller has seen the room");
        if room.outbox.is_empty() {
            return;
        }
        let batch = Arc::new(room.outbox.seal(self.config.limits.batch_bytes_max));
        if room.home == self.config.shard {
            self.put_in_order(index, batch);
        } else {
            self.due_bytes -= batch.bytes();
            self.outgoing_bytes += batch.bytes();
            self.counters.batches_mailed += 1;
            self.outgoing.push((
                room.home,
                Mail::Publish {
                    room: room.name.clone(),
                    batch,
                },
            ));
        }
    }

    /// At home: numbers a batch and sends it to every shard with members. Its bytes are already counted as due.
    fn put_in_order(&mut self, index: u32, batch: Arc<Batch>) {
        let room = self.rooms.at(index).expect("the caller has seen the room");
        let first_sequence = room.sequence + 1;
        room.sequence += batch.entries().len() as u64;
        self.counters.sequenced += batch.entries().len() as u64;
        self.counters.batches_mailed += room.wanted_by.len() as u64;
        // Its receivers share one buffer.
        if !room.wanted_by.is_empty() {
            self.outgoing_bytes += batch.bytes();
        }
        for &shard in &room.wanted_by {
            let letter = Mail::Deliver {
                room: room.name.clone(),
                epoch: room.generation,
                first_sequence,
                batch: batch.clone(),
            };
            self.outgoing.push((shard, letter));
        }
        if room.members.is_empty() {
            self.due_bytes -= batch.bytes();
        } else {
            room.due.push(batch);
        }
        self.mark_room(index);
    }

    pub(crate) fn set_interest(&mut self, name: &str, shard: ShardId, wanted: bool) {
        let index = self.rooms.find_or_create(name);
        let room = self.rooms.at(index).expect("the room was just found or made");
        debug_assert_eq!(room.home, self.config.shard, "interest goes to the room's home");
        if wanted && !room.wanted_by.contains(&shard) {
            room.wanted_by.push(shard);
        } else if !wanted {
            room.wanted_by.retain(|other| *other != shard);
            self.mark_room(index);
        }
    }

    pub(crate) fn publish_arrived(&mut self, name: &str, batch: Arc<Batch>) {
        let index = self.rooms.find_or_create(name);
        self.due_bytes += batch.bytes();
        // What was published here before it goes first.
        self.route(index);
        self.put_in_order(index, batch);
    }

    pub(crate) fn deliver_arrived(&mut self, name: &str, epoch: u32, first_sequence: u64, batch: Arc<Batch>) {
        // Without members here the room may be gone: the last one left while the letter was under way.
        let Some(index) = self.rooms.find(name) else {
            return;
        };
        let room = self.rooms.at(index).expect("the index was just found");
        debug_assert!(
            epoch != room.epoch || first_sequence > room.sequence,
            "the home sends in order"
        );
        room.epoch = epoch;
        room.sequence = first_sequence + batch.entries().len() as u64 - 1;
        if !room.members.is_empty() {
            self.due_bytes += batch.bytes();
            room.due.push(batch);
            self.mark_room(index);
        }
    }
}
