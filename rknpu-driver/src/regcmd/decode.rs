//! Words back to named writes.

use thiserror::Error;

use super::registers::{self, Block, Register};
use super::word::Word;

/// A write to a named register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The block addressed.
    pub block: Block,
    /// The register written.
    pub register: &'static Register,
    /// The value.
    pub value: u32,
}

impl Command {
    /// The word that this command is.
    pub fn word(&self) -> Word {
        Word::write(*self.register, self.value)
    }
}

/// A word that names nothing known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The target is no block.
    #[error("word {word}: target {target:#06x} is no block (register {register:#06x}, value {value:#010x})")]
    UnknownTarget {
        /// Index of the word.
        word: usize,
        /// Its bits 63:48.
        target: u16,
        /// Its bits 15:0.
        register: u16,
        /// Its bits 47:16.
        value: u32,
    },
    /// The block has no register there.
    #[error("word {word}: {block} has no register at {register:#06x} (value {value:#010x})")]
    UnknownRegister {
        /// Index of the word.
        word: usize,
        /// The block.
        block: Block,
        /// The offset.
        register: u16,
        /// The value.
        value: u32,
    },
}

/// Decodes words; [`encode`] gives them back.
///
/// # Errors
/// A word names a block or a register that is not in [`registers`], or is padding (target 0) that is not all zeros.
pub fn decode(words: &[u64]) -> Result<Vec<Command>, DecodeError> {
    words.iter().enumerate().map(|(index, &word)| decode_word(index, Word(word))).collect()
}

/// The words of decoded commands.
pub fn encode(commands: &[Command]) -> Vec<u64> {
    commands.iter().map(|command| command.word().0).collect()
}

fn decode_word(index: usize, word: Word) -> Result<Command, DecodeError> {
    let (target, register, value) = (word.target(), word.register(), word.value());
    let unknown = DecodeError::UnknownTarget { word: index, target, register, value };
    let block = Block::from_target(target).filter(|&block| block != Block::Padding || word == Word::ZERO);
    let block = block.ok_or(unknown)?;
    let unknown = DecodeError::UnknownRegister { word: index, block, register, value };
    let register = registers::lookup(block, register).ok_or(unknown)?;
    Ok(Command { block, register, value })
}
