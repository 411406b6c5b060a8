//! f32 to fp16 and back, with what does not fit refused.

use half::f16;

use super::error::FusedError;
use super::grid::Grid;

const FP16: &str = "-65504 to 65504";

pub(super) fn check_length(name: &'static str, given: usize, wanted: usize) -> Result<(), FusedError> {
    if given == wanted { Ok(()) } else { Err(FusedError::Length { name, given, wanted }) }
}

/// Rows in slices that must all be alike: whole rows of a kernel's columns, no more of them than it was built for.
pub(super) fn rows(grid: &Grid, slices: &[(&'static str, usize)]) -> Result<usize, FusedError> {
    let rows = slices.first().map_or(0, |(_, length)| length.div_ceil(grid.columns)).min(grid.rows);
    slices.iter().try_for_each(|&(name, length)| check_length(name, length, rows * grid.columns))?;
    Ok(rows)
}

/// Rounds a row to fp16.
pub(super) fn narrow(
    name: &'static str,
    row: usize,
    values: &[f32],
    line: &mut [f16],
) -> Result<(), FusedError> {
    for (column, (slot, &value)) in line.iter_mut().zip(values).enumerate() {
        *slot = f16::from_f32(value);
        if !slot.is_finite() {
            return Err(FusedError::Range { name, row, column, value, range: FP16 });
        }
    }
    Ok(())
}

/// Reads a row of results, multiplied by `scale`; a result that left fp16's range is an error.
pub(super) fn widen(row: usize, line: &[f16], scale: f32, out: &mut [f32]) -> Result<(), FusedError> {
    for (column, (slot, value)) in out.iter_mut().zip(line).enumerate() {
        let value = value.to_f32();
        if !value.is_finite() {
            return Err(FusedError::Range { name: "the result", row, column, value, range: FP16 });
        }
        *slot = value * scale;
    }
    Ok(())
}

/// The largest magnitude of some numbers, or where one is not finite.
pub(super) fn largest(name: &'static str, row: usize, values: &[f32]) -> Result<f32, FusedError> {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(largest),
        Some(column) => {
            Err(FusedError::Range { name, row, column, value: values[column], range: "finite numbers" })
        }
    }
}

/// ⌊log₂ x⌋ of a finite positive number; −126 for 0 and for subnormal numbers.
pub(super) fn exponent(value: f32) -> i32 {
    ((value.to_bits() >> 23) as i32 - 127).max(-126)
}

/// 2^exponent, limited to what f32 holds exactly.
pub(super) fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23)
}
