//! Properties: any split parses alike, what is encoded is decoded.

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use wire::{Codec, DeflateParams, Header, Kind, Opcode, Role};

use crate::{Event, Receiver};

/// Something a well-behaved client does.
#[derive(Clone, Debug)]
enum Act {
    Message {
        kind: Kind,
        payload: Vec<u8>,
        cuts: Vec<prop::sample::Index>,
        compress: bool,
        between: Vec<u8>,
    },
    Ping(Vec<u8>),
    Close(u16, String),
}

fn act() -> impl Strategy<Value = Act> {
    let payload = prop_oneof![
        ".{0,200}".prop_map(|text| (Kind::Text, text.into_bytes())),
        "[a-zé]{0,2}".prop_map(|text| (Kind::Text, text.into_bytes())),
        vec(any::<u8>(), 0..600).prop_map(|bytes| (Kind::Binary, bytes)),
        (0..70_000usize).prop_map(|length| (Kind::Binary, vec![b'z'; length])),
    ];
    let message = (
        payload,
        vec(any::<prop::sample::Index>(), 0..6),
        any::<bool>(),
        vec(any::<u8>(), 0..125),
    )
        .prop_map(|((kind, payload), cuts, compress, between)| Act::Message {
            kind,
            payload,
            cuts,
            compress,
            between,
        });
    prop_oneof![
        8 => message,
        2 => vec(any::<u8>(), 0..=125).prop_map(Act::Ping),
        1 => (3000..5000u16, ".{0,30}").prop_map(|(code, reason)| Act::Close(code, reason)),
    ]
}

/// The bytes of `acts`, and what must come out.
fn encode(acts: &[Act], key: [u8; 4]) -> (BytesMut, Vec<Event>) {
    let (mut bytes, mut events) = (BytesMut::new(), Vec::new());
    let mut sender = Codec::new(Role::Client, 0);
    for act in acts {
        match act {
            Act::Message {
                kind,
                payload,
                cuts,
                compress,
                between,
            } => {
                let mut body = BytesMut::from(&payload[..]);
                if *compress {
                    body.clear();
                    sender.deflate(15, payload, &mut body);
                }
                let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
                ends.sort_unstable();
                let mut start = 0;
                let mut opcode = if *kind == Kind::Text {
                    Opcode::Text
                } else {
                    Opcode::Binary
                };
                for end in ends {
                    wire::encode_masked(
                        &mut bytes,
                        false,
                        *compress && start == 0 && opcode != Opcode::Continuation,
                        opcode,
                        &body[start..end],
                        key,
                    );
                    opcode = Opcode::Continuation;
                    start = end;
                    wire::encode_masked(&mut bytes, true, false, Opcode::Pong, between, key);
                    events.push(Event::Pong(between.clone()));
                }
                let first = opcode != Opcode::Continuation;
                wire::encode_masked(&mut bytes, true, *compress && first, opcode, &body[start..], key);
                events.push(Event::Message(*kind, payload.clone()));
            }
            Act::Ping(payload) => {
                wire::encode_masked(&mut bytes, true, false, Opcode::Ping, payload, key);
                events.push(Event::Ping(payload.clone()));
            }
            Act::Close(code, reason) => {
                let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
                wire::encode_masked(&mut bytes, true, false, Opcode::Close, &payload, key);
                events.push(Event::Close(Some(*code), reason.clone().into_bytes()));
            }
        }
    }
    (bytes, events)
}

fn sorted(cuts: &[prop::sample::Index], length: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(length + 1)).collect();
    cuts.sort_unstable();
    cuts
}

fn opcode() -> impl Strategy<Value = Opcode> {
    use Opcode::*;
    prop::sample::select(vec![Continuation, Text, Binary, Close, Ping, Pong])
}

proptest! {
    #[test]
    fn a_valid_conversation_comes_out_whole_however_it_is_cut(
        acts in vec(act(), 1..6),
        key in any::<[u8; 4]>(),
        cuts in vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let (bytes, expect) = encode(&acts, key);
        for cuts in [vec![], sorted(&cuts, bytes.len()), (0..bytes.len().min(1000)).collect()] {
            let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), 1 << 20);
            prop_assert_eq!(receiver.feed_cut(&bytes, cuts), Ok(()));
            prop_assert_eq!(&receiver.events, &expect);
            prop_assert_eq!(receiver.decoder.held_bytes(), 0);
        }
    }

    /// Frames in an order and with contents that are mostly wrong: the split must not decide what is wrong.
    #[test]
    fn a_broken_conversation_breaks_alike_however_it_is_cut(
        frames in vec((any::<bool>(), prop::bool::weighted(0.1), opcode(), prop_oneof![vec(any::<u8>(), 0..3), vec(any::<u8>(), 0..20)]), 1..10),
        damage in prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
        cuts in vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut bytes = BytesMut::new();
        for (fin, rsv1, opcode, payload) in &frames {
            wire::encode_masked(&mut bytes, *fin, *rsv1, *opcode, payload, [0; 4]);
        }
        if let Some((index, byte)) = damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let outcomes = [vec![], sorted(&cuts, bytes.len()), (1..bytes.len()).collect()].map(|cuts| {
            let mut receiver = Receiver::new(Role::Server, Some(DeflateParams::default()), 50);
            let result = receiver.feed_cut(&bytes, cuts);
            (result, receiver.events)
        });
        prop_assert_eq!(&outcomes[0], &outcomes[1]);
        prop_assert_eq!(&outcomes[0], &outcomes[2]);
    }

    #[test]
    fn a_header_survives_encoding(
        fin in any::<bool>(),
        rsv1 in any::<bool>(),
        opcode in opcode(),
        mask in any::<Option<[u8; 4]>>(),
        bits in 0..63u32,
        low in any::<u64>(),
    ) {
        let payload_bytes = if opcode.is_control() { low % 126 } else { low & ((1 << bits) | ((1 << bits) - 1)) };
        let fin = fin || opcode.is_control();
        let rsv1 = rsv1 && matches!(opcode, Opcode::Text | Opcode::Binary);
        let header = Header { fin, rsv1, opcode, mask, payload_bytes };
        let mut bytes = BytesMut::new();
        header.encode(&mut bytes);
        prop_assert_eq!(Header::parse(&bytes), Ok(Some((header, bytes.len()))));
        for cut in 0..bytes.len() {
            prop_assert_eq!(Header::parse(&bytes[..cut]), Ok(None));
        }
    }

    #[test]
    fn unmasking_in_parts_undoes_masking(
        payload in vec(any::<u8>(), 0..300),
        key in any::<[u8; 4]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = payload.clone();
        wire::apply_mask(key, 0, &mut bytes);
        let cut = cut.index(bytes.len() + 1);
        let (front, back) = bytes.split_at_mut(cut);
        wire::apply_mask(key, 0, front);
        wire::apply_mask(key, cut, back);
        prop_assert_eq!(bytes, payload);
    }

    /// Text near the border of validity, cut anywhere, is taken if and only if the standard library takes it.
    #[test]
    fn text_is_taken_exactly_if_it_is_utf8(
        parts in vec(prop_oneof![
            Just("é".as_bytes().to_vec()), Just("€".into()), Just("😀".into()), Just(b"plain".to_vec()),
            vec(prop::sample::select(vec![0x80, 0xbf, 0xc0, 0xc3, 0xe0, 0xed, 0xa0, 0xf0, 0xf4, 0x90, 0xff]), 1..4),
        ], 0..30),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
        fragments in vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let payload = parts.concat();
        let mut bytes = BytesMut::new();
        let mut opcode = Opcode::Text;
        let mut start = 0;
        for end in sorted(&fragments, payload.len()) {
            wire::encode_masked(&mut bytes, false, false, opcode, &payload[start..end], [9; 4]);
            opcode = Opcode::Continuation;
            start = end;
        }
        wire::encode_masked(&mut bytes, true, false, opcode, &payload[start..], [9; 4]);
        let mut receiver = Receiver::new(Role::Server, None, 1 << 20);
        let taken = receiver.feed_cut(&bytes, sorted(&cuts, bytes.len())).is_ok();
        prop_assert_eq!(taken, std::str::from_utf8(&payload).is_ok());
    }
}
