//! Any bytes as an upgrade request, and as the answer to one: never a panic, and a head that is cut is not yet one.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use wire::deflate::negotiate;
use wire::handshake::parse_head;
use wire::{ClientHandshake, DeflateParams, DeflatePolicy, Policy};

fuzz_target!(|data: &[u8]| {
    let deflate = DeflatePolicy {
        server_takeover: true,
        client_takeover: data.len().is_multiple_of(2),
    };
    let policy = Policy {
        deflate: Some(deflate),
        protocols: vec!["v1".into(), "v2".into()],
    };

    match parse_head(data) {
        Ok(Some(head)) => {
            assert!(head.head_bytes <= data.len());
            assert_eq!(parse_head(&data[..head.head_bytes - 1]), Ok(None));
            let mut out = BytesMut::new();
            match head.check(&policy) {
                Ok(acceptance) => {
                    acceptance.write(&mut out);
                    if let Some(params) = acceptance.deflate {
                        assert!((9..=15).contains(&params.server_max_window_bits));
                        assert!((8..=15).contains(&params.client_max_window_bits));
                    }
                    assert!(
                        acceptance
                            .headers()
                            .all(|(_, value)| !value.contains(['\r', '\n']))
                    );
                }
                Err(refusal) => refusal.write(&mut out),
            }
            assert!(out.windows(4).any(|bytes| bytes == b"\r\n\r\n"));
        }
        Ok(None) => {}
        Err(refusal) => assert!((400..500).contains(&refusal.status())),
    }

    let client = ClientHandshake {
        deflate: Some(DeflateParams::default()),
        protocols: &["v1"],
        ..ClientHandshake::new("localhost", "/", *b"the sample nonce")
    };
    if let Ok(Some((head_bytes, _))) = client.verify(data) {
        assert!(head_bytes <= data.len());
    }

    if let Ok(text) = std::str::from_utf8(data) {
        if let Some((params, answer)) = negotiate::accept_offer([text].into_iter(), deflate) {
            // Our own answer parses as one, for a client that wanted exactly this.
            assert!(
                params.client_max_window_bits < 9 || negotiate::accept_answer(&params, &answer).is_some()
            );
        }
        negotiate::accept_answer(&DeflateParams::default(), text);
    }
});
