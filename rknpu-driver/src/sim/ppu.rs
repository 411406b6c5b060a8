//! PPU: pools.

use super::registers::Blocks;
use super::{Memory, Options, SimError};
use crate::timing::TaskWork;

/// Runs the PPU's part of a task.
pub(crate) fn run(
    blocks: &Blocks,
    memory: &Memory,
    options: &Options,
    work: &mut TaskWork,
) -> Result<(), SimError> {
    let _ = (blocks, memory, options, work);
    unimplemented!("pooling")
}
