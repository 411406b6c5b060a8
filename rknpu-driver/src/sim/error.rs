//! Why a stream stopped.

use std::fmt;

use thiserror::Error;

use crate::regcmd::registers::ALL;
use crate::regcmd::{Field, Register};

/// A register by its offset, which names it among all blocks; shown as `DPU.DST_BASE_ADDR (0x4020)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterId(pub u16);

impl fmt::Display for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ALL.iter().find(|register| register.offset == self.0) {
            Some(register) => write!(f, "{register} ({:#06x})", self.0),
            None => write!(f, "register {:#06x}", self.0),
        }
    }
}

impl From<Register> for RegisterId {
    fn from(register: Register) -> Self {
        Self(register.offset)
    }
}

impl From<Field> for RegisterId {
    fn from(field: Field) -> Self {
        Self(field.register)
    }
}

/// An access that the NPU's address space refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemoryFault {
    /// No buffer is mapped where the access begins.
    #[error("no buffer is mapped at {at:#010x} (access of {length} bytes)")]
    Unmapped {
        /// Address of the access; it may lie outside the 4 GB that can be mapped.
        at: i64,
        /// Bytes of the access.
        length: usize,
    },
    /// The access leaves the buffer that holds its base.
    #[error("{length} bytes at {at:#010x} leave the buffer of {buffer_length:#x} bytes at {buffer:#010x}")]
    OutOfBuffer {
        /// Address of the access; it may lie outside the 4 GB that can be mapped.
        at: i64,
        /// Bytes of the access.
        length: usize,
        /// Address of the buffer.
        buffer: u32,
        /// Bytes of the buffer.
        buffer_length: u64,
    },
    /// A byte is read that neither the CPU nor a job wrote since the buffer was made.
    #[error("the byte at {byte:#010x} was never written (access of {length} bytes at {at:#010x})")]
    Unwritten {
        /// Address of the access.
        at: i64,
        /// Bytes of the access.
        length: usize,
        /// The first byte that was never written.
        byte: i64,
    },
}

/// Which group an undecoded mode belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UndecodedKind {
    /// The DPU's output in another order: transposes, regrouping, unaligned output, the maximum of the channels.
    Layout,
    /// Compressed weights.
    Compressed,
    /// Anything else.
    Other,
}

/// Why a stream stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SimError {
    /// Where it happened; the machine wraps what its blocks report.
    #[error("task {task}, {place}")]
    Task {
        /// Number of the task within its chain, from 0.
        task: u32,
        /// Word or phase.
        place: Place,
        /// What happened.
        source: Box<SimError>,
    },
    /// An access outside what is mapped or written.
    #[error("access through {register}")]
    Memory {
        /// The register that held the base address.
        register: RegisterId,
        /// What the address space refused.
        source: MemoryFault,
    },
    /// A setting was needed that no task wrote into the bank in use.
    #[error("{register} was never written in bank {bank}")]
    NeverWritten {
        /// The register.
        register: RegisterId,
        /// 0 or 1.
        bank: usize,
    },
    /// A word names a register that no source describes.
    #[error("target {target:#06x} has no register {offset:#06x}")]
    UnknownRegister {
        /// Bits 63:48 of the word.
        target: u16,
        /// Bits 15:0 of the word.
        offset: u16,
    },
    /// A setting that contradicts another, or that the hardware is documented not to take.
    #[error("{register} = {value:#x}: {reason}")]
    Illegal {
        /// The register.
        register: RegisterId,
        /// Its value, or its field's.
        value: u32,
        /// What is wrong.
        reason: String,
    },
    /// A mode whose effect no source has decoded.
    #[error("undecoded mode: {register} = {value:#x}: {mode}")]
    Undecoded {
        /// The register that selects it.
        register: RegisterId,
        /// Its value.
        value: u32,
        /// The group it belongs to.
        kind: UndecodedKind,
        /// Name of the mode.
        mode: &'static str,
    },
    /// The program counter met something it cannot follow.
    #[error("program counter: {reason}")]
    ProgramCounter {
        /// What.
        reason: String,
    },
    /// The kick names a core that the machine has not, or one that is already running.
    #[error("core {core}: {reason}")]
    Core {
        /// Its number.
        core: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Where in a task an error arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A word of the task, from 0.
    Word(u32),
    /// Execution after the enable word.
    Execution,
    /// The end of the task, where the next one is looked for.
    Tail,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Word(word) => write!(f, "word {word}"),
            Place::Execution => write!(f, "execution"),
            Place::Tail => write!(f, "tail"),
        }
    }
}

impl SimError {
    /// The innermost error, without the places the machine added.
    pub fn root(&self) -> &SimError {
        let mut error = self;
        while let SimError::Task { source, .. } = error {
            error = source;
        }
        error
    }

    /// [`SimError::Illegal`] for a register.
    pub(crate) fn illegal(
        register: impl Into<RegisterId>,
        value: u32,
        reason: impl Into<String>,
    ) -> SimError {
        SimError::Illegal { register: register.into(), value, reason: reason.into() }
    }
}
