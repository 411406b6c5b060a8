//! The addresses in a task's register commands: where it writes, and what it may read.

/// Target of the DPU's registers.
const DPU: u16 = 0x1001;
/// Target of the PPU's.
const PPU: u16 = 0x4001;
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

/// Bus addresses in a task's commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// First bytes that it writes, the DPU's last.
    pub(crate) written: Vec<u32>,
    /// First bytes that it may read.
    pub(crate) read: Vec<u32>,
}

/// Finds the addresses in commands of 8 bytes each: target in bits 63:48, value in 47:16, register in 15:0.
pub(crate) fn addresses(commands: &[u8]) -> Addresses {
    let mut found = Addresses::default();
    for word in commands.chunks_exact(8) {
        let key = (u16::from_le_bytes([word[6], word[7]]), u16::from_le_bytes([word[0], word[1]]));
        let value = u32::from_le_bytes([word[2], word[3], word[4], word[5]]);
        if WRITTEN.contains(&key) {
            found.written.push(value);
        } else if READ.contains(&key) {
            found.read.push(value);
        }
    }
    found
}
