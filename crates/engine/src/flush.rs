//! The end of a turn: all that is due to a connection leaves in one write.
//!
//! The usual case, one room with something to say and members that keep up, costs one call for each member with the same
//! slice for all. Everything else (several rooms at once, compression, a sender that must not hear itself, queues) is
//! dealt with apart, so that it costs only those it concerns.

use std::sync::Arc;

use bytes::Bytes;
use roaring::RoaringBitmap;
use smallvec::SmallVec;
use wire::Codec;

use crate::batch::{Batch, Deflated, Encoded};
use crate::config::FlushDelay;
use crate::core::Core;
use crate::counters::Cause;
use crate::lanes::{Full, Lane, Queued};
use crate::machine::{Actions, Close, Wrote};
use crate::mail::Mail;
use crate::rooms::RoomOptions;
use crate::slots::{BROKEN, DEFLATE, DIRTY, EXCLUDED, PENDING, Phase, QUEUED, TOUCHED};
use crate::{ConnectionId, Time};

/// An unmasked ping without payload (RFC 6455 section 5.5.2).
const PING: &[u8] = &[0x89, 0x00];
const NO_RUN: u32 = u32::MAX;

/// The pieces of one write.
type Parts = SmallVec<[Bytes; 8]>;

/// What one room has for its members in this flush.
struct Source {
    room: u32,
    options: RoomOptions,
    members: RoaringBitmap,
    batches: SmallVec<[Arc<Batch>; 2]>,
    messages: u64,
    /// One for each encoding that some member needs: plain is the first, compressed ones are made when met.
    encodings: SmallVec<[Encoding; 1]>,
}

/// A source's batches in one encoding.
struct Encoding {
    /// 0 for plain.
    window_bits: u8,
    /// Empty for plain, else one for each batch.
    deflated: Vec<Deflated>,
    /// Each batch whole.
    parts: Parts,
    bytes: u64,
    /// Single frames that connections with a queue wait for, made when first needed and then shared.
    frames: Vec<Option<Bytes>>,
}

/// Connections that a flush found in trouble, dealt with when rooms have their members back.
#[derive(Default)]
struct Troubled {
    broken: Vec<ConnectionId>,
    /// Their queue is full and the policy is to end them.
    overflowed: Vec<u32>,
}

/// One source's messages for one connection with several sources.
struct Run {
    source: u32,
    next: u32,
}

impl Source {
    fn encoding(&mut self, window_bits: u8, codec: &mut Codec) -> usize {
        if let Some(known) = self
            .encodings
            .iter()
            .position(|encoding| encoding.window_bits == window_bits)
        {
            return known;
        }
        let deflated: Vec<Deflated> = if window_bits == 0 {
            Vec::new()
        } else {
            self.batches
                .iter()
                .map(|batch| batch.deflate(window_bits, codec))
                .collect()
        };
        let mut encoding = Encoding {
            window_bits,
            deflated,
            parts: Parts::new(),
            bytes: 0,
            frames: Vec::new(),
        };
        encoding.parts = (0..self.batches.len())
            .map(|at| encoding.encoded(&self.batches, at).bytes.clone())
            .collect();
        encoding.bytes = encoding.parts.iter().map(|part| part.len() as u64).sum();
        self.encodings.push(encoding);
        self.encodings.len() - 1
    }

    /// Calls `each` with every stretch of messages that `receiver` is to get: batch, first, one past the last.
    fn for_each_stretch(&self, receiver: Receiver, mut each: impl FnMut(usize, usize, usize)) {
        for (at, batch) in self.batches.iter().enumerate() {
            let mut from = 0;
            for (position, entry) in batch.entries().iter().enumerate() {
                if entry.except == Some(receiver) {
                    if from < position {
                        each(at, from, position);
                    }
                    from = position + 1;
                }
            }
            if from < batch.entries().len() {
                each(at, from, batch.entries().len());
            }
        }
    }
}

impl Encoding {
    fn encoded<'a>(&'a self, batches: &'a [Arc<Batch>], at: usize) -> Encoded<'a> {
        if self.window_bits == 0 {
            batches[at].encoded()
        } else {
            self.deflated[at].encoded()
        }
    }
}

type Receiver = crate::batch::Sender;

impl Core {
    /// When the next flush is to happen, if anything is due.
    pub(crate) fn flush_deadline(&self) -> Option<Time> {
        let since = self.due_since?;
        if self.due_bytes >= self.config.limits.due_bytes_max {
            return Some(since);
        }
        Some(match self.config.flush_delay {
            FlushDelay::Fixed(delay) => since + delay,
            FlushDelay::Auto { .. } => since.max(self.flush_not_before),
        })
    }

    /// Ends a turn: sends mail, and, unless frames are to wait for company, writes what is due.
    pub(crate) fn flush(&mut self, actions: &mut impl Actions<Mail>) {
        self.route_shared();
        self.send_mail(actions);
        if self.flush_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.flush_now(actions);
        }
    }

    /// Flushes in the middle of a turn when more has piled up than may wait for its end.
    pub(crate) fn flush_if_crowded(&mut self, actions: &mut impl Actions<Mail>) {
        let due_bytes_max = self.config.limits.due_bytes_max;
        if self.crowded || self.due_bytes >= due_bytes_max {
            self.flush_now(actions);
        } else if self.outgoing_bytes >= due_bytes_max {
            self.send_mail(actions);
        }
    }

    fn send_mail(&mut self, actions: &mut impl Actions<Mail>) {
        self.outgoing_bytes = 0;
        for (shard, mail) in self.outgoing.drain(..) {
            actions.mail(shard, mail);
        }
    }

    pub(crate) fn flush_now(&mut self, actions: &mut impl Actions<Mail>) {
        let writes_before = self.counters.writes;
        self.crowded = false;
        let rooms = std::mem::take(&mut self.dirty_rooms);
        let mut sources = self.take_sources(&rooms);
        self.mark_excluded(&sources, true);
        let mut troubled = Troubled::default();
        match &mut sources[..] {
            [] => {}
            [source] => self.fan_out(source, actions, &mut troubled),
            _ => self.fan_out_together(&mut sources, actions, &mut troubled),
        }
        self.mark_excluded(&sources, false);
        self.return_members(sources);
        for id in std::mem::take(&mut self.leaving) {
            self.leave_all(id);
        }
        for index in std::mem::take(&mut troubled.overflowed) {
            self.close_slow(index);
        }
        self.write_own(actions, &mut troubled);
        for id in troubled.broken {
            self.remove(id, Cause::Reset);
            actions.close(id, Close::Abort);
        }
        // Ends that were found on the way may have left rooms and letters behind.
        self.sweep_rooms(&rooms);
        self.send_mail(actions);
        self.due_since = (!self.dirty.is_empty()).then_some(self.now);
        if let FlushDelay::Auto { max } = self.config.flush_delay {
            let writes = u32::try_from(self.counters.writes - writes_before).unwrap_or(u32::MAX);
            self.flush_not_before = self.now + FlushDelay::REST_FOR_WRITE.saturating_mul(writes).min(max);
        }
    }

    /// Puts rooms' outboxes in order and takes what they have for this shard's members, highest lane first.
    fn take_sources(&mut self, rooms: &[u32]) -> SmallVec<[Source; 1]> {
        let mut sources: SmallVec<[Source; 1]> = SmallVec::new();
        for &index in rooms {
            self.route(index);
            let room = self
                .rooms
                .at(index)
                .expect("dirty rooms exist until they are flushed");
            let batches = std::mem::take(&mut room.due);
            if batches.is_empty() {
                continue;
            }
            self.due_bytes -= batches.iter().map(|batch| batch.bytes()).sum::<usize>();
            let mut source = Source {
                room: index,
                options: room.options,
                members: std::mem::take(&mut room.members),
                messages: batches.iter().map(|batch| batch.entries().len() as u64).sum(),
                batches,
                encodings: SmallVec::new(),
            };
            source.encoding(0, &mut self.codec);
            sources.push(source);
        }
        sources.sort_by_key(|source| std::cmp::Reverse(source.options.lane));
        sources
    }

    fn return_members(&mut self, sources: SmallVec<[Source; 1]>) {
        for source in sources {
            self.rooms.at(source.room).expect("a source's room stays").members = source.members;
        }
    }

    /// Forgets those of the flushed rooms that nothing holds any more, and of those that lost members in the flush.
    fn sweep_rooms(&mut self, flushed: &[u32]) {
        for list in [flushed, &std::mem::take(&mut self.dirty_rooms)] {
            for &index in list {
                if let Some(room) = self.rooms.at(index) {
                    room.dirty = false;
                    self.rooms.remove_if_abandoned(index);
                }
            }
        }
    }

    /// Marks, or unmarks, those of this shard's connections that must not get some message.
    fn mark_excluded(&mut self, sources: &[Source], mark: bool) {
        for entry in sources
            .iter()
            .flat_map(|source| &source.batches)
            .flat_map(|batch| batch.entries())
        {
            if let Some((shard, id)) = entry.except
                && shard == self.config.shard
                && self.slots.get(id).is_some()
            {
                if mark {
                    self.slots.set(id.index, EXCLUDED);
                } else {
                    self.slots.clear(id.index, EXCLUDED);
                }
            }
        }
    }

    /// The usual case: one room has something to say. Members that keep up and have nothing of their own get the same slice.
    fn fan_out(&mut self, source: &mut Source, actions: &mut impl Actions<Mail>, troubled: &mut Troubled) {
        let members = std::mem::take(&mut source.members);
        let mut whole = 0;
        for index in &members {
            let hot = self.slots.hot[index as usize];
            if hot.flags & PENDING != 0 {
                self.wait_in_lanes(index, source, troubled);
                continue;
            }
            if hot.flags != 0 {
                self.write_gathered(
                    index,
                    std::slice::from_mut(source),
                    std::iter::once(0),
                    actions,
                    troubled,
                );
                continue;
            }
            let id = ConnectionId {
                index,
                generation: hot.generation,
            };
            whole += 1;
            match actions.write(id, &source.encodings[0].parts) {
                Wrote::Done => {}
                Wrote::Pending => self.note_pending(index),
                Wrote::Failed => self.note_broken(index, troubled),
            }
        }
        self.counters.writes += whole;
        self.counters.messages_out += whole * source.messages;
        self.counters.bytes_out += whole * source.encodings[0].bytes;
        source.members = members;
    }

    /// Several rooms have something to say: first find out who gets what, then write to each connection once.
    fn fan_out_together(
        &mut self,
        sources: &mut [Source],
        actions: &mut impl Actions<Mail>,
        troubled: &mut Troubled,
    ) {
        let mut heads = std::mem::take(&mut self.run_heads);
        heads.resize(self.slots.len() as usize, NO_RUN);
        let mut runs: Vec<Run> = Vec::new();
        let mut touched: Vec<u32> = Vec::new();
        // The lists of runs are built from their ends, so the sources are visited last first.
        for (at, source) in sources.iter().enumerate().rev() {
            for index in &source.members {
                if self.slots.has(index, PENDING) {
                    continue;
                }
                if !self.slots.has(index, TOUCHED) {
                    self.slots.set(index, TOUCHED);
                    touched.push(index);
                }
                runs.push(Run {
                    source: at as u32,
                    next: heads[index as usize],
                });
                heads[index as usize] = runs.len() as u32 - 1;
            }
        }
        for source in sources.iter_mut() {
            let members = std::mem::take(&mut source.members);
            for index in &members {
                if self.slots.has(index, PENDING) {
                    self.wait_in_lanes(index, source, troubled);
                }
            }
            source.members = members;
        }
        for index in touched {
            self.slots.clear(index, TOUCHED);
            let mut next = std::mem::replace(&mut heads[index as usize], NO_RUN);
            let its_sources = std::iter::from_fn(|| {
                let run = runs.get(next as usize)?;
                next = run.next;
                Some(run.source as usize)
            });
            self.write_gathered(index, sources, its_sources, actions, troubled);
        }
        self.run_heads = heads;
    }

    /// One write with all that is due to a connection: control frames, then lane by lane what waits for it and what its rooms
    /// have, highest first, and last its close frame.
    fn write_gathered(
        &mut self,
        index: u32,
        sources: &mut [Source],
        its_sources: impl Iterator<Item = usize>,
        actions: &mut impl Actions<Mail>,
        troubled: &mut Troubled,
    ) {
        let mut parts = Parts::new();
        self.take_control(index, &mut parts);
        for at in its_sources {
            let source = &mut sources[at];
            self.take_lanes(index, source.options.lane, usize::MAX, &mut parts);
            self.add_parts(index, source, &mut parts);
        }
        self.take_lanes(index, Lane::Low, usize::MAX, &mut parts);
        self.take_close(index, &mut parts);
        self.write(index, &parts, actions, troubled);
    }

    /// Adds what a source has for a connection to the pieces of its write.
    fn add_parts(&mut self, index: u32, source: &mut Source, parts: &mut Parts) {
        let at = self.encoding_for(index, source);
        let encoding = &source.encodings[at];
        if !self.slots.has(index, EXCLUDED) {
            parts.extend(encoding.parts.iter().cloned());
            self.counters.messages_out += source.messages;
            return;
        }
        let receiver = (self.config.shard, self.slots.id(index));
        source.for_each_stretch(receiver, |batch, from, to| {
            parts.push(encoding.encoded(&source.batches, batch).slice(from, to));
            self.counters.messages_out += (to - from) as u64;
        });
    }

    fn encoding_for(&mut self, index: u32, source: &mut Source) -> usize {
        if !self.slots.has(index, DEFLATE) {
            return 0;
        }
        let window_bits = self.slots.at(index).map_or(0, |state| state.window_bits);
        source.encoding(window_bits, &mut self.codec)
    }

    /// Queues a source's messages one by one for a connection that cannot take them now.
    fn wait_in_lanes(&mut self, index: u32, source: &mut Source, troubled: &mut Troubled) {
        let at = self.encoding_for(index, source);
        let receiver = (self.config.shard, self.slots.id(index));
        let RoomOptions { lane, overflow } = source.options;
        let mut frames = std::mem::take(&mut source.encodings[at].frames);
        frames.resize(source.messages as usize, None);
        let mut position = 0;
        let mut full = false;
        for (number, batch) in source.batches.iter().enumerate() {
            for (entry_position, entry) in batch.entries().iter().enumerate() {
                let frame = &mut frames[position];
                position += 1;
                if entry.except == Some(receiver) {
                    continue;
                }
                if full {
                    self.counters.dropped_closed += 1;
                    continue;
                }
                let encoded = source.encodings[at].encoded(&source.batches, number);
                let frame = frame.get_or_insert_with(|| encoded.frame(entry_position)).clone();
                let queued = Queued {
                    frame,
                    key: entry.key,
                };
                if let Err(Full) = self.enqueue(index, lane, queued, overflow) {
                    self.counters.dropped_closed += 1;
                    full = true;
                }
            }
        }
        source.encodings[at].frames = frames;
        if full {
            troubled.overflowed.push(index);
        }
    }

    /// Writes what connections have of their own and no room's flush took along.
    fn write_own(&mut self, actions: &mut impl Actions<Mail>, troubled: &mut Troubled) {
        let dirty = std::mem::take(&mut self.dirty);
        for &index in &dirty {
            self.slots.clear(index, DIRTY);
            // The slot may have been emptied, or used again, since it was marked.
            while self.slots.at(index).is_some_and(|state| state.has_own())
                && !self.slots.has(index, PENDING | BROKEN)
            {
                let mut parts = Parts::new();
                self.take_control(index, &mut parts);
                self.take_lanes(index, Lane::Low, self.config.limits.write_bytes_max, &mut parts);
                self.take_close(index, &mut parts);
                if parts.is_empty() {
                    break;
                }
                self.write(index, &parts, actions, troubled);
            }
            if !self.slots.has(index, PENDING | BROKEN) {
                self.finish_close(index, actions);
            }
        }
        // The list's memory is kept for the next turn, unless new marks were made meanwhile.
        if self.dirty.is_empty() {
            self.dirty = dirty;
            self.dirty.clear();
        }
    }

    /// Takes the greeting, the pongs and the ping that wait.
    fn take_control(&mut self, index: u32, parts: &mut Parts) {
        let now = self.now;
        let Some(state) = self.slots.at(index) else {
            return;
        };
        if let Some(outbound) = state.outbound.as_mut() {
            if !outbound.greeting.is_empty() {
                parts.push(std::mem::take(&mut outbound.greeting));
            }
            if outbound.pongs_waiting > 0 {
                outbound.pongs_waiting = 0;
                parts.push(std::mem::take(&mut outbound.pongs).freeze());
            }
        }
        if std::mem::take(&mut state.ping_due) {
            parts.push(Bytes::from_static(PING));
            state.pinged_at = Some(now);
            self.counters.pings_out += 1;
            self.arm_heartbeat(index);
        }
    }

    /// Takes what waits in the lanes from `least` up until `bytes_max` are reached.
    fn take_lanes(&mut self, index: u32, least: Lane, bytes_max: usize, parts: &mut Parts) {
        if !self.slots.has(index, QUEUED) {
            return;
        }
        let Some(outbound) = self.slots.at(index).and_then(|state| state.outbound.as_mut()) else {
            return;
        };
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some(frame) = outbound.lanes.pop(least)
        {
            bytes += frame.len();
            self.counters.messages_out += 1;
            parts.push(frame);
        }
        if outbound.lanes.is_empty() {
            self.slots.clear(index, QUEUED);
        }
    }

    /// Takes the close frame if all else has been taken, and drops what held it.
    fn take_close(&mut self, index: u32, parts: &mut Parts) {
        let Some(state) = self.slots.at(index) else {
            return;
        };
        let Some(outbound) = state
            .outbound
            .as_mut()
            .filter(|outbound| outbound.lanes.is_empty())
        else {
            return;
        };
        if let Some(close) = outbound.close.take() {
            parts.push(close);
            match &mut state.phase {
                Phase::Closing { sent, .. } | Phase::Failing { sent, .. } => *sent = true,
                Phase::Handshaking | Phase::Open => unreachable!("a close frame waits only while closing"),
            }
        }
        state.outbound = None;
    }

    fn write(
        &mut self,
        index: u32,
        parts: &[Bytes],
        actions: &mut impl Actions<Mail>,
        troubled: &mut Troubled,
    ) {
        if parts.is_empty() {
            return;
        }
        self.counters.writes += 1;
        self.counters.bytes_out += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        match actions.write(self.slots.id(index), parts) {
            Wrote::Done => {}
            Wrote::Pending => self.note_pending(index),
            Wrote::Failed => self.note_broken(index, troubled),
        }
    }

    fn note_broken(&mut self, index: u32, troubled: &mut Troubled) {
        self.slots.set(index, BROKEN);
        troubled.broken.push(self.slots.id(index));
    }

    /// Goes on with a close whose frame has left: lets the socket go, or waits for the peer's part until the deadline.
    pub(crate) fn finish_close(&mut self, index: u32, actions: &mut impl Actions<Mail>) {
        let id = self.slots.id(index);
        let mut close_deadline = self.now + self.config.heartbeat.close_timeout;
        if let Some(drain) = self.drain {
            close_deadline = close_deadline.min(drain.deadline);
        }
        let Some(state) = self.slots.at(index) else { return };
        match state.phase {
            // RFC 6455 section 7.1.1: the server closes the TCP connection first.
            Phase::Closing {
                sent: true,
                peer: true,
            } => {
                self.remove(id, Cause::Eof);
                actions.close(id, Close::Orderly);
            }
            Phase::Closing {
                sent: true,
                peer: false,
            } => self.wheel.set(index, close_deadline),
            // Closing the socket with unread bytes in it would reset it, and the peer might never see our close frame.
            Phase::Failing { sent: true, .. } => {
                actions.shutdown(id);
                self.wheel.set(index, close_deadline);
            }
            Phase::Handshaking | Phase::Open | Phase::Closing { .. } | Phase::Failing { .. } => {}
        }
    }
}
