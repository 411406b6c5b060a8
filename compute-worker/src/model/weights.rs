//! All tensors of a model, resolved once. Matrices stay where the bundle maps them; norms and biases are small copies.

use rookery_kernels::{BLOCK_TOKENS, KvCache, KvLayout, KvType};
use rookery_model::bundle::{Bundle, BundleError, LinearWeights};
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};

/// A model's weights. Keeps the bundle's mappings alive.
#[derive(Debug)]
pub struct ModelWeights {
    /// Shapes and parameters.
    pub config: ModelConfig,
    /// `[vocab][hidden]`.
    pub embedding: LinearWeights,
    /// One for each block.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub output_norm: Vec<f32>,
    /// `[vocab][hidden]`; of a tied head the embedding's own tiles.
    pub head: LinearWeights,
}

/// Weights of one transformer block.
#[derive(Debug)]
pub struct LayerWeights {
    /// `[hidden]`.
    pub attn_norm: Vec<f32>,
    /// q, k and v.
    pub qkv: [Projection; 3],
    /// `[head_dim]` each, of q and k, where the model has them.
    pub qk_norms: Option<[Vec<f32>; 2]>,
    /// `[hidden][heads · head_dim]`.
    pub attn_output: LinearWeights,
    /// `[hidden]`.
    pub ffn_norm: Vec<f32>,
    /// `[ffn][hidden]`.
    pub ffn_gate: LinearWeights,
    /// `[ffn][hidden]`.
    pub ffn_up: LinearWeights,
    /// `[hidden][ffn]`.
    pub ffn_down: LinearWeights,
}

/// A matrix with an optional bias.
#[derive(Debug)]
pub struct Projection {
    /// `[rows][cols]`.
    pub weights: LinearWeights,
    /// `[rows]`.
    pub bias: Option<Vec<f32>>,
}

impl ModelWeights {
    /// Finds every tensor that the bundle's config asks for.
    ///
    /// # Errors
    /// Names the first tensor that is missing.
    pub fn resolve(bundle: &Bundle) -> Result<Self, BundleError> {
        let config = bundle.info().config.model.clone();
        Ok(Self {
            embedding: bundle.linear(TensorName::TokenEmbedding)?,
            layers: (0..config.layers)
                .map(|layer| LayerWeights::resolve(bundle, &config, layer))
                .collect::<Result<_, _>>()?,
            output_norm: bundle.vector(TensorName::OutputNorm)?,
            head: bundle.linear(TensorName::Output)?,
            config,
        })
    }

    /// Shape of a cache of `blocks` blocks of this type for this model.
    pub fn cache_layout(&self, blocks: usize, kind: KvType) -> KvLayout {
        let &ModelConfig { layers, kv_heads, head_dim, .. } = &self.config;
        KvLayout { layers, blocks, kv_heads, head_dim, kind }
    }

    /// Bytes that [`BLOCK_TOKENS`] tokens take in a cache of this type, over all layers.
    pub fn block_bytes(&self, kind: KvType) -> usize {
        debug_assert_eq!(BLOCK_TOKENS, 16);
        KvCache::bytes_per_block(&self.cache_layout(1, kind))
    }
}

impl LayerWeights {
    fn resolve(bundle: &Bundle, config: &ModelConfig, layer: usize) -> Result<Self, BundleError> {
        let linear = |tensor| bundle.linear(TensorName::Layer(layer, tensor));
        let vector = |tensor| bundle.vector(TensorName::Layer(layer, tensor));
        let projection = |weights, bias| -> Result<Projection, BundleError> {
            let bias = config.qkv_bias.then(|| vector(bias)).transpose()?;
            Ok(Projection { weights: linear(weights)?, bias })
        };
        let norms = || -> Result<[Vec<f32>; 2], BundleError> {
            Ok([vector(LayerTensor::AttnQNorm)?, vector(LayerTensor::AttnKNorm)?])
        };
        Ok(Self {
            attn_norm: vector(LayerTensor::AttnNorm)?,
            qkv: [
                projection(LayerTensor::AttnQ, LayerTensor::AttnQBias)?,
                projection(LayerTensor::AttnK, LayerTensor::AttnKBias)?,
                projection(LayerTensor::AttnV, LayerTensor::AttnVBias)?,
            ],
            qk_norms: config.qk_norm.then(norms).transpose()?,
            attn_output: linear(LayerTensor::AttnOutput)?,
            ffn_norm: vector(LayerTensor::FfnNorm)?,
            ffn_gate: linear(LayerTensor::FfnGate)?,
            ffn_up: linear(LayerTensor::FfnUp)?,
            ffn_down: linear(LayerTensor::FfnDown)?,
        })
    }
}
