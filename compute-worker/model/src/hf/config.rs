//! `config.json` to [`ModelConfig`].

use serde_json::Value;

use super::json::Object;
use crate::config::{Architecture, ModelConfig};
use crate::source::ImportError;

const CLASSES: [(&str, &str, Architecture); 3] = [
    ("LlamaForCausalLM", "llama", Architecture::Llama),
    ("Qwen2ForCausalLM", "qwen2", Architecture::Qwen2),
    ("Qwen3ForCausalLM", "qwen3", Architecture::Qwen3),
];

/// Reads the shape of the model; tensors are checked elsewhere.
pub(super) fn read_config(json: &Object) -> Result<ModelConfig, ImportError> {
    let architecture = architecture(json)?;
    refuse_unsupported(json)?;
    let hidden = json.required_count("hidden_size")?;
    let heads = json.required_count("num_attention_heads")?;
    let head_dim = head_dim(json, architecture, hidden, heads)?;
    let rope = Rope::read(json, head_dim)?;
    let config = ModelConfig {
        architecture,
        hidden,
        layers: json.required_count("num_hidden_layers")?,
        heads,
        kv_heads: json.count("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: json.required_count("intermediate_size")?,
        vocab: json.required_count("vocab_size")?,
        context: json.required_count("max_position_embeddings")?,
        // Models are run with this as f32.
        rms_eps: json.required_float("rms_norm_eps")? as f32,
        rope_theta: rope.theta,
        rope_position_scale: rope.position_scale,
        rope_factors: rope.factors,
        tied_head: json.bool("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: match architecture {
            // Qwen2 has it always and ignores the field.
            Architecture::Qwen2 => true,
            Architecture::Llama | Architecture::Qwen3 => json.bool("attention_bias")?.unwrap_or(false),
        },
        qk_norm: architecture == Architecture::Qwen3,
        ffn_hadamard: None,
    };
    config.validate()?;
    refuse_sliding_window(json, &config)?;
    Ok(config)
}

fn architecture(json: &Object) -> Result<Architecture, ImportError> {
    let class = json.array("architectures")?.and_then(|classes| classes.first()).and_then(Value::as_str);
    let found = match class {
        Some(class) => CLASSES.iter().find(|(name, _, _)| *name == class),
        None => {
            let kind = json.string("model_type")?.ok_or_else(|| json.error("architectures", "missing"))?;
            CLASSES.iter().find(|(_, name, _)| *name == kind)
        }
    };
    found.map(|(_, _, architecture)| *architecture).ok_or_else(|| {
        let name = class.or(json.string("model_type").ok().flatten()).unwrap_or_default();
        let supported = CLASSES.map(|(name, _, _)| name).join(", ");
        ImportError::unsupported(format!("architecture {name:?}"), format!("supported: {supported}"))
    })
}

fn refuse_unsupported(json: &Object) -> Result<(), ImportError> {
    if let Some(quantization) = json.object("quantization_config")? {
        let method = quantization.string("quant_method")?.unwrap_or("unnamed");
        let hint = "supported: F32, F16 and BF16 weights, or a GGUF file";
        return Err(ImportError::unsupported(format!("quantisation {method:?}"), hint));
    }
    match json.string("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => {
            return Err(ImportError::unsupported(format!("activation {other:?}"), "supported: \"silu\""));
        }
    }
    if json.bool("mlp_bias")?.unwrap_or(false) {
        return Err(ImportError::unsupported("bias in the feed-forward", "mlp_bias must be false"));
    }
    if let Some(factor) = json.float("partial_rotary_factor")?.filter(|&factor| factor != 1.0) {
        let what = format!("rotary embedding of {factor} of a head's dimensions");
        return Err(ImportError::unsupported(what, "all of them must rotate"));
    }
    Ok(())
}

fn head_dim(
    json: &Object,
    architecture: Architecture,
    hidden: usize,
    heads: usize,
) -> Result<usize, ImportError> {
    if let Some(head_dim) = json.count("head_dim")? {
        return Ok(head_dim);
    }
    if architecture == Architecture::Qwen3 {
        return Ok(128); // the family's own default, whatever the hidden size
    }
    match hidden.checked_div(heads) {
        Some(share) if share * heads == hidden => Ok(share),
        _ => {
            let fault = format!("missing, and hidden_size {hidden} is not a multiple of {heads} heads");
            Err(json.error("head_dim", fault))
        }
    }
}

/// A window that spans the context, or that no layer uses, leaves full attention as it is.
fn refuse_sliding_window(json: &Object, config: &ModelConfig) -> Result<(), ImportError> {
    let window = json.count("sliding_window")?.unwrap_or(config.context);
    let first_layer = json.count("max_window_layers")?.unwrap_or(0);
    let switched_on = json.bool("use_sliding_window")?.unwrap_or(false) && first_layer < config.layers;
    let kinds = json.array("layer_types")?.map(Vec::as_slice).unwrap_or_default();
    let listed = kinds.iter().any(|kind| kind.as_str() != Some("full_attention"));
    if window < config.context && (switched_on || listed) {
        let what = format!("sliding-window attention over {window} tokens");
        return Err(ImportError::unsupported(what, "supported: attention over the whole context"));
    }
    Ok(())
}

/// Parameters of the rotary embedding, old style (`rope_theta`, `rope_scaling`) or new (`rope_parameters`).
struct Rope {
    theta: f64,
    position_scale: f64,
    factors: Option<Vec<f32>>,
}

impl Rope {
    fn read(json: &Object, head_dim: usize) -> Result<Self, ImportError> {
        let parameters = json.object("rope_parameters")?;
        let scaling = json.object("rope_scaling")?;
        let new_theta =
            parameters.as_ref().map(|parameters| parameters.float("rope_theta")).transpose()?.flatten();
        let theta = new_theta.or(json.float("rope_theta")?).unwrap_or(10_000.0);
        let plain = Self { theta, position_scale: 1.0, factors: None };
        if let (Some(new), Some(old)) = (&parameters, &scaling)
            && Self::kind(new)? != Self::kind(old)?
        {
            return Err(json.error("rope_scaling", "disagrees with rope_parameters"));
        }
        let Some(scaling) = parameters.or(scaling) else { return Ok(plain) };
        match Self::kind(&scaling)? {
            // Parameters by kind of layer would otherwise look like none at all.
            None if scaling.get("factor").is_none() && scaling.get("full_attention").is_none() => Ok(plain),
            None => Err(scaling.error("rope_type", "missing")),
            Some("default") => Ok(plain),
            Some("linear") => Ok(Self { position_scale: 1.0 / scaling.required_float("factor")?, ..plain }),
            Some("llama3") => {
                Ok(Self { factors: Some(llama3_factors(json, &scaling, theta, head_dim)?), ..plain })
            }
            Some(other) => Err(ImportError::unsupported(
                format!("rope scaling {other:?}"),
                "supported: default, linear, llama3",
            )),
        }
    }

    fn kind(scaling: &Object) -> Result<Option<&str>, ImportError> {
        match scaling.string("rope_type")? {
            Some(kind) => Ok(Some(kind)),
            None => scaling.string("type"),
        }
    }
}

/// What Llama 3.1 scaling divides each inverse frequency by, `[head_dim / 2]`.
///
/// With `turns` a wavelength's number of rotations over the original context: at least `high_freq_factor`
/// turns leave the frequency alone, at most `low_freq_factor` divide it by `factor`, and between them the two
/// frequencies are mixed linearly in `turns`.
fn llama3_factors(
    json: &Object,
    scaling: &Object,
    theta: f64,
    head_dim: usize,
) -> Result<Vec<f32>, ImportError> {
    let factor = scaling.required_float("factor")?;
    let low = scaling.required_float("low_freq_factor")?;
    let high = scaling.required_float("high_freq_factor")?;
    let field = "original_max_position_embeddings";
    let original = match scaling.float(field)? {
        Some(original) => original,
        None => json.float(field)?.ok_or_else(|| scaling.error(field, "missing"))?,
    };
    if high <= low {
        return Err(scaling.error("high_freq_factor", format!("is {high}, not above low_freq_factor {low}")));
    }
    // Bounded here because the configuration is validated only once it is whole.
    let pairs = (head_dim / 2).min(1 << 12);
    let scale = |pair: usize| {
        let inverse_frequency = theta.powf(-(2.0 * pair as f64) / head_dim as f64);
        let turns = original * inverse_frequency / std::f64::consts::TAU;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Ok((0..pairs).map(scale).collect())
}
