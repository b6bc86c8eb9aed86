//! A shard's state and what an application may do with it.
//!
//! Nothing here writes to a socket: sending and publishing queue, closing marks. What is due leaves when the turn is
//! flushed (`flush.rs`).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use wire::{Codec, Decoder, DeflateParams, Kind, Opcode, Role, encode_close, encode_frame};

use crate::batch::encode_message;
use crate::config::{ShardConfig, close_code};
use crate::counters::{Cause, Counters};
use crate::lanes::{Full, Lane, Overflow, Queued};
use crate::mail::Mail;
use crate::rooms::{JoinError, RoomId, RoomOptions, Rooms};
use crate::slots::{Connection, DIRTY, PENDING, Phase, QUEUED, Slots};
use crate::wheel::Wheel;
use crate::{ConnectionId, ShardId, Time};

/// A whole message, as it came or as it is to leave.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Text or binary.
    pub kind: Kind,
    /// The application's bytes; UTF-8 if it is text.
    pub payload: &'a [u8],
}

/// A shard without its application. Made by [`crate::Shard`], lent to the application in each call.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: ShardConfig,
    pub(crate) now: Time,
    pub(crate) codec: Codec,
    pub(crate) slots: Slots,
    pub(crate) rooms: Rooms,
    pub(crate) wheel: Wheel,
    pub(crate) counters: Counters,
    /// Connections with something of their own to send.
    pub(crate) dirty: Vec<u32>,
    pub(crate) dirty_rooms: Vec<u32>,
    /// Bytes of frames that rooms hold for the next flush.
    pub(crate) due_bytes: usize,
    /// When the first of what is due became so.
    pub(crate) due_since: Option<Time>,
    /// Under an automatic flush delay: not before this.
    pub(crate) flush_not_before: Time,
    /// Connections whose end began and of which the application has not been told.
    pub(crate) retired: Vec<(ConnectionId, Cause)>,
    pub(crate) outgoing: Vec<(ShardId, Mail)>,
    /// Bytes of batches in `outgoing`.
    pub(crate) outgoing_bytes: usize,
    /// A connection that is not behind has half a queue full: the flush must not wait for the end of the turn.
    pub(crate) crowded: bool,
    /// Connections whose end began: they leave their rooms after the next flush, with what those still had for them.
    pub(crate) leaving: Vec<ConnectionId>,
    pub(crate) drain: Option<Drain>,
    /// Reused by the flush: the first run of each touched slot.
    pub(crate) run_heads: Vec<u32>,
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    /// Slots below this were told to go.
    pub next: u32,
    pub deadline: Time,
}

impl Core {
    pub(crate) fn new(config: ShardConfig) -> Core {
        Core {
            now: Time::ZERO,
            codec: Codec::new(Role::Server, config.limits.message_bytes_max),
            slots: Slots::default(),
            rooms: Rooms::new(
                config.seed,
                config.shards,
                RoomOptions {
                    lane: Lane::Normal,
                    overflow: config.overflow,
                },
            ),
            wheel: Wheel::default(),
            counters: Counters::default(),
            dirty: Vec::new(),
            dirty_rooms: Vec::new(),
            due_bytes: 0,
            due_since: None,
            flush_not_before: Time::ZERO,
            retired: Vec::new(),
            outgoing: Vec::new(),
            outgoing_bytes: 0,
            crowded: false,
            leaving: Vec::new(),
            drain: None,
            run_heads: Vec::new(),
            config,
        }
    }

    /// The present, as of the event being handled.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Which shard this is.
    pub fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// Open connections, those that are closing included.
    pub fn connections(&self) -> usize {
        self.slots.live()
    }

    /// Rooms known to this shard.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// The counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn open(&mut self, deflate: Option<DeflateParams>, greeting: Bytes) -> Option<ConnectionId> {
        if self.drain.is_some() || self.slots.live() >= self.config.limits.connections_max {
            self.counters.refused += 1;
            return None;
        }
        self.counters.opened += 1;
        let id = self.slots.insert(Connection {
            decoder: Decoder::new(deflate),
            rooms: SmallVec::new(),
            outbound: None,
            received_at: self.now,
            message_at: self.now,
            pinged_at: None,
            pending_at: self.now,
            write_watched: false,
            phase: Phase::Open,
            ping_due: false,
            window_bits: deflate.map_or(0, |params| params.server_max_window_bits),
        });
        self.arm_heartbeat(id.index);
        if !greeting.is_empty()
            && let Some(state) = self.slots.get(id)
        {
            state.outbound().greeting = greeting;
            self.mark(id.index);
        }
        Some(id)
    }

    /// Gives a connection that was just opened the handshake timeout to prove itself; see [`Core::establish`].
    pub fn hold(&mut self, connection: ConnectionId) {
        let deadline = self.now + self.config.heartbeat.handshake_timeout;
        if let Some(state) = self
            .slots
            .get(connection)
            .filter(|state| state.phase == Phase::Open)
        {
            state.phase = Phase::Handshaking;
            self.wheel.set(connection.index, deadline);
        }
    }

    /// Ends the time of proof that [`Core::hold`] began.
    pub fn establish(&mut self, connection: ConnectionId) {
        if let Some(state) = self
            .slots
            .get(connection)
            .filter(|state| state.phase == Phase::Handshaking)
        {
            state.phase = Phase::Open;
            self.arm_heartbeat(connection.index);
        }
    }

    /// Puts a connection in a room, which is made if it does not exist. Joining twice changes nothing.
    ///
    /// A member gets what leaves from now on, which can begin with messages published shortly before in the same turn.
    pub fn join(&mut self, connection: ConnectionId, room: &str) -> Result<RoomId, JoinError> {
        if room.is_empty() || room.len() > self.config.limits.room_name_bytes_max {
            return Err(JoinError::BadName);
        }
        let rooms_max = self.config.limits.rooms_per_connection_max;
        let state = self.slots.get(connection).ok_or(JoinError::NotOpen)?;
        if !matches!(state.phase, Phase::Open | Phase::Handshaking) {
            return Err(JoinError::NotOpen);
        }
        let known = self.rooms.find(room).filter(|index| state.rooms.contains(index));
        if known.is_none() && state.rooms.len() >= rooms_max {
            return Err(JoinError::TooManyRooms);
        }
        let index = known.unwrap_or_else(|| self.rooms.find_or_create(room));
        let id = self.rooms.id(index).expect("the room was just found or made");
        if known.is_some() {
            return Ok(id);
        }
        state.rooms.push(index);
        let room = self.rooms.at(index).expect("the room was just found or made");
        let first = room.members.is_empty();
        room.members.insert(connection.index);
        if first {
            self.tell_home(index, true);
        }
        Ok(id)
    }

    /// Takes a connection out of a room. Leaving a room it is not in changes nothing.
    pub fn leave(&mut self, connection: ConnectionId, room: RoomId) {
        if self.rooms.get(room).is_none() {
            return;
        }
        let Some(state) = self.slots.get(connection) else {
            return;
        };
        if let Some(position) = state.rooms.iter().position(|&index| index == room.index) {
            state.rooms.swap_remove(position);
            self.remove_member(connection.index, room.index);
        }
    }

    fn remove_member(&mut self, member: u32, index: u32) {
        let room = self.rooms.at(index).expect("a connection's rooms exist");
        room.members.remove(member);
        if room.members.is_empty() {
            self.tell_home(index, false);
            // The flush forgets it if nothing else holds it.
            self.mark_room(index);
        }
    }

    /// Tells a room's home, if that is another shard, whether this one has members.
    fn tell_home(&mut self, index: u32, wanted: bool) {
        let shard = self.config.shard;
        let room = self.rooms.at(index).expect("the caller has seen the room");
        if room.home != shard {
            let letter = Mail::Interest {
                room: room.name.clone(),
                shard,
                wanted,
            };
            self.outgoing.push((room.home, letter));
        }
    }

    /// Sets how a room's messages are queued in this shard.
    pub fn configure(&mut self, room: RoomId, options: RoomOptions) {
        if let Some(room) = self.rooms.get(room) {
            room.options = options;
        }
    }

    /// Sends a message to all members of a room, on every shard, but `except`. It is encoded here and only here.
    ///
    /// `key` is what the message conflates by. A message longer than the limit is the caller's mistake.
    pub fn publish(
        &mut self,
        room: RoomId,
        message: Message<'_>,
        except: Option<ConnectionId>,
        key: Option<u64>,
    ) {
        assert!(
            message.payload.len() <= self.config.limits.message_bytes_max,
            "message over the limit"
        );
        let batch_bytes_max = self.config.limits.batch_bytes_max;
        let Some(state) = self.rooms.get(room) else { return };
        let before = state.outbox.bytes();
        if before > 0 && before + message.payload.len() > batch_bytes_max {
            self.route(room.index);
        }
        let shard = self.config.shard;
        let Some(state) = self.rooms.get(room) else { return };
        let before = state.outbox.bytes();
        state.outbox.push(
            message.kind,
            message.payload,
            except.map(|sender| (shard, sender)),
            key,
        );
        self.due_bytes += state.outbox.bytes() - before;
        self.mark_room(room.index);
    }

    /// Sends a message to one connection. False if it was not queued: the connection is closing, or its queue is full.
    pub fn send(&mut self, connection: ConnectionId, lane: Lane, message: Message<'_>) -> bool {
        assert!(
            message.payload.len() <= self.config.limits.message_bytes_max,
            "message over the limit"
        );
        let Some(state) = self.slots.get(connection) else {
            return false;
        };
        if !matches!(state.phase, Phase::Open | Phase::Handshaking) {
            return false;
        }
        let window_bits = Some(state.window_bits).filter(|&bits| bits != 0);
        // Without a guess at its size: what a queue holds is what it counts.
        let mut frame = BytesMut::new();
        encode_message(
            &mut frame,
            message.kind,
            message.payload,
            window_bits,
            &mut self.codec,
        );
        let queued = Queued {
            frame: frame.freeze(),
            key: None,
        };
        match self.enqueue(connection.index, lane, queued, self.config.overflow) {
            Ok(accepted) => accepted,
            Err(Full) => {
                self.counters.dropped_closed += 1;
                self.close_slow(connection.index);
                false
            }
        }
    }

    /// Puts a frame in a connection's lanes and counts what was shed. False: the frame itself was.
    pub(crate) fn enqueue(
        &mut self,
        index: u32,
        lane: Lane,
        queued: Queued,
        overflow: Overflow,
    ) -> Result<bool, Full> {
        let state = self.slots.at(index).expect("the caller has seen the connection");
        let lanes = &mut state.outbound().lanes;
        let shed = lanes.push(lane, queued, overflow, &self.config.limits)?;
        let half_full = lanes.messages() >= self.config.limits.queue_messages_max / 2
            || lanes.bytes() >= self.config.limits.queue_bytes_max / 2;
        self.counters.dropped_oldest += u64::from(shed.oldest);
        self.counters.dropped_newest += u64::from(shed.newest);
        self.counters.conflated += u64::from(shed.conflated);
        self.crowded |= half_full && !self.slots.has(index, PENDING);
        self.slots.set(index, QUEUED);
        self.mark(index);
        Ok(shed.newest == 0)
    }

    /// Begins the closing handshake. What waits for the connection leaves first; then it is closed with `code`, which must
    /// be one that may be sent (RFC 6455 section 7.4.2).
    pub fn close(&mut self, connection: ConnectionId, code: u16, reason: &str) {
        self.begin_close(connection, code, reason, Cause::Application(code));
    }

    pub(crate) fn begin_close(&mut self, connection: ConnectionId, code: u16, reason: &str, cause: Cause) {
        let Some(state) = self.slots.get(connection) else {
            return;
        };
        if !matches!(state.phase, Phase::Open | Phase::Handshaking) {
            return;
        }
        state.phase = match cause {
            Cause::Violation(_) => Phase::Failing {
                sent: false,
                discarded_bytes: 0,
            },
            Cause::Peer(_) => Phase::Closing {
                sent: false,
                peer: true,
            },
            _ => Phase::Closing {
                sent: false,
                peer: false,
            },
        };
        state.ping_due = false;
        let mut frame = BytesMut::new();
        match cause {
            // RFC 6455 section 5.5.1: a close frame without a code is answered by one without.
            Cause::Peer(None) => encode_frame(&mut frame, Opcode::Close, false, &[]),
            _ => encode_close(&mut frame, code, reason),
        }
        let outbound = state.outbound();
        outbound.close = Some(frame.freeze());
        // Whoever cannot take more gets nothing more; for the others the close comes after what they are owed.
        let cannot_take_more = matches!(cause, Cause::SlowConsumer | Cause::PongTimeout);
        if cannot_take_more {
            self.counters.dropped_closed += outbound.lanes.clear() as u64;
            outbound.pongs.clear();
            outbound.pongs_waiting = 0;
            self.slots.clear(connection.index, QUEUED);
        }
        let patience = match (cause, self.drain) {
            (Cause::Shutdown, Some(drain)) => drain.deadline.since(self.now),
            _ => self.config.heartbeat.close_timeout,
        };
        self.wheel.set(connection.index, self.now + patience);
        self.mark(connection.index);
        self.retire(connection, cause);
        if cannot_take_more {
            self.leave_all(connection);
        } else {
            self.leaving.push(connection);
        }
    }

    pub(crate) fn close_slow(&mut self, index: u32) {
        let reason = "outbound queue full: read faster, or ask for less";
        self.begin_close(
            self.slots.id(index),
            close_code::SLOW_CONSUMER,
            reason,
            Cause::SlowConsumer,
        );
    }

    /// The end of a connection's use: it counts, and the application will be told.
    fn retire(&mut self, connection: ConnectionId, cause: Cause) {
        *self.counters.closed.entry(cause.label()).or_default() += 1;
        if let Cause::Violation(name) = cause {
            *self.counters.violations.entry(name).or_default() += 1;
        }
        self.retired.push((connection, cause));
    }

    pub(crate) fn leave_all(&mut self, connection: ConnectionId) {
        let Some(state) = self.slots.get(connection) else {
            return;
        };
        for room in std::mem::take(&mut state.rooms) {
            self.remove_member(connection.index, room);
        }
    }

    /// Frees a connection whose socket is gone or about to be let go. `cause` counts if its end had not begun before.
    pub(crate) fn remove(&mut self, connection: ConnectionId, cause: Cause) {
        let Some(state) = self.slots.get(connection) else {
            return;
        };
        if matches!(state.phase, Phase::Open | Phase::Handshaking) {
            self.retire(connection, cause);
        }
        // At once: the slot may be used again before the next flush.
        self.leave_all(connection);
        self.wheel.cancel(connection.index);
        if let Some(state) = self.slots.remove(connection.index)
            && let Some(mut outbound) = state.outbound
        {
            self.counters.dropped_closed += outbound.lanes.clear() as u64;
        }
    }

    /// Notes that a connection has something of its own to send.
    pub(crate) fn mark(&mut self, index: u32) {
        if !self.slots.has(index, DIRTY) {
            self.slots.set(index, DIRTY);
            self.dirty.push(index);
            self.due_since.get_or_insert(self.now);
        }
    }

    pub(crate) fn mark_room(&mut self, index: u32) {
        let room = self.rooms.at(index).expect("only rooms that exist are marked");
        if !room.dirty {
            room.dirty = true;
            self.dirty_rooms.push(index);
            self.due_since.get_or_insert(self.now);
        }
    }

    pub(crate) fn begin_drain(&mut self, within: Duration) {
        self.drain.get_or_insert(Drain {
            next: 0,
            deadline: self.now + within,
        });
    }

    /// Tells a bounded number of connections to go.
    pub(crate) fn continue_drain(&mut self) {
        let Some(drain) = self.drain else { return };
        let most = self.config.limits.drain_per_turn_max as u32;
        let end = self.slots.len().min(drain.next.saturating_add(most));
        for index in drain.next..end {
            let Some(state) = self.slots.at(index) else {
                continue;
            };
            if matches!(state.phase, Phase::Open | Phase::Handshaking) {
                let id = self.slots.id(index);
                self.begin_close(
                    id,
                    close_code::GOING_AWAY,
                    "server shutting down: reconnect",
                    Cause::Shutdown,
                );
            } else {
                let patience = self.config.heartbeat.close_timeout;
                self.wheel.set(index, drain.deadline.min(self.now + patience));
            }
        }
        self.drain = Some(Drain { next: end, ..drain });
    }

    /// True while some connections have not been told to go.
    pub(crate) fn drain_continues(&self) -> bool {
        self.drain.is_some_and(|drain| drain.next < self.slots.len())
    }
}
