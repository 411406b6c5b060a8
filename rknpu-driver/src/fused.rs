//! Operations between matrix products, computed on the NPU: bias and scale per channel, sums and products, table
//! functions, softmax, RMSNorm, SiLU(gate)·up.
//!
//! Everything is fp16 on the device, in cubes whose pixels are rows; f32 row-major slices go in and come out. A
//! kernel (say [`SoftmaxKernel`]) is built once for a shape and run often; [`FusedOps`] keeps kernels by shape.
//! Recipes, accuracy and what the recipes rely on: `docs/npu-fused.md`.
//!
//! # Ownership
//! A kernel owns its buffers and its prepared job; the device keeps them while a job runs.
//!
//! # Failure
//! Numbers that do not fit are refused by name, before or after the job ([`FusedError::Range`]); nothing is clamped
//! in silence but what a recipe's page says. A failed job leaves the kernel usable unless the device was reset.

mod elementwise;
mod error;
mod grid;
mod kernel;
mod numbers;
mod ops;
mod pass;
mod reduce;
mod rms_norm;
mod silu_mul;
mod softmax;
mod table;

pub use elementwise::{AffineKernel, Binary, BinaryKernel, Function, FunctionKernel};
pub use error::FusedError;
pub use ops::FusedOps;
pub use rms_norm::RmsNormKernel;
pub use silu_mul::SiluMulKernel;
pub use softmax::SoftmaxKernel;

#[cfg(test)]
#[cfg(feature = "sim")]
mod tests;
