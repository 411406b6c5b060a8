//! Where a gateway's memory goes: weights, keys and values, scratch, the NPU's address spaces.

use rookery_compute_worker::engine::EngineConfig;
use rookery_compute_worker::versions::memory::{ELSE_BYTES, block_bytes, scratch_bytes};
use rookery_kernels::{BLOCK_TOKENS, KvType};
use rookery_model::bundle::{Precision, SegmentEntry, TensorEntry};
use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;
use serde::Serialize;

/// One address space of the NPU: 32-bit addresses.
pub(super) const DOMAIN_BYTES: u64 = 4 << 30;
/// Address spaces that the vendor's driver has.
pub(super) const DOMAINS: u64 = 16;

/// How a model's weights are stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// `w8`, `mixed` or `w4`, or the bundle's own recipe.
    pub(super) name: String,
    /// Every tensor.
    pub(super) tensors: Vec<TensorEntry>,
    /// Share of the blocks' weights that are at four bits, 0 to 1.
    pub(super) four_bit: f64,
    /// Bytes of all weight blobs.
    pub(super) weight_bytes: u64,
}

/// Bytes that serving takes, by what they are for.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    pub(super) weights: u64,
    pub(super) keys_and_values: u64,
    pub(super) scratch: u64,
    pub(super) process: u64,
}

impl Memory {
    /// All of it.
    pub(super) fn total(&self) -> u64 {
        self.weights + self.keys_and_values + self.scratch + self.process
    }
}

impl Stored {
    /// All matrices of the blocks at one precision, embedding and head at eight bits.
    pub(super) fn uniform(config: &ModelConfig, block: Precision) -> Self {
        let entry = |name: TensorName| {
            let (rows, cols) = config.shape(name);
            let precision = match name {
                name if !name.is_linear() => Precision::F32,
                TensorName::Layer(..) => block,
                TensorName::TokenEmbedding | TensorName::Output | TensorName::OutputNorm => Precision::W8,
            };
            TensorEntry { name, rows, cols, segments: vec![SegmentEntry { first_row: 0, rows, precision }] }
        };
        let tensors = config.tensor_names().into_iter().map(entry).collect();
        Self::of(block.to_string(), tensors)
    }

    /// A bundle's own table.
    pub(super) fn of(name: String, tensors: Vec<TensorEntry>) -> Self {
        let weight_bytes = tensors.iter().map(TensorEntry::bytes).sum();
        let in_blocks = || {
            let entries = tensors.iter().filter(|entry| matches!(entry.name, TensorName::Layer(..)));
            entries
                .flat_map(|entry| entry.segments.iter().map(|segment| (segment, segment.rows * entry.cols)))
        };
        let sum = |four_bit_only: bool| {
            let counted = in_blocks().filter(|(segment, _)| match segment.precision {
                Precision::W4 => true,
                Precision::W8 => !four_bit_only,
                Precision::F32 => false,
            });
            counted.map(|(_, weights)| weights as f64).sum::<f64>()
        };
        let four_bit = sum(true) / sum(false).max(1.0);
        Self { name, tensors, four_bit, weight_bytes }
    }

    /// Between `w8` and `w4`, at `weight_bytes` in all; which rows keep eight bits is for packing to find out.
    pub(super) fn mixed(eight: &Self, four: &Self, weight_bytes: u64) -> Self {
        let saved = (eight.weight_bytes - weight_bytes) as f64;
        let four_bit = saved / (eight.weight_bytes - four.weight_bytes) as f64;
        Self { name: "mixed".to_owned(), tensors: eight.tensors.clone(), four_bit, weight_bytes }
    }

    /// Bits stored for each weight of the blocks.
    pub(super) fn body_bits(&self, eight: &Self, four: &Self) -> f64 {
        let bits = |stored: &Self| {
            let blocks = stored
                .tensors
                .iter()
                .filter(|entry| matches!(entry.name, TensorName::Layer(..)) && entry.name.is_linear());
            let (bytes, weights) = blocks.fold((0, 0), |(bytes, weights), entry| {
                (bytes + entry.bytes(), weights + entry.rows * entry.cols)
            });
            bytes as f64 * 8.0 / weights as f64
        };
        if self.name == "mixed" {
            self.four_bit * bits(four) + (1.0 - self.four_bit) * bits(eight)
        } else {
            bits(self)
        }
    }
}

/// Bytes of the cache that `streams` generations of `context` tokens fill.
pub(super) fn cache_bytes(config: &ModelConfig, kind: KvType, streams: u64, context: u64) -> u64 {
    let blocks = context.div_ceil(BLOCK_TOKENS as u64) * streams;
    blocks * block_bytes(config, kind) as u64
}

/// What serving `streams` generations of `context` tokens takes.
pub(super) fn needed(
    config: &ModelConfig,
    stored: &Stored,
    kind: KvType,
    streams: u64,
    context: u64,
) -> Memory {
    let engine = EngineConfig::default();
    let logits = engine.max_batch.max(streams as usize);
    Memory {
        weights: stored.weight_bytes,
        keys_and_values: cache_bytes(config, kind, streams, context),
        scratch: scratch_bytes(config, engine.max_step_tokens, logits, context as usize),
        process: ELSE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use rookery_model::shapes::named;

    use super::*;

    #[test]
    fn eight_billion_weights_at_four_bits_fit_where_eight_bits_do_not() {
        let config = named("llama-3-8b").unwrap();
        let (eight, four) =
            (Stored::uniform(&config, Precision::W8), Stored::uniform(&config, Precision::W4));
        assert!((eight.weight_bytes as f64 / 8.03e9 - 1.0).abs() < 0.01, "{}", eight.weight_bytes);
        assert!(four.weight_bytes < 5 << 30, "{}", four.weight_bytes);
        assert_eq!((eight.four_bit, four.four_bit), (0.0, 1.0));
        assert!((four.body_bits(&eight, &four) - 4.08).abs() < 0.05, "{}", four.body_bits(&eight, &four));
        // 32 layers · 2 · 8 heads · 128 values · 2 bytes a token.
        assert_eq!(cache_bytes(&config, KvType::F16, 1, 2048), 2048 * 131_072);
        let half = cache_bytes(&config, KvType::Int8, 1, 2048);
        assert!(half > 2048 * 65_536 && half < 2048 * 70_000, "{half}");
    }

    #[test]
    fn mixed_lies_between() {
        let config = named("qwen2.5-0.5b").unwrap();
        let (eight, four) =
            (Stored::uniform(&config, Precision::W8), Stored::uniform(&config, Precision::W4));
        let middle = u64::midpoint(eight.weight_bytes, four.weight_bytes);
        let mixed = Stored::mixed(&eight, &four, middle);
        assert!((mixed.four_bit - 0.5).abs() < 1e-6);
        let bits = mixed.body_bits(&eight, &four);
        assert!(bits > 5.9 && bits < 6.3, "{bits}");
    }
}
