//! A client that writes what it is told, right or wrong. It shares no code with the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;
/// The bit of the last frame of a message.
pub const FIN: u8 = 0x80;

/// A frame as it came from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a close frame.
    pub fn code(&self) -> u16 {
        assert_eq!(self.first, FIN | CLOSE, "a close frame, not {self:?}");
        u16::from_be_bytes([self.payload[0], self.payload[1]])
    }
}

pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    /// Connects and upgrades.
    pub fn connect(address: SocketAddr, path: &str) -> Raw {
        Raw::connect_with(address, path, "").0
    }

    /// The same with further header lines, each ending with a line end; gives the answer's head too.
    pub fn connect_with(address: SocketAddr, path: &str, headers: &str) -> (Raw, String) {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Raw { stream };
        raw.send(upgrade(path, headers).as_bytes());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        (raw, head)
    }

    /// Reads up to the empty line that ends a head.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("a whole head comes");
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the bytes leave");
    }

    /// A whole text message.
    pub fn send_text(&mut self, text: &str) {
        self.send(&frame(FIN | TEXT, text.as_bytes()));
    }

    /// The next frame; panics if the connection ends before it.
    pub fn read_frame(&mut self) -> Frame {
        self.try_read_frame().expect("a frame comes")
    }

    /// The next frame, or `None` at the end of the connection.
    pub fn try_read_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 2];
        match self.stream.read_exact(&mut head) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("neither a frame nor an end came")
            }
            Err(_) => return None,
            Ok(()) => {}
        }
        assert_eq!(head[1] & 0x80, 0, "a server does not mask (RFC 6455 section 5.1)");
        let length = match head[1] {
            126 => {
                let mut bytes = [0; 2];
                self.stream.read_exact(&mut bytes).ok()?;
                u16::from_be_bytes(bytes).into()
            }
            127 => {
                let mut bytes = [0; 8];
                self.stream.read_exact(&mut bytes).ok()?;
                u64::from_be_bytes(bytes)
            }
            short => short.into(),
        };
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Frame {
            first: head[0],
            payload,
        })
    }

    /// Reads on until a close frame comes, answers it and gives its code; the connection must end after it.
    pub fn read_close(&mut self) -> u16 {
        loop {
            let frame = self.read_frame();
            if frame.first == FIN | CLOSE {
                let code = frame.code();
                // A server that was wronged does not wait for the answer and may be gone.
                let _ = self.stream.write_all(&self::frame(FIN | CLOSE, &frame.payload));
                assert_eq!(self.try_read_frame(), None, "nothing follows a close frame");
                return code;
            }
        }
    }

    /// The next frame must be this text.
    pub fn expect_text(&mut self, text: &str) {
        let frame = self.read_frame();
        assert_eq!(
            (frame.first, String::from_utf8_lossy(&frame.payload).as_ref()),
            (FIN | TEXT, text)
        );
    }
}

/// A good upgrade request.
pub fn upgrade(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// A masked frame whose first byte (FIN, reserved bits, opcode) is `first`.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = header(first, payload.len() as u64);
    bytes.extend(mask);
    bytes.extend(
        payload
            .iter()
            .enumerate()
            .map(|(index, byte)| byte ^ mask[index % 4]),
    );
    bytes
}

/// The first bytes of a masked frame that claims this length, up to its mask.
pub fn header(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=65_535 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}
