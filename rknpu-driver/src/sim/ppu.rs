//! PPU: pools a cube that PPU_RDMA reads from memory.
//!
//! Maximum, minimum and average over windows of up to 16 × 16 with padding of up to 7. Averages multiply the window's
//! sum by two reciprocals: 16 fractional bits in integers; in floating point a 17-bit format (sign, six bits of
//! exponent with bias 31, ten of fraction). PPU_RDMA's IN_PRECISION is the width of elements (1: 8 bits, 2: 16 bits),
//! not their format. Those points were probed on silicon by one source; how averages round is not known (here: each
//! product once, as [`Options::shift_rounding`] says). Padding counts as elements of the average whatever USE_CNT
//! says (same source).
//!
//! The vendor's multi-core programmes end every core's chain with a one-pixel maximum: a marker to wait for.

use super::dpu::setting::Setting;
use super::float::{Precision, from_bf16, from_f16, saturate, to_bf16, to_f16};
use super::memory::{Memory, Window};
use super::rdma::ATOM;
use super::registers::Blocks;
use super::{Options, Rounding, SimError};
use crate::regcmd::registers::{ppu, ppu_rdma};
use crate::regcmd::{Field, Register};
use crate::timing::TaskWork;

/// Largest number of window elements that one task may visit.
const MAX_VISITS: usize = 1 << 28;

/// Runs the PPU's part of a task.
pub(crate) fn run(
    blocks: &Blocks,
    memory: &Memory,
    options: &Options,
    work: &mut TaskWork,
) -> Result<(), SimError> {
    let pool = Pool::decode(blocks, memory)?;
    let surfaces = pool.channels.div_ceil(pool.precision.lanes());
    for surface in 0..surfaces {
        match pool.precision {
            Precision::Int8 => pool.surface::<1, i64>(surface, options)?,
            Precision::Int16 => pool.surface::<2, i64>(surface, options)?,
            // 32-bit formats were refused when the task was decoded.
            Precision::Float16 | Precision::BFloat16 | Precision::Int32 | Precision::Float32 => {
                pool.surface::<2, f32>(surface, options)?;
            }
        }
    }
    work.read_bytes += (surfaces * pool.input.width * pool.input.height * ATOM) as u64;
    work.write_bytes += (surfaces * pool.output.width * pool.output.height * ATOM) as u64;
    Ok(())
}

/// What becomes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Average,
    Max,
    Min,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    width: usize,
    height: usize,
}

/// A decoded pooling task.
#[derive(Debug)]
struct Pool {
    method: Method,
    precision: Precision,
    input: Size,
    output: Size,
    channels: usize,
    kernel: Size,
    stride: Size,
    /// Left and top padding.
    pad: Size,
    pad_value: u32,
    reciprocal: (u32, u32),
    source: Window,
    source_line: i64,
    source_surface: i64,
    destination: Window,
    destination_surface: i64,
}

impl Pool {
    fn decode(blocks: &Blocks, memory: &Memory) -> Result<Self, SimError> {
        use ppu::{operation_mode_cfg as mode, pooling_kernel_cfg as kernel, pooling_padding_cfg as padding};
        let config = Setting::read(blocks, ppu::OPERATION_MODE_CFG)?;
        config.require_zero(mode::INDEX_EN, "INDEX_EN")?;
        config.require_zero(mode::NOTCH_ADDR, "NOTCH_ADDR of the PPU")?;
        if !config.flag(mode::FLYING_MODE) {
            return Err(config.undecoded("input straight from the DPU (FLYING_MODE 0)"));
        }
        let method = match config.bits(mode::POOLING_METHOD) {
            0 => Method::Average,
            1 => Method::Max,
            2 => Method::Min,
            _ => return Err(config.illegal("POOLING_METHOD 3 does not exist")),
        };
        let misc = Setting::read(blocks, ppu::MISC_CTRL)?;
        misc.require_zero(ppu::misc_ctrl::NONALIGN, "NONALIGN of the PPU")?;
        misc.require_zero(ppu::misc_ctrl::MC_SURF_OUT, "MC_SURF_OUT of the PPU")?;
        let window = Setting::read(blocks, ppu::POOLING_KERNEL_CFG)?;
        let pads = Setting::read(blocks, ppu::POOLING_PADDING_CFG)?;
        let input = cube(
            blocks,
            ppu_rdma::rdma_cube_in_width::CUBE_IN_WIDTH,
            ppu_rdma::rdma_cube_in_height::CUBE_IN_HEIGHT,
        )?;
        let pool = Self {
            method,
            precision: precision(blocks)?,
            input,
            output: cube(
                blocks,
                ppu::data_cube_out_width::CUBE_OUT_WIDTH,
                ppu::data_cube_out_height::CUBE_OUT_HEIGHT,
            )?,
            channels: blocks.field(ppu::data_cube_out_channel::CUBE_OUT_CHANNEL)? as usize + 1,
            kernel: Size {
                width: window.size(kernel::KERNEL_WIDTH),
                height: window.size(kernel::KERNEL_HEIGHT),
            },
            stride: Size {
                width: window.size(kernel::KERNEL_STRIDE_WIDTH),
                height: window.size(kernel::KERNEL_STRIDE_HEIGHT),
            },
            pad: Size {
                width: pads.bits(padding::PAD_LEFT) as usize,
                height: pads.bits(padding::PAD_TOP) as usize,
            },
            pad_value: blocks.get(ppu::PADDING_VALUE_1_CFG)?,
            reciprocal: match method {
                Method::Average => {
                    (blocks.get(ppu::RECIP_KERNEL_WIDTH)?, blocks.get(ppu::RECIP_KERNEL_HEIGHT)?)
                }
                Method::Max | Method::Min => (0, 0),
            },
            source: blocks.window(ppu_rdma::RDMA_SRC_BASE_ADDR, memory)?,
            source_line: bytes(blocks, ppu_rdma::RDMA_SRC_LINE_STRIDE)?,
            source_surface: bytes(blocks, ppu_rdma::RDMA_SRC_SURF_STRIDE)?,
            destination: blocks.window(ppu::DST_BASE_ADDR, memory)?,
            destination_surface: bytes(blocks, ppu::DST_SURF_STRIDE)?,
        };
        pool.check(blocks, pads)?;
        Ok(pool)
    }

    /// Refuses cubes that contradict each other and windows that leave the padded input.
    fn check(&self, blocks: &Blocks, pads: Setting) -> Result<(), SimError> {
        use ppu::pooling_padding_cfg as padding;
        let inner =
            cube(blocks, ppu::data_cube_in_width::CUBE_IN_WIDTH, ppu::data_cube_in_height::CUBE_IN_HEIGHT)?;
        let channels = blocks.field(ppu::data_cube_in_channel::CUBE_IN_CHANNEL)? as usize + 1;
        let read = blocks.field(ppu_rdma::rdma_cube_in_channel::CUBE_IN_CHANNEL)? as usize + 1;
        let same = (inner.width, inner.height, channels, read)
            == (self.input.width, self.input.height, self.channels, self.channels);
        if !same {
            let width = Setting::read(blocks, ppu::DATA_CUBE_IN_WIDTH)?;
            return Err(width.illegal("the cubes of PPU and PPU_RDMA differ"));
        }
        let fits =
            |input: usize, before: usize, after: usize, kernel: usize, stride: usize, output: usize| {
                (output - 1) * stride + kernel <= input + before + after
            };
        let (right, bottom) =
            (pads.bits(padding::PAD_RIGHT) as usize, pads.bits(padding::PAD_BOTTOM) as usize);
        let wide = fits(
            self.input.width,
            self.pad.width,
            right,
            self.kernel.width,
            self.stride.width,
            self.output.width,
        );
        let high = fits(
            self.input.height,
            self.pad.height,
            bottom,
            self.kernel.height,
            self.stride.height,
            self.output.height,
        );
        if !(wide && high) {
            let width = Setting::read(blocks, ppu::DATA_CUBE_OUT_WIDTH)?;
            return Err(width.illegal("windows of the output leave the padded input"));
        }
        let windows = self.output.width * self.output.height * self.kernel.width * self.kernel.height;
        if windows.saturating_mul(self.channels) > MAX_VISITS {
            let width = Setting::read(blocks, ppu::DATA_CUBE_OUT_WIDTH)?;
            return Err(width.illegal(format!("more than {MAX_VISITS} window elements in one task")));
        }
        Ok(())
    }

    /// Pools one surface of `16 / BYTES` channels, line by line.
    fn surface<const BYTES: usize, T: Value<BYTES>>(
        &self,
        surface: usize,
        options: &Options,
    ) -> Result<(), SimError> {
        let lanes = ATOM / BYTES;
        let pad = T::padding(self.pad_value, self.precision);
        let mut line = vec![0; self.input.width * ATOM];
        let mut sums = vec![T::START; self.output.width * lanes];
        let mut out = vec![0; self.output.width * ATOM];
        for y in 0..self.output.height {
            sums.fill(T::start(self.method));
            for row in 0..self.kernel.height {
                let from = (y * self.stride.height + row)
                    .checked_sub(self.pad.height)
                    .filter(|h| *h < self.input.height);
                if let Some(h) = from {
                    self.source.read(
                        surface as i64 * self.source_surface + h as i64 * self.source_line,
                        &mut line,
                    )?;
                }
                let elements = line.as_chunks::<BYTES>().0;
                for (x, sums) in sums.chunks_exact_mut(lanes).enumerate() {
                    for column in 0..self.kernel.width {
                        let w = (x * self.stride.width + column).checked_sub(self.pad.width);
                        let w = w.filter(|w| *w < self.input.width && from.is_some());
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            let value =
                                w.map_or(pad, |w| T::decode(elements[w * lanes + lane], self.precision));
                            *sum = T::combine(*sum, value, self.method);
                        }
                    }
                }
            }
            for (element, sum) in out.as_chunks_mut::<BYTES>().0.iter_mut().zip(&sums) {
                *element = T::finish(*sum, self, options);
            }
            let line = y as i64 * (self.output.width * ATOM) as i64;
            self.destination.write(surface as i64 * self.destination_surface + line, &out)?;
        }
        Ok(())
    }
}

/// The format of elements, by PROC_PRECISION, if it agrees with the width that PPU_RDMA reads.
fn precision(blocks: &Blocks) -> Result<Precision, SimError> {
    let format = Setting::read(blocks, ppu::DATA_FORMAT)?;
    format.require_zero(ppu::data_format::DPU_FLYIN, "DPU_FLYIN")?;
    let precision = match Precision::from_code(format.bits(ppu::data_format::PROC_PRECISION)) {
        Some(precision) if precision.bytes() <= 2 => precision,
        // Tested on silicon by one source: 32-bit formats write zeros.
        Some(_) => return Err(format.undecoded("32-bit pooling")),
        None => return Err(format.illegal("PROC_PRECISION is not a format of the PPU")),
    };
    let width = Setting::read(blocks, ppu_rdma::RDMA_DATA_FORMAT)?;
    if width.bits(ppu_rdma::rdma_data_format::IN_PRECISION) as usize != precision.bytes() {
        return Err(width.illegal(format!("the width read is not that of {precision:?}")));
    }
    Ok(precision)
}

fn cube(blocks: &Blocks, width: Field, height: Field) -> Result<Size, SimError> {
    Ok(Size { width: blocks.field(width)? as usize + 1, height: blocks.field(height)? as usize + 1 })
}

/// A stride register: bytes, the low four bits always zero.
fn bytes(blocks: &Blocks, register: Register) -> Result<i64, SimError> {
    Ok(i64::from(blocks.get(register)? & !0xf))
}

/// An element in the arithmetic of its window.
trait Value<const BYTES: usize>: Copy {
    /// The value before the first element of a sum.
    const START: Self;
    /// The value before the first element of a window.
    fn start(method: Method) -> Self;
    /// The padding register as an element.
    fn padding(bits: u32, precision: Precision) -> Self;
    fn decode(bytes: [u8; BYTES], precision: Precision) -> Self;
    fn combine(self, value: Self, method: Method) -> Self;
    fn finish(self, pool: &Pool, options: &Options) -> [u8; BYTES];
}

macro_rules! integer_value {
    ($bytes:literal, $int:ty) => {
        impl Value<$bytes> for i64 {
            const START: Self = 0;

            fn start(method: Method) -> Self {
                match method {
                    Method::Average => 0,
                    Method::Max => i64::MIN,
                    Method::Min => i64::MAX,
                }
            }

            fn padding(bits: u32, _: Precision) -> Self {
                i64::from(bits as $int)
            }

            fn decode(bytes: [u8; $bytes], _: Precision) -> Self {
                i64::from(<$int>::from_le_bytes(bytes))
            }

            fn combine(self, value: Self, method: Method) -> Self {
                match method {
                    Method::Average => self + value,
                    Method::Max => self.max(value),
                    Method::Min => self.min(value),
                }
            }

            fn finish(self, pool: &Pool, options: &Options) -> [u8; $bytes] {
                let value = match pool.method {
                    Method::Average => integer_average(self, pool.reciprocal, options.shift_rounding),
                    Method::Max | Method::Min => self,
                };
                (saturate(value, $bytes * 8) as $int).to_le_bytes()
            }
        }
    };
}

integer_value!(1, i8);
integer_value!(2, i16);

/// A window's sum (at most 25 bits) by two reciprocals of 17 bits with 16 fractional ones, each product rounded.
fn integer_average(sum: i64, reciprocal: (u32, u32), rounding: Rounding) -> i64 {
    let times = |value: i64, factor: u32| {
        rounding.shift(i128::from(value) * i128::from(factor & 0x1_ffff), 16) as i64
    };
    times(times(sum, reciprocal.0), reciprocal.1)
}

impl Value<2> for f32 {
    const START: Self = 0.0;

    fn start(method: Method) -> Self {
        match method {
            Method::Average => 0.0,
            Method::Max => f32::NEG_INFINITY,
            Method::Min => f32::INFINITY,
        }
    }

    fn padding(bits: u32, precision: Precision) -> Self {
        Self::decode((bits as u16).to_le_bytes(), precision)
    }

    fn decode(bytes: [u8; 2], precision: Precision) -> Self {
        let bits = u16::from_le_bytes(bytes);
        if precision == Precision::BFloat16 { from_bf16(bits) } else { from_f16(bits) }
    }

    fn combine(self, value: Self, method: Method) -> Self {
        match method {
            Method::Average => self + value,
            Method::Max => self.max(value),
            Method::Min => self.min(value),
        }
    }

    fn finish(self, pool: &Pool, _: &Options) -> [u8; 2] {
        let value = match pool.method {
            Method::Average => self * from_fp17(pool.reciprocal.0) * from_fp17(pool.reciprocal.1),
            Method::Max | Method::Min => self,
        };
        (if pool.precision == Precision::BFloat16 { to_bf16(value) } else { to_f16(value) }).to_le_bytes()
    }
}

/// A reciprocal of the PPU: sign in bit 16, exponent with bias 31 in bits 15:10, fraction in bits 9:0. The lowest
/// exponent is zero, as in NVDLA's arithmetic, which flushes subnormals.
fn from_fp17(bits: u32) -> f32 {
    let exponent = bits >> 10 & 0x3f;
    if exponent == 0 {
        return 0.0;
    }
    let magnitude = (1.0 + (bits & 0x3ff) as f32 / 1024.0) * 2f32.powi(exponent as i32 - 31);
    if bits >> 16 & 1 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests;
