//! Models whose shapes are known by name, so that planning for one, or making a random one of its size, needs no download.
//!
//! From the models' public `config.json`; the parameter counts in the tests are those that their publishers state.

use crate::config::{Architecture, ModelConfig};

/// What differs between models of one family.
struct Shape {
    name: &'static str,
    architecture: Architecture,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    tied_head: bool,
}

use Architecture::{Llama, Qwen2, Qwen3};

#[rustfmt::skip]
const SHAPES: [Shape; 14] = [
    shape("llama-2-7b", Llama, [4096, 32, 32, 32, 128, 11008, 32_000, 4096], false),
    shape("llama-3-8b", Llama, [4096, 32, 32, 8, 128, 14336, 128_256, 8192], false),
    shape("llama-3.1-8b", Llama, [4096, 32, 32, 8, 128, 14336, 128_256, 131_072], false),
    shape("llama-3.2-1b", Llama, [2048, 16, 32, 8, 64, 8192, 128_256, 131_072], true),
    shape("llama-3.2-3b", Llama, [3072, 28, 24, 8, 128, 8192, 128_256, 131_072], true),
    shape("tinyllama-1.1b", Llama, [2048, 22, 32, 4, 64, 5632, 32_000, 2048], false),
    shape("qwen2.5-0.5b", Qwen2, [896, 24, 14, 2, 64, 4864, 151_936, 32_768], true),
    shape("qwen2.5-1.5b", Qwen2, [1536, 28, 12, 2, 128, 8960, 151_936, 32_768], true),
    shape("qwen2.5-3b", Qwen2, [2048, 36, 16, 2, 128, 11008, 151_936, 32_768], true),
    shape("qwen2.5-7b", Qwen2, [3584, 28, 28, 4, 128, 18944, 152_064, 32_768], false),
    shape("qwen3-0.6b", Qwen3, [1024, 28, 16, 8, 128, 3072, 151_936, 40_960], true),
    shape("qwen3-1.7b", Qwen3, [2048, 28, 16, 8, 128, 6144, 151_936, 40_960], true),
    shape("qwen3-4b", Qwen3, [2560, 36, 32, 8, 128, 9728, 151_936, 40_960], true),
    shape("qwen3-8b", Qwen3, [4096, 36, 32, 8, 128, 12288, 151_936, 40_960], false),
];

/// hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context.
const fn shape(name: &'static str, architecture: Architecture, sizes: [usize; 8], tied_head: bool) -> Shape {
    let [hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context] = sizes;
    Shape { name, architecture, hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context, tied_head }
}

/// Names that [`named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The shape of a well-known model. Constants that cost neither memory nor time (rope, eps) are the family's usual ones.
pub fn named(name: &str) -> Option<ModelConfig> {
    let wanted = name.to_ascii_lowercase();
    let shape = SHAPES.iter().find(|shape| shape.name == wanted)?;
    Some(ModelConfig {
        architecture: shape.architecture,
        hidden: shape.hidden,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        ffn: shape.ffn,
        vocab: shape.vocab,
        context: shape.context,
        rms_eps: 1e-6,
        rope_theta: 1e6,
        rope_position_scale: 1.0,
        rope_factors: None,
        tied_head: shape.tied_head,
        qkv_bias: shape.architecture == Qwen2,
        qk_norm: shape.architecture == Qwen3,
        ffn_hadamard: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parameters_that_publishers_state() {
        let billions = [
            ("llama-2-7b", 6.74),
            ("llama-3-8b", 8.03),
            ("llama-3.2-1b", 1.24),
            ("llama-3.2-3b", 3.21),
            ("tinyllama-1.1b", 1.10),
            ("qwen2.5-0.5b", 0.49),
            ("qwen2.5-1.5b", 1.54),
            ("qwen2.5-3b", 3.09),
            ("qwen2.5-7b", 7.61),
            ("qwen3-0.6b", 0.60),
            ("qwen3-1.7b", 1.72),
            ("qwen3-4b", 4.02),
            ("qwen3-8b", 8.19),
        ];
        for (name, stated) in billions {
            let config = named(name).unwrap();
            config.validate().unwrap();
            let found = config.parameters() as f64 / 1e9;
            assert!((found - stated).abs() < 0.006, "{name}: {found} billion, {stated} stated");
        }
        assert!(named("Llama-3-8B").is_some() && named("gpt-5").is_none());
        assert!(names().all(|name| named(name).is_some()));
    }
}
