//! Every way in which a peer can break the protocol, each with the close code and the metric label it gets.
//!
//! A violation is the peer's mistake, never ours: it ends that connection and touches nothing else.

use std::fmt;

use crate::close;

/// A breach of RFC 6455 or RFC 7692 by the peer. The connection has to be closed with [`Violation::close_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A client sent a frame without a mask (RFC 6455 section 5.1).
    Unmasked,
    /// A server sent a masked frame (RFC 6455 section 5.1).
    MaskedByServer,
    /// RSV2 or RSV3 is set, which no extension here gives a meaning (RFC 6455 section 5.2).
    ReservedBits,
    /// RSV1 is set but permessage-deflate was not agreed (RFC 6455 section 5.2).
    CompressedWithoutExtension,
    /// RSV1 is set on a later fragment of a message (RFC 7692 section 6.1).
    CompressedContinuation,
    /// RSV1 is set on a control frame (RFC 7692 section 6.1).
    CompressedControl,
    /// Opcode 3 to 7 or 11 to 15 (RFC 6455 section 5.2).
    BadOpcode,
    /// A control frame with more than 125 bytes of payload (RFC 6455 section 5.5).
    ControlTooLong,
    /// A control frame without FIN (RFC 6455 section 5.5).
    ControlFragmented,
    /// A payload length that was not written in the fewest bytes (RFC 6455 section 5.2).
    NonMinimalLength,
    /// A 64-bit payload length whose top bit is set (RFC 6455 section 5.2).
    LengthTopBit,
    /// The message, on the wire or inflated, is longer than this side takes (RFC 6455 section 10.4).
    MessageTooBig,
    /// A continuation frame while no message was begun (RFC 6455 section 5.4).
    UnexpectedContinuation,
    /// A new message was begun inside another (RFC 6455 section 5.4).
    ExpectedContinuation,
    /// A text message is not UTF-8 (RFC 6455 section 8.1).
    BadUtf8,
    /// A close frame with a payload of one byte (RFC 6455 section 5.5.1).
    BadClosePayload,
    /// A close code that may not be sent (RFC 6455 section 7.4).
    BadCloseCode,
    /// A close reason that is not UTF-8 (RFC 6455 section 5.5.1).
    BadCloseReason,
    /// The payload of a compressed message is not a DEFLATE stream (RFC 7692 section 7.2.2).
    InflateFailed,
}

impl Violation {
    /// All of them, in the order of declaration: for counters by reason.
    pub const ALL: [Violation; 19] = [
        Violation::Unmasked,
        Violation::MaskedByServer,
        Violation::ReservedBits,
        Violation::CompressedWithoutExtension,
        Violation::CompressedContinuation,
        Violation::CompressedControl,
        Violation::BadOpcode,
        Violation::ControlTooLong,
        Violation::ControlFragmented,
        Violation::NonMinimalLength,
        Violation::LengthTopBit,
        Violation::MessageTooBig,
        Violation::UnexpectedContinuation,
        Violation::ExpectedContinuation,
        Violation::BadUtf8,
        Violation::BadClosePayload,
        Violation::BadCloseCode,
        Violation::BadCloseReason,
        Violation::InflateFailed,
    ];

    /// The status code to close with (RFC 6455 section 7.4.1): 1002, 1007 or 1009.
    pub const fn close_code(self) -> u16 {
        match self {
            Violation::BadUtf8 | Violation::BadCloseReason | Violation::InflateFailed => {
                close::INVALID_PAYLOAD
            }
            Violation::MessageTooBig => close::TOO_BIG,
            _ => close::PROTOCOL_ERROR,
        }
    }

    /// A stable label for metrics, in snake case.
    pub const fn name(self) -> &'static str {
        match self {
            Violation::Unmasked => "unmasked",
            Violation::MaskedByServer => "masked_by_server",
            Violation::ReservedBits => "reserved_bits",
            Violation::CompressedWithoutExtension => "compressed_without_extension",
            Violation::CompressedContinuation => "compressed_continuation",
            Violation::CompressedControl => "compressed_control",
            Violation::BadOpcode => "bad_opcode",
            Violation::ControlTooLong => "control_too_long",
            Violation::ControlFragmented => "control_fragmented",
            Violation::NonMinimalLength => "non_minimal_length",
            Violation::LengthTopBit => "length_top_bit",
            Violation::MessageTooBig => "message_too_big",
            Violation::UnexpectedContinuation => "unexpected_continuation",
            Violation::ExpectedContinuation => "expected_continuation",
            Violation::BadUtf8 => "bad_utf8",
            Violation::BadClosePayload => "bad_close_payload",
            Violation::BadCloseCode => "bad_close_code",
            Violation::BadCloseReason => "bad_close_reason",
            Violation::InflateFailed => "inflate_failed",
        }
    }

    /// What is wrong, in a sentence short enough for the reason of a close frame.
    pub const fn sentence(self) -> &'static str {
        match self {
            Violation::Unmasked => "A client must mask its frames.",
            Violation::MaskedByServer => "A server must not mask its frames.",
            Violation::ReservedBits => "A reserved bit of the frame header is set.",
            Violation::CompressedWithoutExtension => {
                "RSV1 marks a compressed message, but compression was not agreed."
            }
            Violation::CompressedContinuation => "RSV1 is only for the first frame of a message.",
            Violation::CompressedControl => "RSV1 is not for control frames.",
            Violation::BadOpcode => "The opcode is not known.",
            Violation::ControlTooLong => "The payload of a control frame is longer than 125 bytes.",
            Violation::ControlFragmented => "A control frame must not be fragmented.",
            Violation::NonMinimalLength => "The payload length must be written in the fewest bytes.",
            Violation::LengthTopBit => "The top bit of the payload length must be zero.",
            Violation::MessageTooBig => "The message is longer than is accepted here.",
            Violation::UnexpectedContinuation => "A continuation frame came, but no message was begun.",
            Violation::ExpectedContinuation => "A message was begun before the one before it ended.",
            Violation::BadUtf8 => "A text message must be UTF-8.",
            Violation::BadClosePayload => "The payload of a close frame must be empty or start with a code.",
            Violation::BadCloseCode => "The close code may not be sent.",
            Violation::BadCloseReason => "A close reason must be UTF-8.",
            Violation::InflateFailed => "The compressed message is damaged.",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.sentence())
    }
}

impl std::error::Error for Violation {}
