//! The RK3588's NPU: register commands, matrix products planned onto them, both kernel interfaces, and a simulator
//! that executes the commands over the same buffers.
//!
//! ```text
//!   plan, fused      which tasks compute a product or a function, and where their operands lie
//!      │  regcmd     what the tasks say: registers and fields by name, encoded, decoded, disassembled
//!      ▼
//!   device           buffers, jobs, time-outs, recovery; one code for both kernel interfaces
//!      │  uapi       the kernel's structs and numbers
//!      ▼
//!   vendor `rknpu` DRM  │  mainline `rocket` accel  │  `sim`: models of both kernels over a register-level machine
//! ```
//!
//! # Ownership
//! A [`device::Device`] owns its descriptors; a [`buffer::Buffer`] owns its object and mapping and is freed by its last
//! holder, and a job in flight is one. The processor reaches memory through guards that exclude running jobs and keep
//! caches in step, or reads a sealed buffer, which no job may write.
//!
//! # Failure
//! Every wait has a bound. A job that neither ends nor can be cancelled keeps its memory mapped and marks the device
//! faulted until a reset succeeds. Errors keep the errno and say what to do.
//!
//! # What is known of the hardware
//! `docs/npu.md` holds the facts, with how well each is known; code that relies on a contested one says so. The
//! simulator is exact to that page, and nothing in this crate was run on a board.

pub mod buffer;
pub mod device;
pub mod error;
pub mod fused;
mod ioctl;
pub mod job;
pub mod layout;
pub mod oracle;
pub mod plan;
pub mod regcmd;
pub mod shape;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sysfs;
pub mod timing;
pub mod uapi;
