//! The unit of fan-out: what was published to one room between two flushes, encoded once.
//!
//! The frames of a batch stand one after another in one buffer, so a connection that is owed all of them is owed one
//! contiguous slice, however many messages there are. Batches are immutable once sealed and shared between shards.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use wire::{Codec, HEADER_BYTES_MAX, Kind, Opcode, encode_frame};

use crate::{ConnectionId, ShardId};

/// Payloads below this are sent plain even to connections that negotiated compression: deflate would not shorten them.
pub const DEFLATE_BYTES_MIN: usize = 64;

/// Bytes that one message costs in a batch beside its frame: tiny messages must not be cheaper on paper than in memory.
pub const ENTRY_BYTES: usize = size_of::<Entry>();

/// A connection of any shard of the node.
pub type Sender = (ShardId, ConnectionId);

/// One message's place in its batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Where its frame ends in the batch's bytes; it begins where the one before ends.
    end: u32,
    payload_bytes: u32,
    kind: Kind,
    /// Who must not get it: its sender, when a room is sent to "all but the sender".
    pub except: Option<Sender>,
    /// What it conflates by.
    pub key: Option<u64>,
}

/// A sealed batch.
#[derive(Debug)]
pub struct Batch {
    plain: Bytes,
    entries: SmallVec<[Entry; 4]>,
}

impl Batch {
    /// The messages, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes of memory: all frames, uncompressed, and their entries.
    pub fn bytes(&self) -> usize {
        self.plain.len() + self.entries.len() * ENTRY_BYTES
    }

    /// All frames, uncompressed.
    pub fn encoded(&self) -> Encoded<'_> {
        Encoded {
            bytes: &self.plain,
            ends: Ends::Plain(&self.entries),
        }
    }

    fn payload(&self, position: usize) -> &[u8] {
        let entry = &self.entries[position];
        &self.plain[(entry.end - entry.payload_bytes) as usize..entry.end as usize]
    }

    /// Encodes all messages again, compressed without context for a window of `window_bits` (RFC 7692 section 7.2.1).
    pub fn deflate(&self, window_bits: u8, codec: &mut Codec) -> Deflated {
        let mut bytes = BytesMut::with_capacity(self.plain.len() / 2);
        let mut ends = Vec::with_capacity(self.entries.len());
        for (position, entry) in self.entries.iter().enumerate() {
            encode_message(
                &mut bytes,
                entry.kind,
                self.payload(position),
                Some(window_bits),
                codec,
            );
            ends.push(bytes.len() as u32);
        }
        Deflated {
            bytes: bytes.freeze(),
            ends,
        }
    }
}

fn opcode(kind: Kind) -> Opcode {
    match kind {
        Kind::Text => Opcode::Text,
        Kind::Binary => Opcode::Binary,
    }
}

/// Appends one message as one frame, compressed when `window_bits` is given and it is worth while.
pub fn encode_message(
    out: &mut BytesMut,
    kind: Kind,
    payload: &[u8],
    window_bits: Option<u8>,
    codec: &mut Codec,
) {
    let opcode = opcode(kind);
    match window_bits {
        Some(window_bits) if payload.len() >= DEFLATE_BYTES_MIN => {
            let mut compressed = BytesMut::with_capacity(payload.len() / 2);
            codec.deflate(window_bits, payload, &mut compressed);
            encode_frame(out, opcode, true, &compressed);
        }
        _ => encode_frame(out, opcode, false, payload),
    }
}

/// A batch in the compressed encoding for one window size.
#[derive(Debug)]
pub struct Deflated {
    bytes: Bytes,
    ends: Vec<u32>,
}

impl Deflated {
    /// All frames, compressed.
    pub fn encoded(&self) -> Encoded<'_> {
        Encoded {
            bytes: &self.bytes,
            ends: Ends::Deflated(&self.ends),
        }
    }
}

/// One encoding of a batch: its bytes, and where each message ends in them.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// All frames in order.
    pub bytes: &'a Bytes,
    ends: Ends<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Ends<'a> {
    Plain(&'a [Entry]),
    Deflated(&'a [u32]),
}

impl Encoded<'_> {
    fn end(&self, position: usize) -> usize {
        match self.ends {
            Ends::Plain(entries) => entries[position].end as usize,
            Ends::Deflated(ends) => ends[position] as usize,
        }
    }

    /// The frames of messages `from..to` as one slice that shares the batch's memory.
    pub fn slice(&self, from: usize, to: usize) -> Bytes {
        let start = if from == 0 { 0 } else { self.end(from - 1) };
        let end = if to == 0 { 0 } else { self.end(to - 1) };
        self.bytes.slice(start..end)
    }

    /// One message's frame in memory of its own, for a queue where it may wait long without keeping the batch alive.
    pub fn frame(&self, position: usize) -> Bytes {
        Bytes::copy_from_slice(&self.slice(position, position + 1))
    }
}

/// A batch that is being filled.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    entries: SmallVec<[Entry; 4]>,
    /// How large the last batch was: the next one's first guess. No buffer is kept between batches, so a quiet room holds none.
    last_bytes: usize,
}

impl BatchBuilder {
    /// True when nothing was added since the last seal.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What [`Batch::bytes`] will say of what was added so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.entries.len() * ENTRY_BYTES
    }

    /// Adds one message: its frame is encoded here and never again. Payloads are below 1 GiB (`limits`).
    pub fn push(&mut self, kind: Kind, payload: &[u8], except: Option<Sender>, key: Option<u64>) {
        let frame_bytes = payload.len() + HEADER_BYTES_MAX;
        let guess = if self.entries.is_empty() {
            self.last_bytes
        } else {
            0
        };
        self.bytes.reserve(frame_bytes.max(guess));
        encode_frame(&mut self.bytes, opcode(kind), false, payload);
        self.entries.push(Entry {
            end: self.bytes.len() as u32,
            payload_bytes: payload.len() as u32,
            kind,
            except,
            key,
        });
    }

    /// Takes what was added. A next batch is expected to be as large, up to `expect_bytes_max`.
    pub fn seal(&mut self, expect_bytes_max: usize) -> Batch {
        let plain = std::mem::take(&mut self.bytes).freeze();
        self.last_bytes = plain.len().min(expect_bytes_max);
        Batch {
            plain,
            entries: std::mem::take(&mut self.entries),
        }
    }
}
