//! Products with `w4` weights: int4 values, each multiplied by an integer 1…15 that its row shares over 128
//! columns.
//!
//! The int8 weight is value × multiplier, and the product with int8 rows is exact in int32. Two ways lead
//! there:
//!
//! * **Nibbles.** A row of A becomes two int4 rows, `a = 16·hi + lo + 8` with both in −8…7, and one row of
//!   ones serves all. The int4 array multiplies them with the stored values, 128 columns at a time, so that
//!   no sum leaves int16 (128·8·8 = 8,192). The host adds `multiplier · (16·H + L + 8·S)` over the slices, S
//!   being what the ones give: the sum of the weights. The stored bytes move once, but every slice has
//!   outputs of its own.
//! * **Expansion.** The host writes the int8 weights into a staging buffer, some kernel groups at a time, and
//!   the int8 array multiplies: three times the stored bytes move on the host's side and twice on the
//!   device's, whatever M is, and tasks are few and long.
//!
//! [`estimate`] says what each costs on a board. int4 arithmetic on silicon rests on a single source
//! (docs/npu.md, "int4").

mod expand;
mod nibbles;
#[cfg(test)]
mod tests;

pub use expand::{expand, expanded_bytes, stages};
pub use nibbles::NibblePlan;

use super::{MatmulPlan, PlanError, PlanOptions, WeightOrder};
use crate::layout::weights::{W4_GROUP, tile_bytes};
use crate::shape::{MatmulShape, Precision};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// int4 rows, slices of 128 columns.
    Nibbles,
    /// int8 weights in a staging buffer.
    Expanded,
}

/// What a way costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes that the device moves.
    pub device_bytes: u64,
    /// Bytes that the host moves for it: expansion, or reading the slices' sums.
    pub host_bytes: u64,
    /// Tasks of all cores.
    pub tasks: usize,
    /// One submission, the busiest core, and the host's bytes at the rate of the memory.
    pub seconds: f64,
}

/// What both ways cost for `rows` rows of A, and the faster one.
///
/// # Errors
/// [`PlanError`]: neither has a plan. A way without a plan is None.
pub fn estimate(
    rows: usize,
    inner: usize,
    outputs: usize,
    options: &PlanOptions,
) -> Result<(Form, [Option<Estimate>; 2]), PlanError> {
    let rate = options.board.streamed_bytes_per_s();
    let nibbles = NibblePlan::new(rows, inner, outputs, options);
    let nibbles = nibbles.map(|nibbles| {
        let plan = nibbles.plan();
        let input = 2 * plan.input_bytes();
        estimated(plan, (input + plan.output_bytes()) as u64, rate)
    });
    let shape = MatmulShape { rows, inner, outputs, precision: Precision::Int8 };
    let expanded =
        MatmulPlan::new(shape, &PlanOptions { slice: None, weights: WeightOrder::Sliced, ..options.clone() });
    let expanded = expanded.map(|plan| {
        let weights = tile_bytes(outputs, inner, Precision::Int4) + plan.weight_bytes();
        let rows = 2 * plan.input_bytes() + plan.output_bytes();
        estimated(&plan, (weights + rows) as u64, rate)
    });
    match (nibbles, expanded) {
        (Ok(nibbles), Ok(expanded)) => {
            let form = if nibbles.seconds < expanded.seconds { Form::Nibbles } else { Form::Expanded };
            Ok((form, [Some(nibbles), Some(expanded)]))
        }
        (Ok(nibbles), Err(_)) => Ok((Form::Nibbles, [Some(nibbles), None])),
        (Err(_), Ok(expanded)) => Ok((Form::Expanded, [None, Some(expanded)])),
        (Err(error), Err(_)) => Err(error),
    }
}

fn estimated(plan: &MatmulPlan, host_bytes: u64, rate: f64) -> Estimate {
    let device_bytes = plan.work().iter().flatten().map(crate::timing::TaskWork::bytes).sum();
    let seconds = plan.cost().seconds + host_bytes as f64 / rate;
    Estimate { device_bytes, host_bytes, tasks: plan.task_count(), seconds }
}

/// Multipliers of a row of `inner` columns.
pub const fn multipliers_per_row(inner: usize) -> usize {
    inner.div_ceil(W4_GROUP)
}
