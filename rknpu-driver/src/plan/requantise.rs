//! Requantisation of int8 products to int8 by the DPU, and the rule it follows as a scalar formula.

use super::options::PlanError;

/// How accumulators become int8.
///
/// Per tensor: `y = sat8(round((acc + addend[n]) · scale / 2^shift) + offset)`, ties to even. Per channel the
/// sum is first multiplied: `t = round((acc + addend[n]) · multiplier[n] / 2^14)`, and t takes the place of
/// the sum. Ties to even is what the reference manual and measurements on this family of chips say of the
/// output converter; how the first stage's shift rounds is not settled (docs/npu.md, "Rounding"), so only the
/// per-tensor form is exact on every reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Requantise {
    /// Multiplier of the output converter, at most [`MOST_SCALE`]: the register's 16 bits are signed. The
    /// vendor's compiler keeps it in 2^14…2^15 − 1.
    pub scale: u16,
    /// Right shift after it, at most [`MOST_SHIFT`].
    pub shift: u8,
    /// Added after rounding: the output's zero point.
    pub offset: i32,
    /// Whether each channel has a multiplier (15 bits, 2^14 is 1) beside its addend.
    pub per_channel: bool,
}

/// The fixed shift after a per-channel multiplier.
pub const MULTIPLIER_SHIFT: u32 = 14;

/// Largest multiplier of the output converter, 2^15 − 1. That the field is signed is the simulator's reading
/// of it; larger values are in no stream of the vendor's compiler.
pub const MOST_SCALE: u16 = i16::MAX.cast_unsigned();

/// Largest shift of the output converter that is planned. The field has 12 bits; products have 48 + 16, so a
/// longer shift leaves nothing.
pub const MOST_SHIFT: u8 = 63;

/// `round(value / 2^shift)`, ties to even, for any shift.
pub const fn shift_ties_even(value: i64, shift: u32) -> i64 {
    if shift == 0 {
        return value;
    }
    if shift > 63 {
        // At most a half in magnitude, and a half is as near to 0, which is even.
        return 0;
    }
    let floor = value >> shift;
    let rest = value - (floor << shift);
    let half = 1i64 << (shift - 1);
    if rest > half || (rest == half && floor & 1 == 1) { floor + 1 } else { floor }
}

impl Requantise {
    /// Refuses what the output converter's registers do not hold.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        match self.scale <= MOST_SCALE && self.shift <= MOST_SHIFT {
            true => Ok(()),
            false => Err(PlanError::Converter { scale: self.scale, shift: self.shift }),
        }
    }

    /// The int8 that the device writes for an accumulator of a channel with this addend and, per channel,
    /// multiplier.
    pub fn apply(&self, accumulator: i32, addend: i32, multiplier: i16) -> i8 {
        let mut sum = i64::from(accumulator) + i64::from(addend);
        if self.per_channel {
            sum = shift_ties_even(sum * i64::from(multiplier), MULTIPLIER_SHIFT);
        }
        let scaled = shift_ties_even(sum * i64::from(self.scale), u32::from(self.shift));
        (scaled + i64::from(self.offset)).clamp(-128, 127) as i8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_results_saturate() {
        let halve = Requantise { scale: 1 << 14, shift: 15, offset: 0, per_channel: false };
        let outputs = [-5, -3, -1, 0, 1, 3, 5].map(|value| halve.apply(value, 0, 0));
        assert_eq!(outputs, [-2, -2, 0, 0, 0, 2, 2]);
        assert_eq!(halve.apply(1000, 0, 0), 127);
        assert_eq!(halve.apply(-1000, 0, 0), -128);
        let shifted = Requantise { offset: -3, ..halve };
        assert_eq!(shifted.apply(6, 4, 0), 2);
        let per_channel = Requantise { per_channel: true, ..halve };
        assert_eq!(per_channel.apply(8, 0, 1 << 13), 2);
    }

    #[test]
    fn every_shift_has_a_result() {
        assert_eq!(shift_ties_even(i64::MIN, 63), -1);
        assert_eq!(shift_ties_even(i64::MIN >> 1, 63), 0);
        assert_eq!(shift_ties_even(i64::MAX, 63), 1);
        for shift in [64, 65, 255, u32::MAX] {
            assert_eq!([i64::MIN, -1, 0, 1, i64::MAX].map(|value| shift_ties_even(value, shift)), [0; 5]);
        }
        let longest = Requantise { scale: MOST_SCALE, shift: u8::MAX, offset: 7, per_channel: false };
        assert_eq!(longest.apply(i32::MIN, i32::MIN, 0), 7);
    }
}
