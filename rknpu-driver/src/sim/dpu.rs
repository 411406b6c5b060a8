//! DPU: works on the accumulators element by element and writes the output.

use super::registers::Blocks;
use super::{Memory, Options, Products, SimError};
use crate::timing::TaskWork;

pub(crate) mod setting;

/// Runs the DPU's part of a task.
///
/// `main` is what CORE accumulated; `None` in flying mode, where DPU_RDMA reads the main input.
pub(crate) fn run(
    blocks: &Blocks,
    main: Option<Products>,
    memory: &Memory,
    options: &Options,
    work: &mut TaskWork,
) -> Result<(), SimError> {
    let _ = (blocks, main, memory, options, work);
    unimplemented!("stages")
}
