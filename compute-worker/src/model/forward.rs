//! The forward pass over a batch of rows.
//!
//! A row is one token of one sequence at one position. Rows of several sequences, in prefill and decode, go through
//! together; they meet only in the linear layers, whose integers are exact, so a row's result does not depend on
//! which rows are beside it.
//!
//! ```text
//! x[M][hidden] = embedding[token]
//! per layer:  a = quantize(rms_norm(x));  q, k, v = linear(a) (+ bias);  q, k normed per head where the model does
//!             rope(q), rope(k);  cache ← k, v;  x += linear(quantize(attention(q, cache)))
//!             a = quantize(rms_norm(x));  gate, up = linear(a);  x += linear(quantize(silu(gate)·up))
//! logits[S][vocab] = linear(quantize(rms_norm(x[wanted rows])))
//! ```
//!
//! Rows write their keys and values before any row reads, and attention of a row reaches its own position only, so a
//! whole chunk of a prompt goes through a layer at once. All buffers are allocated when the pass is made.

use rookery_kernels::{
    Activations, AttentionQuery, BLOCK_TOKENS, Kernels, KvCache, LinearJob, Pool, RopeTable,
};
use rookery_model::bundle::LinearWeights;

use super::weights::{LayerWeights, ModelWeights};
use crate::backend::{Backend, BackendError};

/// Largest head that norms of q and k work on, in values.
const MAX_HEAD_DIM: usize = 4096;

/// What a pass is made for.
#[derive(Debug, Clone, Copy)]
pub struct ForwardLimits {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Most rows of a batch.
    pub max_rows: usize,
    /// Most rows whose logits are wanted.
    pub max_logit_rows: usize,
}

/// Rows to compute.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The token of each row.
    pub tokens: &'a [u32],
    /// The blocks of each row's sequence; the row's position is `len - 1`.
    pub queries: &'a [AttentionQuery<'a>],
    /// Rows whose logits are wanted, in the order in which they are wanted.
    pub logits_of: &'a [usize],
}

/// A batch could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The linear layers could not.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The batch is larger than what the pass was made for.
    #[error("batch of {rows} rows and {logits} rows of logits, at most {most_rows} and {most_logits} fit")]
    Oversized {
        /// Rows of the batch.
        rows: usize,
        /// Rows that fit.
        most_rows: usize,
        /// Rows whose logits are wanted.
        logits: usize,
        /// Such rows that fit.
        most_logits: usize,
    },
}

/// A model with its cache and scratch memory.
pub struct Forward {
    weights: ModelWeights,
    kernels: &'static Kernels,
    pool: Pool,
    cache: KvCache,
    scratch: Scratch,
    /// Rows of logits that the last batch wanted.
    logit_rows: usize,
    /// Rows, and rows of logits, that scratch has room for.
    most: [usize; 2],
}

/// `[max_rows][…]` each, named after what they hold.
struct Scratch {
    rope: RopeTable,
    activations: Activations,
    /// The residual stream.
    x: Vec<f32>,
    /// A normed copy of it, or what is added to it.
    y: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attention: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
    logits: Vec<f32>,
}

impl Forward {
    /// A pass for `weights`.
    pub fn new(weights: ModelWeights, kernels: &'static Kernels, limits: &ForwardLimits) -> Self {
        let config = &weights.config;
        assert!(config.head_dim <= MAX_HEAD_DIM, "checked when the config was validated");
        let rows = |width: usize| vec![0.0; limits.max_rows * width];
        let factors = config.rope_factors.as_deref();
        let scratch = Scratch {
            rope: RopeTable::new(
                config.head_dim,
                limits.positions,
                config.rope_theta,
                config.rope_position_scale,
                factors,
            ),
            activations: Activations::new(),
            x: rows(config.hidden),
            y: rows(config.hidden),
            q: rows(config.q_rows()),
            k: rows(config.kv_rows()),
            v: rows(config.kv_rows()),
            attention: rows(config.q_rows()),
            gate: rows(config.ffn),
            up: rows(config.ffn),
            inner: rows(config.ffn),
            logits: vec![0.0; limits.max_logit_rows * config.vocab],
        };
        let cache = KvCache::new(weights.cache_layout(limits.blocks));
        let most = [limits.max_rows, limits.max_logit_rows];
        Self { weights, kernels, pool: Pool::new(limits.threads), cache, scratch, logit_rows: 0, most }
    }

    /// The weights, for a backend that takes them elsewhere.
    pub fn weights_mut(&mut self) -> &mut ModelWeights {
        &mut self.weights
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// Computes a batch: its keys and values are in the cache afterwards, its logits in [`Forward::logits`].
    ///
    /// # Errors
    /// When the batch is larger than the limits, or the backend failed; the cache is then undefined for the batch's
    /// rows.
    ///
    /// # Panics
    /// When the batch names tokens or blocks that are not there.
    pub fn run(&mut self, backend: &mut dyn Backend, batch: &Batch<'_>) -> Result<(), ForwardError> {
        let (rows, logits) = (batch.tokens.len(), batch.logits_of.len());
        let [most_rows, most_logits] = self.most;
        if rows > most_rows || logits > most_logits {
            return Err(ForwardError::Oversized { rows, most_rows, logits, most_logits });
        }
        let Self { weights, kernels, pool, cache, scratch, logit_rows, .. } = self;
        assert_eq!(batch.tokens.len(), batch.queries.len(), "a query for each token");
        let mut pass = Pass { weights, kernels, pool, cache, scratch, backend, batch, rows };
        pass.embed();
        for (index, layer) in pass.weights.layers.iter().enumerate() {
            pass.attention(index, layer)?;
            pass.feed_forward(layer)?;
        }
        *logit_rows = logits;
        Ok(pass.head()?)
    }

    /// The last batch's logits, `[vocab]` each, in the order of its `logits_of`.
    pub fn logits(&self) -> impl Iterator<Item = &[f32]> {
        let vocab = self.weights.config.vocab;
        self.scratch.logits[..self.logit_rows * vocab].chunks_exact(vocab)
    }

    /// Calls `f(i, logits)` for each of the last batch's rows of logits, on the compute threads.
    pub fn for_each_logits_row(&mut self, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let vocab = self.weights.config.vocab;
        self.pool.for_each_row(&mut self.scratch.logits[..self.logit_rows * vocab], vocab, f);
    }
}

/// One run of a [`Forward`].
struct Pass<'p> {
    weights: &'p ModelWeights,
    kernels: &'static Kernels,
    pool: &'p Pool,
    cache: &'p mut KvCache,
    scratch: &'p mut Scratch,
    backend: &'p mut dyn Backend,
    batch: &'p Batch<'p>,
    rows: usize,
}

impl Pass<'_> {
    fn embed(&mut self) {
        let (kernels, tokens, embedding) = (self.kernels, self.batch.tokens, &self.weights.embedding);
        let hidden = self.weights.config.hidden;
        each_row(self.pool, &mut self.scratch.x[..self.rows * hidden], hidden, &|row, x| {
            let token = tokens[row] as usize;
            let holds = |segment: &&rookery_model::bundle::Segment| token < segment.first_row + segment.rows;
            let segment = embedding.segments.iter().find(holds).expect("token ids are checked on submission");
            kernels.embed_row(&segment.view(), token - segment.first_row, x);
        });
    }

    /// x += attention(norm(x)).
    fn attention(&mut self, index: usize, layer: &LayerWeights) -> Result<(), BackendError> {
        self.norm_and_quantize(&layer.attn_norm);
        let (config, rows) = (&self.weights.config, self.rows);
        let (q_width, kv_width) = (config.q_rows(), config.kv_rows());
        let Scratch { activations, q, k, v, .. } = &mut *self.scratch;
        let [wq, wk, wv] = &layer.qkv;
        let targets = [(wq, q), (wk, k), (wv, v)];
        let targets = targets.map(|(w, out)| Target { weights: &w.weights, bias: w.bias.as_deref(), out });
        linear(self.backend, self.pool, activations, targets)?;
        let norms = layer.qk_norms.as_ref().map(|[q, k]| (q.as_slice(), k.as_slice()));
        self.rotate(norms);
        let Scratch { q, k, v, attention, y, activations, .. } = &mut *self.scratch;
        for (row, query) in self.batch.queries.iter().enumerate() {
            let position = query.len - 1;
            let (block, slot) = (query.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            let at = row * kv_width..(row + 1) * kv_width;
            self.cache.write(index, block, slot, &k[at.clone()], &v[at]);
        }
        let (q, attention) = (&q[..rows * q_width], &mut attention[..rows * q_width]);
        let queries = self.batch.queries;
        self.kernels.attention(self.pool, self.cache, index, queries, q, config.heads, attention);
        self.kernels.quantize(self.pool, attention, q_width, activations);
        let target = Target { weights: &layer.attn_output, bias: None, out: y };
        linear(self.backend, self.pool, activations, [target])?;
        self.add_to_residual();
        Ok(())
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

    /// x += down(silu(gate(norm(x))) · up(norm(x))).
    fn feed_forward(&mut self, layer: &LayerWeights) -> Result<(), BackendError> {
        self.norm_and_quantize(&layer.ffn_norm);
        let ffn = self.weights.config.ffn;
        let kernels = self.kernels;
        let Scratch { activations, gate, up, inner, y, .. } = &mut *self.scratch;
        let targets = [
            Target { weights: &layer.ffn_gate, bias: None, out: gate },
            Target { weights: &layer.ffn_up, bias: None, out: up },
        ];
        linear(self.backend, self.pool, activations, targets)?;
        let all = ..self.rows * ffn;
        let (gate, up, inner) = (&gate[all], &up[all], &mut inner[all]);
        if !self.backend.silu_mul(gate, up, ffn, inner) {
            each_row(self.pool, inner, ffn, &|row, inner| {
                let at = row * ffn..(row + 1) * ffn;
                kernels.silu_mul(&gate[at.clone()], &up[at], inner);
            });
        }
        kernels.quantize(self.pool, inner, ffn, activations);
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
        kernels.quantize(self.pool, normed, hidden, activations);
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
        kernels.quantize(self.pool, y, hidden, activations);
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

/// Where a linear layer's output goes: `out[m][n]`, rows as wide as the layer.
struct Target<'a> {
    weights: &'a LinearWeights,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

/// Computes several layers over the same activations. Layers stored in one piece go to the backend together; one in
/// several pieces (heads of different precision) goes piece by piece, since its pieces share an output.
fn linear<const N: usize>(
    backend: &mut dyn Backend,
    pool: &Pool,
    a: &Activations,
    mut targets: [Target<'_>; N],
) -> Result<(), BackendError> {
    if targets.iter().all(|target| target.weights.segments.len() == 1) {
        return backend.linear(pool, a, &mut targets.each_mut().map(|target| target.job(0)));
    }
    for target in &mut targets {
        for segment in 0..target.weights.segments.len() {
            backend.linear(pool, a, &mut [target.job(segment)])?;
        }
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
