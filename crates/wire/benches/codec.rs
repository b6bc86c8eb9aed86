//! Masking, decoding of small frames, encoding, compressing and inflating: `cargo bench -p tidegate-wire`.
#![allow(missing_docs)]

use bytes::BytesMut;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use wire::{Codec, Decoder, Deflater, Inflater, Item, Opcode, Role};

fn main() {
    divan::main();
}

const SIZES: [usize; 4] = [16, 128, 1024, 65_536];
/// Frames that one read brings.
const FRAMES: usize = 64;

#[divan::bench(args = SIZES)]
fn mask(bencher: Bencher, size: usize) {
    let mut data = vec![b'x'; size];
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| wire::apply_mask([1, 2, 3, 4], 0, divan::black_box(&mut data)));
}

/// `FRAMES` masked frames of `size` bytes in one read, each taken out by the server.
fn decode(bencher: Bencher, opcode: Opcode, size: usize) {
    let mut bytes = BytesMut::new();
    for _ in 0..FRAMES {
        wire::encode_masked(&mut bytes, true, false, opcode, &vec![b'x'; size], [0; 4]);
    }
    let mut codec = Codec::new(Role::Server, 1 << 20);
    let mut decoder = Decoder::new(None);
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        let mut input = divan::black_box(&mut bytes[..]);
        let mut total = 0;
        while let Some(item) = decoder
            .next(&mut input, &mut codec)
            .expect("frames without fault")
        {
            if let Item::Message { payload, .. } = item {
                total += payload.len();
            }
        }
        total
    });
}

#[divan::bench(args = SIZES)]
fn decode_text(bencher: Bencher, size: usize) {
    decode(bencher, Opcode::Text, size);
}

#[divan::bench(args = SIZES)]
fn decode_binary(bencher: Bencher, size: usize) {
    decode(bencher, Opcode::Binary, size);
}

#[divan::bench(args = SIZES)]
fn encode(bencher: Bencher, size: usize) {
    let payload = vec![b'x'; size];
    let mut out = BytesMut::with_capacity(size + wire::HEADER_BYTES_MAX);
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        out.clear();
        wire::encode_frame(&mut out, Opcode::Text, false, divan::black_box(&payload));
    });
}

/// JSON as rooms send it.
fn room_json(size: usize) -> Vec<u8> {
    (0..)
        .flat_map(|index| format!(r#"{{"type":"USER_ANSWER","data":{{"id":{index}}}}}"#).into_bytes())
        .take(size)
        .collect()
}

/// Compressed once for all receivers.
#[divan::bench(args = [128, 1024, 16_384])]
fn deflate(bencher: Bencher, size: usize) {
    let payload = room_json(size);
    let mut codec = Codec::new(Role::Server, 1 << 20);
    let mut out = BytesMut::with_capacity(size);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        out.clear();
        codec.deflate(15, divan::black_box(&payload), &mut out);
    });
}

/// Counted in what comes out.
#[divan::bench(args = [128, 1024, 16_384, 1 << 20])]
fn inflate(bencher: Bencher, size: usize) {
    let mut payload = BytesMut::new();
    Deflater::new(15, false).compress(&room_json(size), &mut payload);
    let mut inflater = Inflater::new(15, false);
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| inflater.inflate(divan::black_box(&payload), 1 << 20));
}
