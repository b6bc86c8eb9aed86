//! The codec seen from outside: examples of the RFCs, every violation, any split, memory, and other people's
//! codecs as oracles.
#![allow(clippy::unwrap_used)]

mod deflate;
mod handshake;
mod memory;
mod messages;
mod oracle;
mod properties;
mod violations;

use bytes::BytesMut;
use wire::{Codec, Decoder, DeflateParams, Item, Kind, Opcode, Role, Violation};

/// An [`Item`] that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Message(Kind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
}

impl From<Item<'_>> for Event {
    fn from(item: Item<'_>) -> Event {
        match item {
            Item::Message { kind, payload } => Event::Message(kind, payload.into_vec()),
            Item::Ping(payload) => Event::Ping(payload.into_vec()),
            Item::Pong(payload) => Event::Pong(payload.into_vec()),
            Item::Close { code, reason } => Event::Close(code, reason.into_vec()),
        }
    }
}

/// One connection and what came out of it.
struct Receiver {
    codec: Codec,
    decoder: Decoder,
    events: Vec<Event>,
}

impl Receiver {
    fn new(role: Role, deflate: Option<DeflateParams>, message_bytes_max: usize) -> Receiver {
        Receiver {
            codec: Codec::new(role, message_bytes_max),
            decoder: Decoder::new(deflate),
            events: vec![],
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        while let Some(item) = self.decoder.next(&mut input, &mut self.codec)? {
            self.events.push(item.into());
        }
        assert!(input.is_empty(), "everything is taken in when more is wanted");
        Ok(())
    }

    /// Feeds `bytes` in chunks that end at `cuts`.
    fn feed_cut(&mut self, bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> Result<(), Violation> {
        let mut start = 0;
        for cut in cuts.into_iter().chain([bytes.len()]) {
            self.feed(&bytes[start..cut])?;
            start = cut;
        }
        Ok(())
    }
}

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame as a client sends it.
fn masked(fin: bool, rsv1: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::encode_masked(&mut out, fin, rsv1, opcode, payload, KEY);
    out.to_vec()
}
