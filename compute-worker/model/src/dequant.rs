//! Storage types of weights at rest, and how a row of each becomes f32.
//!
//! Quantised rows are sequences of equal blocks. Each decoder follows the block's definition operation by
//! operation (one f32 rounding per multiplication and per addition, nothing fused), so the numbers are the
//! format's numbers to the last bit.
//!
//! | type | values | bytes | value |
//! |---|---|---|---|
//! | Q4_0 | 32 | d:f16, 16 of nibbles | `d·(q − 8)` |
//! | Q4_1 | 32 | d:f16, m:f16, 16 of nibbles | `d·q + m` |
//! | Q5_0 | 32 | d:f16, 4 of high bits, 16 of nibbles | `d·(q − 16)` |
//! | Q5_1 | 32 | d:f16, m:f16, 4 of high bits, 16 of nibbles | `d·q + m` |
//! | Q8_0 | 32 | d:f16, 32 of i8 | `d·q` |
//! | Q4_K | 256 | d:f16, dmin:f16, 12 of 6-bit scales and mins, 128 of nibbles | `(d·s)·q − (dmin·m)` |
//! | Q5_K | 256 | as Q4_K with 32 of high bits before the nibbles | `(d·s)·q − (dmin·m)` |
//! | Q6_K | 256 | 128 of low nibbles, 64 of high pairs, 16 of i8 scales, d:f16 | `(d·s)·(q − 32)` |

mod k_quants;

use half::{bf16, f16};

/// How weights are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "the names GGUF gives its types")]
pub enum StorageType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Upper half of single precision.
    BF16,
    /// 4 bits and a scale for every 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for every 32.
    Q4_1,
    /// 5 bits and a scale for every 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for every 32.
    Q5_1,
    /// 8 bits and a scale for every 32.
    Q8_0,
    /// 4 bits; 6-bit scale and minimum for every 32, two f16 for every 256.
    Q4_K,
    /// 5 bits; otherwise as Q4_K.
    Q5_K,
    /// 6 bits; 8-bit scale for every 16, one f16 for every 256.
    Q6_K,
}

impl StorageType {
    /// Names of all types, for error messages.
    pub const SUPPORTED: &'static str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

    /// The type with this number in a GGUF file, if it is one that can be read.
    pub fn from_gguf(number: u32) -> Option<Self> {
        match number {
            0 => Some(StorageType::F32),
            1 => Some(StorageType::F16),
            2 => Some(StorageType::Q4_0),
            3 => Some(StorageType::Q4_1),
            6 => Some(StorageType::Q5_0),
            7 => Some(StorageType::Q5_1),
            8 => Some(StorageType::Q8_0),
            12 => Some(StorageType::Q4_K),
            13 => Some(StorageType::Q5_K),
            14 => Some(StorageType::Q6_K),
            30 => Some(StorageType::BF16),
            _ => None,
        }
    }

    /// The type's number in a GGUF file.
    pub(crate) fn to_gguf(self) -> u32 {
        match self {
            StorageType::F32 => 0,
            StorageType::F16 => 1,
            StorageType::Q4_0 => 2,
            StorageType::Q4_1 => 3,
            StorageType::Q5_0 => 6,
            StorageType::Q5_1 => 7,
            StorageType::Q8_0 => 8,
            StorageType::Q4_K => 12,
            StorageType::Q5_K => 13,
            StorageType::Q6_K => 14,
            StorageType::BF16 => 30,
        }
    }

    /// The name GGUF gives the type.
    pub fn name(self) -> &'static str {
        match self {
            StorageType::F32 => "F32",
            StorageType::F16 => "F16",
            StorageType::BF16 => "BF16",
            StorageType::Q4_0 => "Q4_0",
            StorageType::Q4_1 => "Q4_1",
            StorageType::Q5_0 => "Q5_0",
            StorageType::Q5_1 => "Q5_1",
            StorageType::Q8_0 => "Q8_0",
            StorageType::Q4_K => "Q4_K",
            StorageType::Q5_K => "Q5_K",
            StorageType::Q6_K => "Q6_K",
        }
    }

    /// Values in one block.
    pub fn block_values(self) -> usize {
        match self {
            StorageType::F32 | StorageType::F16 | StorageType::BF16 => 1,
            StorageType::Q4_0
            | StorageType::Q4_1
            | StorageType::Q5_0
            | StorageType::Q5_1
            | StorageType::Q8_0 => 32,
            StorageType::Q4_K | StorageType::Q5_K | StorageType::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            StorageType::F32 => 4,
            StorageType::F16 | StorageType::BF16 => 2,
            StorageType::Q4_0 => 18,
            StorageType::Q4_1 => 20,
            StorageType::Q5_0 => 22,
            StorageType::Q5_1 => 24,
            StorageType::Q8_0 => 34,
            StorageType::Q4_K => 144,
            StorageType::Q5_K => 176,
            StorageType::Q6_K => 210,
        }
    }

    /// Decodes whole blocks into `out`, little-endian.
    ///
    /// Bad scales come out as infinities or NaN; callers look for them.
    ///
    /// # Panics
    /// If `out` does not consist of whole blocks or `bytes` is not exactly their size: callers derive both
    /// from one shape.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            StorageType::F32 => {
                blocks(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b))
            }
            StorageType::F16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = half(b)),
            StorageType::BF16 => {
                blocks(bytes, out, |b, o: &mut [f32; 1]| o[0] = bf16::from_le_bytes(*b).to_f32());
            }
            StorageType::Q4_0 => blocks(bytes, out, q4_0),
            StorageType::Q4_1 => blocks(bytes, out, q4_1),
            StorageType::Q5_0 => blocks(bytes, out, q5_0),
            StorageType::Q5_1 => blocks(bytes, out, q5_1),
            StorageType::Q8_0 => blocks(bytes, out, q8_0),
            StorageType::Q4_K => blocks(bytes, out, k_quants::q4_k),
            StorageType::Q5_K => blocks(bytes, out, k_quants::q5_k),
            StorageType::Q6_K => blocks(bytes, out, k_quants::q6_k),
        }
    }
}

/// Splits input and output into blocks and decodes each.
fn blocks<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (input, input_rest) = bytes.as_chunks::<BYTES>();
    let (output, output_rest) = out.as_chunks_mut::<VALUES>();
    assert!(input_rest.is_empty() && output_rest.is_empty(), "partial {VALUES}-value block");
    assert_eq!(input.len(), output.len(), "blocks stored and blocks wanted");
    for (block, values) in input.iter().zip(output) {
        decode(block, values);
    }
}

/// The f16 at the start of `bytes`.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Values `i` and `i + 16` share byte `i`: low nibble, high nibble.
fn nibbles(packed: &[u8], i: usize) -> (u8, u8) {
    (packed[i] & 0x0F, packed[i] >> 4)
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block);
    for i in 0..16 {
        let (low, high) = nibbles(&block[2..], i);
        out[i] = scale * f32::from(low as i8 - 8);
        out[i + 16] = scale * f32::from(high as i8 - 8);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    for i in 0..16 {
        let (low, high) = nibbles(&block[4..], i);
        out[i] = scale * f32::from(low) + minimum;
        out[i + 16] = scale * f32::from(high) + minimum;
    }
}

/// Nibbles with a fifth bit each: bit `i` of `high_bits` belongs to value `i`.
fn fives(high_bits: &[u8], packed: &[u8], i: usize) -> (u8, u8) {
    let bits = u32::from_le_bytes([high_bits[0], high_bits[1], high_bits[2], high_bits[3]]);
    let (low, high) = nibbles(packed, i);
    let fifth = |value: usize| ((bits >> value) as u8 & 1) << 4;
    (low | fifth(i), high | fifth(i + 16))
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block);
    for i in 0..16 {
        let (low, high) = fives(&block[2..], &block[6..], i);
        out[i] = scale * f32::from(low as i8 - 16);
        out[i + 16] = scale * f32::from(high as i8 - 16);
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    for i in 0..16 {
        let (low, high) = fives(&block[4..], &block[8..], i);
        out[i] = scale * f32::from(low) + minimum;
        out[i + 16] = scale * f32::from(high) + minimum;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(byte as i8);
    }
}

#[cfg(test)]
mod tests;
