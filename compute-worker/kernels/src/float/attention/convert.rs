//! One kv head's keys or values of a block of the cache to f32.
//!
//! ```text
//! int8:  k[i][t] = k8[i][t] · scale[t]           v[t][i] = v8[t][i] · scale[t]
//! keys that came without their bias, b[i][t] being the bias rotated to the token's position:
//!     f16:   k[i][t] = k16[i][t] + b[i][t]
//!     int8:  k[i][t] = fma(k8[i][t], scale[t], b[i][t])
//! ```
//! A token's position is p0 + t, p0 the block's first, and a rotation by it is one by t and one by p0. Those by t < 16
//! are made once a task, `[d][16 tokens]`; those by p0 need one cosine and sine for all lanes. Of a pair
//! (x, y) = (b\[i\], b\[i + d/2\]) each rotation makes (fma(x, cos, −(y·sin)), fma(y, cos, x·sin)).

use super::Task;
use crate::kv::Blocks;
use crate::simd::{LANES, Simd};
use crate::{BLOCK_TOKENS, KeyBias};

/// (x, y) turned by an angle, as `body::rope` does.
#[inline(always)]
fn turn<S: Simd>(s: S, [x, y]: [S::V; 2], [cos, sin]: [S::V; 2]) -> [S::V; 2] {
    [s.fma(x, cos, s.sub(s.splat(0.0), s.mul(y, sin))), s.fma(y, cos, s.mul(x, sin))]
}

/// The bias rotated to the positions 0…15, which are the lanes.
#[inline(always)]
pub(super) fn prepare_bias<S: Simd>(s: S, bias: &KeyBias<'_>, to: &mut Vec<f32>) {
    let half = bias.bias.len() / 2;
    to.resize(bias.bias.len() * LANES, 0.0);
    let (lower, upper) = to.split_at_mut(half * LANES);
    let (lower, upper) = (lower.as_chunks_mut::<LANES>().0, upper.as_chunks_mut::<LANES>().0);
    let (cos, sin) = bias.rope.steps();
    let (x, y) = bias.bias.split_at(half);
    for (i, (lower, upper)) in lower.iter_mut().zip(upper).enumerate() {
        let turned = turn(s, [s.splat(x[i]), s.splat(y[i])], [s.load(&cos[i]), s.load(&sin[i])]);
        s.store(turned[0], lower);
        s.store(turned[1], upper);
    }
}

/// Keys of a block whose first token has position `first`, `[d][16 tokens]`. `steps` is of [`prepare_bias`].
#[inline(always)]
pub(super) fn keys<S: Simd>(s: S, task: &Task<'_>, block: u32, first: usize, steps: &[f32], to: &mut [f32]) {
    let start = block as usize * task.block_len + task.k_offset;
    let (to, _) = to.as_chunks_mut::<LANES>();
    match task.cache {
        Blocks::F16(values) => {
            let (from, _) = values[start..start + to.len() * LANES].as_chunks::<LANES>();
            match &task.key_bias {
                None => halves(s, from, to),
                Some(bias) => {
                    biased(s, bias, first, steps, to, &|i, b| s.add(s.load_f16(&from[i]), b));
                }
            }
        }
        Blocks::Int8 { values, scales } => {
            let (from, _) = values[start..start + to.len() * LANES].as_chunks::<LANES>();
            let scales = s.load_part(&scales[start / task.head_dim..][..BLOCK_TOKENS], 0.0);
            match &task.key_bias {
                None => {
                    for (from, to) in from.iter().zip(to) {
                        s.store(s.mul(s.load_i8(from), scales), to);
                    }
                }
                Some(bias) => {
                    biased(s, bias, first, steps, to, &|i, b| s.fma(s.load_i8(&from[i]), scales, b));
                }
            }
        }
    }
}

/// Writes `key(i, b[i])` for every i < d.
#[inline(always)]
fn biased<S: Simd>(
    s: S,
    bias: &KeyBias<'_>,
    first: usize,
    steps: &[f32],
    to: &mut [[f32; LANES]],
    key: &impl Fn(usize, S::V) -> S::V,
) {
    let half = to.len() / 2;
    let (x, y) = steps.as_chunks::<LANES>().0.split_at(half);
    let (cos, sin) = bias.rope.row(first).split_at(half);
    let (lower, upper) = to.split_at_mut(half);
    for (i, (lower, upper)) in lower.iter_mut().zip(upper).enumerate() {
        let [b, c] = turn(s, [s.load(&x[i]), s.load(&y[i])], [s.splat(cos[i]), s.splat(sin[i])]);
        s.store(key(i, b), lower);
        s.store(key(half + i, c), upper);
    }
}

/// Values of a block, `[16 tokens][d]`.
#[inline(always)]
pub(super) fn values<S: Simd>(s: S, task: &Task<'_>, block: u32, to: &mut [f32]) {
    let start = block as usize * task.block_len + task.v_offset;
    match task.cache {
        Blocks::F16(values) => {
            let (from, _) = values[start..start + to.len()].as_chunks::<LANES>();
            halves(s, from, to.as_chunks_mut::<LANES>().0);
        }
        Blocks::Int8 { values, scales } => {
            let d = task.head_dim;
            let (from, scales) = (&values[start..start + to.len()], &scales[start / d..][..BLOCK_TOKENS]);
            for ((from, to), scale) in from.chunks_exact(d).zip(to.chunks_exact_mut(d)).zip(scales) {
                let scale = s.splat(*scale);
                for (from, to) in from.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
                    s.store(s.mul(s.load_i8(from), scale), to);
                }
            }
        }
    }
}

#[inline(always)]
fn halves<S: Simd>(s: S, from: &[[u16; LANES]], to: &mut [[f32; LANES]]) {
    for (from, to) in from.iter().zip(to) {
        s.store(s.load_f16(from), to);
    }
}
