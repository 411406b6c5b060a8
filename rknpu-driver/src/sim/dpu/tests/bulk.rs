//! The bulk path against the general one, and whole tasks against small formulas.

use proptest::prelude::*;

use crate::regcmd::registers::dpu;
use crate::sim::dpu::bench::{Bench, OUTPUT, SOURCE};
use crate::sim::{Accumulators, Cube, Products, Unwritten};

/// A convolution's accumulators with int32 read-back.
fn read_back(size: (usize, usize, usize), real: usize, notch: u32, data: &[i32]) -> (Bench, Products) {
    let (width, height, channels) = size;
    let mut bench = Bench::convolution(width as u32, height as u32, channels as u32, (0, 0, 4));
    bench.field(dpu::data_cube_channel::ORIG_CHANNEL, real as u32 - 1);
    bench.set(dpu::DATA_CUBE_NOTCH_ADDR, notch << 16 | notch);
    let plane = (width as u32 + notch) * height as u32 * 16;
    bench.set(dpu::DST_SURF_STRIDE, plane);
    bench.set(dpu::BS_OW_CFG, 7 << 8 | 7 << 5 | 7 << 2 | 2);
    bench.set(dpu::SURFACE_ADD, plane * 8);
    let data = data.iter().copied().cycle().take(width * height * channels).collect();
    let cube = Cube { width, height, channels, data };
    (bench, Products { accumulators: Accumulators::Int(cube), input_sums: Vec::new() })
}

/// All the output, unwritten bytes as zeros.
fn image(bench: &Bench) -> Vec<u8> {
    let copy = crate::sim::Memory::new(Unwritten::Zero);
    copy.map(OUTPUT, bench.memory.unmap(OUTPUT).expect("the bench mapped it")).expect("the space is empty");
    let mut bytes = vec![0; 1 << 18];
    copy.read(OUTPUT, &mut bytes).expect("zeros where nobody wrote");
    bytes
}

proptest! {
    #[test]
    fn the_bulk_path_equals_the_general_one(
        width in 1usize..40,
        height in 1usize..4,
        groups in 1usize..3,
        cut in 0usize..32,
        notch in 0u32..3,
        data in prop::collection::vec(any::<i32>(), 1..300),
    ) {
        let channels = groups * 32;
        let (bulk, products) = read_back((width, height, channels), channels - cut, notch, &data);
        let fast = bulk.run_with(0x8, Some(products.clone())).unwrap();
        let (mut general, _) = read_back((width, height, channels), channels - cut, notch, &data);
        // Adding zero changes nothing but the path.
        general.set(dpu::BS_CFG, 0x20050);
        let slow = general.run_with(0x8, Some(products)).unwrap();
        prop_assert_eq!(fast, slow);
        prop_assert!(image(&bulk) == image(&general));
    }

    #[test]
    fn integer_tasks_follow_the_formula(
        values in prop::collection::vec(any::<i8>(), 32),
        bias in -100_000i32..100_000,
        multiplier in any::<i16>(),
        shift in 0u32..20,
        scale in any::<i16>(),
        out_shift in 0u32..40,
        offset in -128i32..128,
        relu in any::<bool>(),
    ) {
        let mut bench = Bench::flying(2, 1, 16, (0, 0, 0));
        bench.fill_i8(SOURCE, &values);
        bench.set(dpu::BS_CFG, if relu { 0x20000 } else { 0x20040 });
        bench.set(dpu::BS_ALU_CFG, bias as u32);
        bench.set(dpu::BS_MUL_CFG, u32::from(multiplier as u16) << 16 | shift << 8);
        bench.field(dpu::data_format::BS_MUL_SHIFT_VALUE_NEG, shift);
        bench.set(dpu::OUT_CVT_SCALE, u32::from(scale as u16));
        bench.set(dpu::OUT_CVT_SHIFT, out_shift);
        bench.set(dpu::OUT_CVT_OFFSET, offset as u32);
        bench.run(None).unwrap();
        let expected: Vec<i8> = values.iter().map(|value| {
            let product = (i128::from(*value) + i128::from(bias)) * i128::from(multiplier);
            let staged = even(product, shift);
            let rectified = if relu { staged.max(0) } else { staged };
            let out = even(rectified * i128::from(scale), out_shift) + i128::from(offset);
            out.clamp(-128, 127) as i8
        }).collect();
        prop_assert_eq!(bench.i8s(OUTPUT, 32), expected);
    }
}

/// `value / 2^shift` to the nearest, ties to even, by division with remainder.
fn even(value: i128, shift: u32) -> i128 {
    let unit = 1i128 << shift;
    let (quotient, rest) = (value.div_euclid(unit), value.rem_euclid(unit));
    match (rest * 2).cmp(&unit) {
        std::cmp::Ordering::Less => quotient,
        std::cmp::Ordering::Greater => quotient + 1,
        std::cmp::Ordering::Equal => quotient + quotient.rem_euclid(2),
    }
}
