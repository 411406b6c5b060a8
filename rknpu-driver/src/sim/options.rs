//! The points of the hardware's behaviour on which sources contest each other, each with its default.

use std::ops::{Add, BitAnd, Shl, Shr, Sub};

/// Rounding of an arithmetic shift to the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To the nearest integer, exact halves to the even one.
    TiesToEven,
    /// To the nearest integer, exact halves upwards (towards +∞).
    HalfUp,
    /// Towards −∞: the plain shift.
    Truncate,
}

impl Rounding {
    /// `value / 2^shift`, rounded; exact for every value (of `i64` or `i128`) and every shift.
    #[inline]
    pub fn shift<T>(self, value: T, shift: u32) -> T
    where
        T: Copy
            + PartialOrd
            + From<bool>
            + Add<Output = T>
            + Sub<Output = T>
            + Shl<u32, Output = T>
            + Shr<u32, Output = T>
            + BitAnd<Output = T>,
    {
        let (zero, one) = (T::from(false), T::from(true));
        let bits = 8 * size_of::<T>() as u32;
        if shift == 0 {
            return value;
        }
        if shift >= bits {
            // At most one half of the divisor, and then negative: between −1 and its even neighbour above.
            return if self == Rounding::Truncate { value >> (bits - 1) } else { zero };
        }
        let floor = value >> shift;
        let rest = value - (floor << shift);
        // The rest is below 2^shift, so that in the widest shift it reaches the half without overflow.
        let half = one << (shift - 1);
        let carry = match self {
            Rounding::TiesToEven => rest > half || (rest == half && floor & one == one),
            Rounding::HalfUp => rest >= half,
            Rounding::Truncate => false,
        };
        floor + T::from(carry)
    }
}

/// Which rounding the output converter applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutRounding {
    /// By the ROUND bit of OUT_CVT_SHIFT: 0 ties to even, 1 half up. The manual's wording, and measurements on three
    /// chips of the family agree for 0.
    AsConfigured,
    /// The same for both values of the bit.
    Always(Rounding),
}

/// What becomes of integers on their way to float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntToFloat {
    /// Rounded to the nearest, ties to even.
    Nearest,
    /// Rounded towards −∞ (a single source reports this of the silicon).
    Floor,
}

/// Order and width of floating-point accumulation along a kernel. The silicon's order is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accumulation {
    /// Products summed in f64, rounded once to f32. The vendor's simulator is closest to this.
    Double,
    /// One f32 accumulator, channel after channel in the order of the weights.
    Sequential,
    /// Sixty-four bytes of a kernel (one entry of the buffer) summed first, entries then one after another, in f32.
    ByEntry,
}

/// What a job's read of bytes that nobody ever wrote does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unwritten {
    /// It ends the job with an error: on the board those bytes are whatever the page held before.
    Error,
    /// It reads zeros.
    Zero,
}

/// Parameters of a simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Rounding of the output converter. Default [`OutRounding::AsConfigured`].
    pub out_rounding: OutRounding,
    /// Rounding of the shift behind the multiplier of BS, BN and EW. Default [`Rounding::TiesToEven`]; vendor vectors
    /// weakly prefer a rounding shift to a truncating one and cannot tell which.
    pub shift_rounding: Rounding,
    /// Integers becoming floats. Default [`IntToFloat::Nearest`].
    pub int_to_float: IntToFloat,
    /// Order of floating-point accumulation. Default [`Accumulation::Double`].
    pub accumulation: Accumulation,
    /// Refuse int8 features of width 1 that leave no spare bank (above 97 % and below 100 % of theirs). Default off: one
    /// source saw garbled rows there, and the vendor's compiler never reserves the bank.
    pub spare_bank: bool,
    /// Reads of bytes never written. Default [`Unwritten::Error`].
    pub unwritten: Unwritten,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            out_rounding: OutRounding::AsConfigured,
            shift_rounding: Rounding::TiesToEven,
            int_to_float: IntToFloat::Nearest,
            accumulation: Accumulation::Double,
            spare_bank: false,
            unwritten: Unwritten::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_round_as_named() {
        let cases = [(5, 2, 1), (6, 2, 2), (2, 2, 0), (-2, 2, 0), (-6, 2, -2), (-5, 2, -1), (7, 0, 7)];
        for (value, shift, even) in cases {
            assert_eq!(Rounding::TiesToEven.shift(value, shift), even, "{value} >> {shift}");
        }
        assert_eq!(Rounding::HalfUp.shift(2, 2), 1);
        assert_eq!(Rounding::HalfUp.shift(-2, 2), 0);
        assert_eq!(Rounding::Truncate.shift(-1, 2), -1);
        assert_eq!(Rounding::TiesToEven.shift(i128::from(i64::MAX), 4000), 0);
    }

    #[test]
    fn both_widths_agree_at_every_shift() {
        let values =
            [0, 1, -1, 2, -2, 3, 5, -5, 6, -6, 24, -24, 1 << 40, -(1 << 61), 1 << 62, i64::MIN, i64::MAX];
        for rounding in [Rounding::TiesToEven, Rounding::HalfUp, Rounding::Truncate] {
            for (value, shift) in
                values.into_iter().flat_map(|value| (0..130).map(move |shift| (value, shift)))
            {
                let wide = rounding.shift(i128::from(value), shift);
                assert_eq!(
                    i128::from(rounding.shift(value, shift)),
                    wide,
                    "{value} >> {shift}, {rounding:?}"
                );
            }
        }
    }
}
