//! The float formats of the multipliers, and the orders in which products may be added.

use std::marker::PhantomData;

use super::arithmetic::Arithmetic;

/// How a float format's elements lie in memory.
pub(in crate::sim) trait Encoding {
    /// Channels of a tile: 64 bytes.
    const COLUMNS: usize;
    /// Decodes elements.
    fn decode(bytes: &[u8], into: &mut [f32]);
}

/// IEEE half precision.
pub(in crate::sim) struct Fp16;
/// bfloat16.
pub(in crate::sim) struct Bf16;
/// Single precision of which the multipliers see 10 bits of fraction.
pub(in crate::sim) struct Tf32;

impl Encoding for Fp16 {
    const COLUMNS: usize = 32;

    fn decode(bytes: &[u8], into: &mut [f32]) {
        for (bytes, value) in bytes.as_chunks::<2>().0.iter().zip(into) {
            *value = half_to_single(u16::from_le_bytes(*bytes));
        }
    }
}

impl Encoding for Bf16 {
    const COLUMNS: usize = 32;

    fn decode(bytes: &[u8], into: &mut [f32]) {
        for (bytes, value) in bytes.as_chunks::<2>().0.iter().zip(into) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}

impl Encoding for Tf32 {
    const COLUMNS: usize = 16;

    fn decode(bytes: &[u8], into: &mut [f32]) {
        const FRACTION_DROPPED: u32 = 0x1fff;
        for (bytes, value) in bytes.as_chunks::<4>().0.iter().zip(into) {
            *value = f32::from_bits(u32::from_le_bytes(*bytes) & !FRACTION_DROPPED);
        }
    }
}

/// A half's value without branches, so that loops of it become vector code: its bits are a single's with an exponent that
/// is 112 too small, which one exact multiplication corrects, subnormals included.
fn half_to_single(half: u16) -> f32 {
    const EXPONENT: f32 = f32::from_bits((127 + 112) << 23);
    const INFINITE: u32 = 0x0f80_0000;
    let magnitude = u32::from(half & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * EXPONENT).to_bits();
    let bits = if magnitude >= INFINITE { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// Kernels of a float tile.
const ROWS: usize = 16;

/// A float tile turned so that the kernels of one channel lie together: `[columns][16]`.
fn turn<'a, E: Encoding, W: Copy + Default + From<f32>>(
    bytes: &[u8],
    rows: usize,
    columns: usize,
    scratch: &'a mut Vec<W>,
) -> &'a [W] {
    if rows < ROWS || columns < E::COLUMNS || scratch.is_empty() {
        scratch.clear();
        scratch.resize(E::COLUMNS * ROWS, W::default());
    }
    let mut values = [0.0; 32];
    let row_bytes = bytes.len() / rows.max(1);
    for (row, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate().take(rows) {
        E::decode(bytes, &mut values[..columns]);
        for (column, value) in values[..columns].iter().enumerate() {
            scratch[column * ROWS + row] = W::from(*value);
        }
    }
    scratch
}

/// Sums of a tile, one a kernel, as [`Arithmetic::tile`] begins and ends them.
fn load<T: Copy + Default>(sums: &[T]) -> [T; ROWS] {
    let mut row = [T::default(); ROWS];
    let length = sums.len().min(ROWS);
    row[..length].copy_from_slice(&sums[..length]);
    row
}

fn store<T: Copy>(row: [T; ROWS], sums: &mut [T]) {
    let length = sums.len().min(ROWS);
    sums[..length].copy_from_slice(&row[..length]);
}

macro_rules! float_arithmetic {
    ($(#[$doc:meta])* $name:ident, $sum:ty, |$weights:ident, $features:ident, $sums:ident| $tile:block) => {
        $(#[$doc])*
        pub(in crate::sim) struct $name<E>(PhantomData<E>);

        impl<E: Encoding> Arithmetic for $name<E> {
            type Feature = f32;
            type Weight = $sum;
            type Sum = $sum;

            const COLUMNS: usize = E::COLUMNS;
            const INTEGER: bool = false;

            fn features(bytes: &[u8], into: &mut [f32]) {
                E::decode(bytes, into);
            }

            fn prepare<'a>(bytes: &'a [u8], rows: usize, columns: usize, scratch: &'a mut Vec<$sum>) -> &'a [$sum] {
                turn::<E, $sum>(bytes, rows, columns, scratch)
            }

            fn tile($weights: &[$sum], $features: &[f32], $sums: &mut [$sum]) $tile

            fn products(weights: &[f32], features: &[f32], sums: &mut [$sum]) {
                for ((weight, feature), sum) in weights.iter().zip(features).zip(sums) {
                    *sum += <$sum>::from(*weight) * <$sum>::from(*feature);
                }
            }

            fn input_sum(_features: &[f32]) -> i64 {
                0
            }
        }
    };
}

float_arithmetic!(
    /// Floats summed in f64.
    Double, f64, |weights, features, sums| {
        let mut row = load(sums);
        for (weights, feature) in weights.as_chunks::<ROWS>().0.iter().zip(features) {
            for (sum, weight) in row.iter_mut().zip(weights) {
                *sum += *weight * f64::from(*feature);
            }
        }
        store(row, sums);
    }
);

float_arithmetic!(
    /// Floats summed in f32, channel after channel.
    Sequential, f32, |weights, features, sums| {
        let mut row = load(sums);
        for (weights, feature) in weights.as_chunks::<ROWS>().0.iter().zip(features) {
            for (sum, weight) in row.iter_mut().zip(weights) {
                *sum += *weight * *feature;
            }
        }
        store(row, sums);
    }
);

float_arithmetic!(
    /// Floats summed in f32, the 64 bytes of a tile's row first.
    ByEntry, f32, |weights, features, sums| {
        let mut entry = [0.0f32; ROWS];
        for (weights, feature) in weights.as_chunks::<ROWS>().0.iter().zip(features) {
            for (sum, weight) in entry.iter_mut().zip(weights) {
                *sum += *weight * *feature;
            }
        }
        for (sum, entry) in sums.iter_mut().zip(entry) {
            *sum += entry;
        }
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_its_value() {
        for bits in 0..=u16::MAX {
            let (value, expected) = (half_to_single(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{bits:#06x}"
            );
        }
    }

    #[test]
    fn tf32_drops_thirteen_bits() {
        let mut value = [0.0];
        Tf32::decode(&f32::from_bits(0x3fff_ffff).to_le_bytes(), &mut value);
        assert_eq!(value[0].to_bits(), 0x3fff_e000);
    }

    /// A sum that begins with `sum`, after one tile of one kernel.
    fn one_tile<A: Arithmetic<Feature = f32>>(row: &[u8], features: &[f32], sum: A::Sum) -> A::Sum {
        let (mut scratch, mut sums) = (Vec::new(), [sum]);
        A::tile(A::prepare(row, 1, A::COLUMNS, &mut scratch), features, &mut sums);
        sums[0]
    }

    #[test]
    fn orders_of_addition_differ_where_they_must() {
        // 1 + 2⁻²⁴ is 1 in f32; thirty-one such terms summed first are not lost.
        let row: Vec<u8> = (0..32).flat_map(|_| half::f16::ONE.to_le_bytes()).collect();
        let mut features = [2f32.powi(-24); 32];
        features[31] = 0.0;
        let double = one_tile::<Double<Fp16>>(&row, &features, 1.0);
        let sequential = f64::from(one_tile::<Sequential<Fp16>>(&row, &features, 1.0));
        let by_entry = f64::from(one_tile::<ByEntry<Fp16>>(&row, &features, 1.0));
        assert_eq!(double, 1.0 + 31.0 * 2f64.powi(-24));
        assert_eq!(sequential, 1.0);
        assert!(by_entry > 1.0 && by_entry != double);
    }
}
