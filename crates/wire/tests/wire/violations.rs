//! One table: each violation, and bytes that make it.

use std::collections::HashSet;

use wire::{DeflateParams, Opcode, Role, Violation};

use crate::{Receiver, masked};

const MESSAGE_BYTES_MAX: usize = 1000;

/// Whole and byte by byte, `bytes` are refused as `expect`.
fn check(role: Role, deflate: Option<DeflateParams>, bytes: &[u8], expect: Violation) {
    for cuts in [0..0, 0..bytes.len()] {
        let mut receiver = Receiver::new(role, deflate, MESSAGE_BYTES_MAX);
        let result = receiver.feed_cut(bytes, cuts.clone());
        assert_eq!(
            result,
            Err(expect),
            "{bytes:02x?} cut at {cuts:?} gave {:?}",
            receiver.events
        );
    }
}

fn cases() -> Vec<(Vec<u8>, Violation)> {
    let frame = |fin, opcode, payload: &[u8]| masked(fin, false, opcode, payload);
    let header = |bytes: &[u8]| bytes.to_vec();
    vec![
        (header(&[0x81, 0x01, b'a']), Violation::Unmasked),
        (header(&[0xa1]), Violation::ReservedBits),
        (header(&[0x91]), Violation::ReservedBits),
        (
            masked(true, true, Opcode::Text, b""),
            Violation::CompressedWithoutExtension,
        ),
        (header(&[0xc0]), Violation::CompressedContinuation),
        (header(&[0xc9]), Violation::CompressedControl),
        (header(&[0x83]), Violation::BadOpcode),
        (header(&[0x87]), Violation::BadOpcode),
        (header(&[0x8b]), Violation::BadOpcode),
        (header(&[0x8f]), Violation::BadOpcode),
        (header(&[0x89, 0xfe]), Violation::ControlTooLong),
        (header(&[0x88, 0xff]), Violation::ControlTooLong),
        (header(&[0x09]), Violation::ControlFragmented),
        (header(&[0x82, 0xfe, 0x00, 0x7d]), Violation::NonMinimalLength),
        (
            header(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            Violation::NonMinimalLength,
        ),
        (
            header(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            Violation::LengthTopBit,
        ),
        (
            header(&[
                0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4,
            ]),
            Violation::MessageTooBig,
        ),
        (
            header(&[0x82, 0xfe, 0x03, 0xe9, 1, 2, 3, 4]),
            Violation::MessageTooBig,
        ),
        (
            [
                frame(false, Opcode::Binary, &[0; 600]),
                frame(false, Opcode::Continuation, &[0; 401]),
            ]
            .concat(),
            Violation::MessageTooBig,
        ),
        (
            frame(true, Opcode::Continuation, b""),
            Violation::UnexpectedContinuation,
        ),
        (
            [
                frame(true, Opcode::Text, b"a"),
                frame(false, Opcode::Continuation, b"b"),
            ]
            .concat(),
            Violation::UnexpectedContinuation,
        ),
        (
            [frame(false, Opcode::Text, b"a"), frame(true, Opcode::Text, b"b")].concat(),
            Violation::ExpectedContinuation,
        ),
        (frame(true, Opcode::Text, &[0xff]), Violation::BadUtf8),
        (
            frame(true, Opcode::Text, &"😀".as_bytes()[..3]),
            Violation::BadUtf8,
        ),
        // The first byte that cannot be mended tells, though most of the message is still to come.
        (
            frame(
                true,
                Opcode::Text,
                &[[0xed, 0xa0].as_slice(), &[b' '; 500]].concat(),
            )[..10]
                .to_vec(),
            Violation::BadUtf8,
        ),
        (frame(false, Opcode::Text, &[0xed, 0xa0]), Violation::BadUtf8),
        (frame(true, Opcode::Close, &[0x03]), Violation::BadClosePayload),
        (
            frame(true, Opcode::Close, &999u16.to_be_bytes()),
            Violation::BadCloseCode,
        ),
        (
            frame(true, Opcode::Close, &1005u16.to_be_bytes()),
            Violation::BadCloseCode,
        ),
        (
            frame(true, Opcode::Close, &1006u16.to_be_bytes()),
            Violation::BadCloseCode,
        ),
        (
            frame(true, Opcode::Close, &1015u16.to_be_bytes()),
            Violation::BadCloseCode,
        ),
        (
            frame(true, Opcode::Close, &5000u16.to_be_bytes()),
            Violation::BadCloseCode,
        ),
        (
            frame(true, Opcode::Close, b"\x03\xe8\xc3"),
            Violation::BadCloseReason,
        ),
    ]
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_how() {
    for (bytes, expect) in cases() {
        check(Role::Server, None, &bytes, expect);
    }
}

#[test]
fn a_server_must_not_mask() {
    check(
        Role::Client,
        None,
        &masked(true, false, Opcode::Text, b""),
        Violation::MaskedByServer,
    );
}

#[test]
fn a_damaged_compressed_message_is_refused() {
    let agreed = Some(DeflateParams::default());
    // A stored block whose two lengths do not agree, and a block of the reserved type.
    for payload in [&[0x00, 0x05, 0x00, 0x00, 0x00][..], &[0x07]] {
        check(
            Role::Server,
            agreed,
            &masked(true, true, Opcode::Text, payload),
            Violation::InflateFailed,
        );
    }
}

#[test]
fn compressed_text_must_be_utf8() {
    let mut payload = bytes::BytesMut::new();
    wire::Deflater::new(15, false).compress(&[b'a', 0xff], &mut payload);
    let frame = masked(true, true, Opcode::Text, &payload);
    check(
        Role::Server,
        Some(DeflateParams::default()),
        &frame,
        Violation::BadUtf8,
    );
}

#[test]
fn each_violation_has_its_own_label_and_one_of_three_close_codes() {
    let names: HashSet<_> = Violation::ALL.iter().map(|violation| violation.name()).collect();
    assert_eq!(names.len(), Violation::ALL.len());
    for violation in Violation::ALL {
        assert!(
            [1002, 1007, 1009].contains(&violation.close_code()),
            "{violation:?}"
        );
        assert!(
            violation.to_string().len() <= 123,
            "{violation:?} fits a close frame"
        );
    }
    assert_eq!(Violation::BadUtf8.close_code(), 1007);
    assert_eq!(Violation::MessageTooBig.close_code(), 1009);
    assert_eq!(Violation::Unmasked.close_code(), 1002);
}

#[test]
fn the_table_holds_every_violation() {
    let mut seen: HashSet<_> = cases().into_iter().map(|(_, violation)| violation).collect();
    seen.extend([Violation::MaskedByServer, Violation::InflateFailed]);
    let missing: Vec<_> = Violation::ALL
        .into_iter()
        .filter(|violation| !seen.contains(violation))
        .collect();
    assert_eq!(missing, []);
}
