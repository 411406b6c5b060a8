//! What a task asks of the hardware.

use std::ops::AddAssign;

use crate::shape::Precision;

/// Number formats by what they cost in the multiply-accumulator array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MacFormat {
    /// int4 × int4: 2,048 multiply-adds a cycle and core.
    Int4,
    /// int8 × int8: 1,024 multiply-adds a cycle and core.
    Int8,
    /// int16, fp16 or bf16: 512 multiply-adds a cycle and core.
    Sixteen,
    /// tf32: 256 multiply-adds a cycle and core.
    Tf32,
}

impl MacFormat {
    /// Multiply-adds per cycle and core (technical reference manual, the NPU's chapter; agreed by the vendor
    /// compiler's figures for int8 and 16-bit formats).
    #[must_use]
    pub const fn macs_per_cycle(self) -> u64 {
        match self {
            Self::Int4 => 2048,
            Self::Int8 => 1024,
            Self::Sixteen => 512,
            Self::Tf32 => 256,
        }
    }

    /// Output channels that the array computes at once: the kernel group of the weight layout.
    #[must_use]
    pub const fn kernel_group(self) -> u64 {
        match self {
            Self::Int4 => 64,
            Self::Int8 => 32,
            Self::Sixteen | Self::Tf32 => 16,
        }
    }

    /// Input channels that one cycle consumes: the K group of the weight layout.
    #[must_use]
    pub const fn inner_group(self) -> u64 {
        self.macs_per_cycle() / self.kernel_group()
    }

    /// Bits of one element in memory.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
            Self::Sixteen => 16,
            Self::Tf32 => 32,
        }
    }
}

/// Cycles that one core's array needs for `rows` × `inner` · `inner` × `outputs`.
///
/// Rows go in steps of 16, outputs in kernel groups, and K costs no less than 128 bytes of it. This is the vendor compiler's
/// rule (exact on all its single-task layers, int8 and 16-bit); for int4 and tf32 it is carried over.
/// A k×k convolution has output pixels as rows and `kernel pixels · channels` as inner.
#[must_use]
pub const fn mac_cycles(rows: u64, inner: u64, outputs: u64, format: MacFormat) -> u64 {
    let row_steps = rows.div_ceil(ROW_STEP) * ROW_STEP;
    let groups = outputs.div_ceil(format.kernel_group());
    let inner_steps = inner.div_ceil(format.inner_group());
    let least = LEAST_INNER_BYTES * 8 / (format.inner_group() * format.bits());
    let inner_steps = if inner_steps > least { inner_steps } else { least };
    row_steps * groups * inner_steps
}

/// Rows are computed in steps of 16 (vendor compiler: M = 1, 4 and 16 cost the same).
const ROW_STEP: u64 = 16;

/// A row of less than 128 bytes costs as much as one of 128 (vendor compiler).
const LEAST_INNER_BYTES: u64 = 128;

/// What one task, or several, ask of the hardware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TaskWork {
    /// Tasks counted in here.
    pub tasks: u64,
    /// Cycles of the multiply-accumulator array.
    pub mac_cycles: u64,
    /// Bytes read from DRAM: features, weights, bias and operands.
    pub read_bytes: u64,
    /// Bytes written to DRAM.
    pub write_bytes: u64,
    /// Bytes of register commands that the core's program controller fetched.
    pub command_bytes: u64,
}

impl TaskWork {
    /// All bytes that cross the memory interface.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.read_bytes + self.write_bytes + self.command_bytes
    }
}

impl AddAssign for TaskWork {
    fn add_assign(&mut self, other: Self) {
        self.tasks += other.tasks;
        self.mac_cycles += other.mac_cycles;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.command_bytes += other.command_bytes;
    }
}

impl std::iter::Sum for TaskWork {
    fn sum<I: Iterator<Item = Self>>(tasks: I) -> Self {
        tasks.fold(Self::default(), |mut total, task| {
            total += task;
            total
        })
    }
}

impl From<Precision> for MacFormat {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Int4 => Self::Int4,
            Precision::Int8 => Self::Int8,
            Precision::Fp16 => Self::Sixteen,
        }
    }
}
