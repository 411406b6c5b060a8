//! The input converter of packed int8 input: (x + offset) · scale ≫ shift per channel.
//!
//! The vendor's compiler always bypasses it. The open driver uses it to make unsigned 8-bit pixels signed. Order and rounding
//! as the technical reference manual has them.

use super::format::Format;
use crate::regcmd::registers::cna as reg;
use crate::sim::error::{RegisterId, SimError, UndecodedKind};
use crate::sim::options::Rounding;
use crate::sim::registers::Blocks;

/// The input converter of packed input: (x + offset) · scale ≫ shift per channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) struct InputConverter {
    signed: bool,
    add_first: bool,
    rounding: Rounding,
    offset: [i16; 4],
    scale: [i16; 4],
    shift: [u32; 4],
}

impl InputConverter {
    /// The converter of the task being executed; `None` when bypassed.
    pub(super) fn read(
        blocks: &Blocks,
        format: Format,
        packed: Option<usize>,
    ) -> Result<Option<Self>, SimError> {
        if blocks.flag(reg::cvt_con0::CVT_BYPASS)? {
            return Ok(None);
        }
        if format != Format::Int8 || packed.is_none() {
            let (register, value) = (RegisterId::from(reg::CVT_CON0), blocks.get(reg::CVT_CON0)?);
            return Err(SimError::Undecoded {
                register,
                value,
                kind: UndecodedKind::Other,
                mode: "input conversion of other than packed int8",
            });
        }
        let channels = [reg::CVT_CON1, reg::CVT_CON2, reg::CVT_CON3, reg::CVT_CON4];
        let mut converter = Self {
            signed: blocks.flag(reg::cvt_con0::DATA_SIGN)?,
            add_first: blocks.flag(reg::cvt_con0::CVT_TYPE)?,
            rounding: match blocks.flag(reg::cvt_con0::ROUND_TYPE)? {
                true => Rounding::HalfUp,
                false => Rounding::TiesToEven,
            },
            offset: [0; 4],
            scale: [0; 4],
            shift: [
                blocks.field(reg::cvt_con0::CVT_TRUNCATE_0)?,
                blocks.field(reg::cvt_con0::CVT_TRUNCATE_1)?,
                blocks.field(reg::cvt_con0::CVT_TRUNCATE_2)?,
                blocks.field(reg::cvt_con0::CVT_TRUNCATE_3)?,
            ],
        };
        for (index, register) in channels.into_iter().enumerate() {
            let value = blocks.get(register)?;
            (converter.offset[index], converter.scale[index]) = (value as i16, (value >> 16) as i16);
        }
        Ok(Some(converter))
    }

    /// Converts int8 pixels of `count` channels.
    pub(super) fn apply(&self, bytes: &mut [u8], count: usize) {
        for pixel in bytes.chunks_exact_mut(count) {
            for (channel, byte) in pixel.iter_mut().enumerate() {
                let value = if self.signed { i128::from(*byte as i8) } else { i128::from(*byte) };
                let (offset, scale) = (i128::from(self.offset[channel]), i128::from(self.scale[channel]));
                let shift = self.shift[channel];
                let converted = match self.add_first {
                    true => self.rounding.shift((value + offset) * scale, shift),
                    false => self.rounding.shift(value * scale, shift) + offset,
                };
                *byte = converted.clamp(-128, 127) as i8 as u8;
            }
        }
    }
}
