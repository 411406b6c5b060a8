//! Rotary embedding and causal attention, one sequence after the other.

use rookery_model::config::ModelConfig;

use super::matmul::for_each_chunk;

/// Query rows of one task.
const TASK_ROWS: usize = 8;

/// Shape of the attention of one model.
pub(super) struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Radians per position, `[head_dim / 2]`.
    frequencies: Vec<f64>,
}

impl Heads {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let half = config.head_dim / 2;
        let frequencies = (0..half).map(|i| {
            let factor = config.rope_factors.as_ref().map_or(1.0, |factors| f64::from(factors[i]));
            config.rope_theta.powf(-(i as f64) / half as f64) * config.rope_position_scale / factor
        });
        Heads {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            frequencies: frequencies.collect(),
        }
    }

    /// Rotates pairs `(i, i + head_dim/2)` of `[T][heads][head_dim]` by their position in their sequence.
    pub(super) fn rotate(&self, lengths: &[usize], heads: usize, x: &mut [f32]) {
        let positions = lengths.iter().flat_map(|&length| 0..length);
        for (row, position) in x.chunks_exact_mut(heads * self.head_dim).zip(positions) {
            let angles = self.frequencies.iter().map(|frequency| (position as f64 * frequency).sin_cos());
            let angles: Vec<(f64, f64)> = angles.collect();
            for head in row.chunks_exact_mut(self.head_dim) {
                let (low, high) = head.split_at_mut(self.head_dim / 2);
                for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(&angles) {
                    let (x, y) = (f64::from(*a), f64::from(*b));
                    (*a, *b) = ((x * cos - y * sin) as f32, (x * sin + y * cos) as f32);
                }
            }
        }
    }

    /// Values mixed by attention, `[T][heads][head_dim]`; `q` is of the same shape, `k` and `v` of `kv_heads`.
    pub(super) fn attend(
        &self,
        lengths: &[usize],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        threads: usize,
    ) -> Vec<f32> {
        let (width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut out = vec![0.0; q.len()];
        let (mut rest, mut first) = (out.as_mut_slice(), 0);
        for &length in lengths {
            let (sequence, after) = rest.split_at_mut(length * width);
            let q = &q[first * width..][..length * width];
            let k = &k[first * kv_width..][..length * kv_width];
            let v = &v[first * kv_width..][..length * kv_width];
            for_each_chunk(sequence, TASK_ROWS * width, threads, &|start, rows| {
                for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                    let position = start / width + i;
                    self.attend_row(&q[position * width..][..width], &k[..(position + 1) * kv_width], v, row);
                }
            });
            (rest, first) = (after, first + length);
        }
        out
    }

    /// One query row over the keys up to its own; `out` starts as zeros.
    fn attend_row(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let (d, kv_width) = (self.head_dim, self.kv_heads * self.head_dim);
        let scale = 1.0 / (d as f32).sqrt();
        for (head, (q, out)) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
            let kv = head / (self.heads / self.kv_heads) * d;
            let scores: Vec<f32> = k.chunks_exact(kv_width).map(|k| dot(q, &k[kv..kv + d]) * scale).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = scores.iter().map(|score| f64::from(score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (v, weight) in v.chunks_exact(kv_width).zip(&weights) {
                let weight = (weight / sum) as f32;
                out.iter_mut().zip(&v[kv..kv + d]).for_each(|(out, v)| *out += weight * v);
            }
        }
    }
}

/// Sum of products in 16 lanes; the length is a multiple of 16.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}
