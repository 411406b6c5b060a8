//! Weights of convolutions that are left out of the BIN file and follow from the seed.
//!
//! Element `n · K + k` of kernel n is one draw of a counter-based generator. int8 takes its top byte as the code, with both
//! extremes pinned once in each row (once in the tensor when it has one scale); fp16 takes its top 11 bits as a fraction of
//! ±2/√K. Where the compiler cuts K into several convolutions, it quantises each part of a row anew. What comes out
//! is right if its digest is the stored one.

use sha2::{Digest, Sha256};

use super::vector::{Tensor, Vector};

/// Columns of a weight tile.
const COLUMNS: usize = 32;

/// Bytes that tails of a row are rounded up to.
const ATOM: usize = 16;

/// Fills in what was not stored, checked by its digest. Names the constant that cannot be made.
pub(crate) fn complete(vector: &mut Vector) -> Result<(), String> {
    let missing: Vec<Tensor> =
        vector.tensors.iter().filter(|tensor| tensor.stored == Some(false)).cloned().collect();
    for tensor in missing {
        let blob = weights(vector, &tensor);
        vector.constants.insert(tensor.id, blob.ok_or(tensor.name)?);
    }
    Ok(())
}

/// A graph's weights before the compiler saw them.
struct Kernels {
    seed: u64,
    outputs: usize,
    inner: usize,
    /// Each kernel has a scale of its own.
    per_channel: bool,
}

fn weights(vector: &Vector, tensor: &Tensor) -> Option<Vec<u8>> {
    let &[outputs, columns, 1, 1] = tensor.shape.as_slice() else { return None };
    let number = |key: &str| vector.spec.get(key)?.as_u64();
    let (inner, seed) = (number("K")? as usize, number("seed")?);
    let per_channel = vector.spec.get("method").and_then(|method| method.as_str()) == Some("channel");
    let kernels = Kernels { seed: seed * 10 + 1, outputs, inner, per_channel };
    if number("N")? as usize != outputs || columns == 0 || columns > inner {
        return None;
    }
    let starts = (0..inner / columns).map(|part| part * columns).chain([inner - columns]);
    starts
        .map(|start| kernels.blob(&tensor.dtype, start, columns))
        .find(|blob| blob.as_ref().is_some_and(|blob| Some(digest(blob)) == tensor.sha256))?
}

impl Kernels {
    /// Columns `start..start + columns` as laid out for the NPU.
    fn blob(&self, dtype: &str, start: usize, columns: usize) -> Option<Vec<u8>> {
        let row = |row: usize| -> Option<Vec<u8>> {
            match dtype {
                "i8" => Some(self.int8(row, start, columns)),
                "f16" => Some(self.fp16(row, start, columns)),
                _ => None,
            }
        };
        let (element, group) = if dtype == "i8" { (1, 32) } else { (2, 16) };
        let mut rows = (0..self.outputs).map(row).collect::<Option<Vec<_>>>()?;
        let width = (columns * element).next_multiple_of(ATOM);
        rows.iter_mut().for_each(|row| row.resize(width, 0));
        if dtype == "i8" && rows.len() % 2 == 1 {
            rows.push(vec![0; width]);
        }
        let mut blob = Vec::with_capacity(rows.len() * width);
        for rows in rows.chunks(group) {
            for column in (0..width).step_by(COLUMNS * element) {
                let end = width.min(column + COLUMNS * element);
                rows.iter().for_each(|row| blob.extend_from_slice(&row[column..end]));
            }
        }
        Some(blob)
    }

    fn int8(&self, row: usize, start: usize, columns: usize) -> Vec<u8> {
        let code = |column: usize| {
            let pinned = if self.per_channel { Some(row * 7 % self.inner) } else { (row == 0).then_some(0) };
            match pinned {
                Some(low) if column == low => -128,
                Some(low) if column == (low + 1) % self.inner => 127,
                _ => ((self.draw(row, column) >> 56) as u8 ^ 0x80) as i8,
            }
        };
        let codes: Vec<i8> = (start..start + columns).map(code).collect();
        let (low, high) =
            codes.iter().fold((0i8, 0i8), |(low, high), code| (low.min(*code), high.max(*code)));
        if (low, high) == (-128, 127) || !self.per_channel {
            return codes.into_iter().map(|code| code as u8).collect();
        }
        let scale = (f64::from(high) - f64::from(low)) / 255.0;
        let zero = (-128.0 - f64::from(low) / scale).round_ties_even();
        let again = |code: i8| (f64::from(code) / scale + zero).round_ties_even().clamp(-128.0, 127.0) as i8;
        codes.into_iter().map(|code| again(code) as u8).collect()
    }

    fn fp16(&self, row: usize, start: usize, columns: usize) -> Vec<u8> {
        let amplitude = (2.0 / (self.inner as f64).sqrt()) as f32;
        let value = |column: usize| {
            let fraction = ((self.draw(row, column) >> 53) as f32 - 1024.0) / 1024.0;
            half::f16::from_f32(fraction * amplitude).to_le_bytes()
        };
        (start..start + columns).flat_map(value).collect()
    }

    /// The finaliser of splitmix64 over a counter.
    fn draw(&self, row: usize, column: usize) -> u64 {
        let index = (row * self.inner + column) as u64 + 1;
        let start = self.seed.wrapping_mul(0xD134_2543_DE82_EF95);
        let mut z = index.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(start);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
