//! The gate of a feed-forward layer: `silu(gate) · up`.
//!
//! ```text
//! s ← σ(gate) · gate   table, then the operand's product in the same task
//! y ← s · up'          up' = up times a power of two per row, undone on the host, so that products stay in fp16
//! ```

use half::f16;

use crate::device::{Device, DomainId};
use crate::job::JobReport;

use super::error::FusedError;
use super::grid::Grid;
use super::kernel::{Kernel, Needs, cores};
use super::numbers::{exponent, largest, narrow, power_of_two, rows, widen};
use super::pass::{Operation, Pass};
use super::table::Table;

/// Cubes of this many pixels.
const PIXELS: usize = 256;
/// Products stay below 2^15.
const PRODUCT_EXPONENT: i32 = 13;
/// And up' below 2^4 if gates are small: what fp16 holds best.
const UP_EXPONENT: i32 = 3;

/// `silu(gate) · up`.
#[derive(Debug)]
pub struct SiluMulKernel {
    kernel: Kernel,
    scales: Vec<f32>,
}

impl SiluMulKernel {
    /// Prepares it for up to `rows` rows of `columns`.
    ///
    /// # Errors
    /// [`FusedError`]: a shape that does not fit, or no memory.
    pub fn new(device: &Device, domain: DomainId, rows: usize, columns: usize) -> Result<Self, FusedError> {
        let grid = Grid::new(rows, columns, 0, cores(device, domain)?.len(), |_| PIXELS)?;
        let (extent, table) = (grid.extent, Table::sigmoid_factor());
        let needs = Needs { inputs: 2, work: extent.bytes(), constants: Vec::new(), table: Some(&table) };
        let kernel = Kernel::new(device, domain, grid, &needs, |places| {
            let (gate, up) = (places.input(0), places.input(1));
            let silu = Pass::new(extent, gate, places.work).through(&table).with(Operation::Multiply, gate);
            let product = Pass::new(extent, places.work, places.output).with(Operation::Multiply, up);
            Ok(vec![silu.encode()?, product.encode()?])
        })?;
        Ok(SiluMulKernel { kernel, scales: vec![1.0; rows] })
    }

    /// `out = silu(gate) · up`, all of them row-major.
    ///
    /// # Errors
    /// [`FusedError`]: lengths, a gate beyond fp16, an `up` that is not finite, or the job failed.
    pub fn run(&mut self, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<JobReport, FusedError> {
        let columns = self.kernel.grid.columns;
        let lengths = [("gate", gate.len()), ("up", up.len()), ("out", out.len())];
        let rows = rows(&self.kernel.grid, &lengths)?;
        self.kernel
            .fill(0, rows, |row, line| narrow("gate", row, &gate[row * columns..][..columns], line))?;
        let scales = &mut self.scales;
        self.kernel.fill(1, rows, |row, line| {
            let (gate, up) = (&gate[row * columns..][..columns], &up[row * columns..][..columns]);
            let room = (PRODUCT_EXPONENT - exponent(largest("gate", row, gate)?)).min(UP_EXPONENT);
            let power = room - exponent(largest("up", row, up)?);
            scales[row] = power_of_two(-power);
            let scale = power_of_two(power);
            line.iter_mut().zip(up).for_each(|(slot, &up)| *slot = f16::from_f32(up * scale));
            Ok(())
        })?;
        let scales = &self.scales;
        self.kernel.run(rows, |row, line| widen(row, line, scales[row], &mut out[row * columns..][..columns]))
    }
}
