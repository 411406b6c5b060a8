//! What memory an engine of a model takes, worked out before there is one.

use rookery_kernels::{KvCache, KvLayout, KvType};
use rookery_model::{
    bundle::{BundleConfig, TensorEntry},
    config::ModelConfig,
};

use super::board::SystemMemory;
use crate::engine::{EngineConfig, EngineError};

/// What an engine takes besides weights, keys and values and scratch: tokenizer, tables, allocator. `rookery bench` prints
/// it as "all else"; 58 to 75 MB for the models measured, the process included.
pub const ELSE_BYTES: u64 = 64 << 20;

/// Bytes that an engine takes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Weights, as they lie in the bundle.
    pub weights: u64,
    /// Keys and values, once every block of the cache is in use.
    pub keys_and_values: u64,
    /// What a step computes with.
    pub scratch: u64,
    /// All else.
    pub other: u64,
}

impl Demand {
    /// Of an engine with these settings.
    ///
    /// # Errors
    /// When not even one block of the cache fits its limit.
    pub fn of(config: &BundleConfig, engine: &EngineConfig) -> Result<Self, EngineError> {
        let block = block_bytes(&config.model, engine.kv_type);
        let (blocks, positions) = engine.cache_geometry(config.model.context, block)?;
        Ok(Self {
            weights: config.tensors.iter().map(TensorEntry::bytes).sum(),
            keys_and_values: blocks as u64 * block as u64,
            scratch: scratch_bytes(&config.model, engine.max_step_tokens, engine.max_batch, positions),
            other: ELSE_BYTES,
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.keys_and_values + self.scratch + self.other
    }

    /// What it takes besides its weights.
    fn own(&self) -> u64 {
        self.total() - self.weights
    }
}

/// Bytes of a block of the cache.
pub fn block_bytes(config: &ModelConfig, kind: KvType) -> usize {
    let layout = KvLayout {
        layers: config.layers,
        blocks: 1,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        kind,
    };
    KvCache::bytes_per_block(&layout)
}

/// Bytes of scratch for steps of `rows` rows and `logits` generations, with positions up to `positions`.
pub fn scratch_bytes(config: &ModelConfig, rows: usize, logits: usize, positions: usize) -> u64 {
    let row = 2 * config.hidden + 2 * config.q_rows() + 2 * config.kv_rows() + 3 * config.ffn;
    4 * (rows * row + logits * config.vocab + positions * config.head_dim) as u64
}

/// Bytes that an engine may take while the engines of `serving` stay.
pub fn room_beside(memory: &SystemMemory, serving: &[Demand]) -> u64 {
    // Their weights are mapped from files, so the system counts them as available; taking them would mean reading them from
    // disk for each token.
    let weights = serving.iter().map(|demand| demand.weights).sum();
    memory.available.saturating_sub(weights)
}

/// Bytes that an engine may take once the one of `leaving` is gone.
pub fn room_alone(memory: &SystemMemory, staying: &[Demand], leaving: Option<&Demand>) -> u64 {
    // What it reserved and never touched is free already, so it gives back no more than this process has.
    let given_back = leaving.map_or(0, Demand::own).min(memory.own);
    room_beside(memory, staying).saturating_add(given_back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_served_from_are_no_room() {
        let demand = |weights| Demand { weights, keys_and_values: 100, scratch: 20, other: 3 };
        let memory = SystemMemory { total: 10_000, available: 5_000, own: 90 };
        assert_eq!(room_beside(&memory, &[demand(1_000), demand(500)]), 3_500);
        assert_eq!(room_beside(&memory, &[demand(9_000)]), 0);
        assert_eq!(room_alone(&memory, &[demand(1_000)], Some(&demand(500))), 4_090);
        let roomy = SystemMemory { own: 1_000, ..memory };
        assert_eq!(room_alone(&roomy, &[], Some(&demand(500))), 5_123);
        assert_eq!(demand(7).total(), 130);
    }
}
