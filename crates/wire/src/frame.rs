//! Frames (RFC 6455 section 5.2): the header as a value, and encoders that append whole frames to a buffer.
//!
//! Parsing a header checks what the header alone can tell (reserved bits, opcode, control frame limits, length
//! form); what depends on the connection (who masks, which message is open, how big it may be) is
//! [`crate::Decoder`]'s.

use bytes::{BufMut, BytesMut};

use crate::{Violation, apply_mask};

/// The longest frame header: two bytes, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;
/// The longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// The longest reason of a close frame: a control payload less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const MASKED: u8 = 0x80;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A later fragment of the message in progress.
    Continuation = 0x0,
    /// The first fragment, or all, of a UTF-8 message.
    Text = 0x1,
    /// The first fragment, or all, of a binary message.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// A request for a pong with the same payload.
    Ping = 0x9,
    /// The answer to a ping, or an unasked heartbeat.
    Pong = 0xa,
}

impl Opcode {
    /// Close, ping and pong: never fragmented, at most 125 bytes, allowed between the fragments of a message.
    #[inline]
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    #[inline]
    const fn from_bits(bits: u8) -> Result<Opcode, Violation> {
        match bits {
            0x0 => Ok(Opcode::Continuation),
            0x1 => Ok(Opcode::Text),
            0x2 => Ok(Opcode::Binary),
            0x8 => Ok(Opcode::Close),
            0x9 => Ok(Opcode::Ping),
            0xa => Ok(Opcode::Pong),
            _ => Err(Violation::BadOpcode),
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// This frame ends its message.
    pub fin: bool,
    /// The message is compressed (RFC 7692); only on the first frame of a message.
    pub rsv1: bool,
    /// What the frame carries.
    pub opcode: Opcode,
    /// The masking key, if the payload is masked.
    pub mask: Option<[u8; 4]>,
    /// How long the payload is; below 2^63.
    pub payload_bytes: u64,
}

impl Header {
    /// Reads a header from the start of `input`. Gives it with the number of bytes it took, or `None` if `input`
    /// ends inside it; a breach is told as soon as the byte that makes it is there.
    #[inline]
    pub fn parse(input: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        let Some(&first) = input.first() else {
            return Ok(None);
        };
        if first & RSV2_RSV3 != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & 0x0f)?;
        let fin = first & FIN != 0;
        let rsv1 = first & RSV1 != 0;
        if opcode.is_control() && !fin {
            return Err(Violation::ControlFragmented);
        }
        if rsv1 && opcode.is_control() {
            return Err(Violation::CompressedControl);
        }
        if rsv1 && opcode == Opcode::Continuation {
            return Err(Violation::CompressedContinuation);
        }

        let Some(&second) = input.get(1) else {
            return Ok(None);
        };
        let short = second & !MASKED;
        if opcode.is_control() && usize::from(short) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(Violation::ControlTooLong);
        }
        let Some((payload_bytes, length_end)) = parse_length(short, input)? else {
            return Ok(None);
        };
        let header = Header {
            fin,
            rsv1,
            opcode,
            mask: None,
            payload_bytes,
        };
        if second & MASKED == 0 {
            return Ok(Some((header, length_end)));
        }
        match input[length_end..].first_chunk::<4>() {
            Some(&key) => Ok(Some((
                Header {
                    mask: Some(key),
                    ..header
                },
                length_end + 4,
            ))),
            None => Ok(None),
        }
    }

    /// Appends the header to `out`, with the length in the fewest bytes.
    #[inline]
    pub fn encode(&self, out: &mut BytesMut) {
        debug_assert!(self.payload_bytes < 1 << 63, "a payload length has 63 bits");
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[0] = self.opcode as u8 | if self.fin { FIN } else { 0 } | if self.rsv1 { RSV1 } else { 0 };
        let mut end = match self.payload_bytes {
            0..=125 => {
                bytes[1] = self.payload_bytes as u8;
                2
            }
            126..=0xffff => {
                bytes[1] = LENGTH_16;
                bytes[2..4].copy_from_slice(&(self.payload_bytes as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = LENGTH_64;
                bytes[2..10].copy_from_slice(&self.payload_bytes.to_be_bytes());
                10
            }
        };
        if let Some(key) = self.mask {
            bytes[1] |= MASKED;
            bytes[end..end + 4].copy_from_slice(&key);
            end += 4;
        }
        out.put_slice(&bytes[..end]);
    }
}

/// The payload length that starts with the 7 bits `short`, and where in `input` it ends. "The minimal number of
/// bytes MUST be used to encode the length", and the top bit of the long form "MUST be 0".
#[inline]
fn parse_length(short: u8, input: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    match short {
        LENGTH_16 => {
            let Some(&bytes) = input[2..].first_chunk::<2>() else {
                return Ok(None);
            };
            match u16::from_be_bytes(bytes) {
                0..=125 => Err(Violation::NonMinimalLength),
                length => Ok(Some((u64::from(length), 4))),
            }
        }
        LENGTH_64 => {
            let Some(&bytes) = input[2..].first_chunk::<8>() else {
                return Ok(None);
            };
            match u64::from_be_bytes(bytes) {
                0..=0xffff => Err(Violation::NonMinimalLength),
                length if length >> 63 != 0 => Err(Violation::LengthTopBit),
                length => Ok(Some((length, 10))),
            }
        }
        _ => Ok(Some((u64::from(short), 2))),
    }
}

/// Appends a whole unmasked frame with FIN set, as a server sends it.
#[inline]
pub fn encode_frame(out: &mut BytesMut, opcode: Opcode, rsv1: bool, payload: &[u8]) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    Header {
        fin: true,
        rsv1,
        opcode,
        mask: None,
        payload_bytes: payload.len() as u64,
    }
    .encode(out);
    out.put_slice(payload);
}

/// Appends a whole masked frame, as a client sends it. The key has to be unpredictable to whoever chooses the
/// payload (RFC 6455 section 5.3); where it comes from is the caller's.
#[inline]
pub fn encode_masked(
    out: &mut BytesMut,
    fin: bool,
    rsv1: bool,
    opcode: Opcode,
    payload: &[u8],
    key: [u8; 4],
) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    Header {
        fin,
        rsv1,
        opcode,
        mask: Some(key),
        payload_bytes: payload.len() as u64,
    }
    .encode(out);
    let start = out.len();
    out.put_slice(payload);
    apply_mask(key, 0, &mut out[start..]);
}

/// Appends an unmasked close frame; `reason` is cut to 123 bytes at the border of a character.
pub fn encode_close(out: &mut BytesMut, code: u16, reason: &str) {
    debug_assert!(crate::close::is_sendable(code), "close code {code} never travels");
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let payload_bytes = 2 + reason.len() as u64;
    Header {
        fin: true,
        rsv1: false,
        opcode: Opcode::Close,
        mask: None,
        payload_bytes,
    }
    .encode(out);
    out.put_u16(code);
    out.put_slice(reason);
}
