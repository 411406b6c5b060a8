//! The int4 way.

use crate::layout::weights::W4_GROUP;
use crate::plan::w4::multipliers_per_row;
use crate::plan::{MatmulPlan, PlanError, PlanOptions, WeightOrder};
use crate::shape::{MatmulShape, Precision};

/// A product of int8 rows with `w4` weights as one of int4 rows: rows 2m and 2m + 1 are the high and the low
/// nibbles of row m, row 2M is ones.
#[derive(Debug)]
pub struct NibblePlan {
    plan: MatmulPlan,
    rows: usize,
}

impl NibblePlan {
    /// Plans `rows` × `inner` · `inner` × `outputs`.
    ///
    /// # Errors
    /// [`PlanError`]: a shape or options that no tasks can compute.
    pub fn new(rows: usize, inner: usize, outputs: usize, options: &PlanOptions) -> Result<Self, PlanError> {
        let nibble_rows = if rows == 0 { 0 } else { rows.saturating_mul(2).saturating_add(1) };
        let shape = MatmulShape { rows: nibble_rows, inner, outputs, precision: Precision::Int4 };
        let weights = WeightOrder::Stored;
        let plan =
            MatmulPlan::new(shape, &PlanOptions { slice: Some(W4_GROUP), weights, ..options.clone() })?;
        Ok(NibblePlan { plan, rows })
    }

    /// The plan of the int4 product: weights are the stored tiles.
    pub fn plan(&self) -> &MatmulPlan {
        &self.plan
    }

    /// Rows of A, M.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Splits int8 rows, `stride` elements apart, and packs them into the plan's input layout.
    ///
    /// # Panics
    /// When `rows` or `out` is shorter than the shape needs.
    pub fn pack_input(&self, rows: &[i8], stride: usize, out: &mut [u8]) {
        let inner = self.plan.shape().inner;
        let mut nibbles = vec![1i8; (2 * self.rows + 1) * inner];
        for (m, pair) in nibbles.chunks_exact_mut(2 * inner).enumerate() {
            let (high, low) = pair.split_at_mut(inner);
            for ((&a, high), low) in rows[m * stride..][..inner].iter().zip(high).zip(low) {
                *high = a >> 4;
                *low = (a & 15) - 8;
            }
        }
        self.plan.pack_input_i8(&nibbles, inner, out);
    }

    /// Combines the slices' sums into the int32 product, rows `stride` elements apart. `multipliers` is
    /// `[N][ceil(K / 128)]`; only the low four bits of each are used.
    ///
    /// # Panics
    /// When a slice is shorter than the shape needs.
    pub fn combine(&self, bytes: &[u8], multipliers: &[u8], out: &mut [i32], stride: usize) {
        let shape = self.plan.shape();
        let (outputs, groups) = (shape.outputs, multipliers_per_row(shape.inner));
        assert_eq!(multipliers.len(), outputs * groups, "multipliers of {outputs} rows of {}", shape.inner);
        let mut sums = vec![0; outputs];
        let (mut high, mut low) = (sums.clone(), sums.clone());
        for slice in 0..self.plan.slices() {
            self.plan.read_slice_i32(bytes, slice, 2 * self.rows, &mut sums);
            for m in 0..self.rows {
                self.plan.read_slice_i32(bytes, slice, 2 * m, &mut high);
                self.plan.read_slice_i32(bytes, slice, 2 * m + 1, &mut low);
                let out = &mut out[m * stride..][..outputs];
                if slice == 0 {
                    out.fill(0);
                }
                for n in 0..outputs {
                    let multiplier = i32::from(multipliers[n * groups + slice] & 15);
                    out[n] += multiplier * (16 * high[n] + low[n] + 8 * sums[n]);
                }
            }
        }
    }
}
