//! Any bytes as a compressed message: inflating never exceeds its cap and never panics. Any bytes as messages:
//! what is deflated inflates to the same.
//!
//! Input: a byte of settings, a byte of message length, then the payload.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use wire::{Deflater, Inflater};

fuzz_target!(|data: &[u8]| {
    let [settings, length, payload @ ..] = data else {
        return;
    };
    let window_bits = 9 + settings % 7;
    let takeover = settings & 0x80 != 0;

    // Twice: what a damaged message leaves behind must not harm either.
    let bytes_max = [0, 1, 1000, 1 << 20][usize::from(settings / 7 % 4)];
    let mut inflater = Inflater::new(window_bits, takeover);
    for _ in 0..2 {
        if let Ok(inflated) = inflater.inflate(payload, bytes_max) {
            assert!(inflated.len() <= bytes_max);
            assert!(inflated.capacity() <= bytes_max + 1);
            assert!(inflated.capacity() <= (2 * inflated.len()).max(16 << 10));
        }
    }

    let mut deflater = Deflater::new(window_bits, takeover);
    let mut inflater = Inflater::new(window_bits, takeover);
    for message in payload
        .chunks(1 + usize::from(*length))
        .take(4)
        .chain([&payload[..0], payload])
    {
        let mut out = BytesMut::from(&b"kept"[..]);
        deflater.compress(message, &mut out);
        assert_eq!(out[..4], *b"kept");
        assert_eq!(inflater.inflate(&out[4..], message.len()).as_deref(), Ok(message));
    }
});
