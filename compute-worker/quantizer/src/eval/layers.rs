//! Where an error enters: every linear layer against the source's weights, on the inputs that it really had.
//!
//! ```text
//!  tokens ─► the engine's forward pass over the bundle, one backend wrapped in another
//!              │ at each linear call: inputs before and after rounding, outputs
//!              ├─► rounding: was each value rounded to the nearest step?
//!              ├─► products: are outputs what the stored integers give?
//!              └─► weights:  slope of each channel's output over that of the source's weights on the same inputs
//!  embedding, norms and biases: stored values against the source's
//! ```
//!
//! The three questions are separate, so one fault gives one finding, and since each layer is judged on its own inputs, an
//! error does not hide others behind it nor blame them. The source is transformed first as the bundle's record says.
//!
//! How far right channels stray from slope 1 depends on their precision and on the text; it is compared with what rounding
//! noise explains and with the spread of the tensor's own channels, not with fixed bounds.

use std::time::Instant;

use rookery_compute_worker::backend::Backend;
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, AttentionQuery, BLOCK_TOKENS, Kernels, KvType, Pool};
use rookery_model::bundle::{Bundle, LinearWeights};
use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;
use rookery_model::rotate::RotatedSource;
use rookery_model::source::ModelSource;

use super::stream::source_work;
use super::watched::Meter;
use super::{EvalError, EvalProgress};
use crate::pack::Quantization;
use measure::{Channel, measure_weights};
use watch::{Piece, Watch, chunks};

mod diagnose;
mod measure;
mod report;
mod rounding;
mod watch;

pub use report::{CallReport, Fault, Finding, LayerReport, TensorReport};
pub use rounding::{RoundingReport, Rule};

/// What is judged, and on what.
pub struct LayerOptions {
    /// Token ids to run through the model.
    pub tokens: Vec<u32>,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Threads that compute; 0 means one for each core.
    pub threads: usize,
}

/// Runs tokens through the bundle on `backend` and compares each linear layer with `source`'s weights.
///
/// # Errors
/// See [`EvalError`].
pub fn by_layer(
    bundle: &Bundle,
    source: &dyn ModelSource,
    backend: Box<dyn Backend>,
    options: &LayerOptions,
    progress: &dyn EvalProgress,
) -> Result<LayerReport, EvalError> {
    let began = Instant::now();
    let record = Quantization::of(bundle).map_err(|fault| EvalError::Record { fault })?;
    if let Some(strength) = record.as_ref().and_then(|record| record.smooth) {
        return Err(EvalError::Smoothed { strength });
    }
    let same_source = source.digest()? == bundle.info().config.source_digest;
    let rotated = record
        .as_ref()
        .map(|record| RotatedSource::new(source, record.rotation.options))
        .transpose()
        .map_err(|error| EvalError::Record { fault: error.to_string() })?;
    let source: &dyn ModelSource = rotated.as_ref().map_or(source, |rotated| rotated);
    same_model(&bundle.info().config.model, source.config())?;
    let config = source.config();
    let embedding = (config.vocab * config.hidden) as u64;
    let meter = Meter::new(source_work(config, 1) + embedding, progress);
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let mut seen = run(bundle, source, backend, options, threads, &meter)?;
    seen.pieces.extend(embedding_pieces(bundle, source, threads, &meter)?);
    let mut report = diagnose::diagnose(seen, config, same_source);
    report.findings.extend(vectors(bundle, source)?);
    report.findings.sort_by_key(|finding| finding.order);
    report.tokens = options.tokens.len();
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// What was seen during a run.
struct Seen {
    /// In the order of the forward pass.
    pieces: Vec<Piece>,
    calls: Vec<CallReport>,
    ties_to_even: bool,
}

fn run(
    bundle: &Bundle,
    source: &dyn ModelSource,
    mut backend: Box<dyn Backend>,
    options: &LayerOptions,
    threads: usize,
    meter: &Meter<'_>,
) -> Result<Seen, EvalError> {
    let name = || bundle.info().config.name.clone();
    let weights =
        ModelWeights::resolve(bundle).map_err(|source| EvalError::Bundle { name: name(), source })?;
    let rows = options.tokens.len();
    let vocabulary = weights.config.vocab;
    if rows < 2 || options.tokens.iter().any(|&token| token as usize >= vocabulary) {
        return Err(EvalError::NoTokens);
    }
    let blocks = rows.div_ceil(BLOCK_TOKENS);
    let kv_type = options.kv_type;
    let limits =
        ForwardLimits { threads, blocks, positions: rows, max_rows: rows, max_logit_rows: rows, kv_type };
    let kernels = Kernels::detect();
    let mut forward = Forward::new(weights, kernels, &limits);
    let failed = |source| EvalError::Backend { name: name(), source };
    backend.adopt(forward.weights_mut()).map_err(failed)?;
    // After the backend took the weights to where it wants them.
    let mut watch = Watch::new(backend, kernels, source, forward.weights(), meter);
    let blocks: Vec<u32> = (0..blocks as u32).collect();
    let queries: Vec<_> = (0..rows).map(|at| AttentionQuery { blocks: &blocks, len: at + 1 }).collect();
    let all: Vec<usize> = (0..rows).collect();
    let batch = Batch { tokens: &options.tokens, queries: &queries, logits_of: &all };
    let ran = forward.run(&mut watch, &batch);
    if let Some(error) = watch.failure.take() {
        return Err(EvalError::Source(error));
    }
    ran.map_err(|source| EvalError::Forward { name: name(), source })?;
    let (pool, x, mut rounded) = (Pool::new(1), rounding::ties(256), Activations::new());
    watch.round(&pool, &x, x.len(), &mut rounded);
    let ties_to_even = rounding::ties_to_even(&x, &rounded);
    Ok(Seen { pieces: watch.pieces, calls: watch.calls, ties_to_even })
}

/// The embedding, whose rows are looked up and not multiplied with.
fn embedding_pieces(
    bundle: &Bundle,
    source: &dyn ModelSource,
    threads: usize,
    meter: &Meter<'_>,
) -> Result<Vec<Piece>, EvalError> {
    let tensor = TensorName::TokenEmbedding;
    let failed = |source| EvalError::Bundle { name: bundle.info().config.name.clone(), source };
    let matrix: LinearWeights = bundle.linear(tensor).map_err(failed)?;
    let mut pieces = Vec::with_capacity(matrix.segments.len());
    for segment in &matrix.segments {
        let mut channels: Vec<Channel> = Vec::with_capacity(segment.rows);
        for part in chunks(segment.rows, segment.cols) {
            let rows = segment.first_row + part.start..segment.first_row + part.end;
            let weights = source.tensor_rows(tensor, rows)?;
            channels.extend(measure_weights(
                &segment.view(),
                segment.precision,
                part.start,
                &weights,
                threads,
            ));
            meter.add(weights.len() as u64);
        }
        pieces.push(Piece { tensor, first_row: segment.first_row, channels });
    }
    Ok(pieces)
}

/// Norms and biases, which are stored as they are.
fn vectors(bundle: &Bundle, source: &dyn ModelSource) -> Result<Vec<Finding>, EvalError> {
    let mut findings = Vec::new();
    let config = source.config();
    for name in config.tensor_names().into_iter().filter(|name| !name.is_linear()) {
        let failed = |source| EvalError::Bundle { name: bundle.info().config.name.clone(), source };
        let (stored, expected) = (bundle.vector(name).map_err(failed)?, source.tensor(name)?);
        let differ = stored.iter().zip(&expected).filter(|(stored, expected)| stored != expected).count();
        if differ > 0 || stored.len() != expected.len() {
            findings.push(Finding::vector(name, differ, expected.len(), config));
        }
    }
    Ok(findings)
}

/// Refuses a source whose matrices are other ones.
fn same_model(bundle: &ModelConfig, source: &ModelConfig) -> Result<(), EvalError> {
    let differ = |what: &str| Err(EvalError::OtherModel { what: what.to_owned() });
    let sizes = |config: &ModelConfig| {
        [
            config.layers,
            config.hidden,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.ffn,
            config.vocab,
        ]
    };
    if sizes(bundle) != sizes(source) {
        return differ("the size");
    }
    if bundle.ffn_hadamard != source.ffn_hadamard {
        return differ("the transform of the feed-forward's activations");
    }
    if (bundle.tied_head, bundle.qkv_bias, bundle.qk_norm)
        != (source.tied_head, source.qkv_bias, source.qk_norm)
    {
        return differ("which tensors there are");
    }
    Ok(())
}
