//! One command word.

use super::registers::Register;

/// One command: write `value` to the register at offset `register` of the block that `target` addresses.
///
/// `target[63:48] | value[47:16] | register[15:0]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Word(pub u64);

impl Word {
    /// A word that the PC skips: the last task's link, and the space between tasks.
    pub const ZERO: Word = Word(0);

    /// The word that writes `value` to `register` of `target`.
    pub const fn new(target: u16, register: u16, value: u32) -> Word {
        Word((target as u64) << 48 | (value as u64) << 16 | register as u64)
    }

    /// The word that writes `value` to a named register.
    pub const fn write(register: Register, value: u32) -> Word {
        Word::new(register.block.target(), register.offset, value)
    }

    /// The block, as [`Block::target`](super::Block::target) counts.
    pub const fn target(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The register's offset.
    pub const fn register(self) -> u16 {
        self.0 as u16
    }

    /// The value written.
    pub const fn value(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// The same write with another value.
    pub const fn with_value(self, value: u32) -> Word {
        Word::new(self.target(), self.register(), value)
    }
}
