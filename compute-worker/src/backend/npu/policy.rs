//! What goes where: the cost of a product on the processor, on the NPU, and shared by both.
//!
//! ```text
//! cpu(N)  = max(weights / cpu bytes per second, multiply-adds / (threads · cpu rate))
//! npu(N)  = job time by the driver's timing model + (activations + accumulators) / pack rate
//!           (w4: + the shorter of expanding the weights, and of adding up slices of the int4 mode)
//! both(S) = max(npu(S), cpu(N − S), all bytes / what the memory gives)     S output channels on the NPU
//! ```
//! All of it is estimates of time; a wrong one costs time and changes no result.

use std::collections::{HashMap, HashSet};

use rknpu_driver::timing::{self, Board, MacFormat, TaskWork};

use super::BoardSettings;
use crate::config::{NpuPolicy, NpuW4};

/// Output channels that a split leaves whole: a panel of the kernels, and a row of tiles of either precision.
pub(super) const SPLIT_STEP: usize = 64;
/// A split must be this much faster than the better of both alone: handing over and joining are not modelled.
const SPLIT_GAIN: f64 = 0.9;
/// Sizes of the NPU's part that are compared.
const SPLITS: usize = 16;
/// Columns that share a multiplier of `w4`, hence a slice of the int4 mode.
const SLICE: usize = 128;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// int8.
    W8,
    /// int4 with multipliers.
    W4,
}

/// How the NPU computes with `w4` weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// int8 tiles as they are stored, or expanded first.
    Int8,
    /// int4 with two nibble rows a token, and slices of 128 columns.
    Int4,
}

/// A product: `[rows][inner] · [outputs][inner]ᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// M.
    pub rows: usize,
    /// K.
    pub inner: usize,
    /// N.
    pub outputs: usize,
    /// How its weights are stored.
    pub form: Form,
}

/// Where a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Output channels, from the first on, that the NPU computes: 0, all, or a multiple of 64. The processor computes the
    /// others.
    pub on_npu: usize,
    /// How.
    pub way: Way,
}

/// The constants of a board and its processor, and decisions made with them.
#[derive(Debug)]
pub struct CostModel {
    board: Board,
    cpu: BoardSettings,
    policy: NpuPolicy,
    w4: NpuW4,
    threads: usize,
    decisions: HashMap<Product, Decision>,
    /// Products that the driver cannot plan, left to the processor whatever the policy.
    excluded: HashSet<Product>,
}

/// Shapes whose decisions are kept: M changes from step to step, everything else is the model's.
const MOST_DECISIONS: usize = 4096;

impl CostModel {
    /// A model with the driver's constants where the settings have none, for `cores` cores.
    pub fn new(board: Board, settings: &BoardSettings, cores: u32, policy: NpuPolicy, w4: NpuW4) -> Self {
        let mut board = board;
        board.cores = cores;
        board.clock_hz = settings.npu_clock_hz.unwrap_or(board.clock_hz);
        if let Some(rate) = settings.npu_bytes_per_second {
            board.ddr_efficiency = rate / board.ddr_bytes_per_s;
            board.core_bytes_per_s = board.core_bytes_per_s.min(rate);
        }
        board.submit_overhead = settings.submit_overhead.unwrap_or(board.submit_overhead);
        board.task_overhead = settings.task_overhead.unwrap_or(board.task_overhead);
        Self {
            board,
            cpu: settings.clone(),
            policy,
            w4,
            threads: 1,
            decisions: HashMap::new(),
            excluded: HashSet::new(),
        }
    }

    /// The board that it assumes.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Where `product` is computed with `threads` threads.
    pub fn decide(&mut self, product: Product, threads: usize) -> Decision {
        if self.threads != threads || self.decisions.len() >= MOST_DECISIONS {
            self.decisions.clear();
            self.threads = threads;
        }
        if let Some(decision) = self.decisions.get(&product) {
            return *decision;
        }
        let decision = self.compare(&product);
        self.decisions.insert(product, decision);
        decision
    }

    /// From now on the processor computes `product`.
    pub fn exclude(&mut self, product: Product) {
        self.decisions.remove(&product);
        self.excluded.insert(product);
    }

    fn compare(&self, product: &Product) -> Decision {
        let (whole, way) = self.npu(product);
        if self.excluded.contains(product) {
            return Decision { on_npu: 0, way };
        }
        match self.policy {
            NpuPolicy::Cpu => Decision { on_npu: 0, way },
            NpuPolicy::Npu => Decision { on_npu: product.outputs, way },
            NpuPolicy::Both => self.shared(product),
            NpuPolicy::Auto => {
                let cpu = self.cpu(product);
                let (alone, best) = if whole < cpu { (product.outputs, whole) } else { (0, cpu) };
                let split = self.shared(product);
                if self.both(product, split.on_npu) < best * SPLIT_GAIN {
                    split
                } else {
                    Decision { on_npu: alone, way }
                }
            }
        }
    }

    /// The fastest split; of a product too narrow for one, the NPU alone.
    fn shared(&self, product: &Product) -> Decision {
        let steps = product.outputs.div_ceil(SPLIT_STEP);
        let sizes = (1..=SPLITS).map(|part| steps * part / SPLITS * SPLIT_STEP);
        let inside = sizes.filter(|&on_npu| on_npu > 0 && on_npu < product.outputs);
        let time = |on_npu: &usize| self.both(product, *on_npu);
        let on_npu = inside.min_by(|a, b| time(a).total_cmp(&time(b))).unwrap_or(product.outputs);
        Decision { on_npu, way: self.npu(&Product { outputs: on_npu, ..*product }).1 }
    }

    /// Seconds on the processor alone.
    pub fn cpu(&self, product: &Product) -> f64 {
        if product.outputs == 0 {
            return 0.0;
        }
        let reading = product.weight_bytes() / self.cpu.cpu_bytes_per_second;
        let macs = product.rows as f64 * product.inner as f64 * product.outputs as f64;
        reading.max(macs / (self.threads as f64 * self.cpu.cpu_macs_per_second))
    }

    /// Seconds on the NPU alone, and how it computes.
    pub fn npu(&self, product: &Product) -> (f64, Way) {
        let int8 = self.job(product.rows, product, MacFormat::Int8, 4.0, product.inner);
        let values = |rows: f64, bytes: f64| rows * product.outputs as f64 * bytes;
        let rows = product.rows as f64;
        let threads = self.threads as f64 * self.cpu.cpu_pack_bytes_per_second;
        let host = (rows * product.inner as f64 + values(rows, 4.0)) / threads;
        if product.form == Form::W8 {
            return (int8 + host, Way::Int8);
        }
        let expanded = int8 + host + product.outputs as f64 * product.inner as f64 / threads;
        // Two nibble rows a token and one of ones; 16-bit sums for each slice of 128 columns.
        let nibble_rows = 2 * product.rows + 1;
        let slices = product.inner.div_ceil(SLICE) as f64;
        let device = self.job(nibble_rows, product, MacFormat::Int4, 2.0 * slices, SLICE);
        let sums =
            (nibble_rows as f64 * product.inner as f64 + values(nibble_rows as f64, 2.0 * slices)) / threads;
        let nibbles = device + sums;
        match self.w4 {
            NpuW4::Int8 => (expanded, Way::Int8),
            NpuW4::Int4 => (nibbles, Way::Int4),
            NpuW4::Auto if nibbles < expanded => (nibbles, Way::Int4),
            NpuW4::Auto => (expanded, Way::Int8),
        }
    }

    /// Seconds of a job whose rows of output take `output_bytes` bytes a channel, in slices of `slice` columns.
    fn job(&self, rows: usize, product: &Product, format: MacFormat, output_bytes: f64, slice: usize) -> f64 {
        let cores = self.board.cores.max(1) as usize;
        let outputs = product.outputs.div_ceil(cores);
        let share = outputs as f64 / product.outputs.max(1) as f64;
        let bits = format.bits() as f64;
        let weights = product.outputs as f64 * product.inner as f64 * bits / 8.0 * share;
        let features = rows as f64 * product.inner as f64 * bits / 8.0;
        let slices = product.inner.div_ceil(slice.max(1)) as u64;
        let work = TaskWork {
            // A task takes up to 8,128 channels; slices that one task cannot take together are further tasks.
            tasks: (outputs.div_ceil(8128) as u64) * slices.div_ceil(8),
            mac_cycles: slices
                * timing::mac_cycles(rows as u64, slice.min(product.inner) as u64, outputs as u64, format),
            read_bytes: (weights + features) as u64,
            write_bytes: (rows as f64 * outputs as f64 * output_bytes) as u64,
            command_bytes: 0,
        };
        timing::job_time(&self.board, &vec![vec![work]; cores]).elapsed.as_secs_f64()
    }

    /// Seconds with `on_npu` channels on the NPU and the others on the processor at the same time.
    pub fn both(&self, product: &Product, on_npu: usize) -> f64 {
        let npu = Product { outputs: on_npu, ..*product };
        let cpu = Product { outputs: product.outputs - on_npu, ..*product };
        let memory = product.weight_bytes() / self.board.streamed_bytes_per_s();
        self.npu(&npu).0.max(self.cpu(&cpu)).max(memory)
    }
}

impl Product {
    fn weight_bytes(&self) -> f64 {
        let values = self.outputs as f64 * self.inner as f64;
        match self.form {
            Form::W8 => values,
            Form::W4 => values / 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NpuSection;
    use proptest::prelude::*;

    fn model(policy: NpuPolicy) -> CostModel {
        let board = NpuSection::default().validate().unwrap().board;
        CostModel::new(Board::rk3588_vendor(), &board, 3, policy, NpuW4::Auto)
    }

    fn product(rows: usize, inner: usize, outputs: usize, form: Form) -> Product {
        Product { rows, inner, outputs, form }
    }

    #[test]
    fn a_prompt_goes_to_the_npu_and_a_tiny_product_to_the_processor() {
        let mut model = model(NpuPolicy::Auto);
        let prompt = product(256, 4096, 14_336, Form::W8);
        assert!(model.decide(prompt, 4).on_npu > prompt.outputs / 2, "{:?}", model.decide(prompt, 4));
        let tiny = product(1, 896, 128, Form::W8);
        assert_eq!(model.decide(tiny, 4).on_npu, 0);
    }

    #[test]
    fn settings_replace_the_boards_constants() {
        let mut settings = NpuSection::default().validate().unwrap().board;
        let product = product(1, 4096, 14_336, Form::W8);
        let seconds = |settings: &BoardSettings| {
            let model = CostModel::new(Board::rk3588_vendor(), settings, 3, NpuPolicy::Auto, NpuW4::Auto);
            model.npu(&product).0
        };
        let before = seconds(&settings);
        settings.npu_bytes_per_second = Some(Board::rk3588_vendor().streamed_bytes_per_s() / 2.0);
        let after = seconds(&settings);
        assert!(after > before * 1.8, "{before} {after}");
    }

    proptest! {
        #[test]
        fn decisions_keep_to_the_policy_and_to_whole_groups(
            rows in 1usize..600, inner in 1usize..9_000, outputs in 1usize..160_000, w4: bool, threads in 1usize..9,
        ) {
            let form = if w4 { Form::W4 } else { Form::W8 };
            let product = product(rows, inner, outputs, form);
            for policy in [NpuPolicy::Auto, NpuPolicy::Npu, NpuPolicy::Cpu, NpuPolicy::Both] {
                let mut model = model(policy);
                let decision = model.decide(product, threads);
                prop_assert_eq!(model.decide(product, threads), decision);
                let on_npu = decision.on_npu;
                prop_assert!(on_npu <= outputs);
                prop_assert!(on_npu == outputs || on_npu.is_multiple_of(SPLIT_STEP));
                prop_assert!(w4 || decision.way == Way::Int8);
                match policy {
                    NpuPolicy::Npu => prop_assert_eq!(on_npu, outputs),
                    NpuPolicy::Cpu => prop_assert_eq!(on_npu, 0),
                    NpuPolicy::Both if outputs >= 16 * SPLIT_STEP => prop_assert!(on_npu > 0 && on_npu < outputs),
                    NpuPolicy::Both => prop_assert!(on_npu > 0),
                    NpuPolicy::Auto => {
                        // Never much worse than the better of both alone.
                        let best = model.npu(&product).0.min(model.cpu(&product));
                        prop_assert!(model.both(&product, on_npu) <= best * 1.000_1 || on_npu == 0 || on_npu == outputs);
                    }
                }
            }
        }
    }
}
