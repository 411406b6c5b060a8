//! Shape and numeric parameters of a decoder, the same for every file format and every architecture served.
//!
//! A [`ModelConfig`] is what import hands to everything after it. All three architectures are one decoder
//! (RMS norm, half-split rotary embedding, grouped-query attention, SwiGLU); the booleans say which extras a
//! model has, so nothing behind import matches on [`Architecture`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::names::{LayerTensor, TensorName};

/// Longest dot product whose int8×int8 sum is certain to fit int32: `⌊(2³¹ − 1) / 127²⌋`.
pub const MAX_DOT_LENGTH: usize = 133_144;

/// Bound on vocabulary, context and layer counts; far past any real model, small enough that no product
/// overflows.
const MAX_COUNT: usize = 1 << 28;

/// Architecture families that import understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2 and models of the same shape.
    Llama,
    /// Qwen2 and Qwen2.5: bias on q, k and v.
    Qwen2,
    /// Qwen3: RMS norm on each head of q and k.
    Qwen3,
}

impl Architecture {
    /// Every supported family, in the order error messages list them.
    pub const ALL: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

    /// Lower-case name, as GGUF's `general.architecture` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Architecture {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        Architecture::ALL
            .into_iter()
            .find(|architecture| architecture.as_str() == name)
            .ok_or_else(|| ConfigError::UnknownArchitecture { name: name.to_owned() })
    }
}

/// Why a configuration cannot be served.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConfigError {
    /// The family is not one of [`Architecture::ALL`].
    #[error("architecture {name:?} is not supported (supported: llama, qwen2, qwen3)")]
    UnknownArchitecture {
        /// Name as the file spells it.
        name: String,
    },
    /// A count is zero or past what any model needs.
    #[error("{field} is {value}, outside 1..={max}")]
    OutOfRange {
        /// Field of [`ModelConfig`].
        field: &'static str,
        /// Value found.
        value: usize,
        /// Largest value served.
        max: usize,
    },
    /// Query heads cannot be shared evenly among key/value heads.
    #[error("{heads} attention heads cannot be divided among {kv_heads} key/value heads")]
    UnevenHeads {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
    },
    /// The attention kernels work on 16 values at a time.
    #[error("head size {head_dim} is not a multiple of 16")]
    HeadSize {
        /// Size of one attention head.
        head_dim: usize,
    },
    /// A real-valued parameter is not a positive finite number.
    #[error("{field} is {value}, not a positive finite number")]
    NotPositive {
        /// Field of [`ModelConfig`].
        field: &'static str,
        /// Value found.
        value: f64,
    },
    /// Rope factors must be one for each pair of a head.
    #[error("{found} rope factors for head size {head_dim} (expected {})", head_dim / 2)]
    RopeFactorCount {
        /// Number of factors given.
        found: usize,
        /// Size of one attention head.
        head_dim: usize,
    },
    /// The transform of the feed-forward's activations works on whole blocks of a power of two.
    #[error("ffn_hadamard is {block}, not a power of two in 16..=256 that divides ffn = {ffn}")]
    HadamardBlock {
        /// Block asked for.
        block: usize,
        /// Width of the feed-forward's inner layer.
        ffn: usize,
    },
}

/// What a decoder looks like. All sizes are in elements, not bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Family the weights come from; for display and records only.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads of one block.
    pub heads: usize,
    /// Key/value heads of one block; divides `heads`.
    pub kv_heads: usize,
    /// Size of one head; a multiple of 16. `heads * head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// Width of the feed-forward's inner layer.
    pub ffn: usize,
    /// Tokens in the vocabulary, which is the number of rows of embedding and head.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub context: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f32,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// Positions are multiplied by this before rotation: 1, or `1 / factor` under linear scaling.
    pub rope_position_scale: f64,
    /// Llama 3.1 scaling: `[head_dim / 2]`, each inverse frequency is divided by its factor.
    pub rope_factors: Option<Vec<f32>>,
    /// The output head is the token embedding.
    pub tied_head: bool,
    /// q, k and v projections add a bias.
    pub qkv_bias: bool,
    /// Each head of q and k goes through an RMS norm before rotation.
    pub qk_norm: bool,
    /// The down projection takes its inputs through an unnormalised Walsh–Hadamard transform of consecutive
    /// blocks of this many values: a power of two in 16..=256 that divides `ffn`. No imported file has it; a
    /// rotated model does ([`crate::rotate`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn_hadamard: Option<usize>,
}

impl ModelConfig {
    /// Checks every rule the code behind import relies on.
    ///
    /// # Errors
    /// The first field that is out of range, by name.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("hidden", self.hidden, MAX_DOT_LENGTH),
            ("layers", self.layers, 1 << 12),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("heads * head_dim", self.heads.saturating_mul(self.head_dim), MAX_DOT_LENGTH),
            ("ffn", self.ffn, MAX_DOT_LENGTH),
            ("vocab", self.vocab, MAX_COUNT),
            ("context", self.context, MAX_COUNT),
        ];
        for (field, value, max) in counts {
            if value == 0 || value > max {
                return Err(ConfigError::OutOfRange { field, value, max });
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::UnevenHeads { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !self.head_dim.is_multiple_of(16) {
            return Err(ConfigError::HeadSize { head_dim: self.head_dim });
        }
        let reals = [
            ("rms_eps", f64::from(self.rms_eps)),
            ("rope_theta", self.rope_theta),
            ("rope_position_scale", self.rope_position_scale),
        ];
        let factors = self.rope_factors.iter().flatten().map(|&factor| ("rope_factors", f64::from(factor)));
        for (field, value) in reals.into_iter().chain(factors) {
            if !value.is_finite() || value <= 0.0 {
                return Err(ConfigError::NotPositive { field, value });
            }
        }
        if let Some(block) = self.ffn_hadamard
            && !(block.is_power_of_two() && (16..=256).contains(&block) && self.ffn.is_multiple_of(block))
        {
            return Err(ConfigError::HadamardBlock { block, ffn: self.ffn });
        }
        match &self.rope_factors {
            Some(factors) if factors.len() != self.head_dim / 2 => {
                Err(ConfigError::RopeFactorCount { found: factors.len(), head_dim: self.head_dim })
            }
            _ => Ok(()),
        }
    }

    /// Rows of the query projection: `heads * head_dim`.
    pub fn q_rows(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the key and of the value projection: `kv_heads * head_dim`.
    pub fn kv_rows(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Every tensor a model of this shape consists of, in the order of the forward pass.
    ///
    /// A tied head has no [`TensorName::Output`] of its own.
    pub fn tensor_names(&self) -> Vec<TensorName> {
        let mut names = vec![TensorName::TokenEmbedding];
        for layer in 0..self.layers {
            let present = LayerTensor::ALL.into_iter().filter(|&tensor| self.has(tensor));
            names.extend(present.map(|tensor| TensorName::Layer(layer, tensor)));
        }
        names.push(TensorName::OutputNorm);
        if !self.tied_head {
            names.push(TensorName::Output);
        }
        names
    }

    /// `(rows, columns)` of a tensor; a vector of `n` is `(1, n)`.
    ///
    /// A linear layer maps `columns` inputs to `rows` outputs.
    pub fn shape(&self, name: TensorName) -> (usize, usize) {
        let layer_tensor = match name {
            TensorName::TokenEmbedding | TensorName::Output => return (self.vocab, self.hidden),
            TensorName::OutputNorm => return (1, self.hidden),
            TensorName::Layer(_, tensor) => tensor,
        };
        match layer_tensor {
            LayerTensor::AttnNorm | LayerTensor::FfnNorm => (1, self.hidden),
            LayerTensor::AttnQ => (self.q_rows(), self.hidden),
            LayerTensor::AttnK | LayerTensor::AttnV => (self.kv_rows(), self.hidden),
            LayerTensor::AttnOutput => (self.hidden, self.q_rows()),
            LayerTensor::AttnQBias => (1, self.q_rows()),
            LayerTensor::AttnKBias | LayerTensor::AttnVBias => (1, self.kv_rows()),
            LayerTensor::AttnQNorm | LayerTensor::AttnKNorm => (1, self.head_dim),
            LayerTensor::FfnGate | LayerTensor::FfnUp => (self.ffn, self.hidden),
            LayerTensor::FfnDown => (self.hidden, self.ffn),
        }
    }

    /// Number of weights, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let count = |name| {
            let (rows, columns) = self.shape(name);
            rows as u64 * columns as u64
        };
        self.tensor_names().into_iter().map(count).sum()
    }

    fn has(&self, tensor: LayerTensor) -> bool {
        match tensor {
            LayerTensor::AttnQBias | LayerTensor::AttnKBias | LayerTensor::AttnVBias => self.qkv_bias,
            LayerTensor::AttnQNorm | LayerTensor::AttnKNorm => self.qk_norm,
            LayerTensor::AttnNorm
            | LayerTensor::AttnQ
            | LayerTensor::AttnK
            | LayerTensor::AttnV
            | LayerTensor::AttnOutput
            | LayerTensor::FfnNorm
            | LayerTensor::FfnGate
            | LayerTensor::FfnUp
            | LayerTensor::FfnDown => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Qwen3,
            hidden: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            ffn: 208,
            vocab: 512,
            context: 512,
            rms_eps: 1e-6,
            rope_theta: 1e6,
            rope_position_scale: 1.0,
            rope_factors: None,
            tied_head: true,
            qkv_bias: false,
            qk_norm: true,
            ffn_hadamard: None,
        }
    }

    #[test]
    fn names_follow_the_flags() {
        let tied = config();
        assert_eq!(tied.tensor_names().len(), 2 + 2 * 11);
        let untied = ModelConfig { tied_head: false, qkv_bias: true, qk_norm: false, ..config() };
        assert_eq!(untied.tensor_names().len(), 3 + 2 * 12);
        assert_eq!(tied.shape(TensorName::Layer(1, LayerTensor::AttnOutput)), (96, 128));
        assert_eq!(tied.shape(TensorName::Layer(0, LayerTensor::AttnKNorm)), (1, 32));
        let block = 128 * 96 + 2 * 64 * 96 + 96 * 128 + 3 * 208 * 96 + 2 * 96 + 2 * 32;
        assert_eq!(tied.parameters(), 512 * 96 + 2 * block + 96);
    }

    #[test]
    fn a_configuration_survives_json() {
        let config = ModelConfig { rope_factors: Some(vec![1.0 / 3.0; 16]), ..config() };
        config.validate().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), config);
        assert!(!json.contains("ffn_hadamard"), "bundles without it stay as they were");
        let rotated = ModelConfig { ffn_hadamard: Some(16), ..config };
        let json = serde_json::to_string(&rotated).unwrap();
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), rotated);
        assert!(json.contains(r#""architecture":"qwen3""#));
    }

    #[test]
    fn rules_are_checked() {
        let refused = |config: ModelConfig| config.validate().unwrap_err().to_string();
        assert_eq!(refused(ModelConfig { ffn: 0, ..config() }), "ffn is 0, outside 1..=133144");
        assert_eq!(refused(ModelConfig { head_dim: 40, ..config() }), "head size 40 is not a multiple of 16");
        assert!(refused(ModelConfig { heads: 5, ..config() }).contains("5 attention heads"));
        assert!(refused(ModelConfig { head_dim: 4096, heads: 64, ..config() }).contains("heads * head_dim"));
        assert!(refused(ModelConfig { rms_eps: 0.0, ..config() }).contains("rms_eps is 0"));
        assert!(
            refused(ModelConfig { rope_factors: Some(vec![1.0; 3]), ..config() }).contains("expected 16")
        );
        for block in [0, 8, 24, 32, 512] {
            let refusal = refused(ModelConfig { ffn_hadamard: Some(block), ..config() });
            assert!(refusal.contains("divides ffn = 208"), "{refusal}");
        }
        assert!(refused(ModelConfig { rope_factors: Some(vec![f32::NAN; 16]), ..config() }).contains("NaN"));
    }
}
