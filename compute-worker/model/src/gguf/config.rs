//! GGUF metadata and tensor table to [`ModelConfig`], and refusal of everything that one decoder shape cannot
//! express.

use std::collections::HashSet;

use super::file::GgufFile;
use super::value::{Metadata, Value};
use crate::config::{Architecture, ConfigError, ModelConfig};
use crate::names::{LayerTensor, TensorName};
use crate::source::{ImportError, TensorFault};

/// Rope factors of Llama 3.1 scaling: `[head_dim / 2]`.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Keys below the architecture that change the arithmetic unless they have this neutral value.
const NEUTRAL: [(&str, f64); 13] = [
    ("expert_count", 0.0),
    ("nextn_predict_layers", 0.0),
    ("pooling_type", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.causal", 1.0),
    ("attention.temperature_scale", 0.0),
    ("rope.scaling.attn_factor", 1.0),
];

/// Reads and checks the shape of the model in `file`.
pub(super) fn read_config(file: &GgufFile) -> Result<ModelConfig, ImportError> {
    let keys = Keys::new(file.metadata())?;
    keys.refuse_unsupported()?;
    let hidden = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    let head_dim = keys.head_dim(hidden, heads)?;
    let (rope_position_scale, rope_theta) = keys.rope(head_dim)?;
    let bias = TensorName::Layer(0, LayerTensor::AttnQBias).to_string();
    let config = ModelConfig {
        architecture: keys.architecture,
        hidden,
        layers: keys.required("block_count")?,
        heads,
        kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.required("feed_forward_length")?,
        vocab: keys.vocabulary()?,
        context: keys.required("context_length")?,
        // Stored as f32; widened by the reader, so this narrows back exactly.
        rms_eps: keys.required_float("attention.layer_norm_rms_epsilon")? as f32,
        rope_theta,
        rope_position_scale,
        rope_factors: rope_factors(file)?,
        tied_head: file.tensor(&TensorName::Output.to_string()).is_none(),
        qkv_bias: keys.architecture == Architecture::Qwen2 || file.tensor(&bias).is_some(),
        qk_norm: keys.architecture == Architecture::Qwen3,
        ffn_hadamard: None,
    };
    config.validate()?;
    keys.refuse_sliding_window(config.context)?;
    check_tensors(file, &config)?;
    Ok(config)
}

/// Metadata below the architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: Architecture,
}

impl<'a> Keys<'a> {
    fn new(metadata: &'a Metadata) -> Result<Self, ImportError> {
        let key = "general.architecture";
        let name = metadata.string(key)?.ok_or_else(|| ImportError::key(key, "missing"))?;
        let architecture: Architecture = name.parse()?;
        Ok(Self { metadata, architecture })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn count(&self, name: &str) -> Result<Option<usize>, ImportError> {
        self.metadata.count(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize, ImportError> {
        self.count(name)?.ok_or_else(|| ImportError::key(self.key(name), "missing"))
    }

    fn float(&self, name: &str) -> Result<Option<f64>, ImportError> {
        self.metadata.float(&self.key(name))
    }

    fn required_float(&self, name: &str) -> Result<f64, ImportError> {
        self.float(name)?.ok_or_else(|| ImportError::key(self.key(name), "missing"))
    }

    /// Size of a head: key and value length where given, else an equal share of the hidden size.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, ImportError> {
        let share = || match hidden.checked_div(heads) {
            Some(share) if share * heads == hidden => Ok(share),
            Some(_) => {
                let fault =
                    format!("missing, and embedding length {hidden} is not a multiple of {heads} heads");
                Err(ImportError::key(self.key("attention.key_length"), fault))
            }
            None => Err(ConfigError::OutOfRange { field: "heads", value: 0, max: 1 << 12 }.into()),
        };
        let key_length = self.count("attention.key_length")?.map_or_else(share, Ok)?;
        let value_length = self.count("attention.value_length")?.unwrap_or(key_length);
        if value_length != key_length {
            let what = format!("value heads of size {value_length} beside key heads of size {key_length}");
            return Err(ImportError::unsupported(what, "both must be the same"));
        }
        Ok(key_length)
    }

    /// Position scale and base of the rotary embedding.
    fn rope(&self, head_dim: usize) -> Result<(f64, f64), ImportError> {
        let rotated = self.count("rope.dimension_count")?.unwrap_or(head_dim);
        if rotated != head_dim {
            let what = format!("rotary embedding of {rotated} of a head's {head_dim} dimensions");
            return Err(ImportError::unsupported(what, "all of them must rotate"));
        }
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.float("rope.scale_linear")?, // its name before the format was settled
        };
        let kind = self.metadata.string(&self.key("rope.scaling.type"))?.unwrap_or("linear");
        // A factor of zero has always meant that there is none.
        let scale = match (kind, factor.filter(|&factor| factor != 0.0)) {
            ("none", _) | ("linear", None) => 1.0,
            ("linear", Some(factor)) => 1.0 / factor,
            (other, _) => {
                let hint = "supported: none, linear, and Llama 3's by its rope_freqs tensor";
                return Err(ImportError::unsupported(format!("rope scaling {other:?}"), hint));
            }
        };
        Ok((scale, self.float("rope.freq_base")?.unwrap_or(10_000.0)))
    }

    /// Number of tokens, on which tokenizer and shape keys must agree.
    fn vocabulary(&self) -> Result<usize, ImportError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = self.metadata.strings(key)?.ok_or_else(|| ImportError::key(key, "missing"))?.len();
        match self.count("vocab_size")? {
            Some(size) if size != tokens => Err(ImportError::key(
                self.key("vocab_size"),
                format!("is {size}, but the file lists {tokens} tokens"),
            )),
            _ => Ok(tokens),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ImportError> {
        if let Some(kind) = self.metadata.string("general.type")?.filter(|&kind| kind != "model") {
            return Err(ImportError::unsupported(
                format!("a GGUF file of type {kind:?}"),
                "supported: \"model\"",
            ));
        }
        if self.metadata.count("split.count")?.is_some_and(|count| count > 1) {
            let hint = "merge the parts into one file first, e.g. with llama-gguf-split --merge";
            return Err(ImportError::unsupported("a model split over several GGUF files", hint));
        }
        for (name, neutral) in NEUTRAL {
            let key = self.key(name);
            if let Some(value) = self.metadata.get(&key)
                && number(value) != Some(neutral)
            {
                let what = format!("{key} = {}", brief(value));
                let hint = format!("only dense models of the plain {} shape are", self.architecture);
                return Err(ImportError::unsupported(what, hint));
            }
        }
        Ok(())
    }

    /// A window that spans the context leaves full attention as it is.
    fn refuse_sliding_window(&self, context: usize) -> Result<(), ImportError> {
        match self.count("attention.sliding_window")? {
            Some(window) if window != 0 && window < context => Err(ImportError::unsupported(
                format!("sliding-window attention over {window} tokens"),
                "supported: attention over the whole context",
            )),
            _ => Ok(()),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Unsigned(number) => Some(*number as f64),
        Value::Signed(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(_) | Value::Array(_) => None,
    }
}

fn brief(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("an array of {}", values.len()),
        Value::String(text) => format!("{text:?}"),
        Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) | Value::Bool(_) => {
            number(value).map_or_else(String::new, |number| number.to_string())
        }
    }
}

fn rope_factors(file: &GgufFile) -> Result<Option<Vec<f32>>, ImportError> {
    let Some(tensor) = file.tensor(ROPE_FREQS) else { return Ok(None) };
    // The number of factors is checked with the configuration; this only bounds the read.
    if tensor.rows != 1 || tensor.columns > 1 << 12 {
        let fault = TensorFault::Shape { found: tensor.shape.clone(), expected: vec![] };
        return Err(ImportError::tensor(ROPE_FREQS, fault));
    }
    let mut factors = Vec::new();
    file.read_rows(ROPE_FREQS, 0..1, &mut factors)?;
    Ok(Some(factors))
}

/// Every tensor the model needs is there in the right shape, and none that it would wrongly ignore.
fn check_tensors(file: &GgufFile, config: &ModelConfig) -> Result<(), ImportError> {
    let needed: Vec<TensorName> = config.tensor_names();
    for &name in &needed {
        let tensor = file
            .tensor(&name.to_string())
            .ok_or_else(|| ImportError::tensor(name.to_string(), TensorFault::Missing))?;
        let (rows, columns) = config.shape(name);
        let expected =
            if name.is_linear() { vec![rows as u64, columns as u64] } else { vec![columns as u64] };
        if significant(&tensor.shape) != significant(&expected) {
            let fault = TensorFault::Shape { found: tensor.shape.clone(), expected };
            return Err(ImportError::tensor(name.to_string(), fault));
        }
    }
    let needed: HashSet<String> = needed.iter().map(TensorName::to_string).collect();
    for (name, _) in file.tensors() {
        if !needed.contains(name) && !is_harmless(name, config) {
            return Err(ImportError::tensor(name, unused(name)));
        }
    }
    Ok(())
}

/// A shape without leading ones, which carry no information.
fn significant(shape: &[u64]) -> &[u64] {
    let ones = shape.iter().take_while(|&&n| n == 1).count();
    &shape[ones..]
}

/// Tables that other programs precompute, and what [`rope_factors`] has read.
fn is_harmless(name: &str, config: &ModelConfig) -> bool {
    let rotary_table = name.starts_with("blk.") && name.ends_with(".attn_rot_embd");
    rotary_table || (name == ROPE_FREQS && config.architecture == Architecture::Llama)
}

fn unused(name: &str) -> TensorFault {
    TensorFault::Unused(match name {
        _ if name.ends_with("attn_output.bias") => "bias on the attention output",
        _ if name.ends_with(".bias") => "bias other than on q, k and v",
        _ if name.contains("_exps") || name.contains("ffn_gate_inp") => "mixture of experts",
        _ if name.contains("attn_q_norm") || name.contains("attn_k_norm") => "norm on q and k",
        _ if name.contains("rope_factors") || name == ROPE_FREQS => "rope scaling by tensor",
        _ if name.contains("lora") => "low-rank adapter",
        _ => "additional tensor",
    })
}
