//! A simulator of the NPU that executes register commands over the buffers a driver gave it.
//!
//! What runs here is what would run on the board: 64-bit register commands in an NPU address space, task descriptors and
//! the program counter's registers. A [`Machine`] has the cores with their register banks, buffers (CBUF) and tables; a
//! [`Memory`] is one NPU address space, made of [`Backing`]s that other processes may map. The models of the two kernel
//! interfaces sit above both.
//!
//! ```text
//!  Kick (what the kernel writes: BASE_ADDRESS, REGISTER_AMOUNTS, TASK_CON …)
//!    └─ pc: fetch words, decode, write banks ── op-enable ──┐
//!       registers: two banks a block                        ▼
//!       cna + core: feature and weights → accumulators → dpu → memory
//!                                       ppu_rdma → ppu → memory
//! ```
//!
//! A stream is never trusted. Whatever the silicon would do with an unmapped address, an overflowing cube or a register
//! that nobody wrote, the simulator stops with a [`SimError`] that names task, word and register. Every point on which
//! sources contest each other is a field of [`Options`].

mod cna;
mod core;
mod dpu;
mod error;
pub mod faults;
mod float;
pub mod kernel;
mod lut;
mod machine;
mod memory;
mod options;
mod pc;
mod ppu;
mod rdma;
mod registers;
#[cfg(test)]
mod tests;

pub(crate) use core::{Accumulators, Cube, Products};
pub use error::{MemoryFault, Place, RegisterId, SimError, UndecodedKind};
pub use faults::FaultPlan;
pub use kernel::{RocketNode, SimConfig, Simulation, VendorNode, device};
pub use machine::{CORES, ChainReport, Kick, Machine, Stopped, TaskReport};
pub use memory::{Backing, BackingError, MapError, Memory};
pub use options::{Accumulation, IntToFloat, Options, OutRounding, Rounding, Unwritten};
