//! A bench for tests of the DPU: registers of a plain task, memory, and a way to change and run it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::regcmd::{Block, Field, Register, Word};
use crate::sim::registers::Blocks;
use crate::sim::{Backing, Memory, Options, Products, SimError, Unwritten};
use crate::timing::TaskWork;

/// Where MRDMA reads.
pub(crate) const SOURCE: u32 = 0x10_0000;
/// Where WDMA writes.
pub(crate) const OUTPUT: u32 = 0x20_0000;
/// Where ERDMA reads.
pub(crate) const OPERAND: u32 = 0x30_0000;
/// Where BRDMA reads.
pub(crate) const BS_STREAM: u32 = 0x40_0000;
/// Where NRDMA reads.
pub(crate) const BN_STREAM: u32 = 0x50_0000;

/// Bytes of each of those buffers.
const BUFFER: usize = 1 << 18;

/// A task on the bench.
pub(crate) struct Bench {
    values: BTreeMap<u16, (Block, u32)>,
    /// Words written before the task's registers, in order: uploads of tables.
    pub(crate) uploads: Vec<Word>,
    pub(crate) memory: Memory,
    pub(crate) options: Options,
}

impl Bench {
    /// A task that copies `width` × `height` × `channels` from [`SOURCE`] to [`OUTPUT`] with all stages off.
    ///
    /// `formats` are the codes of input, arithmetic and output.
    pub(crate) fn flying(width: u32, height: u32, channels: u32, formats: (u32, u32, u32)) -> Self {
        let memory = Memory::new(Unwritten::Error);
        for base in [SOURCE, OUTPUT, OPERAND, BS_STREAM, BN_STREAM] {
            let backing = Backing::new(BUFFER).expect("a quarter of a megabyte");
            memory.map(base, Arc::new(backing)).expect("buffers lie apart");
        }
        let mut bench =
            Self { values: BTreeMap::new(), uploads: Vec::new(), memory, options: Options::default() };
        let (input, processing, output) = formats;
        let lanes = |code: u32| 16 / [1, 2, 2, 2, 4, 4][code as usize];
        let plane = width * height * 16;
        for register in crate::regcmd::registers::ALL {
            if matches!(register.block, Block::Dpu | Block::DpuRdma) && register.offset & 0xfff >= 0xc {
                bench.set(register, 0);
            }
        }
        bench.set(dpu::FEATURE_MODE_CFG, 0x1e5);
        bench.set(dpu::DATA_FORMAT, output << 29 | input << 26 | processing);
        bench.set(dpu::DST_BASE_ADDR, OUTPUT);
        bench.set(dpu::DST_SURF_STRIDE, plane);
        bench.set(dpu::SURFACE_ADD, plane);
        bench.set(dpu::DATA_CUBE_WIDTH, width - 1);
        bench.set(dpu::DATA_CUBE_HEIGHT, height - 1);
        bench.set(dpu::DATA_CUBE_CHANNEL, (channels - 1) << 16 | (channels - 1));
        bench.set(dpu::BS_CFG, 0x53);
        bench.set(dpu::BN_CFG, 0x53);
        bench.set(dpu::EW_CFG, 0x383);
        bench.set(dpu::EW_CVT_SCALE_VALUE, 1);
        bench.set(dpu::BS_OW_CFG, 2);
        bench.set(dpu::WDMA_SIZE_0, channels.next_multiple_of(lanes(output)) - 1);
        bench.set(dpu::WDMA_SIZE_1, (height - 1) << 16 | (width - 1));
        bench.set(dpu::OUT_CVT_SCALE, 1);
        bench.set(dpu_rdma::RDMA_DATA_CUBE_WIDTH, width - 1);
        bench.set(dpu_rdma::RDMA_DATA_CUBE_HEIGHT, height - 1);
        bench.set(dpu_rdma::RDMA_DATA_CUBE_CHANNEL, channels - 1);
        bench.set(dpu_rdma::RDMA_SRC_BASE_ADDR, SOURCE);
        bench.set(dpu_rdma::RDMA_EW_BASE_ADDR, OPERAND);
        bench.set(dpu_rdma::RDMA_BS_BASE_ADDR, BS_STREAM);
        bench.set(dpu_rdma::RDMA_BN_BASE_ADDR, BN_STREAM);
        bench.set(dpu_rdma::RDMA_ERDMA_CFG, 1);
        bench.set(dpu_rdma::RDMA_FEATURE_MODE_CFG, input << 15 | 0x7800 | processing << 5 | 1);
        bench
    }

    /// The same with its main input from CORE.
    pub(crate) fn convolution(width: u32, height: u32, channels: u32, formats: (u32, u32, u32)) -> Self {
        let mut bench = Self::flying(width, height, channels, formats);
        bench.set(dpu::FEATURE_MODE_CFG, 0x1e4);
        bench.field(dpu_rdma::rdma_feature_mode_cfg::FLYING_MODE, 0);
        bench.field(dpu_rdma::rdma_feature_mode_cfg::MRDMA_DISABLE, 1);
        bench
    }

    /// Sets a whole register.
    pub(crate) fn set(&mut self, register: Register, value: u32) {
        self.values.insert(register.offset, (register.block, value));
    }

    /// Sets a field.
    pub(crate) fn field(&mut self, field: Field, value: u32) {
        let (_, register) = self.values.entry(field.register).or_insert((field.block, 0));
        *register = field.put(*register, value);
    }

    /// Leaves a register unwritten.
    pub(crate) fn forget(&mut self, register: Register) {
        self.values.remove(&register.offset);
    }

    /// Runs the task, with DPU_RDMA enabled.
    pub(crate) fn run(&self, main: Option<Products>) -> Result<TaskWork, SimError> {
        self.run_with(0x18, main)
    }

    /// Runs the task with the blocks of an enable mask.
    pub(crate) fn run_with(&self, mask: u32, main: Option<Products>) -> Result<TaskWork, SimError> {
        let mut blocks = Blocks::default();
        for word in &self.uploads {
            blocks.write(*word)?;
        }
        for (offset, (block, value)) in &self.values {
            blocks.write(Word::new(block.target(), *offset, *value))?;
        }
        blocks.arm(mask, 0)?;
        let mut work = TaskWork::default();
        super::run(&blocks, main, &self.memory, &self.options, &mut work)?;
        Ok(work)
    }

    /// Writes bytes of memory.
    pub(crate) fn fill(&self, at: u32, bytes: &[u8]) {
        self.memory.write(at, bytes).expect("tests stay in their buffers");
    }

    /// Bytes of memory; all of them must have been written.
    pub(crate) fn bytes(&self, at: u32, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read(at, &mut bytes).expect("the task wrote what the test reads");
        bytes
    }

    /// Writes int8 values and pads the last atom with zeros.
    pub(crate) fn fill_i8(&self, at: u32, values: &[i8]) {
        let mut bytes: Vec<u8> = values.iter().map(|value| *value as u8).collect();
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        self.fill(at, &bytes);
    }

    /// Writes 16-bit values and pads the last atom with zeros.
    pub(crate) fn fill_u16(&self, at: u32, values: &[u16]) {
        let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        self.fill(at, &bytes);
    }

    /// Writes 32-bit values.
    pub(crate) fn fill_u32(&self, at: u32, values: &[u32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.fill(at, &bytes);
    }

    /// int8 values of memory.
    pub(crate) fn i8s(&self, at: u32, count: usize) -> Vec<i8> {
        self.bytes(at, count).into_iter().map(|byte| byte as i8).collect()
    }

    /// 16-bit values of memory.
    pub(crate) fn u16s(&self, at: u32, count: usize) -> Vec<u16> {
        self.bytes(at, count * 2).as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
    }

    /// 32-bit values of memory.
    pub(crate) fn i32s(&self, at: u32, count: usize) -> Vec<i32> {
        self.bytes(at, count * 4).as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }
}
