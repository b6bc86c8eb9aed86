//! One client's side of a connection: handshake, messages, answers to what the server asks. No scenario, no time.

use std::fmt;

use bytes::BytesMut;
use engine::SocketEnd;
use wire::handshake::client::Rejection;
use wire::{ClientHandshake, Codec, Decoder, Item, Opcode, Role, Violation, close, encode_masked};

use crate::plan::{Format, Protocol};
use crate::random::Random;
use crate::target::Target;

/// The event that carries a payload in Socket.IO, up to the payload.
const EVENT_HEAD: &[u8] = b"42[\"m\",\"";
/// What follows the payload.
const EVENT_TAIL: &[u8] = b"\"]";

/// What all clients of a run have in common: how they talk.
#[derive(Debug)]
pub(crate) struct Dialect {
    protocol: Protocol,
    opcode: Opcode,
    host: String,
    path: String,
    codec: Codec,
    /// For handshake and masking keys. Nobody between this client and its own server is to be fooled, which is what
    /// unpredictable keys are for.
    random: Random,
}

impl Dialect {
    /// For clients of `target`. `seed` makes handshake and masking keys differ between runs.
    pub(crate) fn new(protocol: Protocol, format: Format, target: &Target, seed: u64) -> Dialect {
        let path = match (protocol, target.path.as_str()) {
            (Protocol::SocketIo, "/") => "/socket.io/?EIO=4&transport=websocket",
            (_, path) => path,
        };
        let opcode = match format {
            Format::Text => Opcode::Text,
            Format::Binary => Opcode::Binary,
        };
        // Longer than any payload of ours, so that what others send at the same server is skipped, not fatal.
        let message_bytes_max = 16 << 20;
        Dialect {
            protocol,
            opcode,
            host: target.authority(),
            path: path.to_owned(),
            codec: Codec::new(Role::Client, message_bytes_max),
            random: Random::new(seed),
        }
    }

    /// Appends the frame that carries `payload` to `out`; `scratch` is for what stands around it.
    pub(crate) fn frame(&mut self, payload: &[u8], scratch: &mut Vec<u8>, out: &mut BytesMut) {
        let key = self.mask();
        match self.protocol {
            Protocol::Plain => encode_masked(out, true, false, self.opcode, payload, key),
            Protocol::SocketIo => {
                scratch.clear();
                for part in [EVENT_HEAD, payload, EVENT_TAIL] {
                    scratch.extend_from_slice(part);
                }
                encode_masked(out, true, false, Opcode::Text, scratch, key);
            }
        }
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8], out: &mut BytesMut) {
        let key = self.mask();
        encode_masked(out, true, false, opcode, payload, key);
    }

    fn mask(&mut self) -> [u8; 4] {
        (self.random.next() as u32).to_ne_bytes()
    }

    fn handshake_key(&mut self) -> [u8; 16] {
        (u128::from(self.random.next()) << 64 | u128::from(self.random.next())).to_ne_bytes()
    }
}

/// Why a connection came to nothing, or ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The loader's system gave no socket, or the connect failed at once.
    Dial(String),
    /// It did not open in time.
    Timeout,
    /// The answer to the upgrade request was not what it had to be.
    Handshake(Rejection),
    /// The protocol above WebSocket was not opened.
    Greeting,
    /// The server broke RFC 6455.
    Violation(Violation),
    /// The server sent a close frame.
    Closed(Option<u16>),
    /// The socket ended.
    Socket(SocketEnd),
}

/// How the text of [`Failure::Closed`] with a code begins.
pub(crate) const CLOSED_WITH: &str = "server closed with ";

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Dial(error) => write!(formatter, "connect: {error}"),
            Failure::Timeout => formatter.write_str("connect timed out"),
            Failure::Handshake(rejection) => write!(formatter, "upgrade: {rejection}"),
            Failure::Greeting => formatter.write_str("Socket.IO handshake refused"),
            Failure::Violation(violation) => write!(formatter, "server broke the protocol: {violation}"),
            Failure::Closed(Some(code)) => write!(formatter, "{CLOSED_WITH}{code}"),
            Failure::Closed(None) => formatter.write_str("server closed without a code"),
            Failure::Socket(SocketEnd::Eof) => formatter.write_str("server ended the connection"),
            Failure::Socket(SocketEnd::Reset) => formatter.write_str("connection reset or refused"),
            Failure::Socket(SocketEnd::Tls) => formatter.write_str("TLS failed"),
        }
    }
}

/// What a client has to tell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Happening<'input> {
    /// Messages may be sent from now on.
    Opened,
    /// A message's payload.
    Payload(&'input [u8]),
}

#[derive(Debug)]
enum Stage {
    /// The answer to the upgrade request is awaited; what came of it.
    Upgrading {
        key: [u8; 16],
        head: Vec<u8>,
    },
    /// Upgraded; Socket.IO's own opening is under way.
    Greeting,
    Open,
    /// Our close frame is out.
    Closing,
}

/// One connection. Made when its socket is adopted, ended with it.
#[derive(Debug)]
pub(crate) struct Client {
    stage: Stage,
    decoder: Decoder,
    /// What is to be written next.
    pub(crate) out: BytesMut,
    /// A write is under way; `out` must wait.
    pub(crate) writing: bool,
}

impl Client {
    /// A client that begins with its upgrade request in `out`.
    pub(crate) fn new(dialect: &mut Dialect) -> Client {
        let key = dialect.handshake_key();
        let request = ClientHandshake::new(&dialect.host, &dialect.path, key).request();
        Client {
            stage: Stage::Upgrading {
                key,
                head: Vec::new(),
            },
            decoder: Decoder::new(None),
            out: BytesMut::from(&request[..]),
            writing: false,
        }
    }

    /// True from [`Happening::Opened`] until it closes.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// True once [`Client::close`] was called.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing)
    }

    /// Takes what came; answers go to `out`.
    ///
    /// # Errors
    /// The connection is over, and why.
    pub(crate) fn received(
        &mut self,
        bytes: &mut [u8],
        dialect: &mut Dialect,
        tell: &mut impl FnMut(Happening<'_>),
    ) -> Result<(), Failure> {
        if let Stage::Upgrading { key, head } = &mut self.stage {
            head.extend_from_slice(bytes);
            let verified = ClientHandshake::new(&dialect.host, &dialect.path, *key)
                .verify(head)
                .map_err(Failure::Handshake)?;
            let Some((head_bytes, _)) = verified else {
                return Ok(());
            };
            let mut rest = head.split_off(head_bytes);
            match dialect.protocol {
                Protocol::Plain => {
                    self.stage = Stage::Open;
                    tell(Happening::Opened);
                }
                Protocol::SocketIo => self.stage = Stage::Greeting,
            }
            return self.frames(&mut rest, dialect, tell);
        }
        self.frames(bytes, dialect, tell)
    }

    fn frames(
        &mut self,
        mut input: &mut [u8],
        dialect: &mut Dialect,
        tell: &mut impl FnMut(Happening<'_>),
    ) -> Result<(), Failure> {
        while let Some(item) = self
            .decoder
            .next(&mut input, &mut dialect.codec)
            .map_err(Failure::Violation)?
        {
            match item {
                Item::Message { payload, .. } if dialect.protocol == Protocol::Plain => {
                    tell(Happening::Payload(&payload));
                }
                Item::Message { payload, .. } => self.packet(&payload, dialect, tell)?,
                Item::Ping(payload) => dialect.control(Opcode::Pong, &payload, &mut self.out),
                Item::Pong(_) => {}
                Item::Close { code, .. } => return Err(Failure::Closed(code)),
            }
        }
        Ok(())
    }

    /// An Engine.IO packet: its first character says what it is.
    fn packet(
        &mut self,
        packet: &[u8],
        dialect: &mut Dialect,
        tell: &mut impl FnMut(Happening<'_>),
    ) -> Result<(), Failure> {
        let event = packet
            .strip_prefix(EVENT_HEAD)
            .and_then(|rest| rest.strip_suffix(EVENT_TAIL));
        match (event, packet) {
            (Some(payload), _) => tell(Happening::Payload(payload)),
            // Engine.IO is open: ask for the default namespace.
            (_, [b'0', ..]) => dialect.control(Opcode::Text, b"40", &mut self.out),
            (_, [b'2']) => dialect.control(Opcode::Text, b"3", &mut self.out),
            (_, [b'4', b'0', ..]) if matches!(self.stage, Stage::Greeting) => {
                self.stage = Stage::Open;
                tell(Happening::Opened);
            }
            (_, [b'4', b'4', ..]) => return Err(Failure::Greeting),
            (_, [b'1', ..]) => return Err(Failure::Closed(None)),
            _ => {}
        }
        Ok(())
    }

    /// Begins the closing handshake.
    pub(crate) fn close(&mut self, dialect: &mut Dialect) {
        dialect.control(Opcode::Close, &close::NORMAL.to_be_bytes(), &mut self.out);
        self.stage = Stage::Closing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(protocol: Protocol) -> Dialect {
        Dialect::new(protocol, Format::Text, &"ws://127.0.0.1:9".parse().unwrap(), 7)
    }

    /// A client whose upgrade was answered well.
    fn upgraded(dialect: &mut Dialect) -> (Client, Vec<String>) {
        let mut client = Client::new(dialect);
        let request = client.out.split();
        let mut answer = BytesMut::new();
        let head = wire::handshake::parse_head(&request).unwrap().unwrap();
        head.check(&wire::Policy::default()).unwrap().write(&mut answer);
        let told = feed(&mut client, dialect, &mut answer).unwrap();
        (client, told)
    }

    fn feed(client: &mut Client, dialect: &mut Dialect, bytes: &mut [u8]) -> Result<Vec<String>, Failure> {
        let mut told = Vec::new();
        client.received(bytes, dialect, &mut |happening| {
            told.push(match happening {
                Happening::Opened => "opened".to_owned(),
                Happening::Payload(payload) => String::from_utf8(payload.to_vec()).unwrap(),
            });
        })?;
        Ok(told)
    }

    fn server_frame(opcode: Opcode, payload: &[u8]) -> BytesMut {
        let mut frame = BytesMut::new();
        wire::encode_frame(&mut frame, opcode, false, payload);
        frame
    }

    /// What the client has to say, unmasked.
    fn said(client: &mut Client) -> Vec<u8> {
        let mut bytes = client.out.split();
        let mut input = &mut bytes[..];
        let mut codec = Codec::new(Role::Server, 1000);
        match Decoder::new(None).next(&mut input, &mut codec).unwrap() {
            Some(Item::Message { payload, .. } | Item::Pong(payload)) => payload.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_client_opens_with_the_answer_and_then_gets_payloads() {
        let mut dialect = dialect(Protocol::Plain);
        let (mut client, told) = upgraded(&mut dialect);
        assert_eq!(told, ["opened"]);
        let mut frame = server_frame(Opcode::Text, b"hello");
        assert_eq!(feed(&mut client, &mut dialect, &mut frame).unwrap(), ["hello"]);
    }

    #[test]
    fn a_ping_is_answered() {
        let mut dialect = dialect(Protocol::Plain);
        let (mut client, _) = upgraded(&mut dialect);
        feed(&mut client, &mut dialect, &mut server_frame(Opcode::Ping, b"abc")).unwrap();
        assert_eq!(said(&mut client), b"abc");
    }

    #[test]
    fn a_close_and_a_refusal_end_it_with_their_code() {
        let mut dialect = dialect(Protocol::Plain);
        let (mut client, _) = upgraded(&mut dialect);
        let mut frame = server_frame(Opcode::Close, &1001_u16.to_be_bytes());
        let failure = feed(&mut client, &mut dialect, &mut frame).unwrap_err();
        assert_eq!(failure, Failure::Closed(Some(1001)));

        let mut client = Client::new(&mut dialect);
        let mut answer = BytesMut::from("HTTP/1.1 503 Busy\r\n\r\n");
        let failure = feed(&mut client, &mut dialect, &mut answer).unwrap_err();
        assert_eq!(failure, Failure::Handshake(Rejection::Status(503)));
    }

    #[test]
    fn socket_io_opens_its_namespace_and_answers_pings() {
        let mut dialect = dialect(Protocol::SocketIo);
        let (mut client, told) = upgraded(&mut dialect);
        assert!(told.is_empty());
        feed(
            &mut client,
            &mut dialect,
            &mut server_frame(Opcode::Text, b"0{\"sid\":\"x\"}"),
        )
        .unwrap();
        assert_eq!(said(&mut client), b"40");
        let told = feed(
            &mut client,
            &mut dialect,
            &mut server_frame(Opcode::Text, b"40{\"sid\":\"y\"}"),
        )
        .unwrap();
        assert_eq!(told, ["opened"]);
        feed(&mut client, &mut dialect, &mut server_frame(Opcode::Text, b"2")).unwrap();
        assert_eq!(said(&mut client), b"3");
        let mut frame = BytesMut::new();
        dialect.frame(b"payload", &mut Vec::new(), &mut frame);
        client.out = frame;
        let event = said(&mut client);
        assert_eq!(event, b"42[\"m\",\"payload\"]");
        let told = feed(&mut client, &mut dialect, &mut server_frame(Opcode::Text, &event)).unwrap();
        assert_eq!(told, ["payload"]);
    }
}
