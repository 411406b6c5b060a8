//! The register file of one core: two banks a block, the ping-pong pointers between them, and the DPU's tables.
//!
//! A stream writes the bank that a block's pointer names; an enable word hands that bank to the block and, with
//! POINTER_PP_EN, turns the pointer to the other one. What a bank holds stays: the vendor's compiler sends full tasks
//! twice and afterwards only what differs from the task two back. Reading a register that no task ever wrote is an error.

use super::error::{RegisterId, SimError};
use super::memory::{Memory, Window};
use crate::regcmd::{Block, Field, Register, Word};

/// Words of a bank: a block's registers lie in 4 KB.
const REGISTERS: usize = 1024;

/// Entries of one look-up table.
const LUT_ENTRIES: usize = 513;

const S_POINTER: u16 = 0x004;
const OPERATION_ENABLE: u16 = 0x008;
const LUT_ACCESS_CFG: u16 = 0x4100;
const LUT_ACCESS_DATA: u16 = 0x4104;

#[derive(Clone)]
struct Bank {
    values: Box<[u32; REGISTERS]>,
    written: Box<[bool; REGISTERS]>,
}

impl Default for Bank {
    fn default() -> Self {
        Self { values: Box::new([0; REGISTERS]), written: Box::new([false; REGISTERS]) }
    }
}

/// One block's banks and pointers.
#[derive(Clone, Default)]
struct Pair {
    banks: [Bank; 2],
    /// The bank that words go to.
    pointer: usize,
    /// The bank that the block works from next.
    executer: usize,
    pointer_ping_pong: bool,
    executer_ping_pong: bool,
}

impl Pair {
    fn set_pointer(&mut self, value: u32) {
        let bit = |n: u32| value >> n & 1 == 1;
        self.pointer_ping_pong = bit(1);
        self.executer_ping_pong = bit(2);
        if !self.pointer_ping_pong {
            self.pointer = usize::from(bit(0));
        }
        if !self.executer_ping_pong {
            self.executer = usize::from(bit(16));
        }
        if bit(4) {
            self.pointer = 0;
        }
        if bit(5) {
            self.executer = 0;
        }
    }
}

/// The two-bank register file of one core.
#[derive(Clone, Default)]
pub(crate) struct Blocks {
    cna: Pair,
    core: Pair,
    dpu: Pair,
    dpu_rdma: Pair,
    ppu: Pair,
    ppu_rdma: Pair,
    lut: LutTables,
    /// The enable mask of the task being executed.
    enabled: u32,
    /// TASK_DMA_BASE_ADDR of the kick being executed, added to every address.
    dma_base: u32,
}

/// The bit of a block in an enable word.
pub(crate) const fn enable_bit(block: Block) -> u32 {
    match block {
        Block::Cna => 1,
        Block::Core => 1 << 2,
        Block::Dpu => 1 << 3,
        Block::DpuRdma => 1 << 4,
        Block::Ppu => 1 << 5,
        Block::PpuRdma => 1 << 6,
        Block::Padding | Block::Sync | Block::Enable | Block::Pc => 0,
    }
}

/// The blocks with banks.
pub(crate) const BANKED: [Block; 6] =
    [Block::Cna, Block::Core, Block::Dpu, Block::DpuRdma, Block::Ppu, Block::PpuRdma];

impl Blocks {
    /// The register's value in the bank that its block executes.
    pub(crate) fn get(&self, register: Register) -> Result<u32, SimError> {
        self.read(register.block, register.offset)
    }

    /// A field's value in the bank that its block executes.
    pub(crate) fn field(&self, field: Field) -> Result<u32, SimError> {
        self.read(field.block, field.register).map(|value| field.get(value))
    }

    /// A field read as two's complement.
    pub(crate) fn signed(&self, field: Field) -> Result<i32, SimError> {
        self.read(field.block, field.register).map(|value| field.get_signed(value))
    }

    /// A one-bit field.
    pub(crate) fn flag(&self, field: Field) -> Result<bool, SimError> {
        self.field(field).map(|value| value != 0)
    }

    /// The buffer that an address register points into, with TASK_DMA_BASE_ADDR added.
    pub(crate) fn window(&self, register: Register, memory: &Memory) -> Result<Window, SimError> {
        let base = self.get(register)?;
        let at = base
            .checked_add(self.dma_base)
            .ok_or_else(|| SimError::illegal(register, base, "address and DMA base exceed 32 bits"))?;
        memory.window(register, at)
    }

    /// True if the task being executed enables the block.
    pub(crate) fn enabled(&self, block: Block) -> bool {
        self.enabled & enable_bit(block) != 0
    }

    /// The tables that LUT_ACCESS_CFG and LUT_ACCESS_DATA fill. They have no banks.
    pub(crate) fn lut(&self) -> &LutTables {
        &self.lut
    }

    /// The bank that a block executes.
    pub(crate) fn bank(&self, block: Block) -> usize {
        self.pair(block).map_or(0, |pair| pair.executer)
    }

    /// Writes a register word into the bank of its block's pointer. Words to the PC are not for here.
    pub(super) fn write(&mut self, word: Word) -> Result<(), SimError> {
        let (target, offset, value) = (word.target(), word.register(), word.value());
        let unknown = SimError::UnknownRegister { target, offset };
        let Some(block) = Block::from_target(target) else { return Err(unknown) };
        let Some(register) = crate::regcmd::registers::lookup(block, offset) else { return Err(unknown) };
        refuse_bits_of_no_field(*register, value)?;
        let Some(pair) = self.pair_mut(block) else { return Err(unknown) };
        match offset & 0xfff {
            S_POINTER => {
                pair.set_pointer(value);
                return Ok(());
            }
            OPERATION_ENABLE => {
                return Err(SimError::illegal(
                    RegisterId(offset),
                    value,
                    "streams start blocks by the enable word",
                ));
            }
            _ => {}
        }
        let bank = &mut pair.banks[pair.pointer];
        let index = usize::from(offset & 0xfff) / 4;
        bank.values[index] = value;
        bank.written[index] = true;
        match offset {
            LUT_ACCESS_CFG => self.lut.select(value),
            LUT_ACCESS_DATA => self.lut.store(value),
            _ => {}
        }
        Ok(())
    }

    /// What both kernel drivers do before a job: ping-pong of CNA and CORE.
    pub(super) fn set_pointer(&mut self, block: Block, value: u32) {
        if let Some(pair) = self.pair_mut(block) {
            pair.set_pointer(value);
        }
    }

    /// Hands the written banks of the blocks in `mask` to them.
    pub(super) fn arm(&mut self, mask: u32, dma_base: u32) -> Result<(), SimError> {
        let known = BANKED.iter().fold(0, |bits, block| bits | enable_bit(*block));
        let enable = crate::regcmd::registers::enable::OPERATION_ENABLE;
        if mask & !known != 0 || mask == 0 {
            return Err(SimError::illegal(enable, mask, "enables no block or an unknown one"));
        }
        self.enabled = mask;
        self.dma_base = dma_base;
        for block in BANKED.into_iter().filter(|block| mask & enable_bit(*block) != 0) {
            let Some(pair) = self.pair_mut(block) else { continue };
            let (written, next) = (pair.pointer, pair.executer);
            if written != next {
                return Err(SimError::illegal(
                    enable,
                    mask,
                    format!(
                        "bank {written} of {block} is enabled, but the block works from bank {next} next"
                    ),
                ));
            }
            if pair.pointer_ping_pong {
                pair.pointer ^= 1;
            }
        }
        Ok(())
    }

    /// Ends the task that [`Blocks::arm`] began.
    pub(super) fn retire(&mut self) {
        for block in BANKED {
            let enabled = self.enabled(block);
            if let Some(pair) = self.pair_mut(block)
                && enabled
                && pair.executer_ping_pong
            {
                pair.executer ^= 1;
            }
        }
        self.enabled = 0;
    }

    fn read(&self, block: Block, offset: u16) -> Result<u32, SimError> {
        let register = RegisterId(offset);
        let unknown = SimError::UnknownRegister { target: block.target(), offset };
        let Some(pair) = self.pair(block) else { return Err(unknown) };
        let bank = pair.executer;
        let index = usize::from(offset & 0xfff) / 4;
        if !pair.banks[bank].written[index] {
            return Err(SimError::NeverWritten { register, bank });
        }
        Ok(pair.banks[bank].values[index])
    }

    fn pair(&self, block: Block) -> Option<&Pair> {
        match block {
            Block::Cna => Some(&self.cna),
            Block::Core => Some(&self.core),
            Block::Dpu => Some(&self.dpu),
            Block::DpuRdma => Some(&self.dpu_rdma),
            Block::Ppu => Some(&self.ppu),
            Block::PpuRdma => Some(&self.ppu_rdma),
            Block::Padding | Block::Sync | Block::Enable | Block::Pc => None,
        }
    }

    fn pair_mut(&mut self, block: Block) -> Option<&mut Pair> {
        match block {
            Block::Cna => Some(&mut self.cna),
            Block::Core => Some(&mut self.core),
            Block::Dpu => Some(&mut self.dpu),
            Block::DpuRdma => Some(&mut self.dpu_rdma),
            Block::Ppu => Some(&mut self.ppu),
            Block::PpuRdma => Some(&mut self.ppu_rdma),
            Block::Padding | Block::Sync | Block::Enable | Block::Pc => None,
        }
    }
}

/// A value too large for its field would be taken as its low bits. No vendor stream sets a bit that belongs to no field.
fn refuse_bits_of_no_field(register: Register, value: u32) -> Result<(), SimError> {
    let known = register.fields.iter().fold(0, |mask, field| mask | field.mask());
    if register.fields.is_empty() || value & !known == 0 {
        return Ok(());
    }
    Err(SimError::illegal(
        register,
        value,
        format!("sets bits that belong to no field ({:#x})", value & !known),
    ))
}

/// The DPU's two look-up tables: LE (0) and LO (1), 513 signed 16-bit entries each.
#[derive(Clone)]
pub(crate) struct LutTables {
    entries: [[Option<i16>; LUT_ENTRIES]; 2],
    table: usize,
    next: usize,
    writing: bool,
}

impl Default for LutTables {
    fn default() -> Self {
        Self { entries: [[None; LUT_ENTRIES]; 2], table: 0, next: 0, writing: false }
    }
}

impl LutTables {
    /// Entry `index` (0 to 512) of table 0 (LE) or 1 (LO). Entries never loaded are an error.
    pub(crate) fn entry(&self, table: usize, index: usize) -> Result<i16, SimError> {
        self.entries.get(table).and_then(|entries| *entries.get(index)?).ok_or_else(|| {
            SimError::illegal(
                RegisterId(LUT_ACCESS_DATA),
                index as u32,
                format!("entry {index} of table {table} was never loaded"),
            )
        })
    }

    /// LUT_ACCESS_CFG: bit 17 writes, bit 16 names the table, bits 9:0 the first entry.
    fn select(&mut self, value: u32) {
        self.writing = value >> 17 & 1 == 1;
        self.table = (value >> 16 & 1) as usize;
        self.next = (value & 0x3ff) as usize;
    }

    /// LUT_ACCESS_DATA: one entry, then the next. Without the write bit nothing is stored (every full task of the
    /// vendor's compiler writes a zero here), and entries beyond the table are dropped.
    fn store(&mut self, value: u32) {
        if self.writing && self.next < LUT_ENTRIES {
            self.entries[self.table][self.next] = Some(value as i16);
            self.next += 1;
        }
    }
}
