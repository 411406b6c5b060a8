//! Weights that are left out of the BIN file and follow from the seed.

use sha2::{Digest, Sha256};

use super::vector::{Tensor, Vector};

const KERNELS: usize = 32;
const COLUMNS: usize = 32;

/// Fills in what was not stored, checked by its digest. Names the constant that cannot be made.
pub(crate) fn complete(vector: &mut Vector) -> Result<(), String> {
    let missing: Vec<Tensor> =
        vector.tensors.iter().filter(|tensor| tensor.stored == Some(false)).cloned().collect();
    for tensor in missing {
        let blob = weights(vector, &tensor).filter(|blob| Some(digest(blob)) == tensor.sha256);
        vector.constants.insert(tensor.id, blob.ok_or(tensor.name)?);
    }
    Ok(())
}

/// int8 weights of a 1×1 convolution whose K the compiler did not split.
fn weights(vector: &Vector, tensor: &Tensor) -> Option<Vec<u8>> {
    let &[outputs, inner, 1, 1] = tensor.shape.as_slice() else { return None };
    let number = |key: &str| vector.spec.get(key)?.as_u64();
    let per_channel = vector.spec.get("method")?.as_str()? == "channel";
    let whole = outputs % KERNELS == 0 && inner % COLUMNS == 0;
    if !whole || (outputs as u64, inner as u64) != (number("N")?, number("K")?) || tensor.dtype != "i8" {
        return None;
    }
    let mut rows = codes(number("seed")? * 10 + 1, outputs * inner);
    // Each quantiser's range is pinned: both extremes occur once in each row, or once in the tensor.
    for row in 0..if per_channel { outputs } else { 1 } {
        rows[row * inner + row * 7 % inner] = 0x80;
        rows[row * inner + (row * 7 + 1) % inner] = 0x7f;
    }
    let mut blob = Vec::with_capacity(rows.len());
    for group in (0..outputs).step_by(KERNELS) {
        for column in (0..inner).step_by(COLUMNS) {
            for row in group..group + KERNELS {
                blob.extend_from_slice(&rows[row * inner + column..][..COLUMNS]);
            }
        }
    }
    Some(blob)
}

/// The finaliser of splitmix64 over a counter; a code is its top byte less 128.
fn codes(seed: u64, count: usize) -> Vec<u8> {
    let start = seed.wrapping_mul(0xD134_2543_DE82_EF95);
    let code = |index: u64| {
        let mut z = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(start);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 56) as u8 ^ 0x80
    };
    (0..count as u64).map(code).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
