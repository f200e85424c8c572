//! Masking: XOR with a repeated four-byte key, a word at a time. Applying it twice gives the bytes back.

/// Masks (or unmasks) `bytes`, of which the first is byte number `offset` of the frame's payload.
pub fn apply(bytes: &mut [u8], key: [u8; 4], offset: usize) {
    let mut key = key;
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::apply;

    #[test]
    fn equals_byte_by_byte_at_every_length_and_offset() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for length in 0..70 {
            for offset in 0..9 {
                let plain: Vec<u8> = (0..length as u8).map(|byte| byte.wrapping_mul(37)).collect();
                let mut masked = plain.clone();
                apply(&mut masked, key, offset);
                for (at, byte) in plain.iter().enumerate() {
                    assert_eq!(masked[at], byte ^ key[(at + offset) % 4], "length {length}, offset {offset}");
                }
            }
        }
    }
}
