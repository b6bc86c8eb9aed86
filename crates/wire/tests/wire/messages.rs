//! Examples of RFC 6455, and what comes out for whole, cut and fragmented messages.

use bytes::BytesMut;
use wire::{Codec, Decoder, Item, Kind, Opcode, Payload, Role};

use crate::{Event, Receiver, masked};

/// Whole and byte by byte, `bytes` come out as `expect`.
fn check(role: Role, bytes: &[u8], expect: &[Event]) {
    for cuts in [0..0, 0..bytes.len()] {
        let mut receiver = Receiver::new(role, None, 1 << 20);
        receiver.feed_cut(bytes, cuts.clone()).unwrap();
        assert_eq!(receiver.events, expect, "cut at {cuts:?}");
        assert_eq!(receiver.decoder.held_bytes(), 0);
    }
}

fn text(payload: &str) -> Event {
    Event::Message(Kind::Text, payload.into())
}

#[test]
fn rfc_6455_5_7_unmasked_text() {
    check(
        Role::Client,
        &[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f],
        &[text("Hello")],
    );
}

#[test]
fn rfc_6455_5_7_masked_text() {
    let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    check(Role::Server, &bytes, &[text("Hello")]);
}

#[test]
fn rfc_6455_5_7_fragmented_unmasked_text() {
    check(
        Role::Client,
        &[0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f],
        &[text("Hello")],
    );
}

#[test]
fn rfc_6455_5_7_ping_and_masked_pong() {
    check(
        Role::Client,
        &[0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f],
        &[Event::Ping(b"Hello".into())],
    );
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    check(Role::Server, &pong, &[Event::Pong(b"Hello".into())]);
}

#[test]
fn rfc_6455_5_7_long_binary() {
    for (header, length) in [
        (&[0x82, 0x7e, 0x01, 0x00][..], 256),
        (&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], 65_536),
    ] {
        let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
        let mut out = BytesMut::new();
        wire::encode_frame(&mut out, Opcode::Binary, false, &payload);
        assert_eq!(out[..], [header, &payload].concat());
        check(Role::Client, &out, &[Event::Message(Kind::Binary, payload)]);
    }
}

#[test]
fn control_frames_pass_between_fragments() {
    let bytes = [
        masked(false, false, Opcode::Text, "naï".as_bytes()),
        masked(true, false, Opcode::Ping, b"?"),
        masked(false, false, Opcode::Continuation, b""),
        masked(true, false, Opcode::Pong, b"!"),
        masked(true, false, Opcode::Continuation, "ve".as_bytes()),
        masked(true, false, Opcode::Close, b"\x03\xe8bye"),
    ];
    let expect = [
        Event::Ping(b"?".into()),
        Event::Pong(b"!".into()),
        text("naïve"),
        Event::Close(Some(1000), b"bye".into()),
    ];
    check(Role::Server, &bytes.concat(), &expect);
}

#[test]
fn empty_frames_are_items_too() {
    let bytes = [
        masked(true, false, Opcode::Text, b""),
        masked(true, false, Opcode::Close, b""),
        masked(false, false, Opcode::Binary, b""),
        masked(true, false, Opcode::Continuation, b""),
    ];
    let expect = [
        text(""),
        Event::Close(None, vec![]),
        Event::Message(Kind::Binary, vec![]),
    ];
    check(Role::Server, &bytes.concat(), &expect);
}

#[test]
fn a_character_may_be_cut_by_fragments() {
    let [first, second, third, fourth] = *"😀".as_bytes() else {
        unreachable!()
    };
    let bytes = [
        masked(false, false, Opcode::Text, &[first]),
        masked(false, false, Opcode::Continuation, &[second, third]),
        masked(true, false, Opcode::Continuation, &[fourth]),
    ];
    check(Role::Server, &bytes.concat(), &[text("😀")]);
}

#[test]
fn a_whole_frame_is_borrowed_even_if_its_header_was_cut() {
    let mut codec = Codec::new(Role::Server, 1024);
    let mut decoder = Decoder::new(None);
    let mut bytes = masked(true, false, Opcode::Text, b"hello");
    let (head, rest) = bytes.split_at_mut(3);
    assert_eq!(decoder.next(&mut &mut *head, &mut codec), Ok(None));
    let item = decoder.next(&mut &mut *rest, &mut codec).unwrap();
    assert!(
        matches!(
            item,
            Some(Item::Message {
                payload: Payload::Borrowed(b"hello"),
                ..
            })
        ),
        "{item:?}"
    );
}

#[test]
fn what_follows_an_item_stays_in_the_input() {
    let mut codec = Codec::new(Role::Server, 1024);
    let mut decoder = Decoder::new(None);
    let mut bytes = [masked(true, false, Opcode::Close, b""), vec![1, 2, 3]].concat();
    let mut input = &mut bytes[..];
    assert!(matches!(
        decoder.next(&mut input, &mut codec),
        Ok(Some(Item::Close { .. }))
    ));
    assert_eq!(input, [1, 2, 3]);
}

#[test]
fn a_close_reason_is_cut_at_the_border_of_a_character() {
    for (reason, kept) in [
        ("bye".to_owned(), 3),
        ("x".repeat(200), 123),
        ("é".repeat(100), 122),
    ] {
        let mut out = BytesMut::new();
        wire::encode_close(&mut out, 1001, &reason);
        check(
            Role::Client,
            &out,
            &[Event::Close(Some(1001), reason.as_bytes()[..kept].to_vec())],
        );
    }
}
