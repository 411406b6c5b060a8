//! Integer stages.

use crate::regcmd::registers::dpu;
use crate::sim::dpu::bench::{BN_STREAM, BS_STREAM, Bench, OUTPUT, SOURCE};
use crate::sim::{Accumulators, Cube, OutRounding, Products, Rounding};

/// One pixel of int8 in and out.
fn bench(values: &[i8]) -> Bench {
    let bench = Bench::flying(1, 1, 16, (0, 0, 0));
    bench.fill_i8(SOURCE, values);
    bench
}

fn run(bench: &Bench, count: usize) -> Vec<i8> {
    bench.run(None).unwrap();
    bench.i8s(OUTPUT, count)
}

/// Accumulators of one pixel.
fn accumulators(values: &[i32]) -> Products {
    let cube = Cube { width: 1, height: 1, channels: values.len(), data: values.to_vec() };
    Products { accumulators: Accumulators::Int(cube), input_sums: Vec::new() }
}

#[test]
fn the_output_converter_rounds_ties_to_even_and_saturates() {
    let mut bench = bench(&[1, 3, -1, -3, 2, 5, 127, -128]);
    bench.set(dpu::OUT_CVT_SHIFT, 1);
    assert_eq!(run(&bench, 8), [0, 2, 0, -2, 1, 2, 64, -64]);
    bench.set(dpu::OUT_CVT_SHIFT, 1 << 30 | 1);
    assert_eq!(run(&bench, 8), [1, 2, 0, -1, 1, 3, 64, -64]);
    bench.options.out_rounding = OutRounding::Always(Rounding::Truncate);
    assert_eq!(run(&bench, 8), [0, 1, -1, -2, 1, 2, 63, -64]);
    bench.options.out_rounding = OutRounding::AsConfigured;
    bench.set(dpu::OUT_CVT_SHIFT, 0);
    bench.set(dpu::OUT_CVT_SCALE, 3);
    bench.set(dpu::OUT_CVT_OFFSET, -10i32 as u32);
    assert_eq!(run(&bench, 8), [-7, -1, -13, -19, -4, 5, 127, -128]);
}

#[test]
fn the_output_offset_comes_first_or_last() {
    let mut bench = bench(&[1, 2, 3, -4]);
    bench.set(dpu::OUT_CVT_SCALE, 5);
    bench.set(dpu::OUT_CVT_OFFSET, 2);
    bench.set(dpu::OUT_CVT_SHIFT, 2);
    // 5/4, 10/4, 15/4, -20/4 and two.
    assert_eq!(run(&bench, 4), [3, 4, 6, -3]);
    bench.set(dpu::OUT_CVT_SHIFT, 1 << 31 | 2);
    // 15/4, 20/4, 25/4, -10/4.
    assert_eq!(run(&bench, 4), [4, 5, 6, -2]);
}

#[test]
fn a_negative_scale_and_a_long_shift_are_taken() {
    let mut bench = bench(&[1, -100, 127, -128]);
    bench.set(dpu::OUT_CVT_SCALE, 0xffff);
    assert_eq!(run(&bench, 4), [-1, 100, -127, 127]);
    for shift in [40, 62, 63, 4095] {
        bench.set(dpu::OUT_CVT_SHIFT, shift);
        assert_eq!(run(&bench, 4), [0, 0, 0, 0], "shift {shift}");
    }
}

#[test]
fn bs_adds_multiplies_shifts_and_rectifies_in_this_order() {
    let mut bench = bench(&[1, 2, -3, 50, -50]);
    bench.set(dpu::BS_CFG, 0x20000); // add, multiply, rectify, operands from registers
    bench.set(dpu::BS_ALU_CFG, -1i32 as u32);
    bench.set(dpu::BS_MUL_CFG, 3 << 16 | 1 << 8);
    bench.field(dpu::data_format::BS_MUL_SHIFT_VALUE_NEG, 1);
    // (x - 1) · 3 / 2: 0, 1.5, -6, 73.5, -76.5.
    assert_eq!(run(&bench, 5), [0, 2, 0, 74, 0]);
    bench.field(dpu::bs_cfg::BS_RELU_BYPASS, 1);
    assert_eq!(run(&bench, 5), [0, 2, -6, 74, -76]);
    bench.field(dpu::data_format::BS_MUL_SHIFT_VALUE_NEG, 3);
    // Negative products have a shift of their own: -12/8 = -1.5, -153/8 = -19.125.
    assert_eq!(run(&bench, 5), [0, 2, -2, 74, -19]);
    bench.options.shift_rounding = Rounding::Truncate;
    assert_eq!(run(&bench, 5), [0, 1, -2, 73, -20]);
}

#[test]
fn bn_multiplies_adds_and_shifts_in_this_order() {
    let mut bench = bench(&[1, 2, -3, 20]);
    bench.set(dpu::BN_CFG, 0x20040);
    bench.set(dpu::BN_ALU_CFG, 4);
    bench.set(dpu::BN_MUL_CFG, 6 << 16 | 2 << 8);
    bench.field(dpu::data_format::BN_MUL_SHIFT_VALUE_NEG, 2);
    // (6x + 4) / 4: 2.5, 4, -3.5, 31.
    assert_eq!(run(&bench, 4), [2, 4, -4, 31]);
    bench.set(dpu::BN_CFG, 0x20080); // limited rectifier
    bench.set(dpu::BN_RELUX_CMP_VALUE, 6);
    assert_eq!(run(&bench, 4), [2, 4, 0, 6]);
}

#[test]
fn a_parametric_rectifier_touches_negatives_only() {
    let mut bench = bench(&[100, -100, 0, -6]);
    bench.set(dpu::BS_CFG, 0x62); // multiply, PReLU, no ALU, no rectifier
    bench.set(dpu::BS_MUL_CFG, 5 << 16 | 2 << 8);
    bench.field(dpu::data_format::BS_MUL_SHIFT_VALUE_NEG, 2);
    // -500/4 = -125, -30/4 = -7.5.
    assert_eq!(run(&bench, 4), [100, -125, 0, -8]);
}

#[test]
fn operands_come_per_channel_in_groups_of_eight() {
    let mut bench = Bench::convolution(1, 1, 32, (0, 0, 0));
    bench.field(dpu::data_cube_channel::ORIG_CHANNEL, 9);
    bench.set(dpu::BS_CFG, 0x20140);
    bench.set(dpu::BS_MUL_CFG, 2 << 8 | 1);
    bench.field(dpu::data_format::BS_MUL_SHIFT_VALUE_NEG, 2);
    bench.set(dpu::BS_OW_CFG, 1);
    bench.field(crate::regcmd::registers::dpu_rdma::rdma_brdma_cfg::BRDMA_DATA_USE, 7);
    // Two groups: eight 32-bit sums, eight factors of the input sum, eight multipliers.
    for group in 0..2u32 {
        let at = BS_STREAM + group * 64;
        let biases: Vec<u32> = (0..8).map(|i| 10 * (group * 8 + i)).collect();
        bench.fill_u32(at, &biases);
        bench.fill_u16(at + 32, &[0, 1, 2, 3, 4, 5, 6, 0xffff]);
        bench.fill_u16(at + 48, &[4, 4, 4, 4, 4, 4, 4, 8]);
    }
    let products = Products { input_sums: vec![-3], ..accumulators(&[1; 32]) };
    bench.run(Some(products)).unwrap();
    // 1 - 3 · factor + 10 · channel; channel 7 has factor -1 and twice the multiplier.
    assert_eq!(bench.i8s(OUTPUT, 10), [1, 8, 15, 22, 29, 36, 43, 127, 81, 88]);
    assert_eq!(bench.i8s(OUTPUT + 10, 22), [0; 22], "pad lanes");
}

#[test]
fn bn_takes_its_operands_from_nrdma() {
    use crate::regcmd::registers::dpu_rdma;
    let mut bench = bench(&[1, 2, 3, 4, 5, 6, 7, 8]);
    bench.set(dpu::BN_CFG, 0x20150); // add, operands from memory
    bench.field(dpu_rdma::rdma_nrdma_cfg::NRDMA_DATA_USE, 1);
    bench.fill_u32(BN_STREAM, &[10, -10i32 as u32, 0, 100, 1 << 20, -(1i32 << 20) as u32, 0, 1]);
    bench.fill_u32(BN_STREAM + 32, &[0; 8]);
    assert_eq!(run(&bench, 8), [11, -8, 3, 104, 127, -128, 7, 9]);
}

#[test]
fn the_sum_of_inputs_is_multiplied_by_a_register() {
    let mut bench = Bench::convolution(2, 1, 16, (0, 0, 4));
    bench.set(dpu::BS_OW_CFG, 0);
    bench.set(dpu::BS_OW_OP, 0xfffe);
    let cube = Cube { width: 2, height: 1, channels: 16, data: (0..32).collect() };
    let products = Products { accumulators: Accumulators::Int(cube), input_sums: vec![7, -9] };
    bench.run_with(0x8, Some(products.clone())).unwrap();
    assert_eq!(bench.i32s(OUTPUT, 8), [-14, -13, -12, -11, 34, 35, 36, 37]);
    let missing = Products { input_sums: Vec::new(), ..products };
    let error = bench.run_with(0x8, Some(missing)).unwrap_err();
    assert!(error.to_string().contains("BS_OW_CFG"), "{error}");
}

#[test]
fn int16_accumulators_are_48_bits_wide() {
    let mut bench = Bench::convolution(1, 1, 16, (1, 1, 1));
    bench.set(dpu::OUT_CVT_SCALE, 1);
    bench.set(dpu::OUT_CVT_SHIFT, 32);
    let mut data = vec![0i64; 16];
    data[..5].copy_from_slice(&[1 << 40, -(1 << 46), 3 << 31, 1 << 60, i64::MIN]);
    let cube = Cube { width: 1, height: 1, channels: 16, data };
    let products = Products { accumulators: Accumulators::Wide(cube), input_sums: Vec::new() };
    bench.run_with(0x8, Some(products)).unwrap();
    // 2^40 / 2^32, -2^46 / 2^32, 1.5, and both ends of 48 bits.
    assert_eq!(bench.u16s(OUTPUT, 5), [256, -16384i16 as u16, 2, 32767, -32768i16 as u16]);
}

#[test]
fn integers_become_halves_with_an_exponent() {
    let mut bench = Bench::flying(1, 1, 16, (0, 0, 2));
    bench.set(dpu::BS_OW_CFG, 0x126);
    bench.set(dpu::SURFACE_ADD, 32);
    bench.fill_i8(SOURCE, &[0, 1, -1, 100, -128, 127, 3, 5]);
    bench.set(dpu::OUT_CVT_SCALE, 0x1_0000 | 0x4000);
    bench.set(dpu::OUT_CVT_SHIFT, 13 << 12 | 6);
    bench.run(None).unwrap();
    // x · 2^14 / 2^6 / 2^13 = x / 32.
    let halves: Vec<f32> = bench.u16s(OUTPUT, 8).into_iter().map(crate::sim::float::from_f16).collect();
    assert_eq!(halves, [0.0, 0.03125, -0.03125, 3.125, -4.0, 3.96875, 0.09375, 0.15625]);
}
