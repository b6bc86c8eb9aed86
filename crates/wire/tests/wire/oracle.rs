//! Other people's codecs as oracles: tungstenite for frames and messages, miniz_oxide for DEFLATE.

use std::io::{self, Cursor, Read, Write};

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role as TheirRole, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};
use wire::{Kind, Opcode, Role};

use crate::{Event, Receiver};

/// A stream in memory: reads `input`, keeps what is written.
struct Memory {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Memory {
    fn new(input: Vec<u8>) -> Memory {
        Memory {
            input: Cursor::new(input),
            output: Vec::new(),
        }
    }
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn their_frame(fin: bool, opcode: Opcode, payload: &[u8]) -> Frame {
    let payload = payload.to_vec();
    let data = match opcode {
        Opcode::Continuation => Data::Continue,
        Opcode::Text => Data::Text,
        Opcode::Binary => Data::Binary,
        Opcode::Ping => return Frame::ping(payload),
        Opcode::Pong => return Frame::pong(payload),
        Opcode::Close => unreachable!("not among the frames made here"),
    };
    Frame::message(payload, OpCode::Data(data), fin)
}

/// What tungstenite reads from `bytes`, up to the end or the first error, and whether it was an error.
fn their_reading(role: TheirRole, bytes: &[u8]) -> (Vec<Event>, bool) {
    let mut socket = WebSocket::from_raw_socket(Memory::new(bytes.to_vec()), role, None);
    let mut events = Vec::new();
    loop {
        let event = match socket.read() {
            Ok(Message::Text(text)) => Event::Message(Kind::Text, text.as_bytes().to_vec()),
            Ok(Message::Binary(bytes)) => Event::Message(Kind::Binary, bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Event::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Event::Pong(bytes.to_vec()),
            Ok(message) => panic!("{message:?}"),
            // The memory ended.
            Err(
                Error::Io(_)
                | Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake),
            ) => {
                return (events, false);
            }
            Err(_) => return (events, true),
        };
        events.push(event);
    }
}

/// Frames whose order, content and size are right about half the time.
fn frames() -> impl Strategy<Value = Vec<(bool, Opcode, Vec<u8>)>> {
    use Opcode::{Binary, Continuation, Ping, Pong, Text};
    let payload = prop_oneof![
        6 => "[a-z€😀]{0,40}".prop_map(String::into_bytes),
        2 => vec(any::<u8>(), 120..140),
        1 => Just(vec![b'x'; 66_000]),
    ];
    let opcode = prop::sample::select(vec![Continuation, Continuation, Text, Binary, Ping, Pong]);
    vec((any::<bool>(), opcode, payload), 1..8).prop_map(|mut frames| {
        for (fin, opcode, payload) in &mut frames {
            if opcode.is_control() {
                *fin = true;
                payload.truncate(125);
            }
        }
        frames
    })
}

proptest! {
    #[test]
    fn tungstenite_reads_our_frames_as_we_do(frames in frames(), key in any::<[u8; 4]>()) {
        let mut bytes = BytesMut::new();
        for (fin, opcode, payload) in &frames {
            wire::encode_masked(&mut bytes, *fin, false, *opcode, payload, key);
        }
        let mut ours = Receiver::new(Role::Server, None, 1 << 20);
        let refused = ours.feed(&bytes).is_err();
        prop_assert_eq!((ours.events, refused), their_reading(TheirRole::Server, &bytes));
    }

    #[test]
    fn tungstenite_reads_what_our_server_sends(length in 0..70_000usize, byte in any::<u8>()) {
        let payload = vec![byte; length];
        let mut bytes = BytesMut::new();
        wire::encode_frame(&mut bytes, Opcode::Binary, false, &payload);
        let (events, refused) = their_reading(TheirRole::Client, &bytes);
        prop_assert!(!refused);
        prop_assert_eq!(events, vec![Event::Message(Kind::Binary, payload)]);
    }

    #[test]
    fn we_read_tungstenites_frames_as_it_does(frames in frames()) {
        let config = WebSocketConfig::default().write_buffer_size(0);
        let mut socket = WebSocket::from_raw_socket(Memory::new(vec![]), TheirRole::Client, Some(config));
        for (fin, opcode, payload) in &frames {
            let frame = their_frame(*fin, *opcode, payload);
            socket.write(Message::Frame(frame)).unwrap();
        }
        socket.flush().unwrap();
        let bytes = &socket.get_ref().output;
        let mut ours = Receiver::new(Role::Server, None, 1 << 20);
        let refused = ours.feed(bytes).is_err();
        prop_assert_eq!((ours.events, refused), their_reading(TheirRole::Server, bytes));
    }

    #[test]
    fn miniz_inflates_what_we_deflate(payload in vec(0..4u8, 0..4_000), window_bits in 9..=15u8) {
        let mut out = BytesMut::new();
        wire::Deflater::new(window_bits, false).compress(&payload, &mut out);
        // Their decoder wants the stream's end: the tail, and an empty last block.
        out.extend_from_slice(&[0x00, 0x00, 0xff, 0xff, 0x03, 0x00]);
        prop_assert_eq!(miniz_oxide::inflate::decompress_to_vec(&out).unwrap(), payload);
    }

    #[test]
    fn we_inflate_what_miniz_deflates(payload in vec(0..4u8, 0..4_000), level in 0..=10u8) {
        let mut stream = miniz_oxide::deflate::compress_to_vec(&payload, level);
        // A last block without a tail, completed as RFC 7692 section 7.2.3.5 has it.
        stream.push(0x00);
        let inflated = wire::Inflater::new(15, false).inflate(&stream, 4_000);
        prop_assert_eq!(inflated, Ok(payload));
    }
}
