//! What comes out of a connection: messages, pings, pongs, and the close.
//!
//! What always holds: text is UTF-8, a control payload has at most 125 bytes, a close code may travel.

use std::ops::Deref;

use crate::{Opcode, Violation, close, utf8};

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UTF-8, which was checked.
    Text,
    /// Any bytes.
    Binary,
}

/// A payload: where its frame lay whole in the input, that part of the input, unmasked in place.
#[derive(Clone, Debug)]
pub enum Payload<'i> {
    /// A part of the input.
    Borrowed(&'i [u8]),
    /// Put together from several reads or frames, or inflated.
    Owned(Vec<u8>),
}

impl Deref for Payload<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes,
        }
    }
}

impl Payload<'_> {
    /// The payload as a vector, copied only if it was borrowed.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Payload::Borrowed(bytes) => bytes.to_vec(),
            Payload::Owned(bytes) => bytes,
        }
    }
}

/// Equal bytes are equal payloads, wherever they lie.
impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload<'_> {}

/// What came from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'i> {
    /// A whole message, inflated and, if text, known to be UTF-8.
    Message {
        /// Text or binary.
        kind: Kind,
        /// At most the codec's `message_bytes_max`.
        payload: Payload<'i>,
    },
    /// To be answered by a pong with the same payload, of at most 125 bytes.
    Ping(Payload<'i>),
    /// An answer to a ping, or an unasked heartbeat.
    Pong(Payload<'i>),
    /// The peer's close frame; nothing that follows it is to be read (RFC 6455 section 1.4).
    Close {
        /// The status code, which may travel; `None` if the frame was empty.
        code: Option<u16>,
        /// UTF-8 of at most 123 bytes.
        reason: Payload<'i>,
    },
}

/// The item that a whole control frame is.
pub(crate) fn control_item(opcode: Opcode, payload: Payload<'_>) -> Result<Item<'_>, Violation> {
    match opcode {
        Opcode::Ping => Ok(Item::Ping(payload)),
        Opcode::Pong => Ok(Item::Pong(payload)),
        _ => close_item(payload),
    }
}

/// RFC 6455 section 5.5.1: an empty payload, or a code of two bytes and a reason in UTF-8.
fn close_item(payload: Payload<'_>) -> Result<Item<'_>, Violation> {
    if payload.is_empty() {
        return Ok(Item::Close {
            code: None,
            reason: payload,
        });
    }
    let Some((&code, reason)) = payload.split_first_chunk::<2>() else {
        return Err(Violation::BadClosePayload);
    };
    let code = u16::from_be_bytes(code);
    if !close::is_sendable(code) {
        return Err(Violation::BadCloseCode);
    }
    if !utf8::is_valid(reason) {
        return Err(Violation::BadCloseReason);
    }
    let reason = match payload {
        Payload::Borrowed(bytes) => Payload::Borrowed(&bytes[2..]),
        Payload::Owned(mut bytes) => Payload::Owned(bytes.split_off(2)),
    };
    Ok(Item::Close {
        code: Some(code),
        reason,
    })
}
