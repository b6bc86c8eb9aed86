//! permessage-deflate (RFC 7692): the compressor, the inflater with its cap, and what two sides agreed.
//!
//! The agreement itself (offers, answers) is in [`negotiate`]. What always holds: inflating stops at the cap it
//! was given, whatever the input claims; memory grows by doubling with what was really inflated; work is
//! linear in what comes in and goes out.

pub mod negotiate;

use bytes::BytesMut;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::{Role, Violation};

pub use negotiate::DeflatePolicy;

/// The smallest window, as a power of two, that zlib can compress with when there is no zlib header.
pub const WINDOW_BITS_MIN: u8 = 9;
/// The largest window, as a power of two: 32 KiB.
pub const WINDOW_BITS_MAX: u8 = 15;

/// What a flushed DEFLATE stream ends with and a message leaves out (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// The payload of a compressed message of no bytes (RFC 7692 section 7.2.3.6).
const EMPTY: u8 = 0x00;
/// zlib's own default: a message is compressed once and sent to many.
const LEVEL: u32 = 6;
/// How much room is made for what comes out before any of it is seen.
const STEP_BYTES_MIN: usize = 64;
const STEP_BYTES_MAX: usize = 16 * 1024;
/// How often a DEFLATE stream may end inside one message and another begin. A sender may mark blocks as last
/// (RFC 7692 section 7.2.3.4) and none in use does; each end costs more than the two bytes it takes.
const STREAM_ENDS_MAX: usize = 16;

/// What client and server agreed about compression (RFC 7692 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateParams {
    /// The server starts each message with an empty window.
    pub server_no_context_takeover: bool,
    /// The client starts each message with an empty window.
    pub client_no_context_takeover: bool,
    /// The server's largest window as a power of two, 9 to 15.
    pub server_max_window_bits: u8,
    /// The client's largest window as a power of two, 8 to 15.
    pub client_max_window_bits: u8,
}

impl Default for DeflateParams {
    /// What holds when no parameter is given: windows of 32 KiB, taken over by both.
    fn default() -> DeflateParams {
        DeflateParams {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: WINDOW_BITS_MAX,
            client_max_window_bits: WINDOW_BITS_MAX,
        }
    }
}

impl DeflateParams {
    /// Window bits and context takeover of the peer's messages, seen from `role`.
    pub(crate) fn peer(&self, role: Role) -> (u8, bool) {
        match role {
            Role::Server => (self.client_max_window_bits, !self.client_no_context_takeover),
            Role::Client => (self.server_max_window_bits, !self.server_no_context_takeover),
        }
    }
}

/// Compresses messages, one after the other.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
    takeover: bool,
}

impl Deflater {
    /// A compressor with a window of 2^`window_bits` bytes (9 to 15, clamped) that keeps its window from message
    /// to message if `takeover`. It holds 250 to 380 KB.
    pub fn new(window_bits: u8, takeover: bool) -> Deflater {
        let window_bits = window_bits.clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX);
        Deflater {
            stream: Compress::new_with_window_bits(Compression::new(LEVEL), false, window_bits),
            takeover,
        }
    }

    /// Appends the compressed payload of one message to `out`.
    pub fn compress(&mut self, payload: &[u8], out: &mut BytesMut) {
        // A second flush without input between gives nothing, so the empty message is written out here.
        if payload.is_empty() {
            out.extend_from_slice(&[EMPTY]);
            return;
        }
        if !self.takeover {
            self.stream.reset();
        }
        let step = (payload.len() / 2).clamp(STEP_BYTES_MIN, STEP_BYTES_MAX);
        let mut rest = payload;
        loop {
            let start = out.len();
            out.resize(start + step, 0);
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            self.stream
                .compress(rest, &mut out[start..], FlushCompress::Sync)
                .expect("compressing fails only in a stream that was finished, and this never finishes one");
            rest = &rest[(self.stream.total_in() - before_in) as usize..];
            let made = (self.stream.total_out() - before_out) as usize;
            out.truncate(start + made);
            // The flush is complete once room was left over (zlib manual, `deflate`).
            if made < step {
                break;
            }
        }
        debug_assert!(rest.is_empty() && out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
    }
}

/// Inflates messages, one after the other.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
    takeover: bool,
}

impl Inflater {
    /// An inflater for a peer whose window is at most 2^`window_bits` bytes (clamped to 9 to 15), kept from
    /// message to message if `takeover`. It holds 48 KB, whatever the window.
    pub fn new(window_bits: u8, takeover: bool) -> Inflater {
        let window_bits = window_bits.clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX);
        Inflater {
            stream: Decompress::new_with_window_bits(false, window_bits),
            takeover,
        }
    }

    /// Inflates the payload of one message; [`Violation::MessageTooBig`] as soon as it exceeds `bytes_max`,
    /// [`Violation::InflateFailed`] if it is not a DEFLATE stream or more than 16 of them end in it. While it
    /// runs and in what it gives, the capacity is at most twice what was inflated, or 16 KiB for less than that.
    pub fn inflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Violation> {
        if !self.takeover {
            self.stream.reset(false);
        }
        let mut out = Inflated::new(payload.len(), bytes_max);
        let ended = self.feed(payload, &mut out)?;
        // A stream that said itself that it ends (RFC 7692 section 7.2.3.4) needs no tail.
        if !ended {
            self.feed(&TAIL, &mut out)?;
        }
        out.bytes.truncate(out.made_bytes);
        Ok(out.bytes)
    }

    /// Inflates `input` onto `out`. Whether the stream ended exactly where `input` did; the next message then
    /// begins a new one.
    fn feed(&mut self, input: &[u8], out: &mut Inflated) -> Result<bool, Violation> {
        let mut rest = input;
        // Each round but the last ends a stream, of which there are few, or fills the room, which then doubles.
        loop {
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let status = self
                .stream
                .decompress(rest, out.room(), FlushDecompress::Sync)
                .map_err(|_| Violation::InflateFailed)?;
            rest = &rest[(self.stream.total_in() - before_in) as usize..];
            out.made_bytes += (self.stream.total_out() - before_out) as usize;
            if out.made_bytes > out.bytes_max {
                return Err(Violation::MessageTooBig);
            }
            if status == Status::StreamEnd {
                self.stream.reset(false);
                out.stream_ends += 1;
                if out.stream_ends > STREAM_ENDS_MAX {
                    return Err(Violation::InflateFailed);
                }
                if rest.is_empty() {
                    return Ok(true);
                }
            } else if out.made_bytes < out.bytes.len() {
                // Room was left over, so nothing waits inside; input that was left cannot be used.
                return if rest.is_empty() {
                    Ok(false)
                } else {
                    Err(Violation::InflateFailed)
                };
            }
        }
    }
}

/// A message while it is inflated.
struct Inflated {
    /// What was made, then room: zeroed when it was added and never again.
    bytes: Vec<u8>,
    made_bytes: usize,
    bytes_max: usize,
    stream_ends: usize,
}

impl Inflated {
    /// Room for what `payload_bytes` usually make, within bounds.
    fn new(payload_bytes: usize, bytes_max: usize) -> Inflated {
        let room_bytes = payload_bytes
            .saturating_mul(3)
            .clamp(STEP_BYTES_MIN, STEP_BYTES_MAX)
            .min(bytes_max.saturating_add(1));
        Inflated {
            bytes: vec![0; room_bytes],
            made_bytes: 0,
            bytes_max,
            stream_ends: 0,
        }
    }

    /// What may be written next, never nothing. It reaches at most one byte past the limit, which tells a
    /// message that just fits from one that does not.
    fn room(&mut self) -> &mut [u8] {
        if self.made_bytes == self.bytes.len() {
            let added_bytes = self.bytes.len().min(self.bytes_max - self.bytes.len() + 1);
            self.bytes.reserve_exact(added_bytes);
            self.bytes.resize(self.bytes.len() + added_bytes, 0);
        }
        &mut self.bytes[self.made_bytes..]
    }
}
