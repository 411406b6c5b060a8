//! Attention of some query rows and heads over one key/value head of the paged cache.
//!
//! ```text
//! vectors i = (row, head), rows × heads of them; q scaled by 1/sqrt(d) first
//! for each chunk of 128 tokens (absolute positions, so that rows beside a row change nothing):
//!     for each block of 16 tokens:   K [d][16 tokens] → f32 once, see `convert`
//!         score[i][16 lanes] = fma over d, in order:  q[i][d] · K[d][lanes]            lanes are tokens
//!     for each i:  m' = max(m, scores);  alpha = e^(m−m');  p = e^(score−m')
//!         sums[16 lanes] = sums·alpha + Σ blocks p;  acc[i] *= alpha
//!     for each block:                V [16 tokens][d] → f32 once
//!         acc[i][16 lanes] = fma over tokens, in order:  p[i][t] · V[t][lanes]         lanes are of d
//! out[i] = acc[i] · (1 / tree(sums))
//! ```
//! Both products are one micro-kernel, `outer`: up to [`Simd::ROWS`] vectors in registers, one broadcast load
//! per fma, no horizontal operation. Scratch for 8 rows of 7 heads of 64: 60 KiB, within L2, and 4 KiB where keys came
//! without their bias.
//!
//! Tokens beyond a row's length are never read into its result, whatever they hold: their scores become −∞
//! by selection and their values are skipped, not multiplied by zero.

use crate::float::body;
use crate::kv::Blocks;
use crate::pool::SharedMut;
use crate::simd::{LANES, Simd};
use crate::{BLOCK_TOKENS, KeyBias};

mod convert;

/// Tokens between two rescalings; part of the numeric contract.
const CHUNK: usize = 128;
const CHUNK_BLOCKS: usize = CHUNK / BLOCK_TOKENS;

/// One unit of work; `Kernels::attention` makes them and vouches for the ranges.
pub(crate) struct Task<'a> {
    /// The layer's blocks, `block_len` values each.
    pub(crate) cache: Blocks<'a>,
    pub(crate) block_len: usize,
    /// Where this kv head's K and V begin in a block.
    pub(crate) k_offset: usize,
    pub(crate) v_offset: usize,
    pub(crate) head_dim: usize,
    /// This kv head's bias, `[head_dim]`.
    pub(crate) key_bias: Option<KeyBias<'a>>,
    /// Blocks of the longest row; the other rows use a prefix of it.
    pub(crate) blocks: &'a [u32],
    /// Tokens of row r, r < rows.
    pub(crate) len: &'a dyn Fn(usize) -> usize,
    pub(crate) rows: usize,
    /// Query heads per row.
    pub(crate) heads: usize,
    /// First row's first head; heads follow each other, rows are `row_stride` apart.
    pub(crate) q: &'a [f32],
    /// As `q`, for the result.
    pub(crate) out: SharedMut<f32>,
    pub(crate) row_stride: usize,
}

/// Reused memory of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    block: Vec<f32>,
    /// The key bias rotated to the positions 0…15, `[head_dim][16]`.
    bias: Vec<f32>,
    q: Vec<f32>,
    scores: Vec<f32>,
    acc: Vec<f32>,
    lens: Vec<usize>,
    max: Vec<f32>,
    sums: Vec<[f32; LANES]>,
}

/// Runs one task. `task.out` is written at the places that the task's heads have in its rows only.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, task: &Task<'_>, scratch: &mut Scratch) {
    let d = task.head_dim;
    let vectors = task.rows * task.heads;
    scratch.prepare(task, vectors);
    if let Some(bias) = &task.key_bias {
        convert::prepare_bias(s, bias, &mut scratch.bias);
    }
    let longest = scratch.lens.iter().copied().max().unwrap_or(0);
    let mut first = 0;
    while first < longest {
        let blocks = &task.blocks[first / BLOCK_TOKENS..longest.div_ceil(BLOCK_TOKENS)];
        let blocks = &blocks[..blocks.len().min(CHUNK_BLOCKS)];
        score_chunk(s, task, blocks, first, scratch, vectors);
        for i in 0..vectors {
            let used = scratch.lens[i].saturating_sub(first).min(CHUNK);
            if used > 0 {
                soften(s, i, used, d, scratch);
            }
        }
        value_chunk(s, task, blocks, first, scratch, vectors);
        first += CHUNK;
    }
    for i in 0..vectors {
        let sum = s.sum(s.load(&scratch.sums[i]));
        let factor = s.splat(1.0 / sum);
        let (row, head) = (i / task.heads, i % task.heads);
        let (from, _) = scratch.acc[i * d..(i + 1) * d].as_chunks::<LANES>();
        for (part, from) in from.iter().enumerate() {
            let at = row * task.row_stride + head * d + part * LANES;
            // SAFETY: `Kernels::attention` checked that out holds [rows][row_stride] and gives every (row,
            // head) to one task, so these 16 values are in bounds and nobody else's.
            let to = unsafe { &mut *task.out.get().add(at).cast::<[f32; LANES]>() };
            s.store(s.mul(s.load(from), factor), to);
        }
    }
}

impl Scratch {
    fn prepare(&mut self, task: &Task<'_>, vectors: usize) {
        let d = task.head_dim;
        self.block.resize(d * BLOCK_TOKENS, 0.0);
        self.scores.resize(vectors * CHUNK, 0.0);
        self.acc.clear();
        self.acc.resize(vectors * d, 0.0);
        self.max.clear();
        self.max.resize(vectors, f32::NEG_INFINITY);
        self.sums.clear();
        self.sums.resize(vectors, [0.0; LANES]);
        self.lens.clear();
        self.q.clear();
        let scale = 1.0 / (d as f32).sqrt();
        for row in 0..task.rows {
            self.lens.extend(std::iter::repeat_n((task.len)(row), task.heads));
            let q = &task.q[row * task.row_stride..][..task.heads * d];
            self.q.extend(q.iter().map(|x| x * scale));
        }
    }
}

/// Scores of all vectors against the chunk's blocks; lanes beyond a row's length hold anything.
#[inline(always)]
fn score_chunk<S: Simd>(
    s: S,
    task: &Task<'_>,
    blocks: &[u32],
    first: usize,
    scratch: &mut Scratch,
    vectors: usize,
) {
    let d = task.head_dim;
    for (at, &block) in blocks.iter().enumerate() {
        convert::keys(s, task, block, first + at * BLOCK_TOKENS, &scratch.bias, &mut scratch.block);
        let (k, _) = scratch.block.as_chunks::<LANES>();
        let mut i = 0;
        while i < vectors {
            let r = (vectors - i).min(S::ROWS);
            let from = From { values: &scratch.q[i * d..], stride: d, count: d };
            let to = To { values: &mut scratch.scores[i * CHUNK + at * BLOCK_TOKENS..], stride: CHUNK };
            outer::<S, false>(s, r, from, k, 1, to);
            i += r;
        }
    }
}

/// One vector's running maximum, probabilities and sums over the `used` first tokens of the chunk.
#[inline(always)]
fn soften<S: Simd>(s: S, i: usize, used: usize, d: usize, scratch: &mut Scratch) {
    let scores = &mut scratch.scores[i * CHUNK..i * CHUNK + used.next_multiple_of(LANES)];
    scores[used..].fill(f32::NEG_INFINITY);
    let old = scratch.max[i];
    let new = body::max(s, scores);
    let new = if old > new { old } else { new };
    scratch.max[i] = new;
    let alpha = body::exp(s, s.splat(old - new));
    let shift = s.splat(new);
    let mut sums = s.mul(s.load(&scratch.sums[i]), alpha);
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    for chunk in scores {
        let p = body::exp(s, s.sub(s.load(chunk), shift));
        sums = s.add(sums, p);
        s.store(p, chunk);
    }
    s.store(sums, &mut scratch.sums[i]);
    let (acc, _) = scratch.acc[i * d..(i + 1) * d].as_chunks_mut::<LANES>();
    for part in acc {
        s.store(s.mul(s.load(part), alpha), part);
    }
}

/// Adds p · V of the chunk's blocks to the accumulators.
#[inline(always)]
fn value_chunk<S: Simd>(
    s: S,
    task: &Task<'_>,
    blocks: &[u32],
    first: usize,
    scratch: &mut Scratch,
    vectors: usize,
) {
    let d = task.head_dim;
    for (at, &block) in blocks.iter().enumerate() {
        convert::values(s, task, block, &mut scratch.block);
        let (v, _) = scratch.block.as_chunks::<LANES>();
        let start = first + at * BLOCK_TOKENS;
        let mut i = 0;
        while i < vectors {
            let count = scratch.lens[i].saturating_sub(start).min(BLOCK_TOKENS);
            // Vectors whose rows see equally many tokens of the block go together.
            let mut r = 1;
            while r < S::ROWS
                && i + r < vectors
                && scratch.lens[i + r].saturating_sub(start).min(BLOCK_TOKENS) == count
            {
                r += 1;
            }
            if count > 0 {
                for part in 0..d / LANES {
                    let p = &scratch.scores[i * CHUNK + at * BLOCK_TOKENS..];
                    let from = From { values: p, stride: CHUNK, count };
                    let to = To { values: &mut scratch.acc[i * d + part * LANES..], stride: d };
                    outer::<S, true>(s, r, from, &v[part..], d / LANES, to);
                }
            }
            i += r;
        }
    }
}

struct From<'a> {
    values: &'a [f32],
    stride: usize,
    count: usize,
}

struct To<'a> {
    values: &'a mut [f32],
    stride: usize,
}

/// to[r][lanes] = fma over i < count, in order, of from[r][i] · b[i · step][lanes], from zero or (`ADD`) from
/// what `to` holds.
#[inline(always)]
fn outer<S: Simd, const ADD: bool>(
    s: S,
    r: usize,
    from: From<'_>,
    b: &[[f32; LANES]],
    step: usize,
    to: To<'_>,
) {
    match r {
        8 => outer_rows::<S, ADD, 8>(s, from, b, step, to),
        7 => outer_rows::<S, ADD, 7>(s, from, b, step, to),
        6 => outer_rows::<S, ADD, 6>(s, from, b, step, to),
        5 => outer_rows::<S, ADD, 5>(s, from, b, step, to),
        4 => outer_rows::<S, ADD, 4>(s, from, b, step, to),
        3 => outer_rows::<S, ADD, 3>(s, from, b, step, to),
        2 => outer_rows::<S, ADD, 2>(s, from, b, step, to),
        _ => outer_rows::<S, ADD, 1>(s, from, b, step, to),
    }
}

#[inline(always)]
fn outer_rows<S: Simd, const ADD: bool, const R: usize>(
    s: S,
    from: From<'_>,
    b: &[[f32; LANES]],
    step: usize,
    to: To<'_>,
) {
    assert!(from.values.len() > (R - 1) * from.stride + from.count - 1, "attention: operand too short");
    assert!(b.len() > (from.count - 1) * step, "attention: block too short");
    let mut acc = [s.splat(0.0); R];
    if ADD {
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = s.load(lanes(to.values, r * to.stride));
        }
    }
    for i in 0..from.count {
        // SAFETY: i · step ≤ (count − 1) · step < b.len(), asserted above.
        let v = s.load(unsafe { b.get_unchecked(i * step) });
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: r · stride + i ≤ (R − 1) · stride + count − 1 < from.values.len(), asserted above.
            let a = unsafe { *from.values.get_unchecked(r * from.stride + i) };
            *acc = s.fma(s.splat(a), v, *acc);
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        s.store(acc, lanes(to.values, r * to.stride));
    }
}

/// Sixteen values at `at`.
#[inline(always)]
fn lanes(values: &mut [f32], at: usize) -> &mut [f32; LANES] {
    match values[at..].first_chunk_mut() {
        Some(lanes) => lanes,
        None => panic!("attention: result too short"),
    }
}
