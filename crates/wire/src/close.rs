//! Close status codes (RFC 6455 section 7.4 and the IANA WebSocket Close Code Number Registry).

/// The purpose was fulfilled.
pub const NORMAL: u16 = 1000;
/// The endpoint goes away: a server shuts down, a page is left.
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// The peer sent a kind of data that is not taken here.
pub const UNSUPPORTED: u16 = 1003;
/// The payload does not fit its kind, as text that is not UTF-8.
pub const INVALID_PAYLOAD: u16 = 1007;
/// The message breaks a policy for which no better code exists.
pub const POLICY: u16 = 1008;
/// The message is too big.
pub const TOO_BIG: u16 = 1009;
/// The server met a condition it did not expect.
pub const INTERNAL_ERROR: u16 = 1011;
/// The server restarts; the client may reconnect after a pause (IANA).
pub const SERVICE_RESTART: u16 = 1012;
/// The server is overloaded; the client should reconnect later (IANA).
pub const TRY_AGAIN_LATER: u16 = 1013;

/// Whether a close frame may carry `code`: 1000-1003 and 1007-1014, which are registered, and 3000-4999, which
/// belong to libraries and applications. 1004, 1005, 1006 and 1015 are reserved and never travel.
pub const fn is_sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_travel_are_the_registered_and_the_private_ones() {
        let sendable: Vec<u16> = (0..=u16::MAX).filter(|&code| is_sendable(code)).collect();
        let expected: Vec<u16> = (1000..=1003).chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(sendable, expected);
    }
}
