//! Integer matrix kernels over NPU tile order, f32 kernels, attention over a paged cache, and the threads that
//! run them: the one crate of the workspace with SIMD in it.
#![expect(
    unsafe_code,
    reason = "SIMD, shared output buffers and the thread pool; every block carries its proof"
)]

mod activations;
mod bandwidth;
mod float;
mod half;
mod integer;
mod isa;
mod kernels;
mod kv;
mod linear;
pub mod math;
mod ops;
mod pool;
mod rope;
mod simd;
pub mod tiles;
mod weights;

pub use activations::Activations;
pub use bandwidth::measure_read_bandwidth;
pub use half::{f16_to_f32, f32_to_f16};
pub use isa::{Isa, ParseIsaError};
pub use kernels::Kernels;
pub use kv::{BLOCK_TOKENS, KvCache, KvLayout};
pub use linear::LinearJob;
pub use ops::AttentionQuery;
pub use pool::Pool;
pub use rope::RopeTable;
pub use weights::{MAX_COLS, W4, W8, Weights};

#[cfg(test)]
mod tests;
