//! EW and its operand, in integers; the engines' ways of reading it.

use crate::regcmd::Word;
use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::sim::dpu::bench::{Bench, OPERAND, OUTPUT, SOURCE};
use crate::sim::float::to_f16;
use crate::sim::{Accumulators, Cube, Products};

/// EW on, operand from memory a pixel and channel, no table, no rectifier.
const FROM_MEMORY: u32 = 1 << 28 | 0x2c0;

/// int8 in and out with an int8 operand a pixel and channel.
fn bench(values: &[i8], operands: &[i8]) -> Bench {
    let mut bench = Bench::flying(1, 1, 16, (0, 0, 0));
    bench.fill_i8(SOURCE, values);
    bench.fill_i8(OPERAND, operands);
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_0004);
    bench
}

fn run(bench: &Bench, count: usize) -> Vec<i8> {
    bench.run(None).unwrap();
    bench.i8s(OUTPUT, count)
}

#[test]
fn the_alu_knows_its_operations() {
    let mut bench = bench(&[5, -7, 100, -128], &[3, -9, 100, 1]);
    let cases: [(u32, [i8; 4]); 8] = [
        (0, [5, -7, 100, 1]),
        (1, [3, -9, 100, -128]),
        (2, [8, -16, 127, -127]),
        (4, [2, 2, 0, -128]),
        (5, [5, 7, 100, 127]),
        (6, [-5, 7, -100, 127]),
        (7, [5, -7, 100, -128]),
        (8, [5, -7, 100, -128]),
    ];
    for (algorithm, expected) in cases {
        bench.set(dpu::EW_CFG, FROM_MEMORY | algorithm << 16);
        assert_eq!(run(&bench, 4), expected, "algorithm {algorithm}");
    }
    bench.set(dpu::EW_CFG, FROM_MEMORY | 3 << 16);
    assert!(bench.run(None).unwrap_err().to_string().contains("EW_CFG"), "division of integers");
}

#[test]
fn products_are_shifted_by_sign() {
    let mut bench = bench(&[5, -7, 100, 3], &[3, 3, 5, -1]);
    bench.set(dpu::EW_CFG, FROM_MEMORY | 4);
    bench.field(dpu::ew_cvt_scale_value::EW_TRUNCATE, 2);
    bench.field(dpu::data_format::EW_TRUNCATE_NEG, 1);
    // 15/4, -21/2, 500/4, -3/2.
    assert_eq!(run(&bench, 4), [4, -10, 125, -2]);
    bench.field(dpu::ew_cfg::EW_MUL_PRELU, 1);
    assert_eq!(run(&bench, 4), [5, -10, 100, 3]);
}

#[test]
fn operands_are_converted_offset_first_or_last() {
    let mut bench = bench(&[0; 4], &[1, 2, -3, 10]);
    bench.set(dpu::EW_CVT_OFFSET_VALUE, 1);
    bench.set(dpu::EW_CVT_SCALE_VALUE, 1 << 16 | 3);
    bench.set(dpu::EW_CFG, 1 << 31 | FROM_MEMORY | 2 << 16);
    // (e + 1) · 3 / 2: 3, 4.5, -3, 16.5.
    assert_eq!(run(&bench, 4), [3, 4, -3, 16]);
    bench.set(dpu::EW_CFG, FROM_MEMORY | 2 << 16);
    // 3e / 2 + 1: 1.5, 3, -4.5, 15, and one.
    assert_eq!(run(&bench, 4), [3, 4, -3, 16]);
    bench.set(dpu::EW_CVT_SCALE_VALUE, 2 << 16 | 0xfffd);
    // -3e / 4 + 1: -0.75, -1.5, 2.25, -7.5.
    assert_eq!(run(&bench, 4), [0, -1, 3, -7]);
}

#[test]
fn an_operand_may_be_a_register_or_one_a_channel() {
    let mut bench = bench(&[5, -7, 100, 3], &[]);
    bench.set(dpu::EW_CFG, 2 << 16 | 0x380);
    bench.set(dpu::EW_OP_VALUE_0, 0xfffe);
    assert_eq!(run(&bench, 4), [3, -9, 98, 1], "signed 16 bits");
    bench.set(dpu::EW_OP_VALUE_1, 5);
    assert!(bench.run(None).unwrap_err().to_string().contains("EW_OP_VALUE_1"));

    let mut bench = Bench::flying(2, 1, 16, (0, 0, 0));
    bench.fill_i8(SOURCE, &[1; 32]);
    bench.fill_i8(OPERAND, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 4);
    bench.set(dpu::EW_CFG, 2 << 16 | 0x2c0);
    bench.run(None).unwrap();
    let expected: Vec<i8> = (2..18).chain(2..18).collect();
    assert_eq!(bench.i8s(OUTPUT, 32), expected);
}

#[test]
fn both_engines_share_the_surfaces_of_one_cube() {
    // Main: three surfaces of two pixels, odd ones from ERDMA's buffer; each engine steps by its own notch.
    let mut bench = Bench::flying(2, 1, 48, (0, 0, 0));
    bench.field(dpu_rdma::rdma_feature_mode_cfg::COMB_USE, 3);
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_0004);
    bench.set(dpu_rdma::RDMA_SURF_NOTCH, 2 * 16);
    bench.set(dpu_rdma::RDMA_EW_SURF_NOTCH, 2 * 16);
    bench.fill_i8(SOURCE, &[1; 32]);
    bench.fill_i8(SOURCE + 64, &[3; 32]);
    bench.fill_i8(OPERAND, &[2; 32]);
    bench.run(None).unwrap();
    let expected: Vec<i8> = [1, 2, 3].into_iter().flat_map(|value| [value; 32]).collect();
    assert_eq!(bench.i8s(OUTPUT, 96), expected);
    bench.set(dpu_rdma::RDMA_EW_SURF_NOTCH, 0);
    assert!(bench.run(None).unwrap_err().to_string().contains("RDMA_ERDMA_CFG"), "strides differ");

    // Operand: the same, behind a convolution.
    let mut bench = Bench::convolution(1, 1, 32, (0, 0, 0));
    bench.field(dpu_rdma::rdma_feature_mode_cfg::COMB_USE, 5);
    bench.field(dpu_rdma::rdma_feature_mode_cfg::MRDMA_DISABLE, 0);
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_0004);
    bench.set(dpu::EW_CFG, FROM_MEMORY | 2 << 16);
    bench.fill_i8(SOURCE, &[10; 16]);
    bench.fill_i8(OPERAND, &[20; 16]);
    let cube = Cube { width: 1, height: 1, channels: 32, data: (0..32).collect() };
    let products = Products { accumulators: Accumulators::Int(cube), input_sums: Vec::new() };
    bench.run(Some(products)).unwrap();
    let expected: Vec<i8> = (10..26).chain(36..52).collect();
    assert_eq!(bench.i8s(OUTPUT, 32), expected);
}

/// Words that load both tables: LE is the index + 10000, LO twice the index.
fn tables() -> Vec<Word> {
    let mut words = Vec::new();
    for (id, entry) in [(0, (|i| 10_000 - 16_384 + 32 * i) as fn(i32) -> i32), (1, |i| (64 * i).min(32_767))]
    {
        words.push(Word::write(dpu::LUT_ACCESS_CFG, 0x20000 | id << 16));
        words.extend((0..513).map(|i| Word::write(dpu::LUT_ACCESS_DATA, entry(i) as u16 as u32)));
    }
    words
}

#[test]
fn tables_interpolate_and_go_on_along_their_slopes() {
    let mut bench = Bench::flying(1, 1, 8, (1, 0, 1));
    bench.uploads = tables();
    bench.set(dpu::EW_CFG, 0x302);
    bench.set(dpu::LUT_CFG, 0x68);
    bench.set(dpu::LUT_INFO, 0x50500);
    bench.set(dpu::LUT_LE_START, -16_384i32 as u32);
    bench.set(dpu::LUT_LO_END, 16_384);
    // Below LE: -3/4 a step; above LO: half a step.
    bench.set(dpu::LUT_LE_SLOPE_SCALE, 0xfffd);
    bench.set(dpu::LUT_LE_SLOPE_SHIFT, 2);
    bench.set(dpu::LUT_LO_SLOPE_SCALE, 1 << 16);
    bench.set(dpu::LUT_LO_SLOPE_SHIFT, 1 << 5);
    let indices = [-16_384i16, -16_390, -1, 0, 1, 16_383, 16_384, 16_391];
    bench.fill_u16(SOURCE, &indices.map(|index| index as u16));
    bench.run(None).unwrap();
    // -6384 - 6 · -3/4 = -6379.5 to even; LE[512] is 10000; 32704 + 31/32 · 63 = 32765.03; 32767 + 3.5 saturates.
    let expected = [-6384i16, -6380, 9999, 0, 2, 32_765, 32_767, 32_767];
    assert_eq!(bench.u16s(OUTPUT, 8), expected.map(|value| value as u16));
}

#[test]
fn a_table_that_was_not_loaded_is_an_error() {
    let mut bench = bench(&[1; 4], &[]);
    bench.set(dpu::EW_CFG, 0x302);
    bench.set(dpu::LUT_CFG, 0x68);
    bench.set(dpu::LUT_INFO, 0x50500);
    bench.set(dpu::LUT_LE_START, -16_384i32 as u32);
    bench.set(dpu::LUT_LO_END, 16_384);
    assert!(bench.run(None).unwrap_err().to_string().contains("never loaded"));
    bench.uploads = tables();
    bench.run(None).unwrap();
    for (register, value) in [(dpu::LUT_LO_END, 16_385), (dpu::LUT_LO_END, 0), (dpu::LUT_LE_START, 1 << 31)] {
        let before = if register == dpu::LUT_LO_END { 16_384 } else { -16_384i32 as u32 };
        bench.set(register, value);
        assert!(bench.run(None).unwrap_err().to_string().contains("LUT_L"), "{register} {value:#x}");
        bench.set(register, before);
    }
}

#[test]
fn single_precision_codes_come_back_by_both_engines() {
    // What the second pass of a signed table in fp16 does: f32 in, even surfaces here, odd there, two multipliers.
    let mut bench = Bench::flying(1, 1, 8, (5, 2, 2));
    bench.field(dpu_rdma::rdma_feature_mode_cfg::COMB_USE, 3);
    bench.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_000c);
    bench.fill_u32(SOURCE, &[1.0f32, -32_768.0, 1e30, 0.5].map(f32::to_bits));
    bench.fill_u32(OPERAND, &[4.0f32, 6.0, -2.0, 0.0].map(f32::to_bits));
    for (config, operand) in [(dpu::BS_CFG, dpu::BS_MUL_CFG), (dpu::BN_CFG, dpu::BN_MUL_CFG)] {
        bench.set(config, 0x42);
        bench.set(operand, u32::from(to_f16(0.125)) << 16);
    }
    bench.set(dpu::OUT_CVT_SCALE, 0x1_0001);
    bench.run(None).unwrap();
    let expected = [1.0 / 64.0, -512.0, f32::INFINITY, 0.5 / 64.0, 0.0625, 0.09375, -0.03125, 0.0];
    assert_eq!(bench.u16s(OUTPUT, 8), expected.map(to_f16));
}
