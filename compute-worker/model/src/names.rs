//! One name for each weight of a decoder; `Display` and `FromStr` use GGUF's spelling, e.g.
//! `blk.3.attn_q.bias`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A weight of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TensorName {
    /// `[vocab][hidden]`; also the output head when the head is tied.
    TokenEmbedding,
    /// A weight of one transformer block, counted from 0.
    Layer(usize, LayerTensor),
    /// `[hidden]`: RMS norm before the head.
    OutputNorm,
    /// `[vocab][hidden]`: the output head.
    Output,
}

/// A weight of one transformer block. Shapes: [`crate::config::ModelConfig::shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerTensor {
    /// RMS norm before attention.
    AttnNorm,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Projection of the heads' outputs back to the residual stream.
    AttnOutput,
    /// Bias of the query projection.
    AttnQBias,
    /// Bias of the key projection.
    AttnKBias,
    /// Bias of the value projection.
    AttnVBias,
    /// RMS norm of each query head.
    AttnQNorm,
    /// RMS norm of each key head.
    AttnKNorm,
    /// RMS norm before the feed-forward.
    FfnNorm,
    /// Gate of the SwiGLU feed-forward, which goes through SiLU.
    FfnGate,
    /// The feed-forward's other input projection.
    FfnUp,
    /// The feed-forward's output projection.
    FfnDown,
}

impl LayerTensor {
    /// All of them, in the order of the forward pass.
    pub const ALL: [LayerTensor; 14] = [
        LayerTensor::AttnNorm,
        LayerTensor::AttnQ,
        LayerTensor::AttnK,
        LayerTensor::AttnV,
        LayerTensor::AttnQBias,
        LayerTensor::AttnKBias,
        LayerTensor::AttnVBias,
        LayerTensor::AttnQNorm,
        LayerTensor::AttnKNorm,
        LayerTensor::AttnOutput,
        LayerTensor::FfnNorm,
        LayerTensor::FfnGate,
        LayerTensor::FfnUp,
        LayerTensor::FfnDown,
    ];

    /// GGUF's name without the `blk.N.` in front.
    pub fn as_str(self) -> &'static str {
        match self {
            LayerTensor::AttnNorm => "attn_norm.weight",
            LayerTensor::AttnQ => "attn_q.weight",
            LayerTensor::AttnK => "attn_k.weight",
            LayerTensor::AttnV => "attn_v.weight",
            LayerTensor::AttnOutput => "attn_output.weight",
            LayerTensor::AttnQBias => "attn_q.bias",
            LayerTensor::AttnKBias => "attn_k.bias",
            LayerTensor::AttnVBias => "attn_v.bias",
            LayerTensor::AttnQNorm => "attn_q_norm.weight",
            LayerTensor::AttnKNorm => "attn_k_norm.weight",
            LayerTensor::FfnNorm => "ffn_norm.weight",
            LayerTensor::FfnGate => "ffn_gate.weight",
            LayerTensor::FfnUp => "ffn_up.weight",
            LayerTensor::FfnDown => "ffn_down.weight",
        }
    }

    /// Whether this is the matrix of a linear layer.
    pub fn is_linear(self) -> bool {
        match self {
            LayerTensor::AttnQ
            | LayerTensor::AttnK
            | LayerTensor::AttnV
            | LayerTensor::AttnOutput
            | LayerTensor::FfnGate
            | LayerTensor::FfnUp
            | LayerTensor::FfnDown => true,
            LayerTensor::AttnNorm
            | LayerTensor::AttnQBias
            | LayerTensor::AttnKBias
            | LayerTensor::AttnVBias
            | LayerTensor::AttnQNorm
            | LayerTensor::AttnKNorm
            | LayerTensor::FfnNorm => false,
        }
    }
}

impl TensorName {
    /// Whether this is a matrix that quantised kernels multiply by (the embedding counts: a tied head is
    /// one).
    pub fn is_linear(self) -> bool {
        match self {
            TensorName::TokenEmbedding | TensorName::Output => true,
            TensorName::OutputNorm => false,
            TensorName::Layer(_, tensor) => tensor.is_linear(),
        }
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorName::TokenEmbedding => f.pad("token_embd.weight"),
            TensorName::OutputNorm => f.pad("output_norm.weight"),
            TensorName::Output => f.pad("output.weight"),
            TensorName::Layer(layer, tensor) => f.pad(&format!("blk.{layer}.{}", tensor.as_str())),
        }
    }
}

/// A name that is no weight of a supported decoder.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown tensor name {0:?}")]
pub struct UnknownTensor(pub String);

impl FromStr for TensorName {
    type Err = UnknownTensor;

    fn from_str(name: &str) -> Result<Self, UnknownTensor> {
        let unknown = || UnknownTensor(name.to_owned());
        match name {
            "token_embd.weight" => return Ok(TensorName::TokenEmbedding),
            "output_norm.weight" => return Ok(TensorName::OutputNorm),
            "output.weight" => return Ok(TensorName::Output),
            _ => {}
        }
        let (number, rest) =
            name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let layer: usize = number.parse().map_err(|_| unknown())?;
        // One spelling per name: `blk.03.` and `blk.+3.` parse as numbers but would hide duplicates.
        if layer.to_string() != number {
            return Err(unknown());
        }
        let tensor =
            LayerTensor::ALL.into_iter().find(|tensor| tensor.as_str() == rest).ok_or_else(unknown)?;
        Ok(TensorName::Layer(layer, tensor))
    }
}

impl TryFrom<String> for TensorName {
    type Error = UnknownTensor;

    fn try_from(name: String) -> Result<Self, UnknownTensor> {
        name.parse()
    }
}

impl From<TensorName> for String {
    fn from(name: TensorName) -> String {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let mut names = vec![TensorName::TokenEmbedding, TensorName::OutputNorm, TensorName::Output];
        names.extend(LayerTensor::ALL.map(|tensor| TensorName::Layer(31, tensor)));
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!(TensorName::Layer(3, LayerTensor::AttnQBias).to_string(), "blk.3.attn_q.bias");
    }

    #[test]
    fn other_spellings_are_unknown() {
        for name in ["", "blk", "blk.", "blk.x.attn_q.weight", "blk.03.attn_q.weight", "blk.+3.attn_q.weight"]
        {
            assert_eq!(name.parse::<TensorName>(), Err(UnknownTensor(name.to_owned())));
        }
    }
}
