//! Floating-point stages.

use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::sim::dpu::bench::{BS_STREAM, Bench, OPERAND, OUTPUT, SOURCE};
use crate::sim::float::{from_bf16, from_f16, to_bf16, to_f16};
use crate::sim::{Accumulators, Cube, Products};

/// One pixel of eight fp16 channels in and out.
fn bench(values: &[f32]) -> Bench {
    let mut bench = Bench::flying(1, 1, 8, (2, 2, 2));
    bench.fill_u16(SOURCE, &values.iter().map(|value| to_f16(*value)).collect::<Vec<_>>());
    bench.set(dpu::OUT_CVT_SCALE, 0x1_0001);
    bench
}

fn run(bench: &Bench, count: usize) -> Vec<f32> {
    bench.run(None).unwrap();
    bench.u16s(OUTPUT, count).into_iter().map(from_f16).collect()
}

#[test]
fn bs_and_bn_have_their_orders() {
    let mut bench = bench(&[1.0, -2.0, 0.5, 100.0]);
    bench.set(dpu::BS_CFG, 0x20040);
    bench.set(dpu::BS_ALU_CFG, 1.5f32.to_bits());
    bench.set(dpu::BS_MUL_CFG, u32::from(to_f16(-2.0)) << 16);
    bench.set(dpu::BN_CFG, 0x20000);
    bench.set(dpu::BN_MUL_CFG, u32::from(to_f16(0.25)) << 16);
    bench.set(dpu::BN_ALU_CFG, 3.0f32.to_bits());
    // ((x + 1.5) · -2) / 4 + 3, rectified.
    assert_eq!(run(&bench, 4), [1.75, 3.25, 2.0, 0.0]);
    bench.field(dpu::bn_cfg::BN_RELUX_EN, 1);
    bench.set(dpu::BN_RELUX_CMP_VALUE, 2.5f32.to_bits());
    assert_eq!(run(&bench, 4), [1.75, 2.5, 2.0, 0.0]);
}

#[test]
fn negatives_have_a_slope() {
    let mut bench = bench(&[3.0, -3.0, -0.5, 0.0]);
    bench.set(dpu::BN_CFG, 0x62);
    bench.set(dpu::BN_MUL_CFG, u32::from(to_f16(0.125)) << 16);
    assert_eq!(run(&bench, 4), [3.0, -0.375, -0.0625, 0.0]);
}

#[test]
fn the_alu_divides() {
    let mut bench = bench(&[1.0, -2.0, 0.0, 7.5]);
    bench.fill_u16(OPERAND, &[3.0, 0.5, 1.0, -2.5].map(to_f16));
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_0008);
    let cases: [(u32, [f32; 4]); 7] = [
        (0, [3.0, 0.5, 1.0, 7.5]),
        (1, [1.0, -2.0, 0.0, -2.5]),
        (2, [4.0, -1.5, 1.0, 5.0]),
        (3, [from_f16(to_f16(1.0 / 3.0)), -4.0, 0.0, -3.0]),
        (4, [-2.0, -2.5, -1.0, 10.0]),
        (7, [1.0, -2.0, 0.0, 7.0]),
        (8, [1.0, -2.0, 0.0, 8.0]),
    ];
    for (algorithm, expected) in cases {
        bench.set(dpu::EW_CFG, 1 << 28 | 2 << 22 | 0x2c0 | algorithm << 16);
        assert_eq!(run(&bench, 4), expected, "algorithm {algorithm}");
    }
    bench.set(dpu::EW_CVT_SCALE_VALUE, 2);
    assert!(bench.run(None).unwrap_err().to_string().contains("undecoded"), "a converter in floating point");
}

#[test]
fn scalars_are_single_for_the_alu_and_half_for_the_multiplier() {
    let mut bench = bench(&[1.0, -2.0, 0.5]);
    bench.set(dpu::EW_CFG, 2 << 16 | 0x380);
    bench.set(dpu::EW_OP_VALUE_0, 1.25f32.to_bits());
    assert_eq!(run(&bench, 3), [2.25, -0.75, 1.75]);
    bench.set(dpu::EW_CFG, 0x384);
    bench.set(dpu::EW_OP_VALUE_0, u32::from(to_f16(1.5)));
    assert_eq!(run(&bench, 3), [1.5, -3.0, 0.75]);
}

#[test]
fn one_rounding_leads_to_half_precision() {
    // Between the stages 1 + 2^-12 is kept in f32; rounding to fp16 there would lose it.
    let mut bench = bench(&[1.0]);
    bench.set(dpu::BS_CFG, 0x20050);
    bench.set(dpu::BS_ALU_CFG, 2f32.powi(-12).to_bits());
    bench.set(dpu::BN_CFG, 0x42);
    bench.set(dpu::BN_MUL_CFG, u32::from(to_f16(1.5)) << 16);
    let value = (1.0 + 2f32.powi(-12)) * 1.5;
    assert_eq!(run(&bench, 1), [from_f16(to_f16(value))]);
    bench.set(dpu::OUT_CVT_OFFSET, 3);
    bench.set(dpu::OUT_CVT_SHIFT, 2 << 12);
    assert_eq!(run(&bench, 1), [from_f16(to_f16((value + 3.0) / 4.0))]);
}

#[test]
fn bf16_arithmetic_takes_bf16_operands_of_any_input() {
    let mut bench = Bench::flying(1, 1, 8, (2, 2, 2));
    bench.fill_u16(SOURCE, &[1.0, 3.0].map(to_f16));
    bench.fill_u16(OPERAND, &[0.5, -2.0].map(to_bf16));
    bench.set(dpu::DATA_FORMAT, 2 << 29 | 3 << 26 | 3);
    bench.set(dpu::OUT_CVT_SCALE, 0x1_0001);
    bench.set(dpu::BS_CFG, 0x42);
    bench.set(dpu::BS_MUL_CFG, u32::from(to_bf16(4.0)) << 16);
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_0008);
    bench.set(dpu::EW_CFG, 1 << 28 | 0x3c4);
    assert_eq!(run(&bench, 2), [2.0, -24.0]);
    bench.field(dpu::data_format::OUT_PRECISION, 3);
    bench.run(None).unwrap();
    assert_eq!(bench.u16s(OUTPUT, 2).into_iter().map(from_bf16).collect::<Vec<_>>(), [2.0, -24.0]);
}

#[test]
fn floats_become_integers_to_the_nearest() {
    let mut bench = bench(&[2.5, 3.5, -2.5, 1000.0, -65504.0, 65504.0, f32::NAN, -0.4]);
    bench.field(dpu::data_format::OUT_PRECISION, 1);
    bench.run(None).unwrap();
    let expected = [2i16, 4, -2, 1000, -32_768, 32_767, 0, 0];
    assert_eq!(bench.u16s(OUTPUT, 8), expected.map(|value| value as u16));
    // FP32TOFP16_EN leaves integer outputs alone: 15301 has no fp16 and would become 15304.
    bench.set(dpu::BN_CFG, 0x20010);
    bench.set(dpu::BN_ALU_CFG, 15_300.6f32.to_bits());
    bench.run(None).unwrap();
    assert_eq!(bench.u16s(OUTPUT, 2), [15_303, 15_304]);
}

#[test]
fn sixteen_bit_integers_pass_floating_point_as_they_are() {
    let patterns = [0x7e01, 0xfc00, 0x0001, 0x8000, 0x7fff, 0x3c00, 0xffff, 0x1234];
    let bench = Bench::flying(1, 1, 8, (1, 2, 1));
    bench.fill_u16(SOURCE, &patterns);
    bench.run(None).unwrap();
    assert_eq!(bench.u16s(OUTPUT, 8), patterns);
    let mut bench = bench;
    bench.set(dpu::BS_CFG, 0x42);
    assert!(bench.run(None).unwrap_err().to_string().contains("undecoded"));
}

#[test]
fn single_precision_leaves_behind_a_convolution() {
    let mut bench = Bench::convolution(1, 1, 16, (2, 2, 5));
    bench.set(dpu::BS_CFG, 0x20150);
    bench.field(dpu_rdma::rdma_brdma_cfg::BRDMA_DATA_USE, 1);
    bench.set(dpu::BS_OW_CFG, 0x36e);
    bench.set(dpu::SURFACE_ADD, 64);
    bench.fill_u32(BS_STREAM, &[0.1f32.to_bits(); 16]);
    let cube = Cube { width: 1, height: 1, channels: 16, data: (0..16).map(|i| i as f32 * 0.3).collect() };
    let expected: Vec<i32> = cube.data.iter().map(|value| (value + 0.1).to_bits() as i32).collect();
    let products = Products { accumulators: Accumulators::Float(cube), input_sums: Vec::new() };
    bench.run(Some(products.clone())).unwrap();
    assert_eq!(bench.i32s(OUTPUT, 16), expected);
    bench.set(dpu::OUT_CVT_SCALE, 0x1_0001);
    bench.run(Some(products)).unwrap();
    assert_eq!(bench.i32s(OUTPUT, 16), expected, "FP32TOFP16_EN is for 16-bit outputs");
}
