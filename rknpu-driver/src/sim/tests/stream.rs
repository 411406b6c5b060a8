//! Convolution tasks as lists of words, and buffers in the NPU's layouts.

use std::sync::Arc;

use crate::sim::{Backing, ChainReport, Kick, Machine, Memory, Options, Stopped, Unwritten};

pub(super) const FEATURE: u32 = 0x0010_0000;
pub(super) const WEIGHTS: u32 = 0x0100_0000;
pub(super) const OUTPUT: u32 = 0x0200_0000;
pub(super) const REGCMD: u32 = 0x0300_0000;

/// Register words: (target, register, value).
pub(super) type Words = Vec<(u16, u16, u32)>;
/// Words and enable mask.
pub(super) type Task = (Words, u32);

/// A number format with what the layouts of a raw product need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kind {
    /// Precision code of CNA and CORE.
    pub(super) code: u32,
    pub(super) bits: usize,
    pub(super) kernel_group: usize,
    pub(super) columns: usize,
    /// Precision code and bytes of the output.
    pub(super) out: (u32, usize),
}

pub(super) const INT8: Kind = Kind { code: 0, bits: 8, kernel_group: 32, columns: 32, out: (4, 4) };
pub(super) const INT4: Kind = Kind { code: 6, bits: 4, kernel_group: 64, columns: 32, out: (1, 2) };
pub(super) const FP16: Kind = Kind { code: 2, bits: 16, kernel_group: 16, columns: 32, out: (5, 4) };
pub(super) const BF16: Kind = Kind { code: 3, bits: 16, kernel_group: 16, columns: 32, out: (5, 4) };

impl Kind {
    pub(super) fn lanes(self) -> usize {
        128 / self.bits
    }

    /// Bytes of `values`, each a small integer.
    pub(super) fn encode(self, values: &[i32]) -> Vec<u8> {
        match self.code {
            0 => values.iter().map(|value| *value as u8).collect(),
            6 => values.chunks(2).map(|pair| pair[0] as u8 & 15 | (pair[1] as u8) << 4).collect(),
            2 => values.iter().flat_map(|value| half::f16::from_f32(*value as f32).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| half::bf16::from_f32(*value as f32).to_le_bytes()).collect(),
        }
    }
}

/// A convolution whose accumulators are written as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    pub(super) kind: Kind,
    pub(super) depthwise: bool,
    pub(super) width: usize,
    pub(super) height: usize,
    /// Width of the tensor that the input is a tile of; `width` for all of it.
    pub(super) tensor_width: usize,
    pub(super) channels: usize,
    pub(super) outputs: usize,
    pub(super) kernel: (usize, usize),
    pub(super) stride: (usize, usize),
    pub(super) dilation: (usize, usize),
    /// Pixels of padding left, top, right, bottom, and their value.
    pub(super) pad: [usize; 4],
    pub(super) pad_value: i32,
}

impl Conv {
    pub(super) fn pointwise(kind: Kind, rows: usize, channels: usize, outputs: usize) -> Self {
        Self {
            kind,
            depthwise: false,
            width: rows,
            height: 1,
            tensor_width: rows,
            channels,
            outputs,
            kernel: (1, 1),
            stride: (1, 1),
            dilation: (1, 1),
            pad: [0; 4],
            pad_value: 0,
        }
    }

    pub(super) fn out_size(&self) -> (usize, usize) {
        let size = |input: usize, pads: usize, kernel: usize, dilation: usize, stride: usize| {
            (input + pads - (kernel - 1) * dilation - 1) / stride + 1
        };
        (
            size(self.width, self.pad[0] + self.pad[2], self.kernel.0, self.dilation.0, self.stride.0),
            size(self.height, self.pad[1] + self.pad[3], self.kernel.1, self.dilation.1, self.stride.1),
        )
    }

    pub(super) fn stored_channels(&self) -> usize {
        self.channels.next_multiple_of(self.kind.lanes())
    }

    pub(super) fn out_channels(&self) -> usize {
        let channels = if self.depthwise { self.stored_channels() } else { self.outputs };
        channels.next_multiple_of(self.kind.kernel_group)
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Register words: (target, register, value).
    pub(super) fn words(&self) -> Words {
        let (kind, channels) = (self.kind, self.stored_channels());
        let (out_width, out_height) = self.out_size();
        let (w, h, ow, oh) = (self.width as u32, self.height as u32, out_width as u32, out_height as u32);
        let kernels = if self.depthwise { 1 } else { self.outputs };
        let kernel_bytes = (channels * kind.bits / 8 * self.taps()) as u32;
        let mode = if self.depthwise { 3 } else { 0 };
        let tile = self.tensor_width != self.width;
        let (line, surface) = match tile {
            true => (self.tensor_width as i32, (self.tensor_width * self.height) as i32 - w as i32),
            false => (4 * w as i32, (w * h) as i32 - 4 * w as i32),
        };
        let atoms = channels / kind.lanes();
        let rest = if atoms % 4 == 3 { self.width } else { (atoms % 4 * self.width).div_ceil(4) };
        let entries = (atoms / 4 * self.width + rest) as u32;
        let banks = (entries * h).div_ceil(512).max(1);
        let (x, y) = (self.dilation.0 as u32 - 1, self.dilation.1 as u32 - 1);
        let cna = [
            (0x100c, kind.code << 7 | kind.code << 4 | mode | u32::from(tile) << 29),
            (0x1010, 0x20),
            (0x1014, y << 21 | x << 16 | (self.stride.1 as u32) << 3 | self.stride.0 as u32),
            (0x1020, w << 16 | h),
            (0x1024, ((channels as u32 - 1) & 63) << 16 | channels as u32),
            (0x1028, ow),
            (0x102c, ow * oh),
            (0x1030, kernel_bytes * kernels as u32),
            (0x1034, kernel_bytes),
            (0x1038, (self.kernel.0 as u32) << 24 | (self.kernel.1 as u32) << 16 | kernels as u32),
            (0x1040, (12 - banks) << 4 | banks),
            (0x1044, entries),
            (0x104c, 0xb),
            (0x1060, 0),
            (0x1068, (self.pad[0] as u32) << 4 | self.pad[1] as u32),
            (0x1070, FEATURE),
            (0x107c, line as u32),
            (0x1080, surface as u32 & 0x0fff_ffff),
            (0x1084, w << 16 | h),
            (0x1088, channels as u32),
            (0x1100, 0),
            (0x1110, WEIGHTS),
            (0x1184, self.pad_bits()),
        ];
        let outputs = self.out_channels() as u32 - 1;
        let core = [
            (0x3010, kind.code << 8 | u32::from(self.depthwise) << 1),
            (0x3014, (oh - 1) << 16 | (ow - 1)),
            (0x3018, outputs),
            (0x301c, 0),
        ];
        let group_surfaces = (kind.kernel_group * kind.out.1 / 16) as u32;
        let size_e = group_surfaces - 1;
        let stride = ow * oh * 16;
        let dpu_mode = if self.depthwise { 0x1e4 | 3 << 3 } else { 0x1e4 };
        let dpu_set = [
            (0x400c, dpu_mode),
            (0x4010, kind.out.0 << 29 | kind.code << 26 | kind.code),
            (0x4020, OUTPUT),
            (0x4024, stride),
            (0x4030, ow - 1),
            (0x4034, oh - 1),
            (0x403c, outputs << 16 | outputs),
            (0x4040, 0x53),
            (0x4050, size_e << 8 | size_e << 5 | size_e << 2 | 2),
            (0x4058, outputs),
            (0x405c, (oh - 1) << 16 | (ow - 1)),
            (0x4060, 0x53),
            (0x4070, 0x383),
            (0x4078, 1),
            (0x4084, 1),
            (0x40c0, stride * group_surfaces),
        ];
        let zeros = (0x4000..0x4130).step_by(4).filter(|offset| *offset >= 0x400c && *offset != 0x4104);
        let zeros = zeros
            .filter(|offset| crate::regcmd::registers::lookup(crate::regcmd::Block::Dpu, *offset).is_some());
        let mut words = vec![(0x1001, 0x4004, 0xe)];
        words.extend(cna.map(|(register, value)| (0x0201, register, value)));
        words.extend(core.map(|(register, value)| (0x0801, register, value)));
        words.extend(zeros.map(|register| (0x1001, register, 0)));
        words.extend(dpu_set.map(|(register, value)| (0x1001, register, value)));
        words
    }

    fn pad_bits(&self) -> u32 {
        match self.kind.code {
            0 | 6 => self.pad_value as u32,
            2 => u32::from(half::f16::from_f32(self.pad_value as f32).to_bits()),
            _ => u32::from(half::bf16::from_f32(self.pad_value as f32).to_bits()),
        }
    }

    /// `[h][w][channel]` in surfaces of 16-byte atoms, at the left of a tensor that may be wider.
    pub(super) fn pack_feature(&self, values: &[i32]) -> Vec<u8> {
        let (lanes, channels) = (self.kind.lanes(), self.stored_channels());
        let plane = self.tensor_width * self.height;
        let mut packed = vec![0; plane * channels];
        for (index, value) in values.iter().enumerate() {
            let (pixel, channel) = (index / self.channels, index % self.channels);
            let (line, column) = (pixel / self.width, pixel % self.width);
            let atom = channel / lanes * plane + line * self.tensor_width + column;
            packed[atom * lanes + channel % lanes] = *value;
        }
        self.kind.encode(&packed)
    }

    /// `[output][ky][kx][channel]` in the order of the multipliers.
    pub(super) fn pack_weights(&self, values: &[i32]) -> Vec<u8> {
        let (channels, taps) = (self.stored_channels(), self.taps());
        let at = |output: usize, tap: usize, channel: usize| match channel < self.channels {
            true => values[(output * taps + tap) * self.channels + channel],
            false => 0,
        };
        let (rows, columns) = match self.depthwise {
            true => (1, 4 * self.kind.lanes()),
            false => (self.kind.kernel_group, self.kind.columns),
        };
        let kernels = if self.depthwise { 1 } else { self.outputs };
        let mut packed = Vec::new();
        for group in (0..kernels).step_by(rows) {
            for first in (0..channels).step_by(columns) {
                for tap in 0..taps {
                    for row in group..kernels.min(group + rows) {
                        packed.extend(
                            (first..channels.min(first + columns)).map(|channel| at(row, tap, channel)),
                        );
                    }
                }
            }
        }
        self.kind.encode(&packed)
    }
}

/// Buffers for one convolution; the output's is never written before.
pub(super) fn memory(feature: &[u8], weights: &[u8], output_bytes: usize) -> Memory {
    let memory = Memory::new(Unwritten::Error);
    for (base, bytes) in [(FEATURE, feature), (WEIGHTS, weights)] {
        memory.map(base, Arc::new(Backing::new(bytes.len()).unwrap())).unwrap();
        memory.write(base, bytes).unwrap();
    }
    memory.map(OUTPUT, Arc::new(Backing::new(output_bytes).unwrap())).unwrap();
    memory.map(REGCMD, Arc::new(Backing::new(1 << 16).unwrap())).unwrap();
    memory
}

/// Writes tasks, each with its enable mask, as one chain; returns the kick.
pub(super) fn chain(memory: &Memory, tasks: &[Task]) -> Kick {
    let mut bytes = Vec::new();
    for (index, (words, enable)) in tasks.iter().enumerate() {
        let start = bytes.len();
        let length = (words.len() + 4) * 8;
        let next = (start + length).next_multiple_of(64);
        let (link, amount) = match tasks.get(index + 1) {
            Some((words, _)) => (REGCMD + next as u32, (words.len() as u32 + 4).div_ceil(2) - 1),
            None => (0, 0),
        };
        let tail = [(0x0101, 0x0010, link), (0x0101, 0x0014, amount), (0x0041, 0, 0), (0x0081, 8, *enable)];
        for (target, register, value) in words.iter().chain(&tail) {
            let word = u64::from(*target) << 48 | u64::from(*value) << 16 | u64::from(*register);
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.resize(next, 0);
    }
    memory.write(REGCMD, &bytes).unwrap();
    Kick::new(REGCMD, tasks[0].0.len() as u32, tasks.len() as u32, 0x300)
}

pub(super) fn run(memory: &Memory, tasks: &[Task]) -> Result<ChainReport, Box<Stopped>> {
    Machine::new(Options::default()).run_chain(0, memory, &chain(memory, tasks))
}

/// CNA, CORE and DPU.
pub(super) const CONVOLUTION: u32 = 0xd;

/// `[h][w][channel]` of the output, as numbers.
pub(super) fn output(conv: &Conv, memory: &Memory) -> Vec<i32> {
    let (width, height) = conv.out_size();
    let (channels, bytes) = (conv.out_channels(), conv.kind.out.1);
    let lanes = 16 / bytes;
    let mut atom = [0; 16];
    let mut values = vec![0; width * height * channels];
    for surface in 0..channels / lanes {
        for pixel in 0..width * height {
            let at = OUTPUT + ((surface * width * height + pixel) * 16) as u32;
            memory.read(at, &mut atom).unwrap();
            for (lane, element) in atom.chunks_exact(bytes).enumerate() {
                values[pixel * channels + surface * lanes + lane] = match conv.kind.out.0 {
                    4 => i32::from_le_bytes(element.try_into().unwrap()),
                    1 => i32::from(i16::from_le_bytes(element.try_into().unwrap())),
                    _ => f32::from_le_bytes(element.try_into().unwrap()) as i32,
                };
            }
        }
    }
    values
}

/// Small seeded numbers: xorshift64*.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    pub(super) fn signed(&mut self, count: usize, limit: usize) -> Vec<i32> {
        (0..count).map(|_| self.next(2 * limit) as i32 - limit as i32).collect()
    }
}
