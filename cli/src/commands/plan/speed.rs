//! How fast a model runs on the processor, on the NPU, and on both, by the timing model of the NPU and the worker's own cost
//! model. Nothing here was measured on a board.

use std::time::Duration;

use rookery_compute_worker::backend::npu::{CostModel, Form, Product};
use rookery_compute_worker::config::{NpuPolicy, NpuSection, NpuW4};
use rookery_kernels::KvType;
use rookery_model::config::ModelConfig;
use serde::Serialize;

use super::board::Board;
use super::memory::{Stored, cache_bytes};

/// Threads that compute on a gateway: its four big cores.
const THREADS: usize = 4;
/// Rows of one step of prefill, the worker's default.
const STEP_ROWS: u64 = 256;
/// f32 multiply-adds per second of attention, all threads. Assumed, not measured: a third of what four Cortex-A76 do.
const ATTENTION_MACS_PER_S: f64 = 2.3e10;
/// What the processor spends on a block besides matrices and attention. Assumed, not measured.
const HOST_PER_BLOCK: Duration = Duration::from_micros(60);

/// Where linear layers are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Place {
    /// The processor.
    Cpu,
    /// The NPU.
    Npu,
    /// Each product where it is fastest, or on both at once.
    Mixed,
}

impl Place {
    pub(super) const ALL: [Place; 3] = [Place::Cpu, Place::Npu, Place::Mixed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Place::Cpu => "cpu",
            Place::Npu => "npu",
            Place::Mixed => "mixed",
        }
    }
}

/// What was predicted for one place.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Prediction {
    pub(super) place: Place,
    /// Tokens per second of all streams together.
    pub(super) decode: f64,
    /// Prompt tokens per second.
    pub(super) prefill: f64,
    /// Of a prompt of the length asked for, on an idle gateway.
    pub(super) time_to_first_token: f64,
    /// What decoding spends most of its time on.
    pub(super) decode_bound_by: &'static str,
    /// What prefill spends most of its time on.
    pub(super) prefill_bound_by: &'static str,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) streams: u64,
    pub(super) context: u64,
    pub(super) prompt: u64,
    pub(super) kv: KvType,
}

/// Predicts the speed of a model on a board.
struct Predictor<'a> {
    config: &'a ModelConfig,
    stored: &'a Stored,
    load: Load,
    costs: Costs,
}

/// Seconds of a step by what they go to.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    weights: f64,
    arithmetic: f64,
    cache: f64,
    attention: f64,
    overhead: f64,
}

impl Parts {
    fn total(&self) -> f64 {
        self.weights + self.arithmetic + self.cache + self.attention + self.overhead
    }

    fn largest(&self) -> &'static str {
        let parts = [
            ("memory bandwidth: weights", self.weights),
            ("arithmetic", self.arithmetic),
            ("memory bandwidth: keys and values", self.cache),
            ("attention on the processor", self.attention),
            ("submissions and host work", self.overhead),
        ];
        parts.iter().fold(parts[0], |most, part| if part.1 > most.1 { *part } else { most }).0
    }
}

/// What `place` makes of a model.
pub(super) fn predict(
    config: &ModelConfig,
    stored: &Stored,
    load: Load,
    board: &Board,
    place: Place,
) -> Prediction {
    Predictor { config, stored, load, costs: Costs::new(board, place) }.predict()
}

impl Predictor<'_> {
    fn predict(&mut self) -> Prediction {
        let Load { streams, context, prompt, .. } = self.load;
        let step = self.step(streams, streams, context);
        let mut prefill = Parts::default();
        for first in (0..prompt).step_by(STEP_ROWS as usize) {
            let rows = STEP_ROWS.min(prompt - first);
            let last = first + rows == prompt;
            prefill.add(&self.step(rows, u64::from(last), first + rows / 2));
        }
        Prediction {
            place: self.costs.place,
            decode: streams as f64 / step.total(),
            prefill: prompt as f64 / prefill.total(),
            time_to_first_token: prefill.total(),
            decode_bound_by: step.largest(),
            prefill_bound_by: prefill.largest(),
        }
    }

    /// One step of `rows` rows, `logits` of which want logits, each attending to about `context` positions.
    fn step(&mut self, rows: u64, logits: u64, context: u64) -> Parts {
        let config = self.config;
        let mut parts = Parts::default();
        for (form, share) in [(Form::W8, 1.0 - self.stored.four_bit), (Form::W4, self.stored.four_bit)] {
            for (inner, outputs) in block_products(config) {
                let product = Product { rows: rows as usize, inner, outputs, form };
                parts.add_product(&mut self.costs, &product, share * config.layers as f64);
            }
        }
        if logits > 0 {
            let (rows, inner, outputs) = (logits as usize, config.hidden, config.vocab);
            let head = Product { rows, inner, outputs, form: Form::W8 };
            parts.add_product(&mut self.costs, &head, 1.0);
        }
        let cached = cache_bytes(config, self.load.kv, 1, context) as f64;
        // Rows of one prompt share what they read; generations do not.
        let readers = if logits == rows { rows as f64 } else { 1.0 };
        parts.cache = readers * cached / self.costs.cpu_bytes_per_second;
        let macs = rows as f64 * context as f64 * 2.0 * config.q_rows() as f64 * config.layers as f64;
        parts.attention = (macs / ATTENTION_MACS_PER_S - parts.cache).max(0.0);
        parts.overhead += HOST_PER_BLOCK.as_secs_f64() * config.layers as f64;
        parts
    }
}

impl Parts {
    fn add(&mut self, other: &Parts) {
        self.weights += other.weights;
        self.arithmetic += other.arithmetic;
        self.cache += other.cache;
        self.attention += other.attention;
        self.overhead += other.overhead;
    }

    /// Adds a product computed `count` times: the time that reading its weights takes at least, and what it takes beyond.
    fn add_product(&mut self, costs: &mut Costs, product: &Product, count: f64) {
        if count <= 0.0 {
            return;
        }
        let seconds = costs.seconds(product);
        let values = product.inner as f64 * product.outputs as f64;
        let stored = if product.form == Form::W8 { values } else { values / 2.0 };
        let reading = (stored / costs.bytes_per_second).min(seconds);
        let overhead = costs.overhead.min(seconds - reading);
        self.weights += count * reading;
        self.overhead += count * overhead;
        self.arithmetic += count * (seconds - reading - overhead);
    }
}

/// Products of one block: q, k and v together, attention output, gate and up together, down. `(inner, outputs)` each.
fn block_products(config: &ModelConfig) -> [(usize, usize); 4] {
    [
        (config.hidden, config.q_rows() + 2 * config.kv_rows()),
        (config.q_rows(), config.hidden),
        (config.hidden, 2 * config.ffn),
        (config.ffn, config.hidden),
    ]
}

/// The worker's cost model, asked for a place.
struct Costs {
    model: CostModel,
    place: Place,
    /// At which this place reads weights.
    bytes_per_second: f64,
    cpu_bytes_per_second: f64,
    /// Of a call: submission and task.
    overhead: f64,
}

impl Costs {
    fn new(board: &Board, place: Place) -> Self {
        let policy = match place {
            Place::Cpu => NpuPolicy::Cpu,
            Place::Npu => NpuPolicy::Npu,
            Place::Mixed => NpuPolicy::Auto,
        };
        let model = CostModel::new(board.npu, &board.settings, board.npu.cores, policy, NpuW4::Auto);
        let cpu_bytes_per_second = board.settings.cpu_bytes_per_second;
        let (bytes_per_second, overhead) = match place {
            Place::Cpu => (cpu_bytes_per_second, 0.0),
            Place::Npu | Place::Mixed => {
                let call = model.board().submit_overhead + model.board().task_overhead;
                (model.board().streamed_bytes_per_s(), call.as_secs_f64())
            }
        };
        Self { model, place, bytes_per_second, cpu_bytes_per_second, overhead }
    }

    fn seconds(&mut self, product: &Product) -> f64 {
        match self.model.decide(*product, THREADS).on_npu {
            0 => self.model.cpu(product),
            on_npu if on_npu == product.outputs => self.model.npu(product).0,
            on_npu => self.model.both(product, on_npu),
        }
    }
}

/// The worker's defaults for what a board's processor does.
pub(super) fn default_settings() -> rookery_compute_worker::backend::npu::BoardSettings {
    NpuSection::default().validate().expect("the defaults are valid").board
}

#[cfg(test)]
mod tests {
    use rookery_model::bundle::Precision;
    use rookery_model::shapes::named;

    use super::*;

    fn decode(board: &Board, name: &str, precision: Precision, place: Place) -> f64 {
        let config = named(name).unwrap();
        let stored = Stored::uniform(&config, precision);
        let load = Load { streams: 1, context: 128, prompt: 64, kv: KvType::F16 };
        predict(&config, &stored, load, board, place).decode
    }

    /// Decode rates of the vendor's closed runtime, w8a8, prompts of 64 tokens, by release (docs/npu-timing.md has all). Another
    /// runtime, so what is common to both is the memory's bandwidth: small models differ by what runs beside it.
    const PUBLISHED: [(&str, f64); 9] = [
        ("qwen2.5-0.5b", 41.5),
        ("qwen3-0.6b", 32.6),
        ("tinyllama-1.1b", 24.21),
        ("qwen2.5-1.5b", 16.46),
        ("qwen3-1.7b", 14.37),
        ("qwen2.5-3b", 8.66),
        ("qwen3-4b", 6.53),
        ("llama-3-8b", 3.79),
        ("qwen2.5-7b", 4.18),
    ];

    #[test]
    fn predictions_are_near_published_rates() {
        let board: Board = "rk3588-16g".parse().unwrap();
        for (name, published) in PUBLISHED {
            let predicted = decode(&board, name, Precision::W8, Place::Npu);
            let error = 100.0 * (predicted / published - 1.0);
            println!("| {name} | {published} | {predicted:.2} | {error:+.1} % |");
            // Four submissions a block, where the closed runtime seems to make two, slow small models down.
            let least = if published > 10.0 { -45.0 } else { -15.0 };
            assert!(error > least && error < 10.0, "{name}: {predicted:.2} predicted, {published} published");
        }
    }

    #[test]
    fn the_processor_pays_for_no_submissions() {
        let board: Board = "rk3588-8g".parse().unwrap();
        let mut slow = board.clone();
        slow.npu.submit_overhead *= 10;
        let rate = |board: &Board, place| decode(board, "qwen2.5-0.5b", Precision::W4, place);
        assert_eq!(rate(&board, Place::Cpu).to_bits(), rate(&slow, Place::Cpu).to_bits());
        assert!(rate(&board, Place::Npu) > 1.5 * rate(&slow, Place::Npu));
        // What goes where it is fastest is not slower than either alone.
        let mixed = rate(&board, Place::Mixed);
        assert!(mixed > 0.99 * rate(&board, Place::Cpu) && mixed > 0.99 * rate(&board, Place::Npu));
    }
}
