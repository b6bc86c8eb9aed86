//! Agreeing on permessage-deflate: the `Sec-WebSocket-Extensions` header of both sides (RFC 7692 section 7.1).
//!
//! An offer that cannot be kept or is not well formed is declined, never an error: the connection then goes on
//! with the next offer or without compression.

use std::fmt::Write;

use super::{DeflateParams, WINDOW_BITS_MAX, WINDOW_BITS_MIN};

const NAME: &str = "permessage-deflate";
const SERVER_NO_CONTEXT_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_NO_CONTEXT_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_MAX_WINDOW_BITS: &str = "server_max_window_bits";
const CLIENT_MAX_WINDOW_BITS: &str = "client_max_window_bits";

/// Which compression contexts a server is willing to keep between messages. Both cost memory for each connection;
/// without the server's, one compressed message serves many receivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeflatePolicy {
    /// Keep the window of what is sent, if the client allows it.
    pub server_takeover: bool,
    /// Keep the window of what is received, if the client uses one.
    pub client_takeover: bool,
}

/// One `permessage-deflate` with its parameters, as a client offers or a server answers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// `Some(None)`: named without a value.
    client_max_window_bits: Option<Option<u8>>,
}

/// Picks the first offer in the `Sec-WebSocket-Extensions` values `offers` that can be kept. Gives what is agreed
/// and the value of the answering header.
pub fn accept_offer<'a>(
    offers: impl Iterator<Item = &'a str>,
    policy: DeflatePolicy,
) -> Option<(DeflateParams, String)> {
    offers.flat_map(|value| split(value, b',')).find_map(|offer| {
        let offer = Parameters::parse(offer)?;
        let answer = offer.answer(policy)?;
        let params = DeflateParams {
            server_no_context_takeover: answer.server_no_context_takeover,
            client_no_context_takeover: answer.client_no_context_takeover,
            server_max_window_bits: answer.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX),
            client_max_window_bits: answer.client_max_window_bits.flatten().unwrap_or(WINDOW_BITS_MAX),
        };
        Some((params, answer.header()))
    })
}

/// The value of a client's `Sec-WebSocket-Extensions` that asks for `wanted` and lets the server narrow the
/// client's window.
pub fn offer(wanted: &DeflateParams) -> String {
    let narrowed = |bits: u8| (bits < WINDOW_BITS_MAX).then_some(bits);
    let parameters = Parameters {
        server_no_context_takeover: wanted.server_no_context_takeover,
        client_no_context_takeover: wanted.client_no_context_takeover,
        server_max_window_bits: narrowed(wanted.server_max_window_bits),
        client_max_window_bits: Some(narrowed(wanted.client_max_window_bits)),
    };
    parameters.header()
}

/// What a server's answer to [`offer`] agrees on; `None` if it is not an answer to `wanted`, upon which the
/// connection has to be failed (RFC 7692 section 7.1).
pub fn accept_answer(wanted: &DeflateParams, answer: &str) -> Option<DeflateParams> {
    let answer = Parameters::parse(answer)?;
    let server_max_window_bits = answer.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
    // In an answer the client's window needs a value, and zlib cannot compress with less than 9 bits.
    let client_max_window_bits = match answer.client_max_window_bits {
        None => WINDOW_BITS_MAX,
        Some(bits) => bits.filter(|&bits| bits >= WINDOW_BITS_MIN)?,
    };
    if server_max_window_bits > wanted.server_max_window_bits
        || (wanted.server_no_context_takeover && !answer.server_no_context_takeover)
    {
        return None;
    }
    Some(DeflateParams {
        server_no_context_takeover: answer.server_no_context_takeover,
        client_no_context_takeover: answer.client_no_context_takeover || wanted.client_no_context_takeover,
        server_max_window_bits,
        client_max_window_bits: client_max_window_bits.min(wanted.client_max_window_bits),
    })
}

impl Parameters {
    /// Parses `permessage-deflate; name; name=value; ...`. `None` for another extension, and for an unknown or
    /// repeated name or a value out of range, upon which the offer is declined (RFC 7692 section 7.1).
    fn parse(extension: &str) -> Option<Parameters> {
        let mut parts = split(extension, b';');
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut parameters = Parameters::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_end_matches(OPTIONAL_SPACE), Some(window_bits(value)?)),
                None => (part, None),
            };
            let repeated = match (name, value) {
                (SERVER_NO_CONTEXT_TAKEOVER, None) => {
                    std::mem::replace(&mut parameters.server_no_context_takeover, true)
                }
                (CLIENT_NO_CONTEXT_TAKEOVER, None) => {
                    std::mem::replace(&mut parameters.client_no_context_takeover, true)
                }
                (SERVER_MAX_WINDOW_BITS, Some(bits)) => {
                    parameters.server_max_window_bits.replace(bits).is_some()
                }
                (CLIENT_MAX_WINDOW_BITS, bits) => parameters.client_max_window_bits.replace(bits).is_some(),
                _ => return None,
            };
            if repeated {
                return None;
            }
        }
        Some(parameters)
    }

    /// A server's answer to this offer. `None` if the client asks for a window of 8 bits, which zlib cannot
    /// compress with.
    fn answer(self, policy: DeflatePolicy) -> Option<Parameters> {
        if self
            .server_max_window_bits
            .is_some_and(|bits| bits < WINDOW_BITS_MIN)
        {
            return None;
        }
        Some(Parameters {
            server_no_context_takeover: self.server_no_context_takeover || !policy.server_takeover,
            client_no_context_takeover: self.client_no_context_takeover || !policy.client_takeover,
            server_max_window_bits: self.server_max_window_bits,
            // "A server MUST NOT include it in the answer if the client did not offer it"; without a value the
            // client only says that it understands the parameter, and the whole window is wanted here.
            client_max_window_bits: self.client_max_window_bits.filter(Option::is_some),
        })
    }

    fn header(&self) -> String {
        let mut value = String::from(NAME);
        for (name, present) in [
            (SERVER_NO_CONTEXT_TAKEOVER, self.server_no_context_takeover),
            (CLIENT_NO_CONTEXT_TAKEOVER, self.client_no_context_takeover),
        ] {
            if present {
                value.push_str("; ");
                value.push_str(name);
            }
        }
        for (name, bits) in [
            (SERVER_MAX_WINDOW_BITS, self.server_max_window_bits.map(Some)),
            (CLIENT_MAX_WINDOW_BITS, self.client_max_window_bits),
        ] {
            match bits {
                Some(Some(bits)) => write!(value, "; {name}={bits}").expect("writing to a string"),
                Some(None) => write!(value, "; {name}").expect("writing to a string"),
                None => {}
            }
        }
        value
    }
}

const OPTIONAL_SPACE: [char; 2] = [' ', '\t'];

/// The parts of `value` between separators that do not stand in quotes, without the space around them.
fn split(value: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = text.bytes().position(|byte| {
            let ends = byte == separator && !quoted;
            quoted ^= byte == b'"' && !escaped;
            escaped = quoted && byte == b'\\' && !escaped;
            ends
        });
        let part = match end {
            Some(end) => {
                rest = Some(&text[end + 1..]);
                &text[..end]
            }
            None => {
                rest = None;
                text
            }
        };
        Some(part.trim_matches(OPTIONAL_SPACE))
    })
}

/// A window's bits, 8 to 15 in decimal without a leading zero, bare or in quotes.
fn window_bits(value: &str) -> Option<u8> {
    let value = value.trim_start_matches(OPTIONAL_SPACE);
    let bare = match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => value,
    };
    (8..=15).find(|bits: &u8| bits.to_string() == bare)
}
