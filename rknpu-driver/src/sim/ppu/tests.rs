//! Tests of the PPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::regcmd::registers::{ALL, ppu, ppu_rdma};
use crate::regcmd::{Block, Field, Register, Word};
use crate::sim::float::{from_f16, to_f16};
use crate::sim::registers::Blocks;
use crate::sim::{Backing, Memory, Options, SimError, Unwritten};
use crate::timing::TaskWork;

const SOURCE: u32 = 0x10_0000;
const OUTPUT: u32 = 0x20_0000;

/// A pooling task with its memory.
struct Bench {
    values: BTreeMap<u16, (Block, u32)>,
    memory: Memory,
}

/// Width and height.
type Size = (u32, u32);

impl Bench {
    /// A dense cube, pooled. `precision` 0 int8, 1 int16, 2 fp16; `method` 0 average, 1 maximum, 2 minimum.
    fn new(
        precision: u32,
        method: u32,
        channels: u32,
        input: Size,
        kernel: Size,
        stride: Size,
        output: Size,
    ) -> Self {
        let memory = Memory::new(Unwritten::Error);
        for base in [SOURCE, OUTPUT] {
            memory.map(base, Arc::new(Backing::new(1 << 16).unwrap())).unwrap();
        }
        let mut bench = Self { values: BTreeMap::new(), memory };
        for register in registers() {
            bench.set(register, 0);
        }
        for (register, size) in [
            (ppu::DATA_CUBE_IN_WIDTH, input.0),
            (ppu::DATA_CUBE_IN_HEIGHT, input.1),
            (ppu::DATA_CUBE_IN_CHANNEL, channels),
            (ppu::DATA_CUBE_OUT_WIDTH, output.0),
            (ppu::DATA_CUBE_OUT_HEIGHT, output.1),
            (ppu::DATA_CUBE_OUT_CHANNEL, channels),
            (ppu_rdma::RDMA_CUBE_IN_WIDTH, input.0),
            (ppu_rdma::RDMA_CUBE_IN_HEIGHT, input.1),
            (ppu_rdma::RDMA_CUBE_IN_CHANNEL, channels),
        ] {
            bench.set(register, size - 1);
        }
        bench.set(ppu::OPERATION_MODE_CFG, 0x10 | method);
        let kernel_bits = (kernel.1 - 1) << 8 | (kernel.0 - 1);
        bench.set(ppu::POOLING_KERNEL_CFG, (stride.1 - 1) << 20 | (stride.0 - 1) << 16 | kernel_bits);
        bench.set(ppu::DST_BASE_ADDR, OUTPUT);
        bench.set(ppu::DST_SURF_STRIDE, output.0 * output.1 * 16);
        bench.set(ppu::DATA_FORMAT, 1 << 4 | precision);
        bench.set(ppu_rdma::RDMA_SRC_BASE_ADDR, SOURCE);
        bench.set(ppu_rdma::RDMA_SRC_LINE_STRIDE, input.0 * 16);
        bench.set(ppu_rdma::RDMA_SRC_SURF_STRIDE, input.0 * input.1 * 16);
        bench.set(ppu_rdma::RDMA_DATA_FORMAT, if precision == 0 { 1 } else { 2 });
        bench
    }

    fn set(&mut self, register: Register, value: u32) {
        self.values.insert(register.offset, (register.block, value));
    }

    fn field(&mut self, field: Field, value: u32) {
        let (_, register) = self.values.get_mut(&field.register).expect("all registers are set");
        *register = field.put(*register, value);
    }

    fn run(&self) -> Result<TaskWork, SimError> {
        let mut blocks = Blocks::default();
        for (offset, (block, value)) in &self.values {
            blocks.write(Word::new(block.target(), *offset, *value))?;
        }
        blocks.arm(0x60, 0)?;
        let mut work = TaskWork::default();
        super::run(&blocks, &self.memory, &Options::default(), &mut work)?;
        Ok(work)
    }

    /// Writes one int8 value a pixel, in all 16 lanes.
    fn fill_i8(&self, values: &[i8]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| [*value as u8; 16]).collect();
        self.memory.write(SOURCE, &bytes).unwrap();
    }

    /// The first lane of every pixel of the output's first surface.
    fn i8s(&self, pixels: usize) -> Vec<i8> {
        let mut bytes = vec![0; pixels * 16];
        self.memory.read(OUTPUT, &mut bytes).unwrap();
        bytes.chunks_exact(16).map(|atom| atom[0] as i8).collect()
    }

    /// Writes one fp16 value a pixel, in all eight lanes.
    fn fill_f16(&self, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| to_f16(*value).to_le_bytes().repeat(8)).collect();
        self.memory.write(SOURCE, &bytes).unwrap();
    }

    fn f16s(&self, pixels: usize) -> Vec<f32> {
        let mut bytes = vec![0; pixels * 16];
        self.memory.read(OUTPUT, &mut bytes).unwrap();
        bytes.chunks_exact(16).map(|atom| from_f16(u16::from_le_bytes([atom[0], atom[1]]))).collect()
    }
}

fn registers() -> Vec<Register> {
    let ours = |register: &&Register| matches!(register.block, Block::Ppu | Block::PpuRdma);
    ALL.iter().filter(ours).filter(|register| register.offset & 0xfff >= 0xc).copied().collect()
}

#[test]
fn the_join_marker_of_multi_core_programmes_copies_one_pixel() {
    let bench = Bench::new(0, 1, 32, (1, 1), (1, 1), (1, 1), (1, 1));
    let bytes: Vec<u8> = (0..32).collect();
    bench.memory.write(SOURCE, &bytes).unwrap();
    let work = bench.run().unwrap();
    let mut out = [0; 32];
    bench.memory.read(OUTPUT, &mut out).unwrap();
    assert_eq!(out[..], bytes[..]);
    assert_eq!((work.read_bytes, work.write_bytes), (32, 32));
}

#[test]
fn windows_step_and_signs_count() {
    let values = [1, -2, 3, 4, -5, 6, -7, 8, 9, -10, 11, -12];
    for (method, expected) in [(1, [6, 8]), (2, [-5, -7])] {
        let bench = Bench::new(0, method, 16, (4, 3), (2, 2), (2, 1), (2, 1));
        bench.fill_i8(&values);
        bench.run().unwrap();
        assert_eq!(bench.i8s(2), expected, "method {method}");
    }
    let bench = Bench::new(0, 1, 16, (4, 3), (2, 2), (2, 1), (2, 2));
    bench.fill_i8(&values);
    bench.run().unwrap();
    assert_eq!(bench.i8s(4), [6, 8, 9, 11]);
}

#[test]
fn integer_averages_multiply_by_sixteenth_bit_reciprocals() {
    let mut bench = Bench::new(0, 0, 16, (3, 3), (3, 3), (1, 1), (1, 1));
    bench.set(ppu::RECIP_KERNEL_WIDTH, 21_845);
    bench.set(ppu::RECIP_KERNEL_HEIGHT, 21_845);
    bench.fill_i8(&[-7; 9]);
    bench.run().unwrap();
    assert_eq!(bench.i8s(1), [-7]);
    bench.fill_i8(&[9, 0, 0, 0, 0, 0, 0, 0, 5]);
    bench.run().unwrap();
    // 14/3 = 4.67 to 5, 5/3 to 2.
    assert_eq!(bench.i8s(1), [2]);
}

#[test]
fn float_averages_multiply_by_seventeen_bit_floats() {
    let mut bench = Bench::new(2, 0, 8, (2, 2), (2, 2), (1, 1), (1, 1));
    bench.fill_f16(&[1.0, 2.0, 3.0, 5.0]);
    // 0x7800 is one half.
    bench.set(ppu::RECIP_KERNEL_WIDTH, 0x7800);
    bench.set(ppu::RECIP_KERNEL_HEIGHT, 0x7800);
    bench.run().unwrap();
    assert_eq!(bench.f16s(1), [2.75]);
    bench.set(ppu::RECIP_KERNEL_HEIGHT, 0x1_7a00);
    bench.run().unwrap();
    assert_eq!(bench.f16s(1), [-11.0 / 2.0 * 0.75]);
}

#[test]
fn padding_surrounds_the_input() {
    let mut bench = Bench::new(0, 1, 16, (2, 2), (2, 2), (1, 1), (3, 3));
    bench.set(ppu::POOLING_PADDING_CFG, 0x1111);
    bench.set(ppu::PADDING_VALUE_1_CFG, -3i32 as u32);
    bench.fill_i8(&[-1, -5, -7, -9]);
    bench.run().unwrap();
    assert_eq!(bench.i8s(9), [-1, -1, -3, -1, -1, -3, -3, -3, -3]);
    bench.field(ppu::pooling_padding_cfg::PAD_RIGHT, 0);
    let error = bench.run().unwrap_err();
    assert!(error.to_string().contains("DATA_CUBE_OUT_WIDTH"), "{error}");

    let mut bench = Bench::new(2, 1, 8, (1, 1), (2, 1), (1, 1), (1, 1));
    bench.field(ppu::pooling_padding_cfg::PAD_LEFT, 1);
    bench.set(ppu::PADDING_VALUE_1_CFG, 0xfc00);
    bench.fill_f16(&[-100.0]);
    bench.run().unwrap();
    assert_eq!(bench.f16s(1), [-100.0]);
}

#[test]
fn what_is_unknown_or_contradictory_is_named() {
    let cases: [(Field, u32, &str); 8] = [
        (ppu::operation_mode_cfg::FLYING_MODE, 0, "OPERATION_MODE_CFG"),
        (ppu::operation_mode_cfg::INDEX_EN, 1, "OPERATION_MODE_CFG"),
        (ppu::operation_mode_cfg::POOLING_METHOD, 3, "OPERATION_MODE_CFG"),
        (ppu::data_format::PROC_PRECISION, 4, "DATA_FORMAT"),
        (ppu::data_format::DPU_FLYIN, 1, "DATA_FORMAT"),
        (ppu_rdma::rdma_data_format::IN_PRECISION, 2, "RDMA_DATA_FORMAT"),
        (ppu::data_cube_in_channel::CUBE_IN_CHANNEL, 3, "DATA_CUBE_IN_WIDTH"),
        (ppu::misc_ctrl::NONALIGN, 1, "MISC_CTRL"),
    ];
    for (field, value, name) in cases {
        let mut bench = Bench::new(0, 1, 16, (2, 2), (2, 2), (1, 1), (1, 1));
        bench.fill_i8(&[0; 4]);
        bench.field(field, value);
        let error = bench.run().unwrap_err().to_string();
        assert!(error.contains(name), "{}: {error}", field.name);
    }
}

proptest! {
    #[test]
    fn maxima_equal_a_plain_search(
        values in prop::collection::vec(any::<i8>(), 48),
        kernel in (1u32..4, 1u32..4),
        stride in (1u32..4, 1u32..4),
        pad in (0u32..3, 0u32..3),
    ) {
        let (width, height) = (8u32, 6u32);
        let output = ((width + 2 * pad.0 - kernel.0) / stride.0 + 1, (height + 2 * pad.1 - kernel.1) / stride.1 + 1);
        let mut bench = Bench::new(0, 1, 16, (width, height), kernel, stride, output);
        bench.set(ppu::POOLING_PADDING_CFG, pad.1 << 12 | pad.0 << 8 | pad.1 << 4 | pad.0);
        bench.set(ppu::PADDING_VALUE_1_CFG, -128i32 as u32);
        bench.fill_i8(&values);
        bench.run().unwrap();
        let at = |x: i32, y: i32| {
            let inside = (0..width as i32).contains(&x) && (0..height as i32).contains(&y);
            if inside { values[(y * width as i32 + x) as usize] } else { -128 }
        };
        let mut expected = Vec::new();
        for (y, x) in (0..output.1).flat_map(|y| (0..output.0).map(move |x| (y, x))) {
            let corner = ((x * stride.0) as i32 - pad.0 as i32, (y * stride.1) as i32 - pad.1 as i32);
            let window = (0..kernel.1 as i32).flat_map(|j| (0..kernel.0 as i32).map(move |i| (i, j)));
            expected.push(window.map(|(i, j)| at(corner.0 + i, corner.1 + j)).max().unwrap());
        }
        prop_assert_eq!(bench.i8s(expected.len()), expected);
    }

    #[test]
    fn random_settings_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), any::<bool>()), 1..6),
    ) {
        let mut bench = Bench::new(0, 1, 16, (4, 4), (2, 2), (1, 1), (3, 3));
        bench.memory.mark_written(SOURCE..SOURCE + 0x1_0000).unwrap();
        let registers = registers();
        for (index, value, small) in changes {
            bench.set(*index.get(&registers), if small { value & 0x0f0f } else { value });
        }
        let _ = bench.run().map_err(|error| error.to_string());
    }
}
