//! Rows that get one precision together.

use std::ops::Range;

use rookery_kernels::tiles::{W4_GROUP, W4_TILE_ROWS, w4_len, w8_len};
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};

/// Bytes of scale and row sum of a row.
const ROW_BYTES: usize = 8;

/// Rows of a matrix that get one precision together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRows {
    /// The matrix.
    pub tensor: TensorName,
    /// Which of its rows.
    pub rows: Range<usize>,
    /// Bytes at w8.
    pub w8_bytes: u64,
    /// Bytes at w4.
    pub w4_bytes: u64,
}

/// Rows of a head of q, k or v, or of as few heads as fill whole panels of 64 rows; `None` for a matrix without heads.
pub fn head_run(model: &ModelConfig, tensor: LayerTensor) -> Option<usize> {
    let heads = matches!(tensor, LayerTensor::AttnQ | LayerTensor::AttnK | LayerTensor::AttnV);
    let run = || (1..).map(|heads| heads * model.head_dim).find(|rows| rows.is_multiple_of(W4_TILE_ROWS));
    heads.then(run).flatten()
}

/// The units of the matrices that `free` names, in the order of the forward pass: heads of q, k and v, whole matrices
/// otherwise.
pub fn units(model: &ModelConfig, free: impl Fn(TensorName) -> bool) -> Vec<UnitRows> {
    let mut units = Vec::new();
    for name in model.tensor_names() {
        let TensorName::Layer(_, tensor) = name else { continue };
        if !tensor.is_linear() || !free(name) {
            continue;
        }
        let (rows, cols) = model.shape(name);
        let run = head_run(model, tensor).unwrap_or(rows);
        for first in (0..rows).step_by(run) {
            let rows = first..rows.min(first + run);
            let (w8_bytes, w4_bytes) = stored_bytes(rows.len(), cols);
            units.push(UnitRows { tensor: name, rows, w8_bytes, w4_bytes });
        }
    }
    units
}

/// Bytes of `rows` rows of a matrix at w8 and at w4.
fn stored_bytes(rows: usize, cols: usize) -> (u64, u64) {
    let sides = rows * ROW_BYTES;
    let w4 = w4_len(rows, cols) + rows * cols.div_ceil(W4_GROUP) + sides;
    ((w8_len(rows, cols) + sides) as u64, w4 as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(head_dim: usize) -> ModelConfig {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/llama3.gguf");
        let config = rookery_model::source::open(fixtures.as_ref()).unwrap().config().clone();
        ModelConfig { hidden: 256, heads: 8, kv_heads: 4, head_dim, ffn: 512, layers: 2, ..config }
    }

    #[test]
    fn heads_are_units_of_whole_panels() {
        for (head_dim, run) in [(64, 64), (128, 128), (32, 64), (16, 64), (96, 192), (80, 320), (48, 192)] {
            assert_eq!(head_run(&model(head_dim), LayerTensor::AttnQ), Some(run), "{head_dim}");
            assert_eq!(head_run(&model(head_dim), LayerTensor::FfnUp), None);
        }
    }

    #[test]
    fn units_cover_every_row_once_and_their_bytes_add_up() {
        for head_dim in [16, 48, 64, 80] {
            let model = model(head_dim);
            let all = units(&model, |_| true);
            for name in model.tensor_names() {
                let TensorName::Layer(_, tensor) = name else { continue };
                if !tensor.is_linear() {
                    continue;
                }
                let (rows, cols) = model.shape(name);
                let of: Vec<&UnitRows> = all.iter().filter(|unit| unit.tensor == name).collect();
                let mut next = 0;
                for unit in &of {
                    assert_eq!(unit.rows.start, next);
                    next = unit.rows.end;
                }
                assert_eq!(next, rows);
                let (w8, w4) = stored_bytes(rows, cols);
                assert_eq!(of.iter().map(|unit| unit.w8_bytes).sum::<u64>(), w8);
                assert_eq!(of.iter().map(|unit| unit.w4_bytes).sum::<u64>(), w4);
            }
        }
        assert!(units(&model(64), |_| false).is_empty());
    }
}
