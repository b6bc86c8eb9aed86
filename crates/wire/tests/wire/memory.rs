//! What a connection costs, and what a peer can make it cost.

use wire::{Codec, Decoder, DeflateParams, Item, Opcode, Role, Violation};

use crate::{KEY, Receiver, masked};

/// The constant part of what a cut message holds.
const PARTIAL_BYTES_MAX: usize = 192;

#[test]
fn an_idle_decoder_is_three_words_and_no_heap() {
    assert!(size_of::<Decoder>() <= 24, "{}", size_of::<Decoder>());
    let mut receiver = Receiver::new(Role::Server, None, 1000);
    let bytes = masked(true, false, Opcode::Text, &[b'a'; 900]);
    receiver.feed_cut(&bytes, [1, 7, 500]).unwrap();
    assert_eq!(receiver.decoder.held_bytes(), 0);
}

#[test]
fn a_header_that_claims_everything_takes_nothing() {
    let mut receiver = Receiver::new(Role::Server, None, usize::MAX);
    let claim = [
        0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4,
    ];
    receiver.feed(&claim).unwrap();
    assert!(
        receiver.decoder.held_bytes() <= PARTIAL_BYTES_MAX,
        "{}",
        receiver.decoder.held_bytes()
    );
}

#[test]
fn a_cut_message_holds_at_most_twice_what_came_and_never_more_than_its_length() {
    let bytes = masked(true, false, Opcode::Binary, &[7; 100_000]);
    let mut receiver = Receiver::new(Role::Server, None, 1 << 20);
    let mut fed = 0;
    for (index, chunk) in bytes.chunks(997).enumerate() {
        receiver.feed(chunk).unwrap();
        fed += chunk.len();
        let held = receiver.decoder.held_bytes();
        assert!(held <= 2 * fed + PARTIAL_BYTES_MAX, "{held} after chunk {index}");
        assert!(held <= 100_000 + PARTIAL_BYTES_MAX, "{held} after chunk {index}");
    }
    assert_eq!(receiver.events.len(), 1);
}

#[test]
fn fragments_lie_in_one_buffer_that_stays_below_the_limit() {
    const MESSAGE_BYTES_MAX: usize = 70_000;
    let mut receiver = Receiver::new(Role::Server, None, MESSAGE_BYTES_MAX);
    receiver.feed(&masked(false, false, Opcode::Text, b"")).unwrap();
    for count in 1..=65_000 {
        receiver
            .feed(&masked(false, false, Opcode::Continuation, b"x"))
            .unwrap();
        let held = receiver.decoder.held_bytes();
        assert!(
            held <= 2 * count + PARTIAL_BYTES_MAX,
            "{held} for {count} fragments"
        );
        assert!(
            held <= MESSAGE_BYTES_MAX + PARTIAL_BYTES_MAX,
            "{held} for {count} fragments"
        );
    }
}

/// Quadratic work on any part of it would take hours here.
#[test]
fn a_million_fragments_cost_a_million_times_one() {
    const COUNT: usize = 1_000_000;
    let mut bytes = masked(false, false, Opcode::Text, b"");
    let fragment = masked(false, false, Opcode::Continuation, b"x");
    for _ in 0..COUNT {
        bytes.extend_from_slice(&fragment);
    }
    bytes.extend_from_slice(&masked(true, false, Opcode::Continuation, b""));
    let mut codec = Codec::new(Role::Server, COUNT);
    let mut decoder = Decoder::new(None);
    let item = decoder.next(&mut &mut bytes[..], &mut codec).unwrap();
    assert!(matches!(item, Some(Item::Message { payload, .. }) if payload.len() == COUNT));
}

#[test]
fn a_ping_cut_between_fragments_holds_its_own_bytes_only() {
    let mut receiver = Receiver::new(Role::Server, None, 1000);
    receiver
        .feed(&masked(false, false, Opcode::Binary, &[1; 500]))
        .unwrap();
    let before = receiver.decoder.held_bytes();
    let ping = masked(true, false, Opcode::Ping, &[2; 125]);
    receiver.feed(&ping[..100]).unwrap();
    assert!(receiver.decoder.held_bytes() <= before + 2 * 125);
    receiver.feed(&ping[100..]).unwrap();
    assert_eq!(receiver.decoder.held_bytes(), before);
}

#[test]
fn a_bomb_stops_at_the_limit() {
    const MESSAGE_BYTES_MAX: usize = 1 << 16;
    let mut bomb = bytes::BytesMut::new();
    wire::Deflater::new(15, false).compress(&vec![0; 16 << 20], &mut bomb);
    assert!(
        bomb.len() < MESSAGE_BYTES_MAX,
        "{} bytes of bomb pass the limit on the wire",
        bomb.len()
    );
    let mut bytes = bytes::BytesMut::new();
    wire::encode_masked(&mut bytes, true, true, Opcode::Binary, &bomb, KEY);
    let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), MESSAGE_BYTES_MAX);
    assert_eq!(receiver.feed(&bytes), Err(Violation::MessageTooBig));
}

#[test]
fn an_inflated_message_holds_at_most_twice_its_bytes_or_16_kib() {
    let mut inflater = wire::Inflater::new(15, false);
    for length in [0, 1, 100, 10_000, 16_384, 16_385, 32_769, 300_000] {
        let mut payload = bytes::BytesMut::new();
        wire::Deflater::new(15, false).compress(&vec![9; length], &mut payload);
        // Blocks of nothing: an input far longer than what it makes.
        for nothing in [0, 100, 100_000] {
            let message = [&[0x00, 0x00, 0x00, 0xff, 0xff].repeat(nothing), &payload[..]].concat();
            let inflated = inflater.inflate(&message, usize::MAX).unwrap();
            assert_eq!(inflated.len(), length);
            let held = inflated.capacity();
            assert!(held <= (2 * length).max(16 << 10), "{held} for {length}");
            assert!(
                held <= (2 * length).max(3 * message.len()).max(64),
                "{held} for {length}"
            );
        }
    }
}

#[test]
fn a_message_of_just_the_limit_passes() {
    for compress in [false, true] {
        let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), 5000);
        for (length, expect) in [(5000, Ok(())), (5001, Err(Violation::MessageTooBig))] {
            let mut payload = bytes::BytesMut::from(&vec![9; length][..]);
            if compress {
                let plain = payload.split();
                wire::Deflater::new(15, false).compress(&plain, &mut payload);
            }
            let bytes = masked(true, compress, Opcode::Binary, &payload);
            assert_eq!(
                receiver.feed(&bytes),
                expect,
                "{length} bytes, compressed: {compress}"
            );
        }
    }
}
