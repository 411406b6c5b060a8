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
//! With `ffn_hadamard`, `silu(gate)·up` goes through a block Walsh–Hadamard transform before it is quantised; `down` has
//! the inverse in its weights. With an int8 cache, keys are stored without their bias, which attention adds back.
//!
//! Rows write their keys and values before any row reads, and attention of a row reaches its own position only, so a
//! whole chunk of a prompt goes through a layer at once. All buffers are allocated when the pass is made.

use rookery_kernels::{Activations, AttentionQuery, Kernels, KvCache, KvType, Pool, RopeTable};

use self::pass::Pass;
use super::weights::ModelWeights;
use crate::backend::{Backend, BackendError};

mod pass;

/// Largest head that norms of q and k work on, in values.
const MAX_HEAD_DIM: usize = 4096;

/// What a pass is made for.
#[derive(Debug, Clone, Copy)]
pub struct ForwardLimits {
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    /// How the cache stores keys and values.
    pub kv_type: KvType,
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
    limits: ForwardLimits,
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
        let cache = KvCache::new(weights.cache_layout(limits.blocks, limits.kv_type));
        let pool = Pool::new(limits.threads);
        Self { weights, kernels, pool, cache, scratch, logit_rows: 0, limits: *limits }
    }

    /// What the pass was made for.
    pub fn limits(&self) -> &ForwardLimits {
        &self.limits
    }

    /// The weights.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
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
        self.run_watched(backend, batch, &mut |_, _| {})
    }

    /// As [`Forward::run`], and calls `watch(layer, x)` before each layer, where x is `[rows][hidden]`, the residual stream
    /// that goes into it.
    ///
    /// # Errors
    /// As [`Forward::run`].
    ///
    /// # Panics
    /// As [`Forward::run`].
    pub fn run_watched(
        &mut self,
        backend: &mut dyn Backend,
        batch: &Batch<'_>,
        watch: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        let mut pass = self.pass(backend, batch)?;
        pass.embed();
        Ok(pass.layers(0, watch)?)
    }

    /// As [`Forward::run`] from layer `first_layer` on (with all layers of the model, the head only), into which `x` goes:
    /// `[rows][hidden]` as [`Forward::run_watched`] showed it. Of the cache only these layers are written.
    ///
    /// # Errors
    /// As [`Forward::run`].
    ///
    /// # Panics
    /// As [`Forward::run`], and when there are fewer layers, or x has another length.
    pub fn run_from(
        &mut self,
        backend: &mut dyn Backend,
        batch: &Batch<'_>,
        first_layer: usize,
        x: &[f32],
    ) -> Result<(), ForwardError> {
        let mut pass = self.pass(backend, batch)?;
        pass.resume(x);
        Ok(pass.layers(first_layer, &mut |_, _| {})?)
    }

    /// A run of `batch`, if it fits.
    fn pass<'p>(
        &'p mut self,
        backend: &'p mut dyn Backend,
        batch: &'p Batch<'p>,
    ) -> Result<Pass<'p>, ForwardError> {
        let (rows, logits) = (batch.tokens.len(), batch.logits_of.len());
        let (most_rows, most_logits) = (self.limits.max_rows, self.limits.max_logit_rows);
        if rows > most_rows || logits > most_logits {
            return Err(ForwardError::Oversized { rows, most_rows, logits, most_logits });
        }
        assert_eq!(batch.tokens.len(), batch.queries.len(), "a query for each token");
        self.logit_rows = logits;
        let Self { weights, kernels, pool, cache, scratch, .. } = self;
        Ok(Pass { weights, kernels, pool, cache, scratch, backend, batch, rows })
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
