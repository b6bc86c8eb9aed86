//! Bytes to messages: the receiving side of a connection.
//!
//! A [`Codec`] belongs to one thread and holds what its connections share: the rules and one inflater. A
//! [`Decoder`] belongs to one connection. What always holds: no size a peer claims makes this take memory, only
//! bytes that came do; between messages a decoder holds no heap, save the window that the peer's context
//! takeover asks for; frames that lie whole in the input are not copied.

use bytes::BytesMut;

use crate::deflate::{Deflater, Inflater, WINDOW_BITS_MAX, WINDOW_BITS_MIN};
use crate::item::control_item;
use crate::{
    DeflateParams, HEADER_BYTES_MAX, Header, Item, Kind, Opcode, Payload, Violation, apply_mask, utf8,
};

/// Which side of the connections this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peers are clients: their frames must be masked.
    Server,
    /// The peers are servers: their frames must not be masked.
    Client,
}

/// What the connections of one thread share: rules, and scratch that is made when first used.
#[derive(Debug)]
pub struct Codec {
    role: Role,
    message_bytes_max: usize,
    inflater: Option<Box<Inflater>>,
    deflaters: [Option<Box<Deflater>>; (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize],
}

impl Codec {
    /// A codec for peers of one kind. `message_bytes_max` bounds the payload of a message twice: as it travels
    /// and, if it is compressed, once inflated.
    pub fn new(role: Role, message_bytes_max: usize) -> Codec {
        Codec {
            role,
            message_bytes_max,
            inflater: None,
            deflaters: Default::default(),
        }
    }

    /// The longest message that is taken, in bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.message_bytes_max
    }

    /// Compresses one message for any number of receivers without context takeover and appends the payload of
    /// RFC 7692 section 7.2.1 to `out` (to be sent with RSV1). Every receiver whose agreed window is at least
    /// `window_bits` (9 to 15, clamped) can read it.
    pub fn deflate(&mut self, window_bits: u8, payload: &[u8], out: &mut BytesMut) {
        let window_bits = window_bits.clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX);
        self.deflaters[usize::from(window_bits - WINDOW_BITS_MIN)]
            .get_or_insert_with(|| Box::new(Deflater::new(window_bits, false)))
            .compress(payload, out);
    }
}

/// The receiving state of one connection. Made at the upgrade, ended with the connection; after a [`Violation`]
/// what it gives is unspecified (but never a panic).
#[derive(Debug)]
pub struct Decoder {
    /// What was cut by the end of an input or is spread over frames; there only while something is.
    partial: Option<Box<Partial>>,
    /// The peer's compression context, from its first compressed message on, if it takes context over.
    inflater: Option<Box<Inflater>>,
    deflate: Option<DeflateParams>,
}

/// A frame or message that is not whole yet.
#[derive(Debug, Default)]
struct Partial {
    /// The start of a cut header; not used while `frame` is there.
    head: [u8; HEADER_BYTES_MAX],
    head_bytes: u8,
    frame: Option<Frame>,
    /// What came of a cut control frame's payload.
    control: Vec<u8>,
    message: Option<Message>,
}

/// A frame whose header is known and checked.
#[derive(Clone, Copy, Debug)]
struct Frame {
    header: Header,
    received_bytes: u64,
}

/// A message in progress; its fragments lie in one buffer.
#[derive(Debug)]
struct Message {
    kind: Kind,
    compressed: bool,
    bytes: Vec<u8>,
    /// How much of `bytes` is known to be whole UTF-8 characters; at most 3 bytes behind, if this is plain text.
    utf8_bytes: usize,
}

impl Decoder {
    /// A decoder for a connection on which `deflate` was agreed, or no compression.
    pub fn new(deflate: Option<DeflateParams>) -> Decoder {
        Decoder {
            partial: None,
            inflater: None,
            deflate,
        }
    }

    /// What was agreed about compression.
    pub fn deflate(&self) -> Option<DeflateParams> {
        self.deflate
    }

    /// The heap in bytes that a cut frame or a message in progress holds now; the window of context takeover is
    /// not counted. At most twice the payload that came, and a constant.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial
                .message
                .as_ref()
                .map_or(0, |message| message.bytes.capacity());
            size_of::<Partial>() + partial.control.capacity() + message
        })
    }

    /// Takes the next whole item from the front of `input`, leaving in `input` what follows it. `None` means that
    /// all of `input` was taken in and the item needs more.
    #[inline]
    pub fn next<'i>(
        &mut self,
        input: &mut &'i mut [u8],
        codec: &mut Codec,
    ) -> Result<Option<Item<'i>>, Violation> {
        loop {
            let Some(frame) = self.begin_frame(input, codec)? else {
                return Ok(None);
            };
            let Frame {
                header,
                received_bytes,
            } = frame;
            let missing_bytes = header.payload_bytes - received_bytes;
            let take = usize::try_from(missing_bytes).map_or(input.len(), |missing| missing.min(input.len()));
            let chunk = split_front(input, take);
            if let Some(key) = header.mask {
                apply_mask(key, (received_bytes % 4) as usize, chunk);
            }
            let received_bytes = received_bytes + take as u64;
            let frame_ended = received_bytes == header.payload_bytes;

            if frame_ended && chunk.len() as u64 == header.payload_bytes {
                if header.opcode.is_control() {
                    self.release();
                    return control_item(header.opcode, Payload::Borrowed(chunk)).map(Some);
                }
                if header.fin && header.opcode != Opcode::Continuation {
                    self.release();
                    let kind = kind_of(header.opcode);
                    return self.whole_message(kind, header.rsv1, chunk, codec).map(Some);
                }
            }
            if let Some(item) = self.absorb(
                Frame {
                    header,
                    received_bytes,
                },
                chunk,
                codec,
            )? {
                return Ok(Some(item));
            }
            if !frame_ended {
                return Ok(None);
            }
        }
    }

    /// The frame that the next bytes of `input` belong to: the one in progress, or a new one whose header was
    /// taken from `input`. `None` if the header is not whole; then all of `input` is held here.
    #[inline]
    fn begin_frame(&mut self, input: &mut &mut [u8], codec: &Codec) -> Result<Option<Frame>, Violation> {
        let parsed = match &mut self.partial {
            None => Header::parse(input)?,
            Some(partial) => {
                if let Some(frame) = partial.frame.take() {
                    return Ok(Some(frame));
                }
                partial.parse_header(input)?
            }
        };
        match parsed {
            Some((header, header_bytes)) => {
                split_front(input, header_bytes);
                self.check(&header, codec)?;
                Ok(Some(Frame {
                    header,
                    received_bytes: 0,
                }))
            }
            None => {
                self.hold_header(input);
                Ok(None)
            }
        }
    }

    /// Keeps the start of a cut header until more comes.
    #[cold]
    fn hold_header(&mut self, input: &mut &mut [u8]) {
        if !input.is_empty() {
            let partial = self.partial.get_or_insert_default();
            let held = usize::from(partial.head_bytes);
            partial.head[held..held + input.len()].copy_from_slice(input);
            partial.head_bytes += input.len() as u8;
            *input = &mut [];
        }
    }

    /// What a header may say depends on who sent it and which message is open.
    #[inline]
    fn check(&self, header: &Header, codec: &Codec) -> Result<(), Violation> {
        match (codec.role, header.mask) {
            (Role::Server, None) => return Err(Violation::Unmasked),
            (Role::Client, Some(_)) => return Err(Violation::MaskedByServer),
            _ => {}
        }
        if header.opcode.is_control() {
            return Ok(());
        }
        let open = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        match (header.opcode, open) {
            (Opcode::Continuation, None) => return Err(Violation::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => return Err(Violation::ExpectedContinuation),
            _ => {}
        }
        if header.rsv1 && self.deflate.is_none() {
            return Err(Violation::CompressedWithoutExtension);
        }
        // No overflow: a payload length has 63 bits, and what is held is below `message_bytes_max`.
        let message_bytes = open.map_or(0, |message| message.bytes.len() as u64) + header.payload_bytes;
        if message_bytes > codec.message_bytes_max as u64 {
            return Err(Violation::MessageTooBig);
        }
        Ok(())
    }

    /// Takes in a part of a frame, or a whole fragment; gives the item if this ended one.
    #[cold]
    fn absorb(
        &mut self,
        frame: Frame,
        chunk: &[u8],
        codec: &mut Codec,
    ) -> Result<Option<Item<'static>>, Violation> {
        let Frame {
            header,
            received_bytes,
        } = frame;
        let frame_ended = received_bytes == header.payload_bytes;
        let partial = self.partial.get_or_insert_default();
        partial.frame = (!frame_ended).then_some(frame);
        if chunk.is_empty() && !frame_ended {
            // Only the header came; the payload may still come whole, and is then not copied.
            return Ok(None);
        }

        if header.opcode.is_control() {
            partial.control.extend_from_slice(chunk);
            if !frame_ended {
                return Ok(None);
            }
            let payload = std::mem::take(&mut partial.control);
            self.release();
            return control_item(header.opcode, Payload::Owned(payload)).map(Some);
        }

        let message = partial.message.get_or_insert_with(|| Message {
            kind: kind_of(header.opcode),
            compressed: header.rsv1,
            bytes: Vec::new(),
            utf8_bytes: 0,
        });
        let missing_bytes = (header.payload_bytes - received_bytes) as usize;
        let bytes_max = if header.fin {
            message.bytes.len() + chunk.len() + missing_bytes
        } else {
            codec.message_bytes_max
        };
        message.append(chunk, bytes_max)?;
        if !(frame_ended && header.fin) {
            return Ok(None);
        }
        let message = partial
            .message
            .take()
            .expect("the message that was just appended to");
        self.release();
        self.finish_message(message, codec).map(Some)
    }

    /// A message whose only frame lay whole in the input.
    #[inline]
    fn whole_message<'i>(
        &mut self,
        kind: Kind,
        compressed: bool,
        chunk: &'i [u8],
        codec: &mut Codec,
    ) -> Result<Item<'i>, Violation> {
        let payload = if compressed {
            Payload::Owned(self.inflate(chunk, codec)?)
        } else {
            Payload::Borrowed(chunk)
        };
        if kind == Kind::Text && !utf8::is_valid(&payload) {
            return Err(Violation::BadUtf8);
        }
        Ok(Item::Message { kind, payload })
    }

    /// A message whose last bytes were appended.
    fn finish_message(&mut self, message: Message, codec: &mut Codec) -> Result<Item<'static>, Violation> {
        let Message {
            kind,
            compressed,
            bytes,
            utf8_bytes,
        } = message;
        if compressed {
            let inflated = self.inflate(&bytes, codec)?;
            if kind == Kind::Text && !utf8::is_valid(&inflated) {
                return Err(Violation::BadUtf8);
            }
            return Ok(Item::Message {
                kind,
                payload: Payload::Owned(inflated),
            });
        }
        if kind == Kind::Text && utf8_bytes != bytes.len() {
            return Err(Violation::BadUtf8);
        }
        Ok(Item::Message {
            kind,
            payload: Payload::Owned(bytes),
        })
    }

    /// Inflates a message's payload, to at most `message_bytes_max`.
    fn inflate(&mut self, payload: &[u8], codec: &mut Codec) -> Result<Vec<u8>, Violation> {
        let params = self
            .deflate
            .expect("a compressed message is refused where compression was not agreed");
        let (window_bits, takeover) = params.peer(codec.role);
        let inflater = if takeover {
            self.inflater
                .get_or_insert_with(|| Box::new(Inflater::new(window_bits, true)))
        } else {
            codec
                .inflater
                .get_or_insert_with(|| Box::new(Inflater::new(WINDOW_BITS_MAX, false)))
        };
        inflater.inflate(payload, codec.message_bytes_max)
    }

    /// Gives the memory back once nothing is in progress.
    #[inline]
    fn release(&mut self) {
        if self.partial.as_ref().is_some_and(|partial| partial.is_vacant()) {
            self.partial = None;
        }
    }
}

impl Partial {
    fn is_vacant(&self) -> bool {
        self.head_bytes == 0 && self.frame.is_none() && self.control.is_empty() && self.message.is_none()
    }

    /// Parses a header whose start may be held here. Gives the number of bytes of `input` that it took.
    fn parse_header(&mut self, input: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        let held = usize::from(self.head_bytes);
        if held == 0 {
            return Header::parse(input);
        }
        let mut joined = self.head;
        let take = input.len().min(HEADER_BYTES_MAX - held);
        joined[held..held + take].copy_from_slice(&input[..take]);
        let parsed = Header::parse(&joined[..held + take])?;
        Ok(parsed.map(|(header, header_bytes)| {
            self.head_bytes = 0;
            (header, header_bytes - held)
        }))
    }
}

impl Message {
    /// Appends `chunk`, growing by doubling but never past `bytes_max`, and checks plain text as far as it came.
    fn append(&mut self, chunk: &[u8], bytes_max: usize) -> Result<(), Violation> {
        let needed = self.bytes.len() + chunk.len();
        if needed > self.bytes.capacity() {
            let target = (self.bytes.capacity() * 2).min(bytes_max).max(needed);
            self.bytes.reserve_exact(target - self.bytes.len());
        }
        self.bytes.extend_from_slice(chunk);
        if self.kind == Kind::Text && !self.compressed {
            let valid = utf8::valid_prefix(&self.bytes[self.utf8_bytes..]).ok_or(Violation::BadUtf8)?;
            self.utf8_bytes += valid;
        }
        Ok(())
    }
}

/// Splits `count` bytes off the front of `input`.
#[inline]
fn split_front<'i>(input: &mut &'i mut [u8], count: usize) -> &'i mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(count);
    *input = rest;
    front
}

#[inline]
fn kind_of(opcode: Opcode) -> Kind {
    if opcode == Opcode::Text {
        Kind::Text
    } else {
        Kind::Binary
    }
}
