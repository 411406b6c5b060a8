//! Logits in the order of positions, from the engine or from the f32 forward pass.
//!
//! The f32 pass takes all sequences through a layer together and gives its logits last, one after another: it runs on a
//! thread of its own and waits at a short channel. The engine computes 64 positions when they are asked for.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use rookery_compute_worker::backend::Backend;
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::reference::{Reference, ReferenceError};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{AttentionQuery, BLOCK_TOKENS, Kernels, KvType};
use rookery_model::bundle::Bundle;
use rookery_model::config::ModelConfig;
use rookery_model::source::ModelSource;

use super::EvalError;
use super::watched::{Meter, Watched};

/// Positions computed and compared together.
pub(super) const ROWS: usize = 64;

/// The engine's integer products take about this share of the time of f32 ones.
const ENGINE_SHARE: u64 = 8;

/// Products of one token, the head's included.
fn products(config: &ModelConfig) -> u64 {
    let matrices = config.tensor_names().into_iter().filter(|name| name.is_linear());
    let embedding = if config.tied_head { 0 } else { config.vocab * config.hidden };
    let sizes = matrices.map(|name| config.shape(name)).map(|(rows, cols)| rows as u64 * cols as u64);
    sizes.sum::<u64>() - embedding as u64
}

/// Work of `tokens` tokens on the f32 forward pass.
pub(super) fn source_work(config: &ModelConfig, tokens: usize) -> u64 {
    products(config) * tokens as u64
}

/// Work of `tokens` tokens on the engine.
pub(super) fn engine_work(config: &ModelConfig, tokens: usize) -> u64 {
    products(config) / ENGINE_SHARE * tokens as u64
}

/// One model's logits.
pub(super) enum Logits<'scope> {
    Engine(Box<Engine<'scope>>),
    Source(Rows<'scope>),
}

impl Logits<'_> {
    /// The next positions, `range` of `sequence`: `[vocab]` each.
    ///
    /// # Errors
    /// When they cannot be computed.
    pub(super) fn next(&mut self, sequence: &[u32], range: Range<usize>) -> Result<Vec<&[f32]>, EvalError> {
        match self {
            Logits::Engine(engine) => engine.next(sequence, range),
            Logits::Source(rows) => rows.next(range.len()),
        }
    }

    /// What computes, for people.
    pub(super) fn backend(&self) -> String {
        match self {
            Logits::Engine(engine) => engine.backend.name(),
            Logits::Source(_) => "f32".to_owned(),
        }
    }
}

/// A bundle on the engine's forward pass.
pub(super) struct Engine<'a> {
    name: String,
    forward: Forward,
    backend: Box<dyn Backend>,
    blocks: Vec<u32>,
    meter: &'a Meter<'a>,
}

impl<'a> Engine<'a> {
    /// A pass for sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// When a tensor is missing or the backend refuses the model.
    pub(super) fn new(
        name: String,
        bundle: &Bundle,
        mut backend: Box<dyn Backend>,
        kv_type: KvType,
        [positions, threads]: [usize; 2],
        meter: &'a Meter<'a>,
    ) -> Result<Self, EvalError> {
        let blocks = positions.div_ceil(BLOCK_TOKENS);
        let limits =
            ForwardLimits { threads, blocks, positions, max_rows: ROWS, max_logit_rows: ROWS, kv_type };
        let weights = ModelWeights::resolve(bundle)
            .map_err(|source| EvalError::Bundle { name: name.clone(), source })?;
        let mut forward = Forward::new(weights, Kernels::detect(), &limits);
        backend
            .adopt(forward.weights_mut())
            .map_err(|source| EvalError::Backend { name: name.clone(), source })?;
        Ok(Self { name, forward, backend, blocks: (0..blocks as u32).collect(), meter })
    }

    fn next(&mut self, sequence: &[u32], range: Range<usize>) -> Result<Vec<&[f32]>, EvalError> {
        let Self { name, forward, backend, blocks, meter } = self;
        let failed = |source| EvalError::Backend { name: name.clone(), source };
        if backend.wants_weights() {
            backend.adopt(forward.weights_mut()).map_err(failed)?;
        }
        let query = |at: usize| AttentionQuery { blocks, len: at + 1 };
        let queries: Vec<_> = range.clone().map(query).collect();
        let all: Vec<usize> = (0..queries.len()).collect();
        let batch = Batch { tokens: &sequence[range.clone()], queries: &queries, logits_of: &all };
        forward
            .run(backend.as_mut(), &batch)
            .map_err(|source| EvalError::Forward { name: name.clone(), source })?;
        meter.add(engine_work(&forward.weights().config, range.len()));
        Ok(forward.logits().collect())
    }
}

/// The rows of a source's f32 forward pass, which runs on a thread.
pub(super) struct Rows<'scope> {
    name: String,
    incoming: Receiver<Vec<f32>>,
    thread: Option<ScopedJoinHandle<'scope, Result<(), ReferenceError>>>,
    rows: Vec<Vec<f32>>,
}

impl<'scope> Rows<'scope> {
    /// Starts the pass over `sequences`.
    pub(super) fn start<'env: 'scope>(
        name: String,
        source: &'env dyn ModelSource,
        sequences: &'env [Vec<u32>],
        meter: &'env Meter<'env>,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Self {
        // One block waits while the next is made.
        let (outgoing, incoming) = sync_channel(ROWS);
        let thread = scope.spawn(move || send(source, sequences, meter, &outgoing));
        Self { name, incoming, thread: Some(thread), rows: Vec::new() }
    }

    fn next(&mut self, count: usize) -> Result<Vec<&[f32]>, EvalError> {
        self.rows.clear();
        self.rows.extend(self.incoming.iter().take(count));
        if self.rows.len() == count {
            return Ok(self.rows.iter().map(Vec::as_slice).collect());
        }
        // The thread hung up before its last row, so it failed.
        let thread = self.thread.take().expect("a stream is not asked again after it failed");
        let failure = match thread.join() {
            Ok(result) => result.expect_err("a pass that succeeds sends every row"),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Err(EvalError::Reference { name: self.name.clone(), source: failure })
    }
}

fn send(
    source: &dyn ModelSource,
    sequences: &[Vec<u32>],
    meter: &Meter<'_>,
    outgoing: &SyncSender<Vec<f32>>,
) -> Result<(), ReferenceError> {
    let tokens = sequences.iter().map(|sequence| sequence.len() as u64).sum();
    let watched = Watched { source, meter, tokens };
    let inputs: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let head = (source.config().vocab * source.config().hidden) as u64;
    Reference::open(&watched).logits(&inputs, &mut |_, _, logits| {
        meter.add(head);
        // Nobody listens after another model failed; the meter was stopped, and the next reading ends this.
        let _ = outgoing.send(logits.to_vec());
    })
}
