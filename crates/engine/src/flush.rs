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

    pub(crate) fn send_mail(&mut self, actions: &mut impl Actions<Mail>) {
        for (shard, mail) in self.outgoing.drain(..) {
            actions.mail(shard, mail);
        }
    }

    pub(crate) fn flush_now(&mut self, actions: &mut impl Actions<Mail>) {
        let writes_before = self.counters.writes;
        let rooms = std::mem::take(&mut self.dirty_rooms);
        let mut sources = self.take_sources(&rooms);
        self.mark_excluded(&sources, true);
        let mut troubled = Troubled::default();
        match &mut sources[..] {
            [] => {}
            [source] if self.dirty.is_empty() => self.fan_out(source, actions, &mut troubled),
            _ => self.fan_out_together(&mut sources, actions, &mut troubled),
        }
        self.mark_excluded(&sources, false);
        self.return_sources(sources, &rooms);
        for index in std::mem::take(&mut troubled.overflowed) {
            self.close_slow(index);
        }
        self.write_own(actions, &mut troubled);
        for id in troubled.broken {
            self.remove(id, Cause::Reset);
            actions.close(id, Close::Abort);
        }
        // Ends that were found on the way may have left letters and rooms behind.
        self.send_mail(actions);
        self.due_since = (!self.dirty.is_empty() || !self.dirty_rooms.is_empty()).then_some(self.now);
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

    fn return_sources(&mut self, sources: SmallVec<[Source; 1]>, rooms: &[u32]) {
        for source in sources {
            self.rooms.at(source.room).expect("a source's room stays").members = source.members;
        }
        for &index in rooms {
            if let Some(room) = self.rooms.at(index) {
                room.dirty = false;
                self.rooms.remove_if_abandoned(index);
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

    /// The usual case: one room has something to say, nobody has anything else.
    fn fan_out(&mut self, source: &mut Source, actions: &mut impl Actions<Mail>, troubled: &mut Troubled) {
        let members = std::mem::take(&mut source.members);
        let (mut whole, mut pending) = (0, 0);
        for index in &members {
            let hot = self.slots.hot[index as usize];
            if hot.flags != 0 {
                self.deliver_apart(index, source, actions, troubled);
                continue;
            }
            let id = ConnectionId {
                index,
                generation: hot.generation,
            };
            whole += 1;
            match actions.write(id, &source.encodings[0].parts) {
                Wrote::Done => {}
                Wrote::Pending => {
                    self.slots.set(index, PENDING);
                    pending += 1;
                }
                Wrote::Failed => self.note_broken(index, troubled),
            }
        }
        self.counters.writes += whole;
        self.counters.writes_pending += pending;
        self.counters.messages_out += whole * source.messages;
        self.counters.bytes_out += whole * source.encodings[0].bytes;
        source.members = members;
    }

    /// One member that is not in the usual state.
    fn deliver_apart(
        &mut self,
        index: u32,
        source: &mut Source,
        actions: &mut impl Actions<Mail>,
        troubled: &mut Troubled,
    ) {
        if self.slots.has(index, PENDING | QUEUED) {
            if self.wait_in_lanes(index, source).is_err() {
                troubled.overflowed.push(index);
            }
            return;
        }
        let mut parts = Parts::new();
        self.add_parts(index, source, &mut parts);
        self.write(index, &parts, actions, troubled);
    }

    /// Several rooms, or connections with something of their own: first find out who gets what, then write each once.
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
        // Lists are built from their ends, so the sources are visited last first; connections with a queue are served apart,
        // in order.
        for (at, source) in sources.iter().enumerate().rev() {
            for index in &source.members {
                if self.slots.has(index, PENDING | QUEUED) {
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
                if self.slots.has(index, PENDING | QUEUED) && self.wait_in_lanes(index, source).is_err() {
                    troubled.overflowed.push(index);
                }
            }
            source.members = members;
        }
        for index in touched {
            self.slots.clear(index, TOUCHED);
            let mut parts = Parts::new();
            self.take_control(index, &mut parts);
            let mut next = std::mem::replace(&mut heads[index as usize], NO_RUN);
            while let Some(run) = runs.get(next as usize) {
                self.add_parts(index, &mut sources[run.source as usize], &mut parts);
                next = run.next;
            }
            self.write(index, &parts, actions, troubled);
        }
        self.run_heads = heads;
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
    fn wait_in_lanes(&mut self, index: u32, source: &mut Source) -> Result<(), Full> {
        let at = self.encoding_for(index, source);
        let receiver = (self.config.shard, self.slots.id(index));
        let mut frames = std::mem::take(&mut source.encodings[at].frames);
        frames.resize(source.messages as usize, None);
        let mut position = 0;
        let mut result = Ok(());
        'all: for (number, batch) in source.batches.iter().enumerate() {
            for (entry_position, entry) in batch.entries().iter().enumerate() {
                let encoded = source.encodings[at].encoded(&source.batches, number);
                let frame = frames[position].get_or_insert_with(|| encoded.frame(entry_position));
                position += 1;
                if entry.except == Some(receiver) {
                    continue;
                }
                let queued = Queued {
                    frame: frame.clone(),
                    key: entry.key,
                };
                if let Err(full) = self.enqueue(index, source.options.lane, queued, source.options.overflow) {
                    result = Err(full);
                    break 'all;
                }
            }
        }
        source.encodings[at].frames = frames;
        result
    }

    /// Writes what connections have of their own: control frames, lanes, and last the close frame.
    fn write_own(&mut self, actions: &mut impl Actions<Mail>, troubled: &mut Troubled) {
        let dirty = std::mem::take(&mut self.dirty);
        for &index in &dirty {
            self.slots.clear(index, DIRTY);
            // The slot may have been emptied, or used again, since it was marked.
            while self.slots.at(index).is_some_and(|state| state.has_own())
                && !self.slots.has(index, PENDING | BROKEN)
            {
                let mut parts = Parts::new();
                self.take_own(index, &mut parts);
                if parts.is_empty() {
                    break;
                }
                if self.write(index, &parts, actions, troubled) != Wrote::Done {
                    break;
                }
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

    fn take_control(&mut self, index: u32, parts: &mut Parts) {
        let Some(state) = self.slots.at(index) else { return };
        if std::mem::take(&mut state.ping_due) {
            parts.push(Bytes::from_static(PING));
        }
        if let Some(outbound) = state
            .outbound
            .as_mut()
            .filter(|outbound| outbound.pongs_waiting > 0)
        {
            outbound.pongs_waiting = 0;
            parts.push(std::mem::take(&mut outbound.pongs).freeze());
        }
    }

    /// Takes the next write's worth of what a connection has of its own.
    fn take_own(&mut self, index: u32, parts: &mut Parts) {
        self.take_control(index, parts);
        let write_bytes_max = self.config.limits.write_bytes_max;
        let Some(state) = self.slots.at(index) else { return };
        let Some(outbound) = state.outbound.as_mut() else {
            return;
        };
        let (mut bytes, mut messages) = (0, 0);
        while bytes < write_bytes_max
            && let Some(frame) = outbound.lanes.pop(Lane::Low)
        {
            bytes += frame.len();
            messages += 1;
            parts.push(frame);
        }
        let empty = outbound.lanes.is_empty();
        if empty {
            if let Some(close) = outbound.close.take() {
                parts.push(close);
                match &mut state.phase {
                    Phase::Closing { sent, .. } | Phase::Failing { sent } => *sent = true,
                    Phase::Handshaking | Phase::Open => {
                        unreachable!("a close frame waits only while closing")
                    }
                }
            }
            state.outbound = None;
        }
        self.counters.messages_out += messages;
        if empty {
            self.slots.clear(index, QUEUED);
        }
    }

    fn write(
        &mut self,
        index: u32,
        parts: &[Bytes],
        actions: &mut impl Actions<Mail>,
        troubled: &mut Troubled,
    ) -> Wrote {
        if parts.is_empty() {
            return Wrote::Done;
        }
        self.counters.writes += 1;
        self.counters.bytes_out += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let wrote = actions.write(self.slots.id(index), parts);
        match wrote {
            Wrote::Done => {}
            Wrote::Pending => {
                self.slots.set(index, PENDING);
                self.counters.writes_pending += 1;
            }
            Wrote::Failed => self.note_broken(index, troubled),
        }
        wrote
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
            Phase::Failing { sent: true } => {
                actions.shutdown(id);
                self.wheel.set(index, close_deadline);
            }
            Phase::Handshaking | Phase::Open | Phase::Closing { .. } | Phase::Failing { .. } => {}
        }
    }
}
