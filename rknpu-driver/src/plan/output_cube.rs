//! The output of an uncut product, for readers that take it where it lies.

use super::MatmulPlan;

/// Where outputs lie when all of them are in one cube and none is a part of a sum.
///
/// The output of row m and column n is element `n / atom · group_stride + m · row_stride + n % atom`, from
/// the start of the plan's output on. Elements are what the device writes: int32 and binary32 have atoms of
/// 4, int16 of 8, int8 of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutputCube {
    /// Columns that lie side by side.
    pub atom: usize,
    /// Elements from a row to the next within a group of `atom` columns.
    pub row_stride: usize,
    /// Elements from a group of columns to the next.
    pub group_stride: usize,
}

impl MatmulPlan {
    /// The cube that holds every output; None where K is cut into slices that are added up, or rows into
    /// tiles, which have cubes of their own. Then [`read_output_i32`](Self::read_output_i32) puts them
    /// together.
    pub fn output_cube(&self) -> Option<OutputCube> {
        match &self.blocks[..] {
            [block] if block.stack.slices == 1 => {
                let cube = &block.output;
                Some(OutputCube {
                    atom: cube.atom,
                    row_stride: cube.atom,
                    group_stride: cube.surface * cube.atom,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{OutputStage, PlanOptions, Requantise};
    use super::*;
    use crate::oracle::Generator;
    use crate::shape::{MatmulShape, Precision};

    /// Compares the output buffer's bytes read in place with rows as the plan reads them.
    fn same<T: PartialEq>(
        plan: &MatmulPlan,
        rows: &[T],
        bytes: &[u8],
        size: usize,
        value: impl Fn(&[u8]) -> T,
    ) {
        let (cube, outputs) = (plan.output_cube().expect("one cube"), plan.shape().outputs);
        for (index, expected) in rows.iter().enumerate() {
            let (m, n) = (index / outputs, index % outputs);
            let at = n / cube.atom * cube.group_stride + m * cube.row_stride + n % cube.atom;
            assert!(value(&bytes[at * size..][..size]) == *expected, "{}: row {m}, column {n}", plan.shape());
        }
    }

    proptest! {
        #[test]
        fn outputs_read_in_place_are_those_that_are_read(
            precision in prop::sample::select(&Precision::ALL[..]),
            rows in 1usize..400,
            inner in 1usize..4000,
            outputs in 1usize..300,
            cores in 1usize..=3,
            requantised: bool,
            seed: u64,
        ) {
            let shape = MatmulShape { rows, inner, outputs, precision };
            let mut options = PlanOptions { cores, ..PlanOptions::default() };
            let requantised = requantised && precision == Precision::Int8;
            if requantised {
                let requantise = Requantise { scale: 1, shift: 0, offset: 0, per_channel: false };
                options.output = OutputStage::Requantised(requantise);
            }
            let plan = MatmulPlan::new(shape, &options).expect("a small shape has a plan");
            let whole = plan.slices() == 1 && plan.choice().tiling.tile_rows >= rows;
            prop_assert_eq!(plan.output_cube().is_some(), whole, "{:?}", plan.choice());
            if !whole {
                return Ok(());
            }
            let bytes = Generator::new(seed).int8(plan.output_bytes());
            let bytes: Vec<u8> = bytes.into_iter().map(i8::cast_unsigned).collect();
            let len = rows * outputs;
            if requantised {
                let mut out = vec![0; len];
                plan.read_output_i8(&bytes, &mut out, outputs);
                same(&plan, &out, &bytes, 1, |bytes| bytes[0].cast_signed());
            } else if precision == Precision::Fp16 {
                let mut out = vec![0.0; len];
                plan.read_output_f32(&bytes, &mut out, outputs);
                let out: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
                same(&plan, &out, &bytes, 4, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            } else {
                let mut out = vec![0; len];
                plan.read_output_i32(&bytes, &mut out, outputs);
                match precision {
                    Precision::Int4 => {
                        let value = |bytes: &[u8]| i32::from(i16::from_le_bytes([bytes[0], bytes[1]]));
                        same(&plan, &out, &bytes, 2, value);
                    }
                    Precision::Int8 | Precision::Fp16 => {
                        let value =
                            |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                        same(&plan, &out, &bytes, 4, value);
                    }
                }
            }
        }
    }

    #[test]
    fn a_decoding_step_is_one_cube_of_surfaces_a_pixel_wide() {
        let shape = MatmulShape { rows: 1, inner: 896, outputs: 128, precision: Precision::Int8 };
        let plan = MatmulPlan::new(shape, &PlanOptions::default()).expect("planned");
        assert_eq!(plan.output_cube(), Some(OutputCube { atom: 4, row_stride: 4, group_stride: 4 }));
        let five = MatmulPlan::new(MatmulShape { rows: 5, ..shape }, &PlanOptions::default());
        let five = five.expect("planned").output_cube();
        assert_eq!(five, Some(OutputCube { atom: 4, row_stride: 4, group_stride: 32 }));
    }
}
