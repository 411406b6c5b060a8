//! Register commands: the 64-bit words that programme the NPU.
//!
//! A word writes one register of one block. A task is a run of words that sets up blocks, then a tail of four words
//! that says where the next task's words are and starts the blocks. This module knows what words mean, not what the
//! hardware does with them: [`registers`] is the table, [`TaskBuilder`] encodes a task field by field, [`Program`]
//! lays tasks out in a buffer, [`decode`] and [`disassemble`] go the other way.
//!
//! Everything here is pure: no device, no memory of the NPU. Addresses are named while a task is built
//! ([`AddressSlot`], [`Base`]) and become numbers in [`Program::bind`].
//!
//! What is known of the format, and how well: `docs/npu.md`, "Command words".

mod decode;
mod disassemble;
mod program;
pub mod registers;
mod task;
mod word;

pub use decode::{Command, DecodeError, decode, encode};
pub use disassemble::disassemble;
pub use program::{BindError, Chaining, Program, ProgramOptions, ProgramTask};
pub use registers::{Block, Field, Register};
pub use task::{
    AddressSlot, Banks, Base, EncodedTask, LUT_ENTRIES, Relocation, TaskBuilder, TaskError, TaskKind,
};
pub use word::Word;

#[cfg(test)]
mod tests;
