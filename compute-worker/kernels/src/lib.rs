//! Integer matrix kernels over NPU tile order, f32 kernels, attention over a paged cache, and the threads that
//! run them: the one crate of the workspace with SIMD in it.
//!
//! # Use
//! [`Kernels::detect`] picks a table of function pointers once; it is passed by reference. [`Pool`] owns the
//! threads. A layer is [`Kernels::quantize`] into reusable [`Activations`], then [`Kernels::linear`] with one
//! [`LinearJob`] per matrix, reading [`Weights`] in place from wherever the caller maps them.
//!
//! Where another device multiplies, [`Kernels::finish`] turns its [`Accumulators`] into outputs and verifies them by
//! [`Kernels::checksum`]; [`Kernels::expand_w4`] writes `w4` weights as the int8 tiles that they stand for.
//!
//! # Numeric contract
//! Every table gives the same bits for the same input, on any number of threads, with whatever rows beside.
//! * Linear layers are exact integers: acc = Σ_k a·w in int32, K up to [`MAX_COLS`]. Only `finish` is float:
//!   `(acc·sa)·sw`, with a bias `fma(acc·sa, sw, bias)`.
//! * f32 kernels are one generic source over 16 strided lanes ([`math`] for the scalar twin of `exp`), each
//!   lane operation a single IEEE operation, fused where the source says fma; reductions end in one fixed tree.
//! * Attention rescales every 128 tokens of absolute position; a row sees nothing of the rows beside it. Keys and values
//!   of an int8 cache, and the bias of keys that were stored without it, become f32 by a fixed order of operations too.
//! * NaN is one value: that a result is NaN is the same everywhere, its payload is not promised. A row of
//!   activations that is not finite gets the scale NaN, so its outputs are NaN and no other row's are.
//!
//! # Ownership
//! Nothing here owns weights. [`KvCache`] owns its memory, block ids are the caller's. Scratch belongs to each
//! thread and grows to the largest panel or task seen: 64·K bytes for packed weights, 24 KiB of accumulators,
//! about 64 KiB for attention.
//!
//! # Failure
//! Lengths, indices and shapes are checked by the safe methods, which panic with both numbers: a wrong one is
//! a defect of the caller. Values are never a reason to panic: weights that break their format (−128, row sums
//! that do not match, multipliers above 15) give wrong numbers, the same ones on every table. A panic in a
//! task reaches the caller of [`Pool::run`], and the pool stays usable.
//!
//! # Unsafe
//! Three kinds: SIMD intrinsics and inline assembly (proof: the table exists only where the instructions were
//! detected), outputs shared by the pool's threads (proof: one task per row, panel or head), and the pool's
//! own hand-over. Function pointers are called from one safe method each, which checks lengths first.
//!
//! # What is not proven here
//! AMX: its logic is tested over emulated tiles, but no machine at hand has the instructions. NEON: tested
//! under qemu as a Cortex-A76, never timed on a board.
#![expect(
    unsafe_code,
    reason = "SIMD, shared output buffers and the thread pool; every block carries its proof"
)]

mod activations;
mod bandwidth;
mod checksum;
mod finish;
mod float;
mod gemm;
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
pub use finish::Accumulators;
pub use gemm::Gemm;
pub use half::{f16_to_f32, f32_to_f16};
pub use isa::{Isa, ParseIsaError};
pub use kernels::Kernels;
pub use kv::{BLOCK_TOKENS, KvCache, KvLayout, KvType, ParseKvTypeError};
pub use linear::LinearJob;
pub use ops::{AttentionJob, AttentionQuery, KeyBias};
pub use pool::Pool;
pub use rope::RopeTable;
pub use weights::{MAX_COLS, W4, W8, Weights};

#[cfg(test)]
mod tests;
