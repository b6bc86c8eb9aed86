//! RFC 7692: its examples, context takeover, and what is agreed for which offer.

use bytes::BytesMut;
use wire::deflate::negotiate::{accept_answer, accept_offer, offer};
use wire::{Codec, DeflateParams, DeflatePolicy, Deflater, Inflater, Kind, Opcode, Role, Violation};

use crate::{Event, Receiver, masked};

/// The examples of section 7.2.3, "Hello" each time, as one message on a fresh connection.
fn check_example(payload: &[u8]) {
    let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), 100);
    receiver.feed(&masked(true, true, Opcode::Text, payload)).unwrap();
    assert_eq!(receiver.events, [Event::Message(Kind::Text, b"Hello".into())]);
}

const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

#[test]
fn rfc_7692_7_2_3_1_one_block() {
    check_example(&HELLO);
    let mut out = BytesMut::new();
    Deflater::new(15, true).compress(b"Hello", &mut out);
    assert_eq!(out[..], HELLO);
}

#[test]
fn rfc_7692_7_2_3_1_in_fragments() {
    let mut receiver = Receiver::new(Role::Client, Some(DeflateParams::default()), 100);
    receiver
        .feed(&[0x41, 0x03, 0xf2, 0x48, 0xcd, 0x80, 0x04, 0xc9, 0xc9, 0x07, 0x00])
        .unwrap();
    assert_eq!(receiver.events, [Event::Message(Kind::Text, b"Hello".into())]);
}

#[test]
fn rfc_7692_7_2_3_2_the_window_is_shared() {
    let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), 100);
    receiver.feed(&masked(true, true, Opcode::Text, &HELLO)).unwrap();
    receiver
        .feed(&masked(true, true, Opcode::Text, &[0xf2, 0x00, 0x11, 0x00, 0x00]))
        .unwrap();
    assert_eq!(
        receiver.events,
        vec![Event::Message(Kind::Text, b"Hello".into()); 2]
    );
}

#[test]
fn rfc_7692_7_2_3_3_a_block_without_compression() {
    check_example(&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]);
}

#[test]
fn rfc_7692_7_2_3_4_a_last_block() {
    check_example(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]);
}

#[test]
fn a_last_block_without_the_byte_after_it() {
    check_example(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
}

#[test]
fn rfc_7692_7_2_3_5_two_blocks() {
    check_example(&[
        0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
    ]);
}

/// A whole DEFLATE stream of no bytes.
const ENDED_STREAM: [u8; 2] = [0x03, 0x00];

#[test]
fn sixteen_streams_may_end_in_a_message() {
    let mut message = ENDED_STREAM.repeat(16);
    assert_eq!(Inflater::new(15, true).inflate(&message, 100), Ok(vec![]));
    message.extend_from_slice(&HELLO);
    check_example(&message);
    let letters = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00].repeat(16);
    assert_eq!(
        Inflater::new(15, true).inflate(&letters, 100),
        Ok(b"Hello".repeat(16))
    );
}

/// What follows would be a violation of another kind, had it been looked at.
#[test]
fn the_seventeenth_end_of_a_stream_ends_the_work() {
    for following in [&HELLO[..], b""] {
        let mut message = ENDED_STREAM.repeat(17);
        message.extend_from_slice(following);
        assert_eq!(
            Inflater::new(15, true).inflate(&message, 0),
            Err(Violation::InflateFailed)
        );
    }
    let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), 1 << 20);
    let message = masked(true, true, Opcode::Binary, &ENDED_STREAM.repeat(500_000));
    assert_eq!(receiver.feed(&message), Err(Violation::InflateFailed));
}

#[test]
fn rfc_7692_7_2_3_6_an_empty_message() {
    for takeover in [false, true] {
        let mut deflater = Deflater::new(15, takeover);
        let mut inflater = Inflater::new(15, takeover);
        for plain in [&b""[..], b"a", b"", b"", b"a"] {
            let mut out = BytesMut::new();
            deflater.compress(plain, &mut out);
            assert!(!plain.is_empty() || out[..] == [0x00]);
            assert_eq!(inflater.inflate(&out, 10), Ok(plain.to_vec()));
        }
    }
}

#[test]
fn without_takeover_the_window_is_not_shared() {
    let params = DeflateParams {
        client_no_context_takeover: true,
        ..DeflateParams::default()
    };
    let mut receiver = Receiver::new(Role::Server, Some(params), 100);
    receiver.feed(&masked(true, true, Opcode::Text, &HELLO)).unwrap();
    let second = receiver.feed(&masked(true, true, Opcode::Text, &[0xf2, 0x00, 0x11, 0x00, 0x00]));
    assert_eq!(second, Err(Violation::InflateFailed));
}

#[test]
fn takeover_makes_the_second_message_small_in_every_window() {
    let message: Vec<u8> = (0..200u8).collect();
    for window_bits in 9..=15 {
        let mut deflater = Deflater::new(window_bits, true);
        let mut inflater = Inflater::new(window_bits, true);
        let mut lengths = vec![];
        for _ in 0..20 {
            let mut out = BytesMut::new();
            deflater.compress(&message, &mut out);
            assert_eq!(
                inflater.inflate(&out, 200),
                Ok(message.clone()),
                "{window_bits} bits"
            );
            lengths.push(out.len());
        }
        assert!(lengths[1..].iter().all(|&length| length < 20), "{lengths:?}");
    }
}

#[test]
fn one_compressed_message_serves_every_connection() {
    let mut codec = Codec::new(Role::Server, 1 << 20);
    let message = "to all of you, ".repeat(5000).into_bytes();
    let mut frame = BytesMut::new();
    let mut payload = BytesMut::new();
    codec.deflate(12, &message, &mut payload);
    wire::encode_frame(&mut frame, Opcode::Binary, true, &payload);
    for server_no_context_takeover in [false, true] {
        let params = DeflateParams {
            server_no_context_takeover,
            server_max_window_bits: 12,
            ..DeflateParams::default()
        };
        let mut receiver = Receiver::new(Role::Client, Some(params), 1 << 20);
        receiver.feed(&frame).unwrap();
        receiver.feed(&frame).unwrap();
        assert_eq!(
            receiver.events,
            vec![Event::Message(Kind::Binary, message.clone()); 2]
        );
    }
}

#[test]
fn a_message_and_its_limit_of_any_size_come_through() {
    // Around each size at which room is made: the first, its doubles, and the most that is made unseen.
    let sizes = [
        62, 63, 64, 65, 127, 128, 129, 16_383, 16_384, 16_385, 32_768, 200_000,
    ];
    for plain in sizes.into_iter().flat_map(|size| [vec![7; size], noise(size)]) {
        let mut out = BytesMut::new();
        Deflater::new(15, false).compress(&plain, &mut out);
        let mut inflater = Inflater::new(15, false);
        for bytes_max in [plain.len(), plain.len() + 1, usize::MAX] {
            assert_eq!(
                inflater.inflate(&out, bytes_max).as_ref(),
                Ok(&plain),
                "{bytes_max}"
            );
        }
        assert_eq!(
            inflater.inflate(&out, plain.len() - 1),
            Err(Violation::MessageTooBig)
        );
    }
}

/// Bytes of a generator of Knuth's, only to be incompressible.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let byte = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(byte).collect()
}

#[test]
fn what_does_not_compress_comes_through_too() {
    let noise = noise(300_000);
    let mut out = BytesMut::new();
    Deflater::new(15, false).compress(&noise, &mut out);
    assert_eq!(Inflater::new(15, false).inflate(&out, noise.len()), Ok(noise));
}

/// The answer to an offer, both contexts wanted or none.
fn check_offer(offered: &str, takeover: bool, expect: Option<&str>) {
    let policy = DeflatePolicy {
        server_takeover: takeover,
        client_takeover: takeover,
    };
    let answer = accept_offer([offered].into_iter(), policy).map(|(_, answer)| answer);
    assert_eq!(answer.as_deref(), expect, "for {offered}");
}

#[test]
fn offers_are_answered_by_what_can_be_kept() {
    let plain = Some("permessage-deflate");
    let bits = |bits| {
        Some(
            [
                "permessage-deflate; server_max_window_bits=9",
                "permessage-deflate; client_max_window_bits=10",
            ][bits],
        )
    };
    check_offer("permessage-deflate", true, plain);
    check_offer("PerMessage-Deflate", true, plain);
    check_offer(" permessage-deflate ; client_max_window_bits ", true, plain);
    check_offer("permessage-deflate; server_max_window_bits=9", true, bits(0));
    check_offer("permessage-deflate; server_max_window_bits=\"9\"", true, bits(0));
    check_offer("permessage-deflate;server_max_window_bits = 9", true, bits(0));
    check_offer("permessage-deflate; client_max_window_bits=10", true, bits(1));
    check_offer(
        "permessage-deflate; server_no_context_takeover",
        true,
        Some("permessage-deflate; server_no_context_takeover"),
    );
    check_offer(
        "permessage-deflate; client_max_window_bits",
        false,
        Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
    );
}

#[test]
fn offers_that_cannot_be_kept_are_declined() {
    for offered in [
        "",
        "x-webkit-deflate-frame",
        "permessage-deflate; unknown",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; server_max_window_bits=",
        "permessage-deflate; server_max_window_bits=\"9",
        "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate;",
    ] {
        check_offer(offered, true, None);
    }
}

#[test]
fn the_next_offer_is_tried_when_one_is_declined() {
    check_offer(
        "permessage-deflate; server_max_window_bits=8, other; x=\"a,permessage-deflate;\\\"\", permessage-deflate; server_max_window_bits=10",
        true,
        Some("permessage-deflate; server_max_window_bits=10"),
    );
}

#[test]
fn client_and_server_agree_on_the_same() {
    for index in 0..16u8 {
        let wanted = DeflateParams {
            server_no_context_takeover: index & 1 != 0,
            client_no_context_takeover: index & 2 != 0,
            server_max_window_bits: if index & 4 != 0 { 11 } else { 15 },
            client_max_window_bits: if index & 8 != 0 { 12 } else { 15 },
        };
        for takeover in [false, true] {
            let policy = DeflatePolicy {
                server_takeover: takeover,
                client_takeover: takeover,
            };
            let (servers, answer) = accept_offer([offer(&wanted).as_str()].into_iter(), policy).unwrap();
            assert_eq!(
                accept_answer(&wanted, &answer),
                Some(servers),
                "{wanted:?}: {answer}"
            );
        }
    }
}

#[test]
fn answers_that_were_not_asked_for_are_refused() {
    let wanted = DeflateParams {
        server_no_context_takeover: true,
        server_max_window_bits: 12,
        ..DeflateParams::default()
    };
    for answer in [
        "permessage-deflate; server_max_window_bits=12",
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=13",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; client_max_window_bits=8",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=12; more",
        "permessage-bzip2",
    ] {
        assert_eq!(accept_answer(&wanted, answer), None, "{answer}");
    }
}
