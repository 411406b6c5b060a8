//! Settings of the engines.

use bytesize::ByteSize;
use rookery_kernels::{Isa, KvType};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::backend::BackendChoice;
use crate::engine::EngineConfig;
use crate::probes::SelfCheck;

/// How the key/value cache stores its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvCacheType {
    /// binary16.
    #[default]
    F16,
    /// int8 with a scale for each token and head: a little more than half of the memory, other answers, hardly worse ones.
    Int8,
}

impl From<KvCacheType> for KvType {
    fn from(kind: KvCacheType) -> Self {
        match kind {
            KvCacheType::F16 => KvType::F16,
            KvCacheType::Int8 => KvType::Int8,
        }
    }
}

/// Settings of the engines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EngineSection {
    /// Where linear layers are computed: `auto`, `cpu`, `npu-sim` or `npu`. Default `auto`: a working NPU, else the CPU.
    pub backend: BackendChoice,
    /// Threads that compute. Default: as many as the machine has processors.
    pub threads: Option<usize>,
    /// Instruction set of the kernels: `scalar`, `avx2`, `avx512-vnni`, `amx-int8` or `neon-dotprod`.
    /// Default: the best that the machine has.
    pub isa: Option<String>,
    /// Size of the key/value cache, for example "512MiB". Default 512MiB.
    pub kv_cache: ByteSize,
    /// How it stores keys and values: `f16`, or `int8` in about half the memory. Default `f16`.
    pub kv_cache_type: KvCacheType,
    /// Longest prompt plus answer in tokens. Default: what the model was trained for, if the cache holds it.
    pub context_tokens: Option<usize>,
    /// Most generations in one step. Default 16.
    pub max_batch: usize,
    /// Most rows of one step; what decoding leaves of it goes to prompts. Default 256.
    pub max_step_tokens: usize,
    /// Most requests that wait; further ones are refused with RESOURCE_EXHAUSTED. Default 64.
    pub max_queued_requests: usize,
    /// Most prompt tokens that wait; further requests are refused with RESOURCE_EXHAUSTED. Default 65536.
    pub max_queued_tokens: usize,
    /// How many of a bundle's probes are replayed before it is served: `off`, `quick` (the first tokens of two) or `full`.
    /// An answer that is not the recorded one refuses to serve. Default `quick`.
    pub self_check: SelfCheck,
}

impl Default for EngineSection {
    fn default() -> Self {
        let engine = EngineConfig::default();
        Self {
            backend: BackendChoice::Auto,
            threads: None,
            isa: None,
            kv_cache: ByteSize::b(engine.kv_cache_bytes),
            kv_cache_type: KvCacheType::default(),
            context_tokens: engine.context_tokens,
            max_batch: engine.max_batch,
            max_step_tokens: engine.max_step_tokens,
            max_queued_requests: engine.max_queued_requests,
            max_queued_tokens: engine.max_queued_tokens,
            self_check: SelfCheck::default(),
        }
    }
}

impl EngineSection {
    /// The engine's own form of these settings.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    pub fn validate(&self) -> Result<EngineConfig, ConfigError> {
        let isa = match &self.isa {
            Some(name) => Some(name.parse::<Isa>().map_err(|_| ConfigError::Isa(name.clone()))?),
            None => None,
        };
        let defaults = EngineConfig::default();
        let engine = EngineConfig {
            threads: self.threads.unwrap_or(defaults.threads),
            isa,
            kv_cache_bytes: self.kv_cache.as_u64(),
            kv_type: self.kv_cache_type.into(),
            context_tokens: self.context_tokens,
            max_batch: self.max_batch,
            max_step_tokens: self.max_step_tokens,
            max_queued_requests: self.max_queued_requests,
            max_queued_tokens: self.max_queued_tokens,
        };
        engine.validate().map_err(ConfigError::Engine)?;
        engine.kernels().map_err(ConfigError::Engine)?;
        Ok(engine)
    }
}
