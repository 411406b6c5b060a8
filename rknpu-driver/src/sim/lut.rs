//! The DPU's look-up tables at work: index in, interpolated entry out.
//!
//! Two tables of up to 513 signed 16-bit entries: LE answers for LE_START..=LE_END, LO for LO_START..=LO_END, one
//! entry every `2^INDEX_SELECT` steps of the index, linear in between. An index outside a table goes on from its
//! nearest end along a slope `(index − end) · scale ≫ shift`. Where both tables answer, or neither, LUT_CFG's
//! priority bits choose: 1 takes LO (this block descends from NVDLA's, whose rule that is; all vendor streams set
//! HYBRID and OFLOW and clear UFLOW).
//!
//! In integer mode the index is an integer and the interpolated value is rounded once; in float mode the index keeps
//! its fraction and the interpolation is exact to f32. Both readings reproduce an independent interpreter bit for bit
//! on vendor streams; the silicon's rounding is not known. Glitches that one source reports of the silicon (entry 0,
//! indices at flat ends) are not modelled.

use super::dpu::setting::Setting;
use super::registers::Blocks;
use super::{Rounding, SimError};
use crate::regcmd::Register;
use crate::regcmd::registers::dpu;

/// Largest number of entries of a table.
const ENTRIES: usize = 513;

/// A line that continues a table beyond one of its ends.
#[derive(Clone, Copy, Debug, Default)]
struct Slope {
    scale: i64,
    shift: u32,
}

impl Slope {
    /// The line through `end`. A distance of 48 bits times 16 bits of scale, and an entry shifted by 31, fit into 63.
    fn integer(self, end: i64, distance: i64, rounding: Rounding) -> i64 {
        rounding.shift((end << self.shift) + distance * self.scale, self.shift)
    }

    fn float(self, distance: f64) -> f64 {
        distance * self.scale as f64 / (1u64 << self.shift) as f64
    }
}

/// Where an index lies with respect to a table.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Below,
    Inside,
    Above,
}

/// One table with its range.
#[derive(Clone, Debug)]
struct Table {
    start: i64,
    end: i64,
    select: u32,
    entries: Vec<i64>,
    below: Slope,
    above: Slope,
}

impl Table {
    fn side(&self, below: bool, above: bool) -> Side {
        match (below, above) {
            (true, _) => Side::Below,
            (_, true) => Side::Above,
            _ => Side::Inside,
        }
    }

    fn ends(&self) -> (i64, i64) {
        (self.entries[0], self.entries[self.entries.len() - 1])
    }

    fn integer(&self, index: i64, side: Side, rounding: Rounding) -> i64 {
        match side {
            Side::Below => self.below.integer(self.ends().0, index - self.start, rounding),
            Side::Above => self.above.integer(self.ends().1, index - self.end, rounding),
            Side::Inside => {
                let offset = index - self.start;
                let entry = ((offset >> self.select) as usize).min(self.entries.len() - 2);
                let part = offset - ((entry as i64) << self.select);
                let (left, right) = (self.entries[entry], self.entries[entry + 1]);
                rounding.shift((left << self.select) + (right - left) * part, self.select)
            }
        }
    }

    fn float(&self, index: f64, side: Side) -> f64 {
        match side {
            Side::Below => self.ends().0 as f64 + self.below.float(index - self.start as f64),
            Side::Above => self.ends().1 as f64 + self.above.float(index - self.end as f64),
            Side::Inside => {
                let steps = (index - self.start as f64) / (1u64 << self.select) as f64;
                let entry = (steps as usize).min(self.entries.len() - 2);
                let (left, right) = (self.entries[entry] as f64, self.entries[entry + 1] as f64);
                left + (right - left) * (steps - entry as f64)
            }
        }
    }
}

/// Both tables and the rule between them.
#[derive(Clone, Debug)]
pub(crate) struct Lut {
    le: Table,
    lo: Table,
    hybrid_lo: bool,
    overflow_lo: bool,
    underflow_lo: bool,
}

impl Lut {
    /// The tables as the executing bank of DPU sets them up.
    pub(crate) fn decode(blocks: &Blocks) -> Result<Self, SimError> {
        let config = Setting::read(blocks, dpu::LUT_CFG)?;
        config.require_zero(dpu::lut_cfg::LUT_ROAD_SEL, "LUT_ROAD_SEL")?;
        config.require_zero(dpu::lut_cfg::LUT_EXPAND_EN, "LUT_EXPAND_EN")?;
        config.require_zero(dpu::lut_cfg::LUT_CAL_SEL, "LUT_CAL_SEL")?;
        if config.bits(dpu::lut_cfg::LUT_LO_LE_MUX) != 2 {
            return Err(config.undecoded("LUT_LO_LE_MUX other than 2"));
        }
        let info = Setting::read(blocks, dpu::LUT_INFO)?;
        let range = |start: Register, end: Register| -> Result<_, SimError> {
            Ok((Setting::read(blocks, start)?, Setting::read(blocks, end)?))
        };
        let (le_scale, lo_scale) =
            (blocks.get(dpu::LUT_LE_SLOPE_SCALE)?, blocks.get(dpu::LUT_LO_SLOPE_SCALE)?);
        let (le_shift, lo_shift) =
            (blocks.get(dpu::LUT_LE_SLOPE_SHIFT)?, blocks.get(dpu::LUT_LO_SLOPE_SHIFT)?);
        let le = Table {
            below: slope(le_scale, le_shift),
            above: slope(le_scale >> 16, le_shift >> 5),
            ..table(
                blocks,
                0,
                range(dpu::LUT_LE_START, dpu::LUT_LE_END)?,
                info.bits(dpu::lut_info::LUT_LE_INDEX_SELECT),
            )?
        };
        let lo = Table {
            below: slope(lo_scale, lo_shift),
            above: slope(lo_scale >> 16, lo_shift >> 5),
            ..table(
                blocks,
                1,
                range(dpu::LUT_LO_START, dpu::LUT_LO_END)?,
                info.bits(dpu::lut_info::LUT_LO_INDEX_SELECT),
            )?
        };
        Ok(Self {
            le,
            lo,
            hybrid_lo: config.flag(dpu::lut_cfg::LUT_HYBRID_PRIORITY),
            overflow_lo: config.flag(dpu::lut_cfg::LUT_OFLOW_PRIORITY),
            underflow_lo: config.flag(dpu::lut_cfg::LUT_UFLOW_PRIORITY),
        })
    }

    /// The entry at an integer index of at most 48 bits.
    pub(crate) fn integer(&self, index: i64, rounding: Rounding) -> i64 {
        let le = self.le.side(index < self.le.start, index > self.le.end);
        let lo = self.lo.side(index < self.lo.start, index > self.lo.end);
        if self.takes_lo(le, lo) {
            self.lo.integer(index, lo, rounding)
        } else {
            self.le.integer(index, le, rounding)
        }
    }

    /// The entry at an index with a fraction; NaN stays NaN.
    pub(crate) fn float(&self, index: f32) -> f32 {
        let index = f64::from(index);
        if index.is_nan() {
            return f32::NAN;
        }
        let le = self.le.side(index < self.le.start as f64, index > self.le.end as f64);
        let lo = self.lo.side(index < self.lo.start as f64, index > self.lo.end as f64);
        (if self.takes_lo(le, lo) { self.lo.float(index, lo) } else { self.le.float(index, le) }) as f32
    }

    fn takes_lo(&self, le: Side, lo: Side) -> bool {
        match (le, lo) {
            (Side::Inside, Side::Inside) => self.hybrid_lo,
            (Side::Inside, _) => false,
            (_, Side::Inside) => true,
            (Side::Above, Side::Above) => self.overflow_lo,
            (Side::Below, Side::Below) => self.underflow_lo,
            (Side::Below, Side::Above) | (Side::Above, Side::Below) => self.hybrid_lo,
        }
    }
}

fn slope(scale: u32, shift: u32) -> Slope {
    Slope { scale: i64::from(scale as u16 as i16), shift: shift & 31 }
}

/// Loads the entries that a table's range needs.
fn table(blocks: &Blocks, id: usize, range: (Setting, Setting), select: u32) -> Result<Table, SimError> {
    let (start, end) = (i64::from(range.0.value() as i32), i64::from(range.1.value() as i32));
    let steps = if select < 32 { (end - start) >> select } else { -1 };
    if !(1..ENTRIES as i64).contains(&steps) || (steps << select) != end - start {
        let reason =
            format!("{start}..={end} in steps of 2^{select} is not a range of 2 to {ENTRIES} entries");
        return Err(range.1.illegal(reason));
    }
    let entries = (0..=steps as usize)
        .map(|index| blocks.lut().entry(id, index).map(i64::from))
        .collect::<Result<_, SimError>>()?;
    Ok(Table { start, end, select, entries, below: Slope::default(), above: Slope::default() })
}
