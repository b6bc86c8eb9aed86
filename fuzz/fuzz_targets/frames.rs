//! Any bytes as a conversation: the codec gives the same items and the same violation however they are cut, keeps
//! its limits, and never panics.
//!
//! Input: a byte of settings, a byte that seeds the cuts, then what the peer sends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::{Codec, Decoder, DeflateParams, Item, Kind, Role, Violation};

const MESSAGE_BYTES_MAX: usize = 4096;

type Outcome = (Vec<(u8, Option<u16>, Vec<u8>)>, Result<(), Violation>);

fn decode(settings: u8, chunks: impl Iterator<Item = Vec<u8>>) -> Outcome {
    let role = if settings & 1 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let deflate = (settings & 2 != 0).then_some(DeflateParams {
        server_no_context_takeover: settings & 4 != 0,
        client_no_context_takeover: settings & 4 != 0,
        server_max_window_bits: 9 + settings % 7,
        client_max_window_bits: 9 + settings % 7,
    });
    let mut codec = Codec::new(role, MESSAGE_BYTES_MAX);
    let mut decoder = Decoder::new(deflate);
    let mut items = Vec::new();
    let mut fed = 0;
    for mut chunk in chunks {
        fed += chunk.len();
        let mut input = &mut chunk[..];
        loop {
            let item = match decoder.next(&mut input, &mut codec) {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(violation) => {
                    // What a connection gives after a violation means nothing, but it does not panic.
                    for _ in 0..3 {
                        let _ = decoder.next(&mut input, &mut codec);
                    }
                    return (items, Err(violation));
                }
            };
            items.push(match item {
                Item::Message { kind, payload } => {
                    assert!(payload.len() <= MESSAGE_BYTES_MAX);
                    assert!(kind == Kind::Binary || std::str::from_utf8(&payload).is_ok());
                    (kind as u8, None, payload.into_vec())
                }
                Item::Ping(payload) => (2, None, payload.into_vec()),
                Item::Pong(payload) => (3, None, payload.into_vec()),
                Item::Close { code, reason } => (4, code, reason.into_vec()),
            });
        }
        assert!(input.is_empty());
        assert!(decoder.held_bytes() <= 2 * fed + 256);
    }
    (items, Ok(()))
}

fuzz_target!(|data: &[u8]| {
    let [settings, seed, bytes @ ..] = data else {
        return;
    };
    let whole = decode(*settings, std::iter::once(bytes.to_vec()));
    let single = decode(*settings, bytes.iter().map(|byte| vec![*byte]));
    assert_eq!(whole, single);

    // Cuts of 1 to 32 bytes, from a small linear generator.
    let (mut rest, mut state) = (bytes, u32::from(*seed));
    let cut = decode(
        *settings,
        std::iter::from_fn(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (chunk, after) = rest.split_at(rest.len().min(1 + (state >> 27) as usize));
            rest = after;
            (!chunk.is_empty()).then(|| chunk.to_vec())
        }),
    );
    assert_eq!(whole, cut);
});
