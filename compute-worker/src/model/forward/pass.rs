//! One run of a forward pass, operation by operation.

use rookery_kernels::{
    Activations, AttentionJob, BLOCK_TOKENS, Kernels, KeyBias, KvCache, KvType, LinearJob, Pool,
};
use rookery_model::bundle::{LinearWeights, Segment};

use super::{Batch, MAX_HEAD_DIM, Scratch};
use crate::backend::{Backend, BackendError};
use crate::model::weights::{LayerWeights, ModelWeights};

/// One run of a [`Forward`].
pub(super) struct Pass<'p> {
    pub(super) weights: &'p ModelWeights,
    pub(super) kernels: &'static Kernels,
    pub(super) pool: &'p Pool,
    pub(super) cache: &'p mut KvCache,
    pub(super) scratch: &'p mut Scratch,
    pub(super) backend: &'p mut dyn Backend,
    pub(super) batch: &'p Batch<'p>,
    pub(super) rows: usize,
}

impl Pass<'_> {
    /// x = embedding[token].
    pub(super) fn embed(&mut self) {
        let (kernels, tokens, embedding) = (self.kernels, self.batch.tokens, &self.weights.embedding);
        let hidden = self.weights.config.hidden;
        each_row(self.pool, &mut self.scratch.x[..self.rows * hidden], hidden, &|row, x| {
            let token = tokens[row] as usize;
            let holds = |segment: &&Segment| token < segment.first_row + segment.rows;
            let segment = embedding.segments.iter().find(holds).expect("token ids are checked on submission");
            kernels.embed_row(&segment.view(), token - segment.first_row, x);
        });
    }

    /// x as an earlier run had it.
    pub(super) fn resume(&mut self, x: &[f32]) {
        let hidden = self.weights.config.hidden;
        assert_eq!(x.len(), self.rows * hidden, "a residual stream of {} rows of {hidden}", self.rows);
        self.scratch.x[..x.len()].copy_from_slice(x);
    }

    /// The layers from `first` on, and the head.
    pub(super) fn layers(
        &mut self,
        first: usize,
        watch: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), BackendError> {
        let weights = self.weights;
        assert!(first <= weights.layers.len(), "layer {first} of {}", weights.layers.len());
        for (index, layer) in weights.layers.iter().enumerate().skip(first) {
            watch(index, &self.scratch.x[..self.rows * weights.config.hidden]);
            self.attention(index, layer)?;
            self.feed_forward(layer)?;
        }
        self.head()
    }

    /// x += attention(norm(x)).
    fn attention(&mut self, index: usize, layer: &LayerWeights) -> Result<(), BackendError> {
        self.norm_and_quantize(&layer.attn_norm);
        let late_bias = self.late_key_bias(layer);
        let (config, rows) = (&self.weights.config, self.rows);
        let (q_width, kv_width) = (config.q_rows(), config.kv_rows());
        let Scratch { activations, q, k, v, .. } = &mut *self.scratch;
        let [wq, wk, wv] = &layer.qkv;
        let key_bias = wk.bias.as_deref().filter(|_| late_bias.is_none());
        let targets = [
            Target { weights: &wq.weights, bias: wq.bias.as_deref(), out: q },
            Target { weights: &wk.weights, bias: key_bias, out: k },
            Target { weights: &wv.weights, bias: wv.bias.as_deref(), out: v },
        ];
        linear(self.backend, self.pool, activations, targets)?;
        let norms = layer.qk_norms.as_ref().map(|[q, k]| (q.as_slice(), k.as_slice()));
        self.rotate(norms);
        let Scratch { q, k, v, attention, y, activations, rope, .. } = &mut *self.scratch;
        for (row, query) in self.batch.queries.iter().enumerate() {
            let position = query.len - 1;
            let (block, slot) = (query.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            let at = row * kv_width..(row + 1) * kv_width;
            self.cache.write(index, block, slot, &k[at.clone()], &v[at]);
        }
        let (q, attention) = (&q[..rows * q_width], &mut attention[..rows * q_width]);
        let key_bias = late_bias.map(|bias| KeyBias { bias, rope });
        let (queries, heads) = (self.batch.queries, config.heads);
        let job = AttentionJob { layer: index, queries, q, heads, key_bias };
        self.kernels.attention(self.pool, self.cache, &job, attention);
        quantize(self.backend, self.kernels, self.pool, attention, q_width, activations);
        let target = Target { weights: &layer.attn_output, bias: None, out: y };
        linear(self.backend, self.pool, activations, [target])?;
        self.add_to_residual();
        Ok(())
    }

    /// The bias of k where the cache holds keys without it: a large one would take most of int8's range. Not where heads
    /// of k are normed, which no sum survives.
    fn late_key_bias<'l>(&self, layer: &'l LayerWeights) -> Option<&'l [f32]> {
        let late = self.cache.layout().kind == KvType::Int8 && layer.qk_norms.is_none();
        layer.qkv[1].bias.as_deref().filter(|_| late)
    }

    /// Norms (where the model does) and rotates the heads of q and k.
    fn rotate(&mut self, norms: Option<(&[f32], &[f32])>) {
        let (kernels, config, queries) = (self.kernels, &self.weights.config, self.batch.queries);
        let (head_dim, eps) = (config.head_dim, config.rms_eps);
        let Scratch { q, k, rope, .. } = &mut *self.scratch;
        let rope = &*rope;
        let turn = |heads: &mut [f32], norm: Option<&[f32]>, row: usize| {
            if let Some(weight) = norm {
                let mut raw = [0.0; MAX_HEAD_DIM];
                for head in heads.chunks_exact_mut(head_dim) {
                    raw[..head_dim].copy_from_slice(head);
                    kernels.rms_norm(&raw[..head_dim], weight, eps, head);
                }
            }
            kernels.rope(heads, head_dim, rope, queries[row].len - 1);
        };
        let (q_width, kv_width) = (config.q_rows(), config.kv_rows());
        let (q_norm, k_norm) = norms.unzip();
        each_row(self.pool, &mut q[..self.rows * q_width], q_width, &|row, q| turn(q, q_norm, row));
        each_row(self.pool, &mut k[..self.rows * kv_width], kv_width, &|row, k| turn(k, k_norm, row));
    }

    /// x += down(H(silu(gate(norm(x))) · up(norm(x)))), H the block Hadamard transform where the model has one.
    fn feed_forward(&mut self, layer: &LayerWeights) -> Result<(), BackendError> {
        self.norm_and_quantize(&layer.ffn_norm);
        let (ffn, hadamard) = (self.weights.config.ffn, self.weights.config.ffn_hadamard);
        let kernels = self.kernels;
        let Scratch { activations, gate, up, inner, y, .. } = &mut *self.scratch;
        let targets = [
            Target { weights: &layer.ffn_gate, bias: None, out: gate },
            Target { weights: &layer.ffn_up, bias: None, out: up },
        ];
        linear(self.backend, self.pool, activations, targets)?;
        let all = ..self.rows * ffn;
        let (gate, up, inner) = (&gate[all], &up[all], &mut inner[all]);
        let done = self.backend.silu_mul(gate, up, ffn, inner);
        if !done || hadamard.is_some() {
            each_row(self.pool, inner, ffn, &|row, inner| {
                if !done {
                    let at = row * ffn..(row + 1) * ffn;
                    kernels.silu_mul(&gate[at.clone()], &up[at], inner);
                }
                if let Some(block) = hadamard {
                    kernels.hadamard(inner, block);
                }
            });
        }
        quantize(self.backend, kernels, self.pool, inner, ffn, activations);
        let target = Target { weights: &layer.ffn_down, bias: None, out: y };
        linear(self.backend, self.pool, activations, [target])?;
        self.add_to_residual();
        Ok(())
    }

    /// Logits of the rows that are wanted.
    fn head(&mut self) -> Result<(), BackendError> {
        let (wanted, kernels) = (self.batch.logits_of, self.kernels);
        if wanted.is_empty() {
            return Ok(());
        }
        let (hidden, eps) = (self.weights.config.hidden, self.weights.config.rms_eps);
        let Scratch { x, y, activations, logits, .. } = &mut *self.scratch;
        let normed = &mut y[..wanted.len() * hidden];
        for (row, normed) in wanted.iter().zip(normed.chunks_exact_mut(hidden)) {
            kernels.rms_norm(&x[row * hidden..(row + 1) * hidden], &self.weights.output_norm, eps, normed);
        }
        quantize(self.backend, kernels, self.pool, normed, hidden, activations);
        let target = Target { weights: &self.weights.head, bias: None, out: logits };
        linear(self.backend, self.pool, activations, [target])
    }

    /// activations = quantize(rms_norm(x)).
    fn norm_and_quantize(&mut self, weight: &[f32]) {
        let (hidden, eps, kernels) = (self.weights.config.hidden, self.weights.config.rms_eps, self.kernels);
        let Scratch { x, y, activations, .. } = &mut *self.scratch;
        let y = &mut y[..self.rows * hidden];
        if !self.backend.rms_norm(&x[..self.rows * hidden], weight, eps, y) {
            each_row(self.pool, y, hidden, &|row, y| {
                kernels.rms_norm(&x[row * hidden..(row + 1) * hidden], weight, eps, y);
            });
        }
        quantize(self.backend, kernels, self.pool, y, hidden, activations);
    }

    /// x += y.
    fn add_to_residual(&mut self) {
        let (kernels, hidden) = (self.kernels, self.weights.config.hidden);
        let Scratch { x, y, .. } = &mut *self.scratch;
        each_row(self.pool, &mut x[..self.rows * hidden], hidden, &|row, x| {
            kernels.add_assign(x, &y[row * hidden..(row + 1) * hidden]);
        });
    }
}

/// out = x rounded to int8, rows of `cols` values: by the backend if it wants to, else by the kernels.
fn quantize(
    backend: &mut dyn Backend,
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    cols: usize,
    out: &mut Activations,
) {
    if !backend.quantize(pool, x, cols, out) {
        kernels.quantize(pool, x, cols, out);
    }
}

/// Where a linear layer's output goes: `out[m][n]`, rows as wide as the layer.
struct Target<'a> {
    weights: &'a LinearWeights,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

/// Computes several layers over the same activations. The first pieces of all of them go to the backend together, then
/// the second ones of those that are stored in several (heads of different precision), and so on: pieces of one layer
/// share its output.
fn linear<const N: usize>(
    backend: &mut dyn Backend,
    pool: &Pool,
    a: &Activations,
    mut targets: [Target<'_>; N],
) -> Result<(), BackendError> {
    backend.linear(pool, a, &mut targets.each_mut().map(|target| target.job(0)))?;
    let most = targets.iter().map(|target| target.weights.segments.len()).max().unwrap_or(0);
    for segment in 1..most {
        let having = targets.iter_mut().filter(|target| segment < target.weights.segments.len());
        backend.linear(pool, a, &mut having.map(|target| target.job(segment)).collect::<Vec<_>>())?;
    }
    Ok(())
}

impl Target<'_> {
    fn job(&mut self, segment: usize) -> LinearJob<'_> {
        let piece = &self.weights.segments[segment];
        LinearJob {
            weights: piece.view(),
            bias: self.bias.map(|bias| &bias[piece.first_row..piece.first_row + piece.rows]),
            out: self.out,
            out_stride: self.weights.rows,
            out_column: piece.first_row,
        }
    }
}

/// [`Pool::for_each_row`], in place when there are too few rows to be worth waking a thread.
fn each_row(pool: &Pool, out: &mut [f32], row_len: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    // One row of any of these operations takes about as long as a thread takes to come.
    const FEW_ROWS: usize = 3;
    if out.len() <= FEW_ROWS * row_len {
        for (row, out) in out.chunks_exact_mut(row_len).enumerate() {
            f(row, out);
        }
    } else {
        pool.for_each_row(out, row_len, f);
    }
}
