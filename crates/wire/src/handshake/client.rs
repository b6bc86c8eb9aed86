//! The client's side of the opening handshake (RFC 6455 section 4.1): the request and the check of its answer.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};

use super::{HEAD_BYTES_MAX, HEADERS_MAX, KEY_BYTES, OPTIONAL_SPACE, accept_of, write_headers};
use crate::DeflateParams;
use crate::deflate::negotiate;

/// What a client asks for. Made for one connection; [`ClientHandshake::request`] is sent, then the answer goes
/// through [`ClientHandshake::verify`].
#[derive(Clone, Copy, Debug)]
pub struct ClientHandshake<'a> {
    /// The value of `Host`.
    pub host: &'a str,
    /// The request target: path and query.
    pub path: &'a str,
    /// 16 random bytes, new for each connection.
    pub key: [u8; KEY_BYTES],
    /// Offer compression with these parameters; the server may answer with stricter ones.
    pub deflate: Option<DeflateParams>,
    /// Subprotocols, the best first.
    pub protocols: &'a [&'a str],
    /// Further header fields, as `Origin` or `Authorization`. Neither they nor the other texts may hold line ends.
    pub headers: &'a [(&'a str, &'a str)],
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// What was agreed about compression, for [`crate::Decoder::new`].
    pub deflate: Option<DeflateParams>,
    /// The chosen subprotocol.
    pub protocol: Option<String>,
}

/// Why an answer does not open the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The bytes are not an HTTP response.
    Malformed,
    /// The head is longer than [`HEAD_BYTES_MAX`] or has more than [`HEADERS_MAX`] fields.
    HeadTooLong,
    /// The status is this one, not 101.
    Status(u16),
    /// `Upgrade` is not `websocket`, or `Connection` does not name `Upgrade`.
    NotUpgraded,
    /// `Sec-WebSocket-Accept` does not fit the key.
    BadAccept,
    /// An extension that was not offered, or not with these parameters.
    BadExtension,
    /// A subprotocol that was not offered.
    BadProtocol,
}

impl fmt::Display for Rejection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Rejection::Malformed => "the answer is not HTTP/1.1",
            Rejection::HeadTooLong => "the head of the answer is too long",
            Rejection::Status(status) => {
                return write!(formatter, "the server answered with status {status}");
            }
            Rejection::NotUpgraded => "the answer does not upgrade to websocket",
            Rejection::BadAccept => "the answer does not fit the key of the request",
            Rejection::BadExtension => "the server chose an extension that was not offered",
            Rejection::BadProtocol => "the server chose a subprotocol that was not offered",
        })
    }
}

impl std::error::Error for Rejection {}

impl<'a> ClientHandshake<'a> {
    /// A handshake without compression, subprotocols or further headers.
    pub fn new(host: &'a str, path: &'a str, key: [u8; KEY_BYTES]) -> ClientHandshake<'a> {
        ClientHandshake {
            host,
            path,
            key,
            deflate: None,
            protocols: &[],
            headers: &[],
        }
    }

    /// The request as it travels.
    pub fn request(&self) -> Bytes {
        let key = STANDARD.encode(self.key);
        let extensions = self.deflate.as_ref().map(negotiate::offer);
        let protocols = (!self.protocols.is_empty()).then(|| self.protocols.join(", "));
        let fixed = [
            ("Host", Some(self.host)),
            ("Upgrade", Some("websocket")),
            ("Connection", Some("Upgrade")),
            ("Sec-WebSocket-Version", Some("13")),
            ("Sec-WebSocket-Key", Some(key.as_str())),
            ("Sec-WebSocket-Extensions", extensions.as_deref()),
            ("Sec-WebSocket-Protocol", protocols.as_deref()),
        ];
        let present = fixed.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let mut out = BytesMut::with_capacity(256);
        for part in ["GET ", self.path, " HTTP/1.1\r\n"] {
            out.put_slice(part.as_bytes());
        }
        write_headers(present.chain(self.headers.iter().copied()), &mut out);
        out.freeze()
    }

    /// Checks the server's answer at the start of `input` (RFC 6455 section 4.1). Gives how long its head was and
    /// what was agreed, or `None` if it is not whole yet.
    pub fn verify(&self, input: &[u8]) -> Result<Option<(usize, Response)>, Rejection> {
        let limited = &input[..input.len().min(HEAD_BYTES_MAX)];
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let head_bytes = match response.parse(limited) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if limited.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Rejection::HeadTooLong);
            }
            Err(_) => return Err(Rejection::Malformed),
        };
        match response.code {
            Some(101) => {}
            status => return Err(Rejection::Status(status.unwrap_or(0))),
        }
        let values = |name: &'static str| {
            response
                .headers
                .iter()
                .filter(move |header| header.name.eq_ignore_ascii_case(name))
                .map(|header| {
                    std::str::from_utf8(header.value)
                        .unwrap_or("")
                        .trim_matches(OPTIONAL_SPACE)
                })
        };
        let names = |name, wanted: &str| {
            values(name)
                .flat_map(|value| value.split(','))
                .any(|token| token.trim().eq_ignore_ascii_case(wanted))
        };
        if !names("upgrade", "websocket") || !names("connection", "upgrade") {
            return Err(Rejection::NotUpgraded);
        }
        let accept = accept_of(STANDARD.encode(self.key).as_bytes());
        if !values("sec-websocket-accept")
            .map(str::as_bytes)
            .eq([&accept[..]])
        {
            return Err(Rejection::BadAccept);
        }
        let deflate = match (one(values("sec-websocket-extensions")), &self.deflate) {
            (Ok(None), _) => None,
            (Ok(Some(answer)), Some(wanted)) => {
                Some(negotiate::accept_answer(wanted, answer).ok_or(Rejection::BadExtension)?)
            }
            _ => return Err(Rejection::BadExtension),
        };
        let protocol = match one(values("sec-websocket-protocol")) {
            Ok(None) => None,
            Ok(Some(chosen)) if self.protocols.contains(&chosen) => Some(chosen.to_owned()),
            _ => return Err(Rejection::BadProtocol),
        };
        Ok(Some((head_bytes, Response { deflate, protocol })))
    }
}

/// The only value, if there is at most one.
fn one<'v>(mut values: impl Iterator<Item = &'v str>) -> Result<Option<&'v str>, ()> {
    let first = values.next();
    if values.next().is_some() {
        Err(())
    } else {
        Ok(first)
    }
}
