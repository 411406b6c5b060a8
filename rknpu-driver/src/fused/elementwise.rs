//! Operations on each element alone: sums, products, tables, and what a channel adds or multiplies by.

use half::f16;

use crate::device::{Device, DomainId};
use crate::job::JobReport;

use super::error::FusedError;
use super::grid::Grid;
use super::kernel::{Kernel, Needs, cores};
use super::numbers::{check_length, narrow, rows, widen};
use super::pass::{First, Operation, Pass};
use super::table::Table;

/// Cubes of this many pixels: a task writes to memory what the next one reads, so nothing is gained by larger ones.
const PIXELS: usize = 256;

/// What two matrices become, element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b.
    Add,
    /// a · b.
    Multiply,
}

/// Sum or product of two matrices: one task, the second operand through ERDMA.
#[derive(Debug)]
pub struct BinaryKernel {
    kernel: Kernel,
}

impl BinaryKernel {
    /// Prepares it for up to `rows` rows of `columns`.
    ///
    /// # Errors
    /// [`FusedError`]: a shape that does not fit, or no memory.
    pub fn new(
        device: &Device,
        domain: DomainId,
        operation: Binary,
        rows: usize,
        columns: usize,
    ) -> Result<Self, FusedError> {
        let grid = Grid::new(rows, columns, 0, cores(device, domain)?.len(), |_| PIXELS)?;
        let operation = match operation {
            Binary::Add => Operation::Add,
            Binary::Multiply => Operation::Multiply,
        };
        let needs = Needs { inputs: 2, work: 0, constants: Vec::new(), table: None };
        let kernel = Kernel::new(device, domain, grid, &needs, |places| {
            let pass = Pass::new(grid.extent, places.input(0), places.output);
            Ok(vec![pass.with(operation, places.input(1)).encode()?])
        })?;
        Ok(BinaryKernel { kernel })
    }

    /// `out = a ∘ b`, all of them row-major, of at most the rows it was made for.
    ///
    /// # Errors
    /// [`FusedError`]: lengths, a number or a result beyond fp16, or the job failed.
    pub fn run(&mut self, a: &[f32], b: &[f32], out: &mut [f32]) -> Result<JobReport, FusedError> {
        let columns = self.kernel.grid.columns;
        let lengths = [("a", a.len()), ("b", b.len()), ("out", out.len())];
        let rows = rows(&self.kernel.grid, &lengths)?;
        for (input, (name, values)) in [("a", a), ("b", b)].into_iter().enumerate() {
            self.kernel.fill(input, rows, |row, line| {
                narrow(name, row, &values[row * columns..][..columns], line)
            })?;
        }
        self.kernel.run(rows, |row, line| widen(row, line, 1.0, &mut out[row * columns..][..columns]))
    }
}

/// A function of one number, through the look-up table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// e^x for x ≤ 0: a table of e^(x/4), squared twice. 0 below −17.22.
    Exponential,
    /// 1/(1 + e^−x). 0 below −10.98.
    Sigmoid,
    /// x/(1 + e^−x): the sigmoid's table, multiplied by x in the same task. 0 below −10.98.
    Silu,
    /// 1/√x for 2⁻¹¹ ≤ x ≤ 16.
    InverseSquareRoot,
}

impl Function {
    fn table(self) -> Table {
        match self {
            Function::Exponential => Table::quarter_exponential(),
            Function::Sigmoid => Table::sigmoid(),
            Function::Silu => Table::sigmoid_factor(),
            Function::InverseSquareRoot => Table::inverse_square_root(),
        }
    }

    fn takes(self, value: f32) -> Result<(), &'static str> {
        let (ok, range) = match self {
            Function::Exponential => (value <= 0.0, "-infinity to 0"),
            Function::Sigmoid | Function::Silu => (value.abs() <= f16::MAX.to_f32(), "-65504 to 65504"),
            Function::InverseSquareRoot => ((2f32.powi(-11)..=16.0).contains(&value), "2^-11 to 16"),
        };
        if ok { Ok(()) } else { Err(range) }
    }
}

/// A function of every element of a matrix.
#[derive(Debug)]
pub struct FunctionKernel {
    kernel: Kernel,
    function: Function,
}

impl FunctionKernel {
    /// Prepares it for up to `rows` rows of `columns`.
    ///
    /// # Errors
    /// [`FusedError`]: a shape that does not fit, or no memory.
    pub fn new(
        device: &Device,
        domain: DomainId,
        function: Function,
        rows: usize,
        columns: usize,
    ) -> Result<Self, FusedError> {
        let grid = Grid::new(rows, columns, 0, cores(device, domain)?.len(), |_| PIXELS)?;
        let (extent, table) = (grid.extent, function.table());
        let work = if function == Function::Exponential { 2 * extent.bytes() } else { 0 };
        let needs = Needs { inputs: 1, work, constants: Vec::new(), table: Some(&table) };
        let kernel = Kernel::new(device, domain, grid, &needs, |places| {
            let input = places.input(0);
            let pass = |source, output| Pass::new(extent, source, output);
            match function {
                Function::Exponential => {
                    let (fourth, half) = (places.work, places.work.plus(extent.bytes()));
                    Ok(vec![
                        pass(input, fourth).through(&table).encode()?,
                        pass(fourth, half).with(Operation::Multiply, fourth).encode()?,
                        pass(half, places.output).with(Operation::Multiply, half).encode()?,
                    ])
                }
                Function::Silu => {
                    let pass = pass(input, places.output).through(&table);
                    Ok(vec![pass.with(Operation::Multiply, input).encode()?])
                }
                Function::Sigmoid | Function::InverseSquareRoot => {
                    Ok(vec![pass(input, places.output).through(&table).encode()?])
                }
            }
        })?;
        Ok(FunctionKernel { kernel, function })
    }

    /// `out = f(x)`, both row-major, of at most the rows it was made for.
    ///
    /// # Errors
    /// [`FusedError`]: lengths, a number outside of the function's range, or the job failed.
    pub fn run(&mut self, x: &[f32], out: &mut [f32]) -> Result<JobReport, FusedError> {
        let columns = self.kernel.grid.columns;
        let rows = rows(&self.kernel.grid, &[("x", x.len()), ("out", out.len())])?;
        let function = self.function;
        self.kernel.fill(0, rows, |row, line| {
            for (column, (slot, &value)) in line.iter_mut().zip(&x[row * columns..][..columns]).enumerate() {
                let refused = |range| FusedError::Range { name: "x", row, column, value, range };
                function.takes(value).map_err(refused)?;
                *slot = f16::from_f32(value.max(f16::MIN.to_f32()));
            }
            Ok(())
        })?;
        self.kernel.run(rows, |row, line| widen(row, line, 1.0, &mut out[row * columns..][..columns]))
    }
}

/// `(x + bias) · scale` with both per column: operands of the first stage, read by BRDMA.
#[derive(Debug)]
pub struct AffineKernel {
    kernel: Kernel,
}

impl AffineKernel {
    /// Prepares it for up to `rows` rows of `scale.len()` columns.
    ///
    /// # Errors
    /// [`FusedError`]: a shape that does not fit, a scale beyond fp16, or no memory.
    pub fn new(
        device: &Device,
        domain: DomainId,
        bias: &[f32],
        scale: &[f32],
        rows: usize,
    ) -> Result<Self, FusedError> {
        check_length("bias", bias.len(), scale.len())?;
        let grid = Grid::new(rows, scale.len(), 0, cores(device, domain)?.len(), |_| PIXELS)?;
        let mut factors = vec![f16::ZERO; grid.extent.channels];
        narrow("scale", 0, scale, &mut factors)?;
        let mut constants = Vec::with_capacity(factors.len() * 6);
        for (run, factors) in factors.chunks(8).enumerate() {
            for channel in 0..8 {
                let addend = bias.get(run * 8 + channel).copied().unwrap_or_default();
                constants.extend(addend.to_le_bytes());
            }
            constants.extend(factors.iter().flat_map(|factor| factor.to_le_bytes()));
        }
        let needs = Needs { inputs: 1, work: 0, constants, table: None };
        let kernel = Kernel::new(device, domain, grid, &needs, |places| {
            let first = First::Channels { place: places.constants, add: true, multiply: true };
            let pass = Pass::new(grid.extent, places.input(0), places.output);
            Ok(vec![Pass { first, ..pass }.encode()?])
        })?;
        Ok(AffineKernel { kernel })
    }

    /// `out = (x + bias) · scale`, both row-major, of at most the rows it was made for.
    ///
    /// # Errors
    /// [`FusedError`]: lengths, a number or a result beyond fp16, or the job failed.
    pub fn run(&mut self, x: &[f32], out: &mut [f32]) -> Result<JobReport, FusedError> {
        let columns = self.kernel.grid.columns;
        let rows = rows(&self.kernel.grid, &[("x", x.len()), ("out", out.len())])?;
        self.kernel.fill(0, rows, |row, line| narrow("x", row, &x[row * columns..][..columns], line))?;
        self.kernel.run(rows, |row, line| widen(row, line, 1.0, &mut out[row * columns..][..columns]))
    }
}
