//! The multiply-accumulators by number format.
//!
//! A tile is what the array consumes at once: a kernel group's weights over one group of input channels. Inner loops have
//! fixed lengths, which compilers turn into vector code for the baseline instruction set: int8 at over 10 G
//! multiply-adds a second and thread on a 2020s x86 core.

use std::marker::PhantomData;
use std::ops::AddAssign;

/// A number format's elements, its tiles and its accumulators.
pub(in crate::sim) trait Arithmetic {
    /// A feature element (and a depthwise weight).
    type Feature: Copy + Default;
    /// A weight within a prepared tile.
    type Weight: Copy + Default;
    /// An accumulator.
    type Sum: Copy + Default;

    /// Input channels of a tile.
    const COLUMNS: usize;
    /// Whether elements are integers, whose inputs can be summed.
    const INTEGER: bool;

    /// Decodes elements in memory order.
    fn features(bytes: &[u8], into: &mut [Self::Feature]);

    /// Makes a tile of `rows` kernels × `columns` channels (row after row in `bytes`) ready for [`Arithmetic::tile`].
    /// Missing columns become zeros.
    fn prepare<'a>(
        bytes: &'a [u8],
        rows: usize,
        columns: usize,
        scratch: &'a mut Vec<Self::Weight>,
    ) -> &'a [Self::Weight];

    /// Adds a tile's products with [`Arithmetic::COLUMNS`] features to one sum a row.
    fn tile(weights: &[Self::Weight], features: &[Self::Feature], sums: &mut [Self::Sum]);

    /// Adds one product a channel: the depthwise convolution.
    fn products(weights: &[Self::Feature], features: &[Self::Feature], sums: &mut [Self::Sum]);

    /// Adds to an integer sum of features; floats have none.
    fn input_sum(features: &[Self::Feature]) -> i64;
}

/// int8 with sums of type `S`: `i32` where they cannot overflow, `i64` otherwise.
pub(in crate::sim) struct Int8<S>(PhantomData<S>);

/// Columns of an integer tile.
const COLUMNS: usize = 32;

impl<S: Copy + Default + From<i32> + AddAssign> Arithmetic for Int8<S> {
    type Feature = i16;
    /// An int8 as its byte, so that whole tiles are used where they were read.
    type Weight = u8;
    type Sum = S;

    const COLUMNS: usize = COLUMNS;
    const INTEGER: bool = true;

    fn features(bytes: &[u8], into: &mut [i16]) {
        for (byte, value) in bytes.iter().zip(into) {
            *value = i16::from(*byte as i8);
        }
    }

    fn prepare<'a>(bytes: &'a [u8], rows: usize, columns: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match columns == COLUMNS {
            true => bytes,
            false => widen(bytes, rows, columns, scratch),
        }
    }

    fn tile(weights: &[u8], features: &[i16], sums: &mut [S]) {
        int8_tile(weights, features, sums);
    }

    fn products(weights: &[i16], features: &[i16], sums: &mut [S]) {
        int8_products(weights, features, sums);
    }

    fn input_sum(features: &[i16]) -> i64 {
        features.iter().map(|value| i64::from(*value)).sum()
    }
}

fn int8_tile<S: Copy + From<i32> + AddAssign>(weights: &[u8], features: &[i16], sums: &mut [S]) {
    let Ok(features) = <&[i16; COLUMNS]>::try_from(features) else { return };
    for (row, sum) in weights.as_chunks::<COLUMNS>().0.iter().zip(sums) {
        let mut dot = 0;
        for column in 0..COLUMNS {
            dot += i32::from(row[column] as i8) * i32::from(features[column]);
        }
        *sum += S::from(dot);
    }
}

fn int8_products<S: Copy + From<i32> + AddAssign>(weights: &[i16], features: &[i16], sums: &mut [S]) {
    for ((weight, feature), sum) in weights.iter().zip(features).zip(sums) {
        *sum += S::from(i32::from(*weight) * i32::from(*feature));
    }
}

/// Rows of `columns` bytes with zeros up to [`COLUMNS`].
fn widen<'a, T: Copy + Default>(
    values: &[T],
    rows: usize,
    columns: usize,
    scratch: &'a mut Vec<T>,
) -> &'a [T] {
    scratch.clear();
    scratch.resize(rows * COLUMNS, T::default());
    for (from, to) in values.chunks_exact(columns).zip(scratch.chunks_exact_mut(COLUMNS)) {
        to[..columns].copy_from_slice(from);
    }
    scratch
}

/// int4: two elements a byte, the lower nibble first; arithmetic as int8.
pub(in crate::sim) struct Int4;

impl Arithmetic for Int4 {
    type Feature = i16;
    type Weight = u8;
    type Sum = i32;

    const COLUMNS: usize = COLUMNS;
    const INTEGER: bool = true;

    fn features(bytes: &[u8], into: &mut [i16]) {
        for (byte, pair) in bytes.iter().zip(into.chunks_exact_mut(2)) {
            let [low, high] = nibbles(*byte);
            (pair[0], pair[1]) = (i16::from(low as i8), i16::from(high as i8));
        }
    }

    fn prepare<'a>(bytes: &'a [u8], _rows: usize, _columns: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        // An atom of int4 is a whole tile row, so rows are never short.
        scratch.clear();
        scratch.extend(bytes.iter().flat_map(|byte| nibbles(*byte)));
        scratch
    }

    fn tile(weights: &[u8], features: &[i16], sums: &mut [i32]) {
        int8_tile(weights, features, sums);
    }

    fn products(weights: &[i16], features: &[i16], sums: &mut [i32]) {
        int8_products(weights, features, sums);
    }

    fn input_sum(features: &[i16]) -> i64 {
        features.iter().map(|value| i64::from(*value)).sum()
    }
}

/// The two signed values of a byte, each as a signed byte.
fn nibbles(byte: u8) -> [u8; 2] {
    [((byte << 4) as i8 >> 4) as u8, (byte as i8 >> 4) as u8]
}

/// int16 with sums of 48 bits (64 here).
pub(in crate::sim) struct Int16;

impl Arithmetic for Int16 {
    type Feature = i16;
    type Weight = i16;
    type Sum = i64;

    const COLUMNS: usize = COLUMNS;
    const INTEGER: bool = true;

    fn features(bytes: &[u8], into: &mut [i16]) {
        for (bytes, value) in bytes.as_chunks::<2>().0.iter().zip(into) {
            *value = i16::from_le_bytes(*bytes);
        }
    }

    fn prepare<'a>(bytes: &'a [u8], rows: usize, columns: usize, scratch: &'a mut Vec<i16>) -> &'a [i16] {
        scratch.clear();
        scratch.resize(rows * COLUMNS, 0);
        for (from, to) in bytes.chunks_exact(2 * columns).zip(scratch.chunks_exact_mut(COLUMNS)) {
            Self::features(from, to);
        }
        scratch
    }

    fn tile(weights: &[i16], features: &[i16], sums: &mut [i64]) {
        let Ok(features) = <&[i16; COLUMNS]>::try_from(features) else { return };
        for (row, sum) in weights.as_chunks::<COLUMNS>().0.iter().zip(sums) {
            for column in 0..COLUMNS {
                *sum += i64::from(i32::from(row[column]) * i32::from(features[column]));
            }
        }
    }

    fn products(weights: &[i16], features: &[i16], sums: &mut [i64]) {
        for ((weight, feature), sum) in weights.iter().zip(features).zip(sums) {
            *sum += i64::from(i32::from(*weight) * i32::from(*feature));
        }
    }

    fn input_sum(features: &[i16]) -> i64 {
        features.iter().map(|value| i64::from(*value)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int16_sums_exceed_32_bits() {
        let bytes: Vec<u8> = (0..16 * 32).flat_map(|_| i16::MIN.to_le_bytes()).collect();
        let (mut scratch, mut sums) = (Vec::new(), [1i64; 16]);
        let tile = Int16::prepare(&bytes, 16, 32, &mut scratch);
        Int16::tile(tile, &[i16::MIN; 32], &mut sums);
        assert_eq!(sums, [(32 << 30) + 1; 16]);
    }
}
