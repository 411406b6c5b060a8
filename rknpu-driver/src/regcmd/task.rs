//! Encoding of one task: registers by field name, in a fixed order, every one of the enabled blocks.

use std::collections::BTreeMap;

use thiserror::Error;

use super::registers::{self, Block, Field, Register};
use super::word::Word;

/// Which blocks a task starts. The hardware knows more combinations; these are the ones in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// CNA, CORE and DPU: a convolution or matrix product without operands per channel or element.
    Convolution,
    /// The same with DPU_RDMA, which fetches bias, scale or an element-wise operand.
    ConvolutionWithOperands,
    /// DPU and DPU_RDMA: the DPU's stages over a cube in memory ("flying mode"), and uploads of the look-up table.
    Elementwise,
    /// PPU and PPU_RDMA: pooling over a cube in memory.
    Pooling,
}

impl TaskKind {
    /// The value of the enable word, also `rknpu_task::enable_mask`.
    pub const fn enable(self) -> u32 {
        match self {
            TaskKind::Convolution => 0x0d,
            TaskKind::ConvolutionWithOperands => 0x1d,
            TaskKind::Elementwise => 0x18,
            TaskKind::Pooling => 0x60,
        }
    }

    /// The interrupts that mark the task's end, also `rknpu_task::int_mask`: both banks of the last block.
    pub const fn interrupt_mask(self) -> u32 {
        match self {
            TaskKind::Convolution | TaskKind::ConvolutionWithOperands | TaskKind::Elementwise => 0x300,
            TaskKind::Pooling => 0xc00,
        }
    }

    /// The blocks started, in the order in which their registers are written.
    pub const fn blocks(self) -> &'static [Block] {
        match self {
            TaskKind::Convolution => &[Block::Cna, Block::Core, Block::Dpu],
            TaskKind::ConvolutionWithOperands => &[Block::Cna, Block::Core, Block::Dpu, Block::DpuRdma],
            TaskKind::Elementwise => &[Block::Dpu, Block::DpuRdma],
            TaskKind::Pooling => &[Block::Ppu, Block::PpuRdma],
        }
    }
}

/// The registers that hold addresses; an address is named while the task is built and written by
/// [`Program::bind`](super::Program::bind).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSlot {
    /// Input cube of a convolution: `CNA.FEATURE_DATA_ADDR`.
    Feature,
    /// Weights: `CNA.DCOMP_ADDR0`, whether compressed or not.
    Weights,
    /// Output cube: `DPU.DST_BASE_ADDR`.
    Output,
    /// Main input of an element-wise task: `DPU_RDMA.RDMA_SRC_BASE_ADDR`.
    Source,
    /// Operands per channel of the BS stage: `DPU_RDMA.RDMA_BS_BASE_ADDR`.
    Bias,
    /// Operands per channel of the BN stage: `DPU_RDMA.RDMA_BN_BASE_ADDR`.
    Scale,
    /// Element-wise operand: `DPU_RDMA.RDMA_EW_BASE_ADDR`.
    Operand,
    /// Input cube of pooling: `PPU_RDMA.RDMA_SRC_BASE_ADDR`.
    PoolSource,
    /// Output cube of pooling: `PPU.DST_BASE_ADDR`.
    PoolOutput,
}

impl AddressSlot {
    /// Every slot: the nine registers that the vendor's files relocate.
    pub const ALL: [AddressSlot; 9] = [
        AddressSlot::Feature,
        AddressSlot::Weights,
        AddressSlot::Output,
        AddressSlot::Source,
        AddressSlot::Bias,
        AddressSlot::Scale,
        AddressSlot::Operand,
        AddressSlot::PoolSource,
        AddressSlot::PoolOutput,
    ];

    /// The register that holds the address.
    pub const fn register(self) -> Register {
        match self {
            AddressSlot::Feature => registers::cna::FEATURE_DATA_ADDR,
            AddressSlot::Weights => registers::cna::DCOMP_ADDR0,
            AddressSlot::Output => registers::dpu::DST_BASE_ADDR,
            AddressSlot::Source => registers::dpu_rdma::RDMA_SRC_BASE_ADDR,
            AddressSlot::Bias => registers::dpu_rdma::RDMA_BS_BASE_ADDR,
            AddressSlot::Scale => registers::dpu_rdma::RDMA_BN_BASE_ADDR,
            AddressSlot::Operand => registers::dpu_rdma::RDMA_EW_BASE_ADDR,
            AddressSlot::PoolSource => registers::ppu_rdma::RDMA_SRC_BASE_ADDR,
            AddressSlot::PoolOutput => registers::ppu::DST_BASE_ADDR,
        }
    }
}

/// A place in memory whose address is given when the program is bound: an index into the bases of
/// [`Program::bind`](super::Program::bind).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Base(pub u16);

/// A word whose value is the address of `base` plus `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Index of the word within the task.
    pub word: usize,
    /// The register it writes.
    pub slot: AddressSlot,
    /// What the address is relative to.
    pub base: Base,
    /// Bytes from there.
    pub offset: u32,
}

/// A task that cannot be encoded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TaskError {
    /// The value needs more bits than the field has.
    #[error("{value} does not fit into {block}.{field}, bits {high}:{low} of register {register:#06x}",
        block = field.block, register = field.register, field = field.name, high = field.high, low = field.low)]
    FieldOverflow {
        /// The field.
        field: Field,
        /// The value refused.
        value: i64,
    },
    /// The register belongs to a block that the task does not start, or is the task's tail.
    #[error("{register} is not part of a task of kind {kind:?}")]
    ForeignRegister {
        /// The register.
        register: Register,
        /// The task's kind.
        kind: TaskKind,
    },
    /// No named register has this field.
    #[error("{block} has no register at {register:#06x} for field {field}",
        block = field.block, register = field.register, field = field.name)]
    UnknownField {
        /// The field.
        field: Field,
    },
}

/// One task, encoded: the words without the tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedTask {
    /// The words, addresses still missing.
    pub words: Vec<Word>,
    /// Blocks to start.
    pub enable: u32,
    /// Interrupts that mark the end.
    pub interrupt_mask: u32,
    /// Where addresses go.
    pub relocations: Vec<Relocation>,
}

impl EncodedTask {
    /// Chooses how the task picks its register banks.
    pub fn set_banks(&mut self, banks: Banks) {
        for word in &mut self.words {
            let block = Block::from_target(word.target());
            if block.is_some_and(|block| POINTER_BLOCKS.contains(&block))
                && word.register() & 0xfff == POINTER
            {
                *word = word.with_value(banks.pointer());
            }
        }
    }
}

/// How a task picks among the two banks of each block's registers (`S_POINTER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Banks {
    /// Writing and execution each move on to the other bank with every task: the usual way.
    PingPong,
    /// Both go back to bank 0 and stay there. The vendor's streams do this in the task after a table upload.
    Clear,
}

impl Banks {
    const fn pointer(self) -> u32 {
        match self {
            Banks::PingPong => 0x0e,
            Banks::Clear => 0x30,
        }
    }
}

/// Number of entries of each half of the look-up table.
pub const LUT_ENTRIES: usize = 513;

/// Builds one task by field name.
///
/// A finished task writes every register that the started blocks have, 0 where nothing was set: a register keeps its
/// value per bank, so a task that left some out would run with those of two tasks ago. Order is that of the vendor's
/// full tasks: bank pointers, then blocks and offsets rising, then table uploads. (The vendor repeats four CNA registers
/// ahead of a stream's first convolution; its programs for several cores do without, and so do we.)
#[derive(Clone, Debug)]
pub struct TaskBuilder {
    kind: TaskKind,
    banks: Banks,
    values: BTreeMap<(u16, u16), u32>,
    addresses: Vec<(AddressSlot, Base, u32)>,
    upload: Vec<Word>,
}

impl TaskBuilder {
    /// A task with every register 0.
    pub fn new(kind: TaskKind) -> TaskBuilder {
        let values = registers::ALL.iter().filter(|register| is_setup(kind, register));
        let values = values.map(|register| (key(register), 0)).collect();
        TaskBuilder { kind, banks: Banks::PingPong, values, addresses: Vec::new(), upload: Vec::new() }
    }

    /// The task's kind.
    pub fn kind(&self) -> TaskKind {
        self.kind
    }

    /// Sets a field, leaving the rest of its register as it is.
    ///
    /// # Errors
    /// The value has too many bits, or the register belongs to a block that this task does not start.
    pub fn set(&mut self, field: Field, value: u32) -> Result<&mut Self, TaskError> {
        if value > field.max() {
            return Err(TaskError::FieldOverflow { field, value: value.into() });
        }
        let register =
            registers::lookup(field.block, field.register).ok_or(TaskError::UnknownField { field })?;
        let slot = self.value_mut(register)?;
        *slot = field.put(*slot, value);
        Ok(self)
    }

    /// Sets a field to a two's complement value.
    ///
    /// # Errors
    /// As [`TaskBuilder::set`].
    pub fn set_signed(&mut self, field: Field, value: i32) -> Result<&mut Self, TaskError> {
        if field.get_signed(field.put(0, value.cast_unsigned())) != value {
            return Err(TaskError::FieldOverflow { field, value: value.into() });
        }
        self.set(field, value.cast_unsigned() & field.max())
    }

    /// Sets a whole register.
    ///
    /// # Errors
    /// The register belongs to a block that this task does not start, or is not set up by tasks.
    pub fn write(&mut self, register: Register, value: u32) -> Result<&mut Self, TaskError> {
        *self.value_mut(&register)? = value;
        Ok(self)
    }

    /// Names the address that a register will hold. The last call for a slot counts.
    ///
    /// # Errors
    /// The slot's register belongs to a block that this task does not start.
    pub fn address(&mut self, slot: AddressSlot, base: Base, offset: u32) -> Result<&mut Self, TaskError> {
        self.value_mut(&slot.register())?;
        self.addresses.retain(|(other, ..)| *other != slot);
        self.addresses.push((slot, base, offset));
        Ok(self)
    }

    /// Chooses how the task picks its register banks.
    pub fn banks(&mut self, banks: Banks) -> &mut Self {
        self.banks = banks;
        self
    }

    /// Appends the upload of both halves of the look-up table: `negative` serves indices LE_START to 0 (LE, table 0),
    /// `positive` 0 to LO_END (LO, table 1).
    ///
    /// # Errors
    /// The task does not start the DPU.
    pub fn upload_table(
        &mut self,
        negative: &[i16; LUT_ENTRIES],
        positive: &[i16; LUT_ENTRIES],
    ) -> Result<&mut Self, TaskError> {
        use registers::dpu::{LUT_ACCESS_CFG, LUT_ACCESS_DATA, lut_access_cfg};
        self.check_block(&LUT_ACCESS_CFG)?;
        for (table, entries) in [(0, negative), (1, positive)] {
            let start = lut_access_cfg::LUT_TABLE_ID.put(lut_access_cfg::LUT_ACCESS_TYPE.mask(), table);
            self.upload.push(Word::write(LUT_ACCESS_CFG, start));
            let entry = |&entry: &i16| Word::write(LUT_ACCESS_DATA, i32::from(entry).cast_unsigned());
            self.upload.extend(entries.iter().map(entry));
        }
        Ok(self)
    }

    /// The encoded task.
    pub fn finish(self) -> EncodedTask {
        let pointers = registers::ALL.iter().filter(|register| is_pointer(self.kind, register));
        let mut words: Vec<Word> =
            pointers.map(|&register| Word::write(register, self.banks.pointer())).collect();
        let setup = self.values.iter().map(|(&(target, offset), &value)| Word::new(target, offset, value));
        words.extend(setup);
        words.extend(&self.upload);

        let mut relocations = Vec::with_capacity(self.addresses.len());
        for (slot, base, offset) in self.addresses {
            let at = Word::write(slot.register(), 0);
            let same = |word: &Word| (word.target(), word.register()) == (at.target(), at.register());
            if let Some(word) = words.iter().position(same) {
                words[word] = at;
                relocations.push(Relocation { word, slot, base, offset });
            }
        }
        relocations.sort_by_key(|relocation| relocation.word);
        let (enable, interrupt_mask) = (self.kind.enable(), self.kind.interrupt_mask());
        EncodedTask { words, enable, interrupt_mask, relocations }
    }

    fn check_block(&self, register: &Register) -> Result<(), TaskError> {
        if self.kind.blocks().contains(&register.block) {
            return Ok(());
        }
        Err(TaskError::ForeignRegister { register: *register, kind: self.kind })
    }

    fn value_mut(&mut self, register: &Register) -> Result<&mut u32, TaskError> {
        let kind = self.kind;
        let foreign = TaskError::ForeignRegister { register: *register, kind };
        self.values.get_mut(&key(register)).ok_or(foreign)
    }
}

fn key(register: &Register) -> (u16, u16) {
    (register.block.target(), register.offset)
}

/// Offset of a block's bank pointer, and the blocks whose pointers are written by tasks.
const POINTER: u16 = 0x004;
const POINTER_BLOCKS: [Block; 4] = [Block::Dpu, Block::DpuRdma, Block::Ppu, Block::PpuRdma];

/// Offsets within a block: status, bank pointer and enable are not set up by tasks.
const FIRST_SETUP: u16 = 0x00c;

/// Whether a task of `kind` writes this register while it sets up its blocks.
fn is_setup(kind: TaskKind, register: &Register) -> bool {
    // Clock gating is the kernel's; table uploads are appended as words of their own.
    let elsewhere = [
        registers::cna::CLK_GATE,
        registers::core::MAC_GATING,
        registers::dpu::LUT_ACCESS_CFG,
        registers::dpu::LUT_ACCESS_DATA,
    ];
    kind.blocks().contains(&register.block)
        && register.offset & 0xfff >= FIRST_SETUP
        && !elsewhere.contains(register)
}

/// Whether a task of `kind` writes this bank pointer. Those of CNA and CORE hold the core's index and are written by
/// the kernel when it commits a job.
fn is_pointer(kind: TaskKind, register: &Register) -> bool {
    POINTER_BLOCKS.contains(&register.block)
        && register.offset & 0xfff == POINTER
        && kind.blocks().contains(&register.block)
}
