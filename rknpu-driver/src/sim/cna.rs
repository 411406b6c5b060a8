//! CNA: reads features and weights into CBUF and feeds CORE.

mod converter;
mod features;
mod format;
mod setting;
mod weights;

pub(super) use setting::Setting;
pub(super) use weights::Weights;

use super::core::{
    Accumulators, Arithmetic, Bf16, ByEntry, Cube, Double, Features, Fp16, Int4, Int8, Int16, Products,
    Sequential, Tf32, convolution,
};
use super::error::SimError;
use super::memory::Memory;
use super::options::{Accumulation, Options};
use super::registers::Blocks;
use crate::timing::{TaskWork, mac_cycles};
use features::{Held, Loaded};
use format::Format;
use weights::HeldWeights;

/// What the last convolution left in CBUF, for tasks with DATA_REUSE or WEIGHT_REUSE.
#[derive(Default)]
pub(super) struct Buffered {
    feature: Option<Held>,
    weights: Option<HeldWeights>,
}

/// The longest kernel whose int8 products cannot overflow 32 bits: 2^31 / 2^14, less one.
const INT32_KERNEL: usize = (1 << 17) - 1;

/// Runs the convolution that the CNA's and CORE's registers describe.
pub(super) fn convolve(
    blocks: &Blocks,
    buffered: &mut Buffered,
    memory: &Memory,
    options: &Options,
    work: &mut TaskWork,
) -> Result<Products, SimError> {
    let setting = Setting::read(blocks, options)?;
    count_work(&setting, work);
    let loaded = features::load(&setting, blocks, memory, buffered.feature.take())?;
    let mut weights = Weights::new(&setting, blocks, memory, buffered.weights.take())?;
    let products = multiply(&setting, &loaded, &mut weights, options.accumulation)?;
    buffered.feature = Some(Held::new(&setting, loaded));
    buffered.weights = weights.held();
    Ok(products)
}

/// Chooses the arithmetic of the format.
fn multiply(
    setting: &Setting,
    loaded: &Loaded,
    weights: &mut Weights<'_>,
    order: Accumulation,
) -> Result<Products, SimError> {
    let long = setting.channels * setting.taps() > INT32_KERNEL;
    let int = |sums: Vec<i32>| Accumulators::Int(cube(setting, sums));
    let float = |sums: Vec<f32>| Accumulators::Float(cube(setting, sums));
    let rounded = |sums: Vec<f64>| float(sums.into_iter().map(|sum| sum as f32).collect());
    let clip = |sum: i64| setting.clip.1.shift(i128::from(sum), setting.clip.0) as i64;
    let narrow = |sum: i64| clip(sum).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
    match loaded {
        Loaded::Integer(features) => match setting.format {
            // int4 accumulators saturate at 16 bits (single source).
            Format::Int4 => run::<Int4>(setting, features, weights, |sums| {
                let saturate = |sum| narrow(i64::from(sum)).clamp(i32::from(i16::MIN), i32::from(i16::MAX));
                int(sums.into_iter().map(saturate).collect())
            }),
            Format::Int16 => run::<Int16>(setting, features, weights, |sums| {
                Accumulators::Wide(cube(setting, sums.into_iter().map(clip).collect()))
            }),
            Format::Int8 if long || setting.clip.0 > 0 => {
                run::<Int8<i64>>(setting, features, weights, |sums| {
                    int(sums.into_iter().map(narrow).collect())
                })
            }
            Format::Int8 | Format::Fp16 | Format::Bf16 | Format::Tf32 => {
                run::<Int8<i32>>(setting, features, weights, int)
            }
        },
        Loaded::Float(features) => match (setting.format, order) {
            (Format::Bf16, Accumulation::Double) => run::<Double<Bf16>>(setting, features, weights, rounded),
            (Format::Bf16, Accumulation::Sequential) => {
                run::<Sequential<Bf16>>(setting, features, weights, float)
            }
            (Format::Bf16, Accumulation::ByEntry) => run::<ByEntry<Bf16>>(setting, features, weights, float),
            (Format::Tf32, Accumulation::Double) => run::<Double<Tf32>>(setting, features, weights, rounded),
            (Format::Tf32, Accumulation::Sequential) => {
                run::<Sequential<Tf32>>(setting, features, weights, float)
            }
            (Format::Tf32, Accumulation::ByEntry) => run::<ByEntry<Tf32>>(setting, features, weights, float),
            (_, Accumulation::Double) => run::<Double<Fp16>>(setting, features, weights, rounded),
            (_, Accumulation::Sequential) => run::<Sequential<Fp16>>(setting, features, weights, float),
            (_, Accumulation::ByEntry) => run::<ByEntry<Fp16>>(setting, features, weights, float),
        },
    }
}

fn run<A: Arithmetic>(
    setting: &Setting,
    features: &Features<A::Feature>,
    weights: &mut Weights<'_>,
    finish: impl FnOnce(Vec<A::Sum>) -> Accumulators,
) -> Result<Products, SimError> {
    let (sums, input_sums) = convolution::<A>(setting, features, weights)?;
    Ok(Products { accumulators: finish(sums), input_sums })
}

fn cube<T>(setting: &Setting, data: Vec<T>) -> Cube<T> {
    let Setting { out_width: width, out_height: height, out_channels: channels, .. } = *setting;
    Cube { width, height, channels, data }
}

/// Cycles by the vendor compiler's rule; a depthwise kernel counts as one over its taps. Bytes as fetched into CBUF.
fn count_work(setting: &Setting, work: &mut TaskWork) {
    let rows = setting.out_width * setting.out_height;
    let (inner, outputs) = match setting.depthwise {
        true => (setting.taps(), setting.channels),
        false => (setting.taps() * setting.channels, setting.kernels),
    };
    work.mac_cycles += mac_cycles(rows as u64, inner as u64, outputs as u64, setting.format.mac());
    if !setting.data_reuse {
        work.read_bytes += setting.feature_bytes() as u64;
    }
    if !setting.weight_reuse {
        work.read_bytes += setting.weight_bytes() as u64;
    }
}
