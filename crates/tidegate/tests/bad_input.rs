//! What bad input gets: the close code RFC 6455 names, a counter, and nothing else is touched.

#![allow(clippy::unwrap_used, reason = "a test that fails here has said enough")]

mod support;

use support::raw::{BINARY, CLOSE, FIN, PING, TEXT, close_payload, frame, header};
use support::{DRIVERS, Raw, Server};

/// Sends `bytes` on a fresh connection and expects this close code and counter, while another connection goes on.
fn check(server: &Server, bytes: &[u8], code: u16, violation: &str) {
    let mut bystander = Raw::connect(server.address, "/echo");
    let before = server.metric("tidegate_violations_total", violation);
    let mut culprit = Raw::connect(server.address, "/echo");
    culprit.send(bytes);
    assert_eq!(culprit.read_close(), code, "{violation}");
    server.wait_for_metric("tidegate_violations_total", violation, before + 1.0);
    bystander.send_text("still here");
    bystander.expect_text("still here");
}

/// The same on every driver.
fn check_all(bytes: &[u8], code: u16, violation: &str) {
    for driver in DRIVERS {
        let server = Server::start(&["--driver", driver, "--max-message", "1000"]);
        check(&server, bytes, code, violation);
    }
}

#[test]
fn an_unmasked_frame() {
    check_all(&[FIN | TEXT, 2, b'h', b'i'], 1002, "unmasked");
}

#[test]
fn reserved_bits() {
    let cases = [
        (0x40, "compressed_without_extension"),
        (0x20, "reserved_bits"),
        (0x10, "reserved_bits"),
    ];
    for (bit, violation) in cases {
        check_all(&frame(FIN | bit | TEXT, b"hi"), 1002, violation);
    }
}

#[test]
fn unknown_opcodes() {
    check_all(&frame(FIN | 3, b"hi"), 1002, "bad_opcode");
    check_all(&frame(FIN | 11, b"hi"), 1002, "bad_opcode");
}

#[test]
fn a_message_over_the_limit() {
    check_all(&frame(FIN | BINARY, &[0; 1001]), 1009, "message_too_big");
}

#[test]
fn fragments_over_the_limit_together() {
    let bytes = [frame(BINARY, &[0; 600]), frame(FIN, &[0; 600])].concat();
    check_all(&bytes, 1009, "message_too_big");
}

#[test]
fn a_header_that_claims_all_memory_takes_none() {
    let server = Server::start(&[]);
    let before = server.resident_bytes();
    let mut bytes = header(FIN | BINARY, (1 << 63) - 1);
    bytes.extend([0; 4]);
    check(&server, &bytes, 1009, "message_too_big");
    assert!(
        server.resident_bytes() < before + (8 << 20),
        "memory was taken for what never came"
    );
}

#[test]
fn a_length_of_more_than_63_bits() {
    let mut bytes = header(FIN | BINARY, u64::MAX);
    bytes.extend([0; 4]);
    check_all(&bytes, 1002, "length_top_bit");
}

#[test]
fn text_that_is_not_utf8() {
    check_all(&frame(FIN | TEXT, &[b'a', 0xff, b'b']), 1007, "bad_utf8");
}

#[test]
fn text_that_goes_wrong_in_its_first_fragment_fails_at_once() {
    // The last fragment never comes: the answer must not wait for it.
    check_all(&frame(TEXT, &[0xc3, 0x28]), 1007, "bad_utf8");
}

#[test]
fn wrong_close_codes() {
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        let server = Server::start(&[]);
        check(
            &server,
            &frame(FIN | CLOSE, &close_payload(code, b"")),
            1002,
            "bad_close_code",
        );
    }
}

#[test]
fn a_close_frame_of_one_byte() {
    check_all(&frame(FIN | CLOSE, &[3]), 1002, "bad_close_payload");
}

#[test]
fn a_close_reason_that_is_not_utf8() {
    check_all(
        &frame(FIN | CLOSE, &close_payload(1000, &[0xff])),
        1007,
        "bad_close_reason",
    );
}

#[test]
fn a_control_frame_over_125_bytes() {
    check_all(&frame(FIN | PING, &[0; 126]), 1002, "control_too_long");
}

#[test]
fn a_fragmented_control_frame() {
    check_all(&frame(PING, b"half"), 1002, "control_fragmented");
}

#[test]
fn a_continuation_of_nothing() {
    check_all(&frame(FIN, b"more"), 1002, "unexpected_continuation");
}

#[test]
fn a_message_inside_a_message() {
    check_all(
        &[frame(TEXT, b"half"), frame(FIN | TEXT, b"whole")].concat(),
        1002,
        "expected_continuation",
    );
}
