//! The shard: the core and an application, as a machine that a driver runs.

use bytes::Bytes;
use wire::{DeflateParams, HEADER_BYTES_MAX, Item, Opcode, encode_frame};

use crate::config::ShardConfig;
use crate::core::{Core, Message};
use crate::counters::{Cause, Counters};
use crate::limits::{DISCARDED_BYTES_MAX, PONGS_BYTES_MAX};
use crate::machine::{Actions, Close, Machine, SocketEnd};
use crate::mail::Mail;
use crate::slots::{DIRTY, PENDING, Phase};
use crate::{ConnectionId, Time};

/// What the program does with connections and messages. Called on the shard's thread: it must not block.
pub trait Application {
    /// What hand-off knows of a new connection.
    type Info: Send + 'static;

    /// A connection was opened.
    fn opened(&mut self, shard: &mut Core, connection: ConnectionId, info: Self::Info);

    /// A whole message arrived.
    fn message(&mut self, shard: &mut Core, connection: ConnectionId, message: Message<'_>);

    /// A connection's end began: it is in no room any more and nothing can be sent to it. Called once for each opened one.
    fn closed(&mut self, shard: &mut Core, connection: ConnectionId, cause: Cause);
}

/// What hand-off tells a shard of a new connection.
#[derive(Clone, Debug)]
pub struct Opening<I> {
    /// For the application.
    pub info: I,
    /// What was agreed on compression.
    pub deflate: Option<DeflateParams>,
    /// Bytes that leave before any frame: the answer to the upgrade, so that whoever has it is heard and hears. Empty if it was
    /// given before.
    pub greeting: Bytes,
}

/// A shard: all logic of its connections, and nothing else.
#[derive(Debug)]
pub struct Shard<A> {
    core: Core,
    application: A,
}

impl<A: Application> Shard<A> {
    /// A shard without connections.
    ///
    /// # Panics
    /// If the limits contradict each other: [`crate::limits::Limits::validate`] comes first.
    pub fn new(config: ShardConfig, application: A) -> Shard<A> {
        config
            .limits
            .validate()
            .expect("limits are validated before a shard is made");
        Shard {
            core: Core::new(config),
            application,
        }
    }

    /// The counters since the start.
    pub fn counters(&self) -> &Counters {
        self.core.counters()
    }

    /// Open connections, those that are closing included.
    pub fn connections(&self) -> usize {
        self.core.connections()
    }

    /// Rooms known to this shard.
    pub fn rooms(&self) -> usize {
        self.core.rooms()
    }

    /// The application.
    pub fn application(&self) -> &A {
        &self.application
    }

    /// Tells the application of ends that began.
    fn tell_closed(&mut self) {
        while let Some((connection, cause)) = self.core.retired.pop() {
            self.application.closed(&mut self.core, connection, cause);
        }
    }

    /// Deals with one item; false if nothing further of this input counts.
    fn item(&mut self, connection: ConnectionId, item: Item<'_>) -> bool {
        let Some(state) = self.core.slots.get(connection) else {
            return false;
        };
        let usable = matches!(state.phase, Phase::Open | Phase::Handshaking);
        match item {
            Item::Message { kind, payload } => {
                state.message_at = self.core.now;
                self.core.counters.messages_in += 1;
                if usable {
                    self.application.message(
                        &mut self.core,
                        connection,
                        Message {
                            kind,
                            payload: &payload,
                        },
                    );
                }
            }
            Item::Ping(payload) => {
                self.core.counters.pings_in += 1;
                if usable {
                    self.pong(connection, &payload);
                }
            }
            Item::Pong(_) => self.core.counters.pongs_in += 1,
            Item::Close { code, .. } => {
                self.peer_closed(connection, code);
                return false;
            }
        }
        true
    }

    /// Answers a ping. All are answered while the peer reads; only the last one if it does not (RFC 6455 section 5.5.3).
    fn pong(&mut self, connection: ConnectionId, payload: &[u8]) {
        let blocked = self.core.slots.has(connection.index, PENDING);
        let Some(state) = self.core.slots.get(connection) else {
            return;
        };
        let outbound = state.outbound();
        let frame_bytes = payload.len() + HEADER_BYTES_MAX;
        if blocked || outbound.pongs.len() + frame_bytes > PONGS_BYTES_MAX {
            self.core.counters.pongs_skipped += u64::from(std::mem::take(&mut outbound.pongs_waiting));
            outbound.pongs.clear();
        }
        encode_frame(&mut outbound.pongs, Opcode::Pong, false, payload);
        outbound.pongs_waiting += 1;
        self.core.mark(connection.index);
    }

    fn peer_closed(&mut self, connection: ConnectionId, code: Option<u16>) {
        let Some(state) = self.core.slots.get(connection) else {
            return;
        };
        if let Phase::Closing { peer, .. } = &mut state.phase {
            *peer = true;
            // The flush lets the socket go once our own close frame has left.
            self.core.mark(connection.index);
        } else {
            // RFC 6455 section 5.5.1: the answer typically echoes the code.
            self.core
                .begin_close(connection, code.unwrap_or(1000), "", Cause::Peer(code));
        }
    }
}

impl<A: Application> Machine for Shard<A> {
    type Opening = Opening<A::Info>;
    type Mail = Mail;

    fn opened(
        &mut self,
        opening: Self::Opening,
        now: Time,
        _actions: &mut impl Actions<Mail>,
    ) -> Option<ConnectionId> {
        self.core.now = now;
        let id = self.core.open(opening.deflate, opening.greeting)?;
        self.application.opened(&mut self.core, id, opening.info);
        self.tell_closed();
        Some(id)
    }

    fn received(
        &mut self,
        connection: ConnectionId,
        mut bytes: &mut [u8],
        now: Time,
        actions: &mut impl Actions<Mail>,
    ) {
        self.core.now = now;
        let Some(state) = self.core.slots.get(connection) else {
            return;
        };
        state.received_at = now;
        self.core.counters.bytes_in += bytes.len() as u64;
        if let Phase::Failing { discarded_bytes, .. } = &mut state.phase {
            *discarded_bytes = discarded_bytes.saturating_add(bytes.len() as u32);
            if *discarded_bytes > DISCARDED_BYTES_MAX {
                self.core.counters.close_timeouts += 1;
                self.core.remove(connection, Cause::Reset);
                actions.close(connection, Close::Abort);
            }
            return;
        }
        while let Some(state) = self.core.slots.get(connection) {
            // What comes after a violation or after the peer's close frame is not looked at (RFC 6455 section 1.4).
            if matches!(
                state.phase,
                Phase::Failing { .. } | Phase::Closing { peer: true, .. }
            ) {
                break;
            }
            match state.decoder.next(&mut bytes, &mut self.core.codec) {
                Ok(Some(item)) => {
                    if !self.item(connection, item) {
                        break;
                    }
                }
                Ok(None) => break,
                Err(violation) => {
                    let cause = Cause::Violation(violation.name());
                    let sentence = violation.to_string();
                    if let Phase::Closing { sent, .. } = state.phase {
                        state.phase = Phase::Failing {
                            sent,
                            discarded_bytes: 0,
                        };
                        *self.core.counters.violations.entry(violation.name()).or_default() += 1;
                        self.core.mark(connection.index);
                    } else {
                        self.core
                            .begin_close(connection, violation.close_code(), &sentence, cause);
                    }
                    break;
                }
            }
            self.core.flush_if_crowded(actions);
        }
        self.tell_closed();
    }

    fn flushed(&mut self, connection: ConnectionId, now: Time, _actions: &mut impl Actions<Mail>) {
        self.core.now = now;
        if self.core.slots.get(connection).is_some() {
            self.core.note_flushed(connection.index);
            // What waits meanwhile, or the rest of a close, goes with this turn's flush.
            self.core.mark(connection.index);
        }
    }

    fn ended(
        &mut self,
        connection: ConnectionId,
        end: SocketEnd,
        now: Time,
        actions: &mut impl Actions<Mail>,
    ) {
        self.core.now = now;
        let (cause, how) = match end {
            SocketEnd::Eof => (Cause::Eof, Close::Orderly),
            SocketEnd::Reset => (Cause::Reset, Close::Abort),
            SocketEnd::Tls => (Cause::Tls, Close::Orderly),
        };
        // A peer that only ended its own side may still read the answers to what it sent last.
        if end == SocketEnd::Eof
            && self.core.slots.has(connection.index, DIRTY)
            && !self.core.slots.has(connection.index, PENDING)
        {
            self.core.flush_now(actions);
        }
        if self.core.slots.get(connection).is_some() {
            self.core.remove(connection, cause);
            actions.close(connection, how);
        }
        self.tell_closed();
    }

    fn mail(&mut self, mail: Mail, now: Time, actions: &mut impl Actions<Mail>) {
        self.core.now = now;
        match mail {
            Mail::Interest { room, shard, wanted } => self.core.set_interest(&room, shard, wanted),
            Mail::Publish { room, batch } => self.core.publish_arrived(&room, batch),
            Mail::Deliver {
                room,
                epoch,
                first_sequence,
                batch,
            } => self.core.deliver_arrived(&room, epoch, first_sequence, batch),
            Mail::Drain { within } => self.core.begin_drain(within),
        }
        self.core.flush_if_crowded(actions);
        self.tell_closed();
    }

    fn advance(&mut self, now: Time, actions: &mut impl Actions<Mail>) {
        self.core.now = now;
        self.core.continue_drain();
        self.core.fire_timers(actions);
        self.tell_closed();
    }

    fn flush(&mut self, now: Time, actions: &mut impl Actions<Mail>) {
        self.core.now = now;
        self.core.flush(actions);
        self.tell_closed();
    }

    fn next_deadline(&self) -> Option<Time> {
        let draining = self.core.drain_continues().then_some(self.core.now);
        [
            self.core.wheel.next_deadline(),
            self.core.flush_deadline(),
            draining,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn finished(&self) -> bool {
        self.core.drain.is_some() && self.core.connections() == 0
    }
}
