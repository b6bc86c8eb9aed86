//! WebSocket (RFC 6455) and permessage-deflate (RFC 7692) as values: bytes go in, frames, messages and
//! handshakes come out, and the other way round.
//!
//! What this crate never does: touch a socket, read a clock, start a thread, draw a random number, panic because
//! of what a peer sent. What always holds: a size is checked before memory is taken for it; a message that lies
//! whole in the input is handed out without a copy; the same bytes give the same items and the same
//! [`Violation`], however the input is cut.
//!
//! ```
//! use bytes::BytesMut;
//! use wire::{Codec, Decoder, Item, Kind, Opcode, Role};
//!
//! let mut bytes = BytesMut::new();
//! wire::encode_masked(&mut bytes, true, false, Opcode::Text, b"hello", [1, 2, 3, 4]);
//!
//! let mut codec = Codec::new(Role::Server, 64 * 1024); // one for each thread
//! let mut decoder = Decoder::new(None); // one for each connection
//! let mut input = &mut bytes[..];
//! let item = decoder.next(&mut input, &mut codec)?;
//! assert!(matches!(item, Some(Item::Message { kind: Kind::Text, payload }) if &*payload == b"hello"));
//! # Ok::<(), wire::Violation>(())
//! ```
#![forbid(unsafe_code)]

pub mod close;
pub mod decode;
pub mod deflate;
pub mod frame;
pub mod handshake;
pub mod item;
pub mod mask;
mod utf8;
pub mod violation;

pub use decode::{Codec, Decoder, Role};
pub use deflate::{DeflateParams, DeflatePolicy, Deflater, Inflater};
pub use frame::{HEADER_BYTES_MAX, Header, Opcode, encode_close, encode_frame, encode_masked};
pub use handshake::{Acceptance, ClientHandshake, Policy, Refusal};
pub use item::{Item, Kind, Payload};
pub use mask::apply_mask;
pub use violation::Violation;
