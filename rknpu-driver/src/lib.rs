//! The RK3588's NPU: register commands, matrix products planned onto them, both kernel interfaces, and a simulator
//! that executes the commands over the same buffers.

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
