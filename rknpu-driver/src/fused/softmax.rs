//! Softmax over rows.
//!
//! ```text
//! x − max            on the host, in f32, while rows are packed: exact where fp16 would round the scores first
//! u ← e^(x/4)        table                                   element-wise task
//! v ← u·u, e ← v·v   e^x                                     2 element-wise tasks
//! s ← Σ e            kernel of ones                          convolution (one per 1,536 columns)
//! t ← s everywhere   kernel with a single 1                  convolution
//! p ← e / t                                                  element-wise task
//! ```
//!
//! The vendor takes e^x from the bit pattern of a linear function, wrong by up to 3.9 %; two squarings of a table
//! keep every probability to a few units of fp16.

use half::f16;

use crate::device::{Device, DomainId};
use crate::job::JobReport;

use super::error::FusedError;
use super::grid::Grid;
use super::kernel::{Kernel, Needs, cores};
use super::numbers::{rows, widen};
use super::pass::{Operation, Pass};
use super::reduce::{Sums, rows_that_fit, slices, spread, spread_weights, sum_weights};
use super::table::Table;

/// Softmax over the rows of a matrix.
#[derive(Debug)]
pub struct SoftmaxKernel {
    kernel: Kernel,
}

impl SoftmaxKernel {
    /// Prepares it for up to `rows` rows of `columns`.
    ///
    /// # Errors
    /// [`FusedError`]: a shape that does not fit, or no memory.
    pub fn new(device: &Device, domain: DomainId, rows: usize, columns: usize) -> Result<Self, FusedError> {
        let grid = Grid::new(rows, columns, 0, cores(device, domain)?.len(), rows_that_fit)?;
        let (extent, cube) = (grid.extent, grid.extent.bytes());
        let (table, groups) = (Table::quarter_exponential(), slices(extent.channels));
        let mut constants = sum_weights(extent.channels, f16::ONE);
        let spread_at = constants.len();
        constants.extend(spread_weights(groups, extent.channels));
        let needs =
            Needs { inputs: 1, work: 2 * cube + Sums::partial_bytes(extent), constants, table: Some(&table) };
        let kernel = Kernel::new(device, domain, grid, &needs, |places| {
            // The first cube holds e^(x/4), then e^x; the second e^(x/2), then the sums everywhere.
            let (first, second, partial) = (places.work, places.work.plus(cube), places.work.plus(2 * cube));
            let sums = Sums { cube: extent, source: first, weights: places.constants, partial };
            let pass = |source, output| Pass::new(extent, source, output);
            let mut tasks = vec![
                pass(places.input(0), first).through(&table).encode()?,
                pass(first, second).with(Operation::Multiply, first).encode()?,
                pass(second, first).with(Operation::Multiply, second).encode()?,
            ];
            tasks.extend(sums.encode()?);
            let weights = places.constants.plus(spread_at);
            tasks.push(spread(extent.pixels, groups, extent.channels, [partial, weights, second])?);
            tasks.push(pass(first, places.output).with(Operation::Divide, second).encode()?);
            Ok(tasks)
        })?;
        Ok(SoftmaxKernel { kernel })
    }

    /// `out = softmax(x)` for every row. −∞ is a score like any other (a masked position), as long as its row has a
    /// finite one.
    ///
    /// # Errors
    /// [`FusedError`]: lengths, +∞, NaN or a row of −∞ alone, or the job failed.
    pub fn run(&mut self, x: &[f32], out: &mut [f32]) -> Result<JobReport, FusedError> {
        let Grid { columns, extent, .. } = self.kernel.grid;
        let rows = rows(&self.kernel.grid, &[("x", x.len()), ("out", out.len())])?;
        self.kernel.fill(0, rows, |row, line| {
            let values = &x[row * columns..][..columns];
            let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let odd = values.iter().position(|value| value.is_nan() || *value == f32::INFINITY);
            if let Some(column) = odd.or((max == f32::NEG_INFINITY).then_some(0)) {
                let range = "numbers below infinity, at least one of them finite";
                return Err(FusedError::Range { name: "x", row, column, value: values[column], range });
            }
            let shifted = |value: f32| f16::from_f32((value - max).max(f16::MIN.to_f32()));
            line.iter_mut().zip(values).for_each(|(slot, &value)| *slot = shifted(value));
            // Columns that pad the row weigh nothing.
            line[columns..extent.channels].fill(f16::MIN);
            Ok(())
        })?;
        self.kernel.run(rows, |row, line| widen(row, line, 1.0, &mut out[row * columns..][..columns]))
    }
}
