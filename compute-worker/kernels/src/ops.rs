//! Safe entry to the f32 kernels: checks lengths, then calls the table.

use std::cell::RefCell;

use crate::float::attention::{Scratch, Task};
use crate::pool::{Pool, SharedMut};
use crate::{BLOCK_TOKENS, Kernels, KvCache, RopeTable};

/// Rows that share the conversion of a block's keys and values.
const GROUP_ROWS: usize = 8;

/// What one query row attends to.
#[derive(Clone, Copy, Debug)]
pub struct AttentionQuery<'a> {
    /// Cache blocks of the sequence in order, `ceil(len / 16)` at least.
    pub blocks: &'a [u32],
    /// Tokens attended to, itself included; at least 1.
    pub len: usize,
}

/// A bias that the cached keys came without.
///
/// Rotation is linear: RoPE(k + bias) = RoPE(k) + RoPE(bias). What the cache holds is RoPE(k); attention adds the bias,
/// rotated to the position of each token, to the keys as it reads them. A token's position is its place in the
/// sequence's blocks.
#[derive(Clone, Copy, Debug)]
pub struct KeyBias<'a> {
    /// `[kv_heads · head_dim]`.
    pub bias: &'a [f32],
    /// The table that rotated the keys.
    pub rope: &'a RopeTable,
}

/// Attention of M query rows over one layer of a cache.
#[derive(Clone, Copy, Debug)]
pub struct AttentionJob<'a> {
    /// The layer of the cache.
    pub layer: usize,
    /// What each row attends to, `[M]`.
    pub queries: &'a [AttentionQuery<'a>],
    /// Rotated queries, `[M][heads · head_dim]`.
    pub q: &'a [f32],
    /// Query heads, a multiple of the cache's kv heads: head h uses kv head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// What to add to the keys, if they were stored without it.
    pub key_bias: Option<KeyBias<'a>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Kernels {
    /// One row of RMS normalisation: `out = x / sqrt(mean(x²) + eps) · weight`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len(), "rms_norm: lengths differ");
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.rms_norm)(x, weight, eps, out) }
    }

    /// Rotates `heads` (`[heads][head_dim]`) to `position`; pairs are (i, i + head_dim/2).
    ///
    /// # Panics
    /// When `head_dim` is not the table's, does not divide the length, or `position` is beyond the table.
    pub fn rope(&self, heads: &mut [f32], head_dim: usize, table: &RopeTable, position: usize) {
        assert_eq!(head_dim, table.head_dim(), "rope: table of another head_dim");
        assert!(heads.len().is_multiple_of(head_dim), "rope: {} values in heads of {head_dim}", heads.len());
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.rope)(heads, head_dim, table.row(position)) }
    }

    /// `out = silu(gate) · up`, silu(x) = x / (1 + e^−x).
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "silu_mul: lengths differ");
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.silu_mul)(gate, up, out) }
    }

    /// `x += y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add_assign(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "add_assign: lengths differ");
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.add_assign)(x, y) }
    }

    /// (max, ln Σ e^(x − max)): the log-probability of i is `logits[i] − max − ln_sum`.
    pub fn log_softmax_stats(&self, logits: &[f32]) -> (f32, f32) {
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.log_softmax_stats)(logits) }
    }

    /// Softmax in place.
    pub fn softmax(&self, x: &mut [f32]) {
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.softmax)(x) }
    }

    /// Walsh–Hadamard transform in place of every consecutive `block` values, in natural (Sylvester) order, not
    /// normalised: applied twice it multiplies by `block`.
    ///
    /// # Panics
    /// When `block` is not a power of two in 16…4096 or does not divide the length.
    pub fn hadamard(&self, x: &mut [f32], block: usize) {
        assert!(
            block.is_power_of_two() && (16..=4096).contains(&block),
            "hadamard: block of {block} is not a power of two in 16..=4096"
        );
        assert!(x.len().is_multiple_of(block), "hadamard: {} values in blocks of {block}", x.len());
        // SAFETY: this table exists only where its instruction set was detected.
        unsafe { (self.float.hadamard)(x, block) }
    }

    /// Grouped-query attention of M rows over one layer of the cache; `out` is `[M][heads · head_dim]`, scores are
    /// scaled by 1/√head_dim. A row's result depends on its own query, blocks and length only.
    ///
    /// # Panics
    /// When a length, head count or block id does not fit the cache's layout, or the bias and its table do not.
    pub fn attention(&self, pool: &Pool, cache: &KvCache, job: &AttentionJob<'_>, out: &mut [f32]) {
        let layout = cache.layout();
        let (kv_heads, d) = (layout.kv_heads, layout.head_dim);
        check(cache, job, out);
        let AttentionJob { layer, queries, q, heads, key_bias } = *job;
        if queries.is_empty() || heads == 0 {
            return;
        }
        let group = heads / kv_heads;
        let per_task = if queries.len() <= pool.threads() * 2 { 1 } else { GROUP_ROWS };
        let row_groups = queries.len().div_ceil(per_task);
        // With few rows the heads of a group are shared out too; each part converts the blocks again.
        let parts = (pool.threads()).div_ceil(row_groups * kv_heads).min(group);
        let per_part = group.div_ceil(parts);
        let stride = heads * d;
        let (layer, base) = (cache.layer(layer), SharedMut(out.as_mut_ptr()));
        pool.run(row_groups * kv_heads * parts, &|index| {
            let (rows, head) = (index / (kv_heads * parts), index % (kv_heads * parts));
            let (kv_head, part) = (head / parts, head % parts);
            let first_head = kv_head * group + (part * per_part).min(group);
            let end_head = kv_head * group + ((part + 1) * per_part).min(group);
            let mut rest = rows * per_task..queries.len().min((rows + 1) * per_task);
            while first_head < end_head && !rest.is_empty() {
                let count = same_blocks(&queries[rest.clone()]);
                let these = &queries[rest.start..rest.start + count];
                let at = rest.start * stride + first_head * d;
                let task = Task {
                    cache: layer,
                    block_len: layout.block_len(),
                    k_offset: kv_head * d * BLOCK_TOKENS,
                    v_offset: (kv_heads + kv_head) * d * BLOCK_TOKENS,
                    head_dim: d,
                    key_bias: key_bias
                        .map(|KeyBias { bias, rope }| KeyBias { bias: &bias[kv_head * d..][..d], rope }),
                    blocks: these.iter().max_by_key(|q| q.len).map_or(&[], |q| q.blocks),
                    len: &|row| these[row].len,
                    rows: count,
                    heads: end_head - first_head,
                    q: &q[at..],
                    // SAFETY: `at` is within out, whose length `check` compared with [M][stride].
                    out: SharedMut(unsafe { base.get().add(at) }),
                    row_stride: stride,
                };
                // SAFETY: this table exists only where its instruction set was detected. `task.out` covers
                // rows rest.start.. and heads first_head..end_head of `out`, which is borrowed mutably until
                // `run` returns; tasks differ in rows or heads, so no two write the same place.
                SCRATCH.with_borrow_mut(|scratch| unsafe { (self.float.attention)(&task, scratch) });
                rest.start += count;
            }
        });
    }
}

/// How many of the first rows attend to prefixes of one list of blocks (at least 1).
fn same_blocks(queries: &[AttentionQuery<'_>]) -> usize {
    let used = |q: &AttentionQuery<'_>| q.len.div_ceil(BLOCK_TOKENS);
    let mut longest = queries[0];
    for (i, query) in queries.iter().enumerate().skip(1) {
        let common = used(&longest).min(used(query));
        if longest.blocks[..common] != query.blocks[..common] {
            return i;
        }
        if query.len > longest.len {
            longest = *query;
        }
    }
    queries.len()
}

fn check(cache: &KvCache, job: &AttentionJob<'_>, out: &[f32]) {
    let AttentionJob { layer, queries, q, heads, key_bias } = *job;
    let layout = cache.layout();
    assert!(layer < layout.layers, "attention: layer {layer} of {}", layout.layers);
    assert!(
        layout.kv_heads > 0 && heads.is_multiple_of(layout.kv_heads),
        "attention: {heads} heads over {} kv heads",
        layout.kv_heads
    );
    let len = queries.len() * heads * layout.head_dim;
    assert!(q.len() == len && out.len() == len, "attention: q {}, out {}, not {len}", q.len(), out.len());
    if let Some(KeyBias { bias, rope }) = key_bias {
        let width = layout.kv_heads * layout.head_dim;
        assert_eq!(bias.len(), width, "attention: bias of {} keys, not {width}", bias.len());
        assert_eq!(rope.head_dim(), layout.head_dim, "attention: rope table of another head_dim");
        let longest = queries.iter().map(|query| query.len).max().unwrap_or(0);
        let positions = rope.positions();
        assert!(longest <= positions, "attention: {longest} tokens, rope table of {positions}");
    }
    for (m, query) in queries.iter().enumerate() {
        let used = query.len.div_ceil(BLOCK_TOKENS);
        assert!(query.len > 0, "attention: row {m} attends to nothing");
        assert!(
            used <= query.blocks.len(),
            "attention: row {m} has {} blocks for {}",
            query.blocks.len(),
            query.len
        );
        for &block in &query.blocks[..used] {
            assert!((block as usize) < layout.blocks, "attention: block {block} of {}", layout.blocks);
        }
    }
}
