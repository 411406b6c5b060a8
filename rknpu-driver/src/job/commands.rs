//! The addresses in a task's register commands: where it writes, and what it may read.

use crate::regcmd::Field;
use crate::regcmd::registers::dpu::{
    bs_ow_cfg, data_format, dst_surf_stride, feature_mode_cfg, wdma_size_0, wdma_size_1,
};

/// Target of the DPU's registers.
const DPU: u16 = 0x1001;
/// Target of the PPU's.
const PPU: u16 = 0x4001;
/// Bytes of a pixel of a surface.
const ATOM: u64 = 16;
/// `DST_BASE_ADDR` of the DPU and of the PPU.
const WRITTEN: [(u16, u16); 2] = [(DPU, 0x4020), (PPU, 0x6070)];
/// Feature and weight base of CNA; SRC, BS, BN and EW base of DPU_RDMA; SRC base of PPU_RDMA.
const READ: [(u16, u16); 7] = [
    (0x0201, 0x1070),
    (0x0201, 0x1110),
    (0x2001, 0x5018),
    (0x2001, 0x5020),
    (0x2001, 0x502c),
    (0x2001, 0x5038),
    (0x8001, 0x701c),
];

/// A place that a task writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its first byte.
    pub(crate) address: u32,
    /// Bytes that it has at least, as far as the commands tell.
    pub(crate) bytes: u64,
}

/// Bus addresses in a task's commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// What it writes, in the order of its commands.
    pub(crate) written: Vec<Written>,
    /// First bytes that it may read.
    pub(crate) read: Vec<u32>,
}

/// Finds the addresses in commands of 8 bytes each: target in bits 63:48, value in 47:16, register in 15:0.
pub(crate) fn addresses(commands: &[u8]) -> Addresses {
    let mut found = Addresses::default();
    let (mut cube, mut from_dpu) = (Cube::default(), Vec::new());
    for word in commands.chunks_exact(8) {
        let key = (u16::from_le_bytes([word[6], word[7]]), u16::from_le_bytes([word[0], word[1]]));
        let value = u32::from_le_bytes([word[2], word[3], word[4], word[5]]);
        if WRITTEN.contains(&key) {
            if key.0 == DPU {
                from_dpu.push(found.written.len());
            }
            found.written.push(Written { address: value, bytes: 1 });
        } else if READ.contains(&key) {
            found.read.push(value);
        }
        if key.0 == DPU {
            cube.note(key.1, value);
        }
    }
    let bytes = cube.bytes();
    for at in from_dpu {
        found.written[at].bytes = bytes;
    }
    found
}

/// What the DPU's registers say of its output, each as it was last written.
#[derive(Clone, Copy, Debug, Default)]
struct Cube {
    format: u32,
    stride: u32,
    channels: u32,
    lines: u32,
    order: u32,
    mode: u32,
}

impl Cube {
    fn note(&mut self, register: u16, value: u32) {
        let place = [
            (data_format::OUT_PRECISION, &mut self.format),
            (dst_surf_stride::DST_SURF_STRIDE, &mut self.stride),
            (wdma_size_0::CHANNEL_WDMA, &mut self.channels),
            (wdma_size_1::WIDTH_WDMA, &mut self.lines),
            (bs_ow_cfg::TP_ORG_EN, &mut self.order),
            (feature_mode_cfg::TP_EN, &mut self.mode),
        ];
        if let Some((_, slot)) = place.into_iter().find(|(field, _)| field.register == register) {
            *slot = value;
        }
    }

    /// Bytes from the first written to the last, where pixels go to the surfaces they belong to; 1 where they
    /// are packed or transposed.
    fn bytes(&self) -> u64 {
        let moved = bits(self.order, bs_ow_cfg::TP_ORG_EN)
            | bits(self.mode, feature_mode_cfg::TP_EN)
            | bits(self.mode, feature_mode_cfg::NONALIGN);
        if moved != 0 {
            return 1;
        }
        let element = match bits(self.format, data_format::OUT_PRECISION) {
            4 | 5 => 4,
            1..=3 => 2,
            _ => 1,
        };
        let surfaces = ((bits(self.channels, wdma_size_0::CHANNEL_WDMA) + 1) * element).div_ceil(ATOM);
        let pixels = (bits(self.lines, wdma_size_1::WIDTH_WDMA) + 1)
            * (bits(self.lines, wdma_size_1::HEIGHT_WDMA) + 1);
        // The stride's low four bits are no part of it.
        let stride = bits(self.stride, dst_surf_stride::DST_SURF_STRIDE) * ATOM;
        (surfaces - 1) * stride + pixels * ATOM
    }
}

fn bits(value: u32, field: Field) -> u64 {
    u64::from(value >> field.low) & ((1 << field.width()) - 1)
}
