//! Settings of an engine.

use rookery_kernels::{BLOCK_TOKENS, Isa, Kernels, KvType};

use super::EngineError;

/// Settings of an engine. [`Default`] suits a gateway of 8 GB and models of up to a few billion weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that compute, the engine's own included. Default: the machine's available parallelism.
    pub threads: usize,
    /// Instruction set of the kernels; `None` (default): the best that the machine has.
    pub isa: Option<Isa>,
    /// Size of the key/value cache. Default 512 MiB: of a 0.5-billion-weight model with 12 KiB per token (in binary16) that
    /// holds 43,000 tokens, of an 8-billion-weight one with 128 KiB per token 4,096. Address space is reserved
    /// at once, memory is used as blocks are. No more is reserved than `max_batch` full contexts need.
    pub kv_cache_bytes: u64,
    /// How the cache stores keys and values. Default binary16. int8 takes a little more than half as much memory, and gives
    /// other answers than binary16, though hardly worse ones.
    pub kv_type: KvType,
    /// Longest prompt plus answer in tokens; `None` (default): what the model was trained for. Always cut to
    /// what the cache can hold.
    pub context_tokens: Option<usize>,
    /// Most generations in one step. Default 16.
    pub max_batch: usize,
    /// Most rows in one step: one per decoding generation, the rest for prompts. Default 256. At least
    /// `max_batch`.
    pub max_step_tokens: usize,
    /// Most requests that wait. Default 64.
    pub max_queued_requests: usize,
    /// Most tokens that wait to be read. A single request may exceed it while nothing else waits. Default 65,536.
    pub max_queued_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            isa: None,
            kv_cache_bytes: 512 << 20,
            kv_type: KvType::F16,
            context_tokens: None,
            max_batch: 16,
            max_step_tokens: 256,
            max_queued_requests: 64,
            max_queued_tokens: 65_536,
        }
    }
}

impl EngineConfig {
    /// Checks the ranges of all settings.
    ///
    /// # Errors
    /// Names the first setting that is too small.
    pub fn validate(&self) -> Result<(), EngineError> {
        let checks = [
            ("threads", self.threads, 1),
            ("max_batch", self.max_batch, 1),
            ("max_step_tokens", self.max_step_tokens, self.max_batch),
            ("max_queued_requests", self.max_queued_requests, 1),
            ("max_queued_tokens", self.max_queued_tokens, 1),
            ("context_tokens", self.context_tokens.unwrap_or(2), 2),
        ];
        match checks.into_iter().find(|(_, value, least)| value < least) {
            Some((setting, _, least)) => Err(EngineError::Setting { setting, least }),
            None => Ok(()),
        }
    }

    /// The kernels that `isa` names.
    ///
    /// # Errors
    /// When this machine lacks the instruction set.
    pub fn kernels(&self) -> Result<&'static Kernels, EngineError> {
        match self.isa {
            None => Ok(Kernels::detect()),
            Some(isa) => Kernels::for_isa(isa).ok_or(EngineError::IsaUnavailable(isa)),
        }
    }

    /// Blocks of the cache and longest sequence, for a model of `context` tokens whose blocks take
    /// `block_bytes`.
    ///
    /// # Errors
    /// When not even one block fits.
    pub(crate) fn cache_geometry(
        &self,
        context: usize,
        block_bytes: usize,
    ) -> Result<(usize, usize), EngineError> {
        let context = self.context_tokens.map_or(context, |wanted| wanted.min(context));
        let fits = usize::try_from(self.kv_cache_bytes).unwrap_or(usize::MAX) / block_bytes.max(1);
        let useful = context.div_ceil(BLOCK_TOKENS).saturating_mul(self.max_batch);
        let blocks = fits.min(useful).min(u32::MAX as usize);
        if blocks == 0 {
            return Err(EngineError::CacheTooSmall {
                bytes: self.kv_cache_bytes,
                block_bytes: block_bytes as u64,
            });
        }
        Ok((blocks, context.min(blocks * BLOCK_TOKENS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        EngineConfig::default().validate().unwrap();
    }

    #[test]
    fn a_step_must_hold_every_decoding_generation() {
        let config = EngineConfig { max_batch: 8, max_step_tokens: 7, ..EngineConfig::default() };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "engine setting max_step_tokens must be at least 8"
        );
    }

    #[test]
    fn the_context_is_cut_to_the_cache_and_the_cache_to_the_contexts() {
        let config = EngineConfig { kv_cache_bytes: 1000, max_batch: 2, ..EngineConfig::default() };
        assert_eq!(config.cache_geometry(4096, 100).unwrap(), (10, 160));
        assert_eq!(config.cache_geometry(32, 100).unwrap(), (4, 32));
        assert!(matches!(config.cache_geometry(32, 1001), Err(EngineError::CacheTooSmall { .. })));
    }
}
