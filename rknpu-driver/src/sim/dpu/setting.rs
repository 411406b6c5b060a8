//! One register's value with its fields at hand, and errors that name it.

use crate::regcmd::{Field, Register};
use crate::sim::registers::Blocks;
use crate::sim::{RegisterId, SimError, UndecodedKind};

/// A register and the value that the executing bank holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    register: Register,
    value: u32,
}

impl Setting {
    /// Reads `register`; one that no task wrote is an error.
    pub(crate) fn read(blocks: &Blocks, register: Register) -> Result<Self, SimError> {
        Ok(Self { register, value: blocks.get(register)? })
    }

    /// The whole register.
    pub(crate) fn value(self) -> u32 {
        self.value
    }

    /// A field of it.
    pub(crate) fn bits(self, field: Field) -> u32 {
        debug_assert_eq!(field.register, self.register.offset);
        field.get(self.value)
    }

    /// A size that the hardware stores minus one.
    pub(crate) fn size(self, field: Field) -> usize {
        self.bits(field) as usize + 1
    }

    /// A field of one bit.
    pub(crate) fn flag(self, field: Field) -> bool {
        self.bits(field) != 0
    }

    /// An error for a setting that the hardware does not take.
    pub(crate) fn illegal(self, reason: impl Into<String>) -> SimError {
        SimError::illegal(self.register, self.value, reason)
    }

    /// An error for a mode that no source has decoded.
    pub(crate) fn undecoded(self, mode: &'static str) -> SimError {
        self.undecoded_of(UndecodedKind::Other, mode)
    }

    /// An error for an order of the output that no source has decoded.
    pub(crate) fn undecoded_layout(self, mode: &'static str) -> SimError {
        self.undecoded_of(UndecodedKind::Layout, mode)
    }

    fn undecoded_of(self, kind: UndecodedKind, mode: &'static str) -> SimError {
        SimError::Undecoded { register: RegisterId::from(self.register), value: self.value, kind, mode }
    }

    /// Refuses the mode if the field is not zero.
    pub(crate) fn require_zero(self, field: Field, mode: &'static str) -> Result<(), SimError> {
        if self.flag(field) { Err(self.undecoded(mode)) } else { Ok(()) }
    }
}
