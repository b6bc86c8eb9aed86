//! Masking (RFC 6455 section 5.3): payload byte `i` is combined with key byte `i mod 4` by exclusive or.
//!
//! Written over fixed blocks that the compiler turns into vector instructions; applying a mask twice undoes it.

/// Bytes handled at once in the main loop: two vectors of 16 bytes on every 64-bit target.
const BLOCK_BYTES: usize = 32;

/// Masks or unmasks `data` in place. `offset` is how many bytes of the frame's payload came before `data`.
#[inline]
pub fn apply_mask(key: [u8; 4], offset: usize, data: &mut [u8]) {
    // The lowest byte in memory comes first, so native order on both sides keeps this right on any machine.
    let mut turned = key;
    turned.rotate_left(offset % 4);
    let word = u32::from_ne_bytes(turned);
    let wide = u64::from(word) << 32 | u64::from(word);

    let (blocks, rest) = data.as_chunks_mut::<BLOCK_BYTES>();
    for block in blocks {
        for lane in block.as_chunks_mut::<8>().0 {
            *lane = (u64::from_ne_bytes(*lane) ^ wide).to_ne_bytes();
        }
    }
    let (lanes, rest) = rest.as_chunks_mut::<8>();
    for lane in lanes {
        *lane = (u64::from_ne_bytes(*lane) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(turned.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_offset_agrees_with_the_definition() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for length in 0..100 {
            for offset in 0..5 {
                let plain: Vec<u8> = (0..length).collect();
                let mut masked = plain.clone();
                apply_mask(key, offset, &mut masked);
                let expected: Vec<u8> = plain
                    .iter()
                    .enumerate()
                    .map(|(index, byte)| byte ^ key[(index + offset) % 4])
                    .collect();
                assert_eq!(masked, expected, "length {length}, offset {offset}");
            }
        }
    }
}
