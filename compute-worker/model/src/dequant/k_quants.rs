//! Blocks of 256 values whose scales are themselves quantised.

use super::half;

/// Eight 6-bit scales and eight 6-bit minimums from 12 bytes.
///
/// The first four of each lie in the low six bits of bytes 0–3 and 4–7. Of the other four, the low four bits
/// are the nibbles of bytes 8–11 (scale low, minimum high) and the top two bits are those left over in bytes
/// 0–3 and 4–7.
fn scales_and_minimums(packed: &[u8]) -> [(f32, f32); 8] {
    let mut pairs = [(0.0, 0.0); 8];
    for i in 0..4 {
        let (scale, minimum, rest) = (packed[i], packed[i + 4], packed[i + 8]);
        pairs[i] = (f32::from(scale & 0x3F), f32::from(minimum & 0x3F));
        let scale_high = (rest & 0x0F) | ((scale >> 6) << 4);
        let minimum_high = (rest >> 4) | ((minimum >> 6) << 4);
        pairs[i + 4] = (f32::from(scale_high), f32::from(minimum_high));
    }
    pairs
}

/// Sub-blocks of 32; a pair of them shares 32 bytes, the first in the low nibbles.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    k_with_minimum(block, &block[16..], |_, _| 0, out);
}

/// As Q4_K; bit `s` of high-bit byte `i` is the fifth bit of value `i` of sub-block `s`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let high_bits = &block[16..48];
    k_with_minimum(block, &block[48..], |sub_block, i| ((high_bits[i] >> sub_block) & 1) << 4, out);
}

fn k_with_minimum(head: &[u8], packed: &[u8], high: impl Fn(usize, usize) -> u8, out: &mut [f32; 256]) {
    let (scale, minimum) = (half(head), half(&head[2..]));
    let pairs = scales_and_minimums(&head[4..16]);
    for (sub_block, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub_scale, sub_minimum) = (scale * pairs[sub_block].0, minimum * pairs[sub_block].1);
        let bytes = &packed[sub_block / 2 * 32..][..32];
        let shift = sub_block % 2 * 4;
        for (i, value) in values.iter_mut().enumerate() {
            let quant = ((bytes[i] >> shift) & 0x0F) | high(sub_block, i);
            *value = sub_scale * f32::from(quant) - sub_minimum;
        }
    }
}

/// Two halves of 128 values, each of four runs of 32.
///
/// Run `r` of a half takes its low four bits from 32 of the half's 64 nibble bytes (runs 0 and 1 the low
/// nibbles, 2 and 3 the high) and its high two from bits `2r` and `2r + 1` of the half's 32 pair bytes. Every
/// 16 values have a scale.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half(&block[208..]);
    let scales = &block[192..208];
    for (run, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (part, r) = (run / 4, run % 4);
        let low = &block[part * 64 + r % 2 * 32..][..32];
        let high = &block[128 + part * 32..][..32];
        for (i, value) in values.iter_mut().enumerate() {
            let quant = ((low[i] >> (r / 2 * 4)) & 0x0F) | (((high[i] >> (r * 2)) & 3) << 4);
            let sub_scale = scale * f32::from(scales[run * 2 + i / 16] as i8);
            *value = sub_scale * f32::from(quant as i8 - 32);
        }
    }
}
