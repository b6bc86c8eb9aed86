//! The opening handshake (RFC 6455 section 4): the one place where an upgrade request is checked and answered.
//!
//! [`check`] takes the request's parts, so that an HTTP server can hand in its own; [`parse_head`] makes them from
//! bytes. The client's side is in [`client`]. What is wrong with a request is a [`Refusal`] that says how to mend
//! it; nothing a peer sends panics.

pub mod client;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use sha1::{Digest, Sha1};

use crate::deflate::negotiate;
use crate::{DeflateParams, DeflatePolicy};

pub use client::ClientHandshake;

/// The longest head of a request or response that [`parse_head`] and [`ClientHandshake::verify`] take.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most header fields they take.
pub const HEADERS_MAX: usize = 100;

/// RFC 6455 section 1.3.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;
/// SHA-1 in base64.
const ACCEPT_BYTES: usize = 28;

/// What a server offers to those who connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Compress, if the client can; `None` never does.
    pub deflate: Option<DeflatePolicy>,
    /// The subprotocols spoken here. Of those the client lists, in its order, the first that is spoken is chosen.
    pub protocols: Vec<String>,
}

/// A good request's answer: 101 Switching Protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// What was agreed about compression, for [`crate::Decoder::new`].
    pub deflate: Option<DeflateParams>,
    /// The chosen subprotocol.
    pub protocol: Option<String>,
    accept: [u8; ACCEPT_BYTES],
    extensions: Option<String>,
}

impl Acceptance {
    /// The value of `Sec-WebSocket-Accept`.
    pub fn accept(&self) -> &str {
        std::str::from_utf8(&self.accept).expect("base64 is ASCII")
    }

    /// The header fields of the answer, whose status is 101.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let optional = [
            ("sec-websocket-extensions", self.extensions.as_deref()),
            ("sec-websocket-protocol", self.protocol.as_deref()),
        ];
        [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-accept", self.accept()),
        ]
        .into_iter()
        .chain(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        )
    }

    /// Appends the whole answer as it travels over HTTP/1.1.
    pub fn write(&self, out: &mut BytesMut) {
        out.put_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
        write_headers(self.headers(), out);
    }
}

/// Why a request is not upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The bytes are not an HTTP request, or no `GET` could have these headers.
    Malformed,
    /// The head is longer than [`HEAD_BYTES_MAX`] or has more than [`HEADERS_MAX`] fields.
    HeadTooLong,
    /// The method is not `GET`.
    Method,
    /// The request is not HTTP/1.1.
    HttpVersion,
    /// There is not exactly one `Host`.
    Host,
    /// It announces a body, which would be taken for frames.
    Body,
    /// `Upgrade` does not name `websocket`.
    Upgrade,
    /// `Connection` does not name `Upgrade`.
    Connection,
    /// `Sec-WebSocket-Version` is not 13.
    Version,
    /// There is no `Sec-WebSocket-Key`.
    KeyMissing,
    /// There are several `Sec-WebSocket-Key`.
    KeyRepeated,
    /// `Sec-WebSocket-Key` is not 16 bytes in base64.
    KeyMalformed,
}

impl Refusal {
    /// The HTTP status: 400, 405 or 426.
    pub const fn status(self) -> u16 {
        match self {
            Refusal::Method => 405,
            Refusal::Upgrade | Refusal::Version => 426,
            _ => 400,
        }
    }

    /// A stable label for metrics, in snake case.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::HeadTooLong => "head_too_long",
            Refusal::Method => "method",
            Refusal::HttpVersion => "http_version",
            Refusal::Host => "host",
            Refusal::Body => "body",
            Refusal::Upgrade => "upgrade",
            Refusal::Connection => "connection",
            Refusal::Version => "version",
            Refusal::KeyMissing => "key_missing",
            Refusal::KeyRepeated => "key_repeated",
            Refusal::KeyMalformed => "key_malformed",
        }
    }

    /// What is wrong and what to do, for the body of the answer.
    pub const fn sentence(self) -> &'static str {
        match self {
            Refusal::Malformed => {
                "This is not an HTTP/1.1 request; send one that asks to upgrade to websocket."
            }
            Refusal::HeadTooLong => {
                "The request head is too long; send at most 16 KiB in at most 100 header fields."
            }
            Refusal::Method => "A WebSocket handshake must be a GET request.",
            Refusal::HttpVersion => "A WebSocket handshake must be an HTTP/1.1 request.",
            Refusal::Host => "The request must have exactly one Host header.",
            Refusal::Body => {
                "A WebSocket handshake has no body; leave out Content-Length and Transfer-Encoding."
            }
            Refusal::Upgrade => {
                "This is a WebSocket endpoint; connect with a WebSocket client (header Upgrade: websocket)."
            }
            Refusal::Connection => {
                "The Connection header must name Upgrade; a proxy on the way may have to be told to pass it on."
            }
            Refusal::Version => "The header Sec-WebSocket-Version must be 13.",
            Refusal::KeyMissing => {
                "The header Sec-WebSocket-Key is missing; send 16 random bytes in base64 in it."
            }
            Refusal::KeyRepeated => "The header Sec-WebSocket-Key must come only once.",
            Refusal::KeyMalformed => "The header Sec-WebSocket-Key must be 16 bytes in base64.",
        }
    }

    /// Header fields that the answer needs besides those of its body.
    pub const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Refusal::Method => &[("allow", "GET")],
            Refusal::Upgrade | Refusal::Version => {
                &[("upgrade", "websocket"), ("sec-websocket-version", "13")]
            }
            _ => &[],
        }
    }

    /// Appends the whole answer as it travels over HTTP/1.1; the connection is to be closed after it.
    pub fn write(self, out: &mut BytesMut) {
        let reason = match self.status() {
            405 => "Method Not Allowed",
            426 => "Upgrade Required",
            _ => "Bad Request",
        };
        let body_bytes = self.sentence().len() + 1;
        out.put_slice(format!("HTTP/1.1 {} {reason}\r\n", self.status()).as_bytes());
        let body_bytes = body_bytes.to_string();
        let body = [
            ("connection", "close"),
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", body_bytes.as_str()),
        ];
        write_headers(self.headers().iter().copied().chain(body), out);
        out.put_slice(self.sentence().as_bytes());
        out.put_slice(b"\n");
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.sentence())
    }
}

impl std::error::Error for Refusal {}

/// Checks an upgrade request (RFC 6455 section 4.2.1) and works out its answer (section 4.2.2). `http11`: the
/// request is HTTP/1.1; `headers`: names in any case, values as they came, in order.
pub fn check<'a>(
    method: &str,
    http11: bool,
    headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    policy: &Policy,
) -> Result<Acceptance, Refusal> {
    if method != "GET" {
        return Err(Refusal::Method);
    }
    if !http11 {
        return Err(Refusal::HttpVersion);
    }
    let values = |name: &'static str| {
        headers
            .clone()
            .filter(move |(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    };
    // A value that is not text cannot hold a token.
    let tokens = |name| {
        values(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(|token| token.trim_matches(OPTIONAL_SPACE))
    };
    if !tokens("upgrade").any(|token| token.eq_ignore_ascii_case("websocket")) {
        return Err(Refusal::Upgrade);
    }
    if !tokens("connection").any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(Refusal::Connection);
    }
    if values("host").count() != 1 {
        return Err(Refusal::Host);
    }
    // A proxy that counts a body and a server that takes it for frames would not see the same messages.
    if values("transfer-encoding").next().is_some()
        || values("content-length").any(|value| value.trim_ascii() != b"0")
    {
        return Err(Refusal::Body);
    }
    let mut versions = values("sec-websocket-version");
    if versions.next().map(<[u8]>::trim_ascii) != Some(b"13") || versions.next().is_some() {
        return Err(Refusal::Version);
    }
    let mut keys = values("sec-websocket-key");
    let key = keys.next().ok_or(Refusal::KeyMissing)?.trim_ascii();
    if keys.next().is_some() {
        return Err(Refusal::KeyRepeated);
    }
    if !is_key(key) {
        return Err(Refusal::KeyMalformed);
    }

    let offers = values("sec-websocket-extensions").filter_map(|value| std::str::from_utf8(value).ok());
    let deflate = policy
        .deflate
        .and_then(|deflate| negotiate::accept_offer(offers, deflate));
    let (deflate, extensions) = deflate.unzip();
    let protocol = tokens("sec-websocket-protocol")
        .find_map(|wanted| policy.protocols.iter().find(|spoken| *spoken == wanted))
        .cloned();
    Ok(Acceptance {
        deflate,
        protocol,
        accept: accept_of(key),
        extensions,
    })
}

const OPTIONAL_SPACE: [char; 2] = [' ', '\t'];

/// "a base64-encoded value that, when decoded, is 16 bytes in length".
fn is_key(key: &[u8]) -> bool {
    let mut bytes = [0; KEY_BYTES + 2];
    STANDARD.decode_slice(key, &mut bytes) == Ok(KEY_BYTES)
}

/// RFC 6455 section 4.2.2: the key and a fixed suffix, hashed, in base64.
fn accept_of(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    let written = STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(ACCEPT_BYTES), "20 bytes are 28 in base64");
    accept
}

fn write_headers<'n, 'v>(headers: impl Iterator<Item = (&'n str, &'v str)>, out: &mut BytesMut) {
    for (name, value) in headers {
        for part in [name, ": ", value, "\r\n"] {
            out.put_slice(part.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

/// The head of a request, for those who have no HTTP server before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// As it came: methods are case-sensitive.
    pub method: &'a str,
    /// The request target: path and query.
    pub target: &'a str,
    /// The request is HTTP/1.1, not HTTP/1.0.
    pub http11: bool,
    /// Names in the case they came in, and values, in order.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// How long the head was; what follows it belongs to the connection.
    pub head_bytes: usize,
}

impl Head<'_> {
    /// [`check`] for this head.
    pub fn check(&self, policy: &Policy) -> Result<Acceptance, Refusal> {
        check(self.method, self.http11, self.headers.iter().copied(), policy)
    }
}

/// Reads a request's head from the start of `input`; `None` if it is not whole yet. Fails with
/// [`Refusal::Malformed`] or [`Refusal::HeadTooLong`].
pub fn parse_head(input: &[u8]) -> Result<Option<Head<'_>>, Refusal> {
    let limited = &input[..input.len().min(HEAD_BYTES_MAX)];
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(limited) {
        Ok(httparse::Status::Complete(head_bytes)) => Ok(Some(Head {
            method: request.method.expect("a whole head has a method"),
            target: request.path.expect("a whole head has a target"),
            http11: request.version == Some(1),
            headers: request
                .headers
                .iter()
                .map(|header| (header.name, header.value))
                .collect(),
            head_bytes,
        })),
        Ok(httparse::Status::Partial) if limited.len() < HEAD_BYTES_MAX => Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(Refusal::HeadTooLong),
        Err(_) => Err(Refusal::Malformed),
    }
}
