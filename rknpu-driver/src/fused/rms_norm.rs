//! RMSNorm over rows: `x · gain / √(mean(x²) + ε)`.
//!
//! ```text
//! x'                 row times a power of two, so that its largest magnitude lies in [2, 4), with one more column
//!                    √(K·ε) times the same: the norm does not depend on a row's scale, and ε comes along
//! q ← x'·x'                                             element-wise task
//! s ← Σ q / 2^m      kernel of 2^−m, 2^m ≥ columns      convolution (one per 1,536 columns, then one that adds up)
//! r ← 1/√s           table over the bits of fp16        element-wise task over one atom
//! t ← r everywhere   kernel with a single 1             convolution
//! y ← x'·gain' · t   gain' = gain·√(K/2^m)              element-wise task, gain' per channel
//! ```
//!
//! With the rows' scale s lies in [2⁻¹¹, 16], so fp16 neither overflows nor goes subnormal on the way, and one table
//! serves all of it; the vendor's chain starts from a constant and takes three Newton steps in bf16 instead.

use half::f16;

use crate::device::{Device, DomainId};
use crate::job::JobReport;

use super::error::FusedError;
use super::grid::Grid;
use super::kernel::{Kernel, Needs, cores};
use super::numbers::{check_length, exponent, largest, power_of_two, rows, widen};
use super::pass::{Extent, First, Operation, Pass, Place};
use super::reduce::{GROUP, Sums, rows_that_fit, slices, spread, spread_weights, sum_weights};
use super::table::Table;
use crate::regcmd::{EncodedTask, TaskError};

/// Channels of the reciprocal root: one atom.
const ATOM: usize = 8;

/// RMSNorm over the rows of a matrix.
#[derive(Debug)]
pub struct RmsNormKernel {
    kernel: Kernel,
    gain: Vec<f32>,
}

/// Where the constants lie.
#[derive(Clone, Copy, Debug)]
struct Constants {
    gain: usize,
    sum: usize,
    total: usize,
    spread: usize,
}

impl RmsNormKernel {
    /// Prepares it for up to `rows` rows of `columns`; the gain is given per run.
    ///
    /// # Errors
    /// [`FusedError`]: a shape that does not fit, or no memory.
    pub fn new(device: &Device, domain: DomainId, rows: usize, columns: usize) -> Result<Self, FusedError> {
        let grid = Grid::new(rows, columns, 1, cores(device, domain)?.len(), rows_that_fit)?;
        let (extent, table) = (grid.extent, Table::inverse_square_root());
        let groups = slices(extent.channels);
        let mut bytes = vec![0; extent.channels * 2];
        let mut place = |part: Vec<u8>| {
            let at = bytes.len().next_multiple_of(64);
            bytes.resize(at, 0);
            bytes.extend(part);
            at
        };
        let constants = Constants {
            gain: 0,
            sum: place(sum_weights(extent.channels, f16::from_f32(power_of_two(-halvings(columns))))),
            total: place(spread_weights(groups, GROUP)),
            spread: place(spread_weights(1, extent.channels)),
        };
        let work = Work::new(extent);
        let needs = Needs { inputs: 1, work: work.bytes, constants: bytes, table: Some(&table) };
        let kernel = Kernel::new(device, domain, grid, &needs, |places| {
            encode(extent, &table, constants, work, places.input(0), places)
        })?;
        Ok(RmsNormKernel { kernel, gain: Vec::new() })
    }

    /// `out = x · gain / √(mean(x²) + epsilon)` for every row; a row of zeros with epsilon 0 stays zeros.
    ///
    /// # Errors
    /// [`FusedError`]: lengths, numbers that are not finite, a gain or a result beyond fp16, or the job failed.
    pub fn run(
        &mut self,
        x: &[f32],
        gain: &[f32],
        epsilon: f32,
        out: &mut [f32],
    ) -> Result<JobReport, FusedError> {
        let columns = self.kernel.grid.columns;
        let rows = rows(&self.kernel.grid, &[("x", x.len()), ("out", out.len())])?;
        check_length("gain", gain.len(), columns)?;
        self.set_gain(gain)?;
        if !(0.0..f32::INFINITY).contains(&epsilon) {
            let range = "finite numbers from 0";
            return Err(FusedError::Range { name: "epsilon", row: 0, column: 0, value: epsilon, range });
        }
        let root = (epsilon * columns as f32).sqrt();
        self.kernel.fill(0, rows, |row, line| {
            let values = &x[row * columns..][..columns];
            let scale = power_of_two(1 - exponent(largest("x", row, values)?.max(root)));
            line.iter_mut().zip(values).for_each(|(slot, &value)| *slot = f16::from_f32(value * scale));
            line[columns] = f16::from_f32(root * scale);
            Ok(())
        })?;
        self.kernel.run(rows, |row, line| widen(row, line, 1.0, &mut out[row * columns..][..columns]))
    }

    fn set_gain(&mut self, gain: &[f32]) -> Result<(), FusedError> {
        if self.gain == gain {
            return Ok(());
        }
        let columns = self.kernel.grid.columns;
        let factor = (columns as f64 / f64::from(power_of_two(halvings(columns)))).sqrt();
        let mut factors = vec![f16::ZERO; columns];
        for (column, (slot, &value)) in factors.iter_mut().zip(gain).enumerate() {
            *slot = f16::from_f64(f64::from(value) * factor);
            if !slot.is_finite() {
                let range = "-65504 to 65504";
                return Err(FusedError::Range { name: "gain", row: 0, column, value, range });
            }
        }
        let bytes: Vec<_> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        self.kernel.set_constants(0, &bytes)?;
        self.gain = gain.to_vec();
        Ok(())
    }
}

/// m: how often the sum over the columns and ε's is halved so that it does not exceed the largest square.
fn halvings(columns: usize) -> i32 {
    (columns + 1).next_power_of_two().ilog2() as i32
}

/// Where the intermediate cubes of one cube lie.
#[derive(Clone, Copy, Debug)]
struct Work {
    /// Squares, later the reciprocal root everywhere.
    partial: usize,
    total: usize,
    root: usize,
    bytes: usize,
}

impl Work {
    fn new(extent: Extent) -> Work {
        let partial = extent.bytes();
        let total = partial + Sums::partial_bytes(extent);
        let root = total + Extent { channels: GROUP, ..extent }.bytes();
        Work { partial, total, root, bytes: root + Extent { channels: ATOM, ..extent }.bytes() }
    }
}

fn encode(
    extent: Extent,
    table: &Table,
    constants: Constants,
    work: Work,
    input: Place,
    places: &super::kernel::Places,
) -> Result<Vec<EncodedTask>, TaskError> {
    let (wide, constant) = (places.work, |at: usize| places.constants.plus(at));
    let (partial, root) = (wide.plus(work.partial), wide.plus(work.root));
    let groups = slices(extent.channels);
    let sums = Sums { cube: extent, source: wide, weights: constant(constants.sum), partial };

    let mut tasks = vec![Pass::new(extent, input, wide).with(Operation::Multiply, input).encode()?];
    tasks.extend(sums.encode()?);
    let total = if groups == 1 {
        partial
    } else {
        let total = wide.plus(work.total);
        let places = [partial, constant(constants.total), total];
        tasks.push(spread(extent.pixels, groups, GROUP, places)?);
        total
    };
    let atom = Extent { channels: ATOM, ..extent };
    tasks.push(Pass::new(atom, total, root).through(table).encode()?);
    let places_of_spread = [root, constant(constants.spread), wide];
    tasks.push(spread(extent.pixels, 1, extent.channels, places_of_spread)?);
    let first = First::Channels { place: constant(constants.gain), add: false, multiply: true };
    let scaled = Pass { first, ..Pass::new(extent, input, places.output) };
    tasks.push(scaled.with(Operation::Multiply, wide).encode()?);
    Ok(tasks)
}
