//! How fast a whole language model runs.
//!
//! ```text
//! decode step   Σ over linear layers  max(weights + features ÷ streamed bytes/s, array time over all cores)
//!             + cached keys and values ÷ streamed bytes/s
//!             + layers · layer overhead
//! prefill       the same with the prompt's tokens as rows, the head for the last of them only
//! ```

use std::time::Duration;

use super::{Board, MacFormat, mac_cycles};

/// Linear layers of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Input channels.
    pub inner: u64,
    /// Output channels.
    pub outputs: u64,
    /// Stored bytes of one layer's weights.
    pub weight_bytes: u64,
    /// How many there are in the model.
    pub count: u64,
}

impl Linear {
    /// `count` layers with one byte per weight.
    #[must_use]
    pub const fn int8(inner: u64, outputs: u64, count: u64) -> Self {
        Self { inner, outputs, weight_bytes: inner * outputs, count }
    }
}

/// What of a language model costs time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanguageModel {
    /// Transformer blocks.
    pub layers: u64,
    /// Linear layers of all blocks together, each as often as one token passes it.
    pub linears: Vec<Linear>,
    /// From the last hidden state to logits.
    pub head: Linear,
    /// Bytes of keys and values that one position adds, all blocks together.
    pub cache_bytes_per_position: u64,
}

/// The shape of a common transformer: grouped-query attention and a gated feed-forward network in every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transformer {
    /// Transformer blocks.
    pub layers: u64,
    /// Width of the hidden state.
    pub hidden: u64,
    /// Query heads · head width.
    pub query: u64,
    /// Key (or value) heads · head width.
    pub key_value: u64,
    /// Width inside the feed-forward network.
    pub feed_forward: u64,
    /// Tokens in the vocabulary.
    pub vocabulary: u64,
}

impl Transformer {
    /// The model with one byte per weight and `cache_value_bytes` per cached key or value element.
    #[must_use]
    pub fn int8(self, cache_value_bytes: u64) -> LanguageModel {
        let layers = self.layers;
        LanguageModel {
            layers,
            linears: vec![
                Linear::int8(self.hidden, self.query, layers),
                Linear::int8(self.hidden, self.key_value, 2 * layers),
                Linear::int8(self.query, self.hidden, layers),
                Linear::int8(self.hidden, self.feed_forward, 2 * layers),
                Linear::int8(self.feed_forward, self.hidden, layers),
            ],
            head: Linear::int8(self.hidden, self.vocabulary, 1),
            cache_bytes_per_position: layers * 2 * self.key_value * cache_value_bytes,
        }
    }
}

impl LanguageModel {
    /// Weights that one token passes, in bytes.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.linears.iter().chain([&self.head]).map(|linear| linear.weight_bytes * linear.count).sum()
    }
}

/// What the software that runs a model adds to the hardware's time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Runtime {
    /// Per block and step: submissions, norms, attention and whatever else does not overlap with the weights' stream.
    pub layer_overhead: Duration,
    /// Per step, once.
    pub step_overhead: Duration,
    /// Share of the arrays' peak rate, all cores together, that prefill reaches.
    pub prefill_share: f64,
}

impl Runtime {
    /// The vendor's closed runtime for language models, w8a8.
    ///
    /// `layer_overhead` is fitted, together with the vendor board's `ddr_efficiency`, to the decode rates of the eight w8a8
    /// models of release 1.1 (least squares of the relative errors; every other published row was held out). It
    /// amounts to two submissions of 167 µs, which may be chance. `prefill_share` is fitted in the same way to the same eight models'
    /// times to first token: 445 G multiply-adds a second of three cores' 3,072 G in int8. Why so few is not known.
    #[must_use]
    pub const fn rkllm() -> Self {
        Self {
            layer_overhead: Duration::from_micros(326),
            step_overhead: Duration::ZERO,
            prefill_share: 0.145,
        }
    }

    /// This project's worker on `board`: what its calls cost if the hardware does as the board says.
    ///
    /// A block makes four NPU calls (query-key-value, attention output, gate-up, down). Host work between them (norms, rotation,
    /// attention over a short context, activation, packing) is put at one submission's cost more; no board has confirmed it.
    #[must_use]
    pub fn rookery(board: &Board) -> Self {
        let call = board.submit_overhead + board.task_overhead;
        Self { layer_overhead: call * 5, step_overhead: call, prefill_share: 1.0 }
    }
}

/// How long a step takes, in parts that add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTime {
    /// Linear layers of the blocks, and the head.
    pub linears: Duration,
    /// Reading cached keys and values.
    pub cache: Duration,
    /// The runtime's share.
    pub overhead: Duration,
}

impl StepTime {
    /// The whole step.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.linears + self.cache + self.overhead
    }
}

/// One decode step of `streams` generations, each with `context` positions cached.
#[must_use]
pub fn decode_step(
    board: &Board,
    runtime: &Runtime,
    model: &LanguageModel,
    streams: u64,
    context: u64,
) -> StepTime {
    let blocks: f64 = model.linears.iter().map(|linear| linear_seconds(board, linear, streams, 1.0)).sum();
    let head = linear_seconds(board, &model.head, streams, 1.0);
    let cached = (model.cache_bytes_per_position * context * streams) as f64 / board.streamed_bytes_per_s();
    step(runtime, model, blocks + head, cached)
}

/// Tokens per second of `streams` generations together.
#[must_use]
pub fn decode_rate(
    board: &Board,
    runtime: &Runtime,
    model: &LanguageModel,
    streams: u64,
    context: u64,
) -> f64 {
    streams as f64 / decode_step(board, runtime, model, streams, context).total().as_secs_f64()
}

/// From a prompt of `tokens` to its first token: one pass over all of them.
#[must_use]
pub fn prefill(board: &Board, runtime: &Runtime, model: &LanguageModel, tokens: u64) -> StepTime {
    let share = runtime.prefill_share;
    let blocks: f64 = model.linears.iter().map(|linear| linear_seconds(board, linear, tokens, share)).sum();
    let head = linear_seconds(board, &model.head, 1, 1.0);
    step(runtime, model, blocks + head, 0.0)
}

fn step(runtime: &Runtime, model: &LanguageModel, linears: f64, cache: f64) -> StepTime {
    let layers = u32::try_from(model.layers).unwrap_or(u32::MAX);
    StepTime {
        linears: Duration::try_from_secs_f64(linears).unwrap_or(Duration::MAX),
        cache: Duration::try_from_secs_f64(cache).unwrap_or(Duration::MAX),
        overhead: runtime.layer_overhead.saturating_mul(layers) + runtime.step_overhead,
    }
}

/// All `linear.count` layers, each spread over the board's cores. Features are int8 in, int32 out.
fn linear_seconds(board: &Board, linear: &Linear, rows: u64, mac_share: f64) -> f64 {
    let bytes = linear.weight_bytes + rows * (linear.inner + 4 * linear.outputs);
    let moving = bytes as f64 / board.streamed_bytes_per_s();
    let cycles = mac_cycles(rows, linear.inner, linear.outputs, MacFormat::Int8) as f64;
    let rate = board.clock_hz * board.mac_efficiency * f64::from(board.cores) * mac_share;
    linear.count as f64 * moving.max(cycles / rate)
}
