//! One matrix, rounded in runs of rows.

use rookery_kernels::tiles::W4_TILE_ROWS;
use rookery_model::bundle::{Precision, Progress};
use rookery_model::names::TensorName;
use rookery_model::pack::StoredRows;
use rookery_model::source::ModelSource;

use crate::gptq::{gptq_w4, gptq_w8};
use crate::linalg::{Compute, Feedback};
use crate::pack::QuantizeError;

/// Weights of a matrix that are held in f32 at once: 128 MiB.
const RUN_VALUES: usize = 1 << 25;

/// How matrices are rounded, and which.
pub struct Rounder<'a> {
    /// What it runs on.
    pub compute: &'a Compute,
    /// Where weights come from, rotated already.
    pub source: &'a dyn ModelSource,
    /// The matrices that are wanted, and as what.
    pub wanted: &'a (dyn Fn(TensorName) -> Option<Precision> + Sync),
    /// Rows of a matrix whose errors are added up; `None` for all of it.
    pub unit_rows: &'a (dyn Fn(TensorName) -> Option<usize> + Sync),
    /// Told of each weight.
    pub progress: &'a dyn Progress,
}

/// A matrix in its new form.
pub struct RoundedMatrix {
    /// Which.
    pub name: TensorName,
    /// All of it.
    pub rows: StoredRows,
    /// For each unit of rows, the energy of its outputs' errors on the calibration text.
    pub losses: Vec<f64>,
}

impl Rounder<'_> {
    /// Whether a matrix is wanted.
    pub fn wants(&self, name: TensorName) -> bool {
        (self.wanted)(name).is_some()
    }

    /// Rounds a matrix with what its inputs are like.
    ///
    /// # Errors
    /// When it cannot be read or holds what is not finite.
    pub fn round(&self, name: TensorName, feedback: &Feedback) -> Result<RoundedMatrix, QuantizeError> {
        let (rows, cols) = self.source.config().shape(name);
        let precision = (self.wanted)(name).unwrap_or(Precision::W4);
        let most = (RUN_VALUES / cols / W4_TILE_ROWS).max(1) * W4_TILE_ROWS;
        let (mut values, mut multipliers, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        let mut losses: Vec<f64> = Vec::with_capacity(rows);
        for first in (0..rows).step_by(most) {
            let last = rows.min(first + most);
            let weights = self.source.tensor_rows(name, first..last)?;
            if let Some(at) = weights.iter().position(|weight| !weight.is_finite()) {
                let fault = format!("row {} holds {}; the source is corrupt", first + at / cols, weights[at]);
                return Err(QuantizeError::Rounding { tensor: name.to_string(), fault });
            }
            let round = if precision == Precision::W4 { gptq_w4 } else { gptq_w8 };
            let rounded = round(self.compute, &weights, last - first, cols, feedback);
            losses.extend(rounded.losses);
            values.extend(rounded.values);
            multipliers.extend(rounded.multipliers);
            scales.extend(rounded.scales);
            self.progress.advance(weights.len() as u64);
        }
        let unit = (self.unit_rows)(name).unwrap_or(rows).max(1);
        let losses = losses.chunks(unit).map(|rows| rows.iter().sum()).collect();
        let rows = if precision == Precision::W4 {
            StoredRows::w4(cols, &values, &multipliers, &scales)
        } else {
            StoredRows::w8(cols, &values, &scales)
        };
        Ok(RoundedMatrix { name, rows, losses })
    }
}
