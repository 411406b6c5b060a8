//! The feature: from surfaces of 16-byte atoms, or packed pixels, to pixels of channels.

use super::format::Format;
use super::setting::Setting;
use crate::regcmd::registers::cna as reg;
use crate::sim::core::{Arithmetic, Bf16, Double, Features, Fp16, Int4, Int8, Int16, Tf32};
use crate::sim::error::SimError;
use crate::sim::memory::{Memory, Window};
use crate::sim::registers::Blocks;

const ATOM: usize = 16;

/// A feature in CBUF.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Loaded {
    Integer(Features<i16>),
    Float(Features<f32>),
}

/// A feature that stays in CBUF, with what must be the same for a task to use it again.
pub(super) struct Held {
    shape: Shape,
    loaded: Loaded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    format: Format,
    width: usize,
    height: usize,
    channels: usize,
    /// Strides say how to fetch and do not matter any more; packed pixels lie otherwise than surfaces.
    packed: Option<usize>,
    data_banks: u32,
}

impl Shape {
    fn of(setting: &Setting) -> Self {
        let Setting { format, width, height, channels, data_banks, .. } = *setting;
        Self { format, width, height, channels, packed: setting.layout.packed, data_banks }
    }
}

impl Held {
    pub(super) fn new(setting: &Setting, loaded: Loaded) -> Self {
        Self { shape: Shape::of(setting), loaded }
    }
}

/// The feature of a task: from memory, or with DATA_REUSE what the task before left.
pub(super) fn load(
    setting: &Setting,
    blocks: &Blocks,
    memory: &Memory,
    held: Option<Held>,
) -> Result<Loaded, SimError> {
    if setting.data_reuse {
        return match held {
            Some(held) if held.shape == Shape::of(setting) => Ok(repad(held.loaded, setting)),
            held => {
                let held = held.map(|held| held.shape);
                let reason = format!("of {:?}, but CBUF holds {held:?}", Shape::of(setting));
                Err(SimError::illegal(reg::cbuf_con0::DATA_REUSE, 1, reason))
            }
        };
    }
    let window = blocks.window(reg::FEATURE_DATA_ADDR, memory)?;
    Ok(match setting.format {
        Format::Int8 => Loaded::Integer(read::<Int8<i32>>(setting, &window)?),
        Format::Int4 => Loaded::Integer(read::<Int4>(setting, &window)?),
        Format::Int16 => Loaded::Integer(read::<Int16>(setting, &window)?),
        Format::Fp16 => Loaded::Float(read::<Double<Fp16>>(setting, &window)?),
        Format::Bf16 => Loaded::Float(read::<Double<Bf16>>(setting, &window)?),
        Format::Tf32 => Loaded::Float(read::<Double<Tf32>>(setting, &window)?),
    })
}

/// The padding's value belongs to the task, not to what lies in CBUF.
fn repad(loaded: Loaded, setting: &Setting) -> Loaded {
    match loaded {
        Loaded::Integer(features) => {
            let pad = match setting.format {
                Format::Int4 => pad_element::<Int4>(setting),
                Format::Int16 => pad_element::<Int16>(setting),
                Format::Int8 | Format::Fp16 | Format::Bf16 | Format::Tf32 => {
                    pad_element::<Int8<i32>>(setting)
                }
            };
            Loaded::Integer(Features { pad, ..features })
        }
        Loaded::Float(features) => {
            let pad = match setting.format {
                Format::Bf16 => pad_element::<Double<Bf16>>(setting),
                Format::Tf32 => pad_element::<Double<Tf32>>(setting),
                Format::Fp16 | Format::Int8 | Format::Int16 | Format::Int4 => {
                    pad_element::<Double<Fp16>>(setting)
                }
            };
            Loaded::Float(Features { pad, ..features })
        }
    }
}

/// PAD_VALUE as an element: integers sign-extended (the register holds the input's zero point), floats by their bits.
fn pad_element<A: Arithmetic>(setting: &Setting) -> A::Feature {
    let mut elements = [A::Feature::default(); 2];
    // An element never takes more than four bytes; int4 and int8 values lie in the lowest byte, too.
    let bytes = setting.pad_value.to_le_bytes();
    let length = setting.format.bytes(2).clamp(1, 4);
    let count = (length * 8 / setting.format.mac().bits() as usize).min(2);
    A::features(&bytes[..length], &mut elements[..count]);
    elements[0]
}

fn read<A: Arithmetic>(setting: &Setting, window: &Window) -> Result<Features<A::Feature>, SimError> {
    let channels = setting.channels.next_multiple_of(A::COLUMNS);
    let data = vec![A::Feature::default(); setting.width * setting.height * channels];
    let mut features = Features { channels, data, pad: pad_element::<A>(setting) };
    match setting.layout.packed {
        Some(count) => read_packed::<A>(setting, window, count, &mut features)?,
        None => read_surfaces::<A>(setting, window, &mut features)?,
    }
    Ok(features)
}

/// Element (surface s, line h, pixel w) lies `s · surface + h · line + w` atoms from the base.
fn read_surfaces<A: Arithmetic>(
    setting: &Setting,
    window: &Window,
    features: &mut Features<A::Feature>,
) -> Result<(), SimError> {
    let (width, lanes, layout) = (setting.width, setting.format.lanes(), setting.layout);
    // Lines that follow each other are read at once.
    let together = if layout.line == width as i64 { setting.height } else { 1 };
    let mut bytes = vec![0; width * together * ATOM];
    for surface in 0..setting.channels / lanes {
        for first in (0..setting.height).step_by(together) {
            let at = surface as i64 * layout.surface + first as i64 * layout.line;
            window.read(at * ATOM as i64, &mut bytes)?;
            let pixels =
                features.data[first * width * features.channels..].chunks_exact_mut(features.channels);
            for (atom, pixel) in bytes.chunks_exact(ATOM).zip(pixels) {
                A::features(atom, &mut pixel[surface * lanes..(surface + 1) * lanes]);
            }
        }
    }
    Ok(())
}

/// Packed pixels: `h · line + w` pixels from the base, channels side by side. The compiler pads lines of one int8 channel to
/// 16 bytes, and in what unit LINE_STRIDE then counts is not settled: one that is shorter than a line is taken to
/// count atoms, as it does for surfaces.
fn read_packed<A: Arithmetic>(
    setting: &Setting,
    window: &Window,
    count: usize,
    features: &mut Features<A::Feature>,
) -> Result<(), SimError> {
    let pixel_bytes = setting.format.bytes(count);
    let mut bytes = vec![0; setting.width * pixel_bytes];
    let unit = if setting.layout.line < setting.width as i64 { ATOM } else { pixel_bytes };
    for line in 0..setting.height {
        window.read(line as i64 * setting.layout.line * unit as i64, &mut bytes)?;
        if let Some(converter) = setting.converter {
            converter.apply(&mut bytes, count);
        }
        let pixels =
            features.data[line * setting.width * features.channels..].chunks_exact_mut(features.channels);
        for (from, pixel) in bytes.chunks_exact(pixel_bytes).zip(pixels) {
            A::features(from, &mut pixel[..count]);
        }
    }
    Ok(())
}
