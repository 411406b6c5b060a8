//! The safetensors files of a folder, one or many, as one table of tensors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Component, Path};

use serde::Deserialize;

use super::json::{Fields, parse, read_text};
use super::safetensors::SafetensorsFile;
use crate::config::ModelConfig;
use crate::names::{LayerTensor, TensorName};
use crate::source::{ImportError, TensorFault};

/// The only file of a small model.
const SINGLE: &str = "model.safetensors";
/// Which file of a sharded model holds which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// All weights of a folder; every tensor the model needs is there in the right shape and type.
#[derive(Debug)]
pub(super) struct Weights {
    shards: Vec<SafetensorsFile>,
    /// Which shard holds a tensor.
    shard_of: HashMap<String, usize>,
}

impl Weights {
    /// Opens the files and checks them against `config`.
    pub(super) fn open(folder: &Path, config: &ModelConfig) -> Result<Self, ImportError> {
        let weights = if folder.join(SINGLE).is_file() {
            Self::from_shards(vec![SafetensorsFile::open(&folder.join(SINGLE))?])?
        } else {
            Self::open_sharded(folder)?
        };
        weights.check(config)?;
        Ok(weights)
    }

    fn open_sharded(folder: &Path) -> Result<Self, ImportError> {
        let Some(text) = read_text(folder, INDEX)? else {
            if folder.join("pytorch_model.bin").exists()
                || folder.join("pytorch_model.bin.index.json").exists()
            {
                let hint = "convert them to safetensors first";
                return Err(ImportError::unsupported("pickled weights (pytorch_model.bin)", hint));
            }
            let place = folder.display().to_string();
            return Err(ImportError::malformed(place, format!("has neither {SINGLE} nor {INDEX}")));
        };
        let listed = read_index(&text)?;
        let mut files: Vec<&str> = listed.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        let shards = files.iter().map(|file| SafetensorsFile::open(&folder.join(file)));
        let weights = Self::from_shards(shards.collect::<Result<_, _>>()?)?;
        for (tensor, file) in &listed {
            // `files` holds every listed name, so the search cannot fail.
            let shard = files.binary_search(&file.as_str()).ok();
            if weights.shard_of.get(tensor).copied() != shard {
                let fault = format!("lists tensor {tensor:?} in {file:?}, which does not hold it");
                return Err(ImportError::malformed(INDEX, fault));
            }
        }
        Ok(weights)
    }

    fn from_shards(shards: Vec<SafetensorsFile>) -> Result<Self, ImportError> {
        let mut shard_of = HashMap::new();
        for (index, shard) in shards.iter().enumerate() {
            for (name, _) in shard.tensors() {
                if shard_of.insert(name.to_owned(), index).is_some() {
                    return Err(ImportError::tensor(name, TensorFault::Duplicate));
                }
            }
        }
        Ok(Self { shards, shard_of })
    }

    fn check(&self, config: &ModelConfig) -> Result<(), ImportError> {
        let mut needed = HashSet::new();
        for name in config.tensor_names() {
            let stored = hf_name(name);
            let error = |fault| ImportError::tensor(stored.clone(), fault);
            let tensor = self
                .shard_of
                .get(&stored)
                .and_then(|&shard| self.shards[shard].tensor(&stored))
                .ok_or_else(|| error(TensorFault::Missing))?;
            let (rows, columns) = config.shape(name);
            let expected =
                if name.is_linear() { vec![rows as u64, columns as u64] } else { vec![columns as u64] };
            if tensor.shape != expected {
                return Err(error(TensorFault::Shape { found: tensor.shape.clone(), expected }));
            }
            if tensor.storage.is_none() {
                return Err(error(tensor.bad_storage()));
            }
            needed.insert(stored);
        }
        let mut extra: Vec<&String> = self.shard_of.keys().filter(|name| !needed.contains(*name)).collect();
        extra.sort_unstable();
        match extra.into_iter().find(|name| !is_harmless(name, config)) {
            Some(name) => Err(ImportError::tensor(name.clone(), unused(name))),
            None => Ok(()),
        }
    }

    /// Rows of a tensor as f32.
    pub(super) fn rows(
        &self,
        name: TensorName,
        shape: (usize, usize),
        rows: Range<usize>,
    ) -> Result<Vec<f32>, ImportError> {
        let stored = hf_name(name);
        let missing = || ImportError::tensor(stored.clone(), TensorFault::Missing);
        let &shard = self.shard_of.get(&stored).ok_or_else(missing)?;
        let mut out = Vec::with_capacity(rows.len() * shape.1);
        self.shards[shard].read_rows(&stored, shape, rows, &mut out)?;
        Ok(out)
    }

    /// Number of tensors of each type.
    pub(super) fn types(&self) -> BTreeMap<&str, usize> {
        let mut types = BTreeMap::new();
        for (_, tensor) in self.shards.iter().flat_map(SafetensorsFile::tensors) {
            *types.entry(tensor.dtype.as_str()).or_insert(0) += 1;
        }
        types
    }

    /// Names of the files inside the folder.
    pub(super) fn file_names(&self) -> impl Iterator<Item = String> {
        let names = self.shards.iter().filter_map(|shard| shard.path().file_name());
        names.map(|name| name.to_string_lossy().into_owned())
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Fields<String>,
}

/// Tensor name to file name. A tensor listed twice or a name that leaves the folder is an error.
fn read_index(text: &str) -> Result<BTreeMap<String, String>, ImportError> {
    let Index { weight_map: Fields(entries) } = parse(INDEX, text)?;
    let mut listed = BTreeMap::new();
    for (tensor, file) in entries {
        let mut parts = Path::new(&file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
            let fault = format!("names {file:?}, not a .safetensors file inside the folder");
            return Err(ImportError::key(format!("{INDEX}: weight_map.{tensor}"), fault));
        }
        if listed.insert(tensor.clone(), file).is_some() {
            return Err(ImportError::tensor(tensor, TensorFault::Duplicate));
        }
    }
    Ok(listed)
}

/// The name a tensor has in these folders.
fn hf_name(name: TensorName) -> String {
    let (layer, tensor) = match name {
        TensorName::TokenEmbedding => return "model.embed_tokens.weight".to_owned(),
        TensorName::OutputNorm => return "model.norm.weight".to_owned(),
        TensorName::Output => return "lm_head.weight".to_owned(),
        TensorName::Layer(layer, tensor) => (layer, tensor),
    };
    let rest = match tensor {
        LayerTensor::AttnNorm => "input_layernorm.weight",
        LayerTensor::AttnQ => "self_attn.q_proj.weight",
        LayerTensor::AttnK => "self_attn.k_proj.weight",
        LayerTensor::AttnV => "self_attn.v_proj.weight",
        LayerTensor::AttnOutput => "self_attn.o_proj.weight",
        LayerTensor::AttnQBias => "self_attn.q_proj.bias",
        LayerTensor::AttnKBias => "self_attn.k_proj.bias",
        LayerTensor::AttnVBias => "self_attn.v_proj.bias",
        LayerTensor::AttnQNorm => "self_attn.q_norm.weight",
        LayerTensor::AttnKNorm => "self_attn.k_norm.weight",
        LayerTensor::FfnNorm => "post_attention_layernorm.weight",
        LayerTensor::FfnGate => "mlp.gate_proj.weight",
        LayerTensor::FfnUp => "mlp.up_proj.weight",
        LayerTensor::FfnDown => "mlp.down_proj.weight",
    };
    format!("model.layers.{layer}.{rest}")
}

/// Tables that other programs precompute, and a stored copy of a tied head.
fn is_harmless(name: &str, config: &ModelConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tied_head && name == "lm_head.weight")
}

fn unused(name: &str) -> TensorFault {
    TensorFault::Unused(match name {
        _ if name.ends_with("o_proj.bias") => "bias on the attention output",
        _ if name.ends_with(".bias") => "bias other than on q, k and v",
        _ if name.contains(".experts.") || name.contains("mlp.gate.") => "mixture of experts",
        _ if name.ends_with("_scale") || name.ends_with("_scale_inv") || name.ends_with(".qweight") => {
            "quantisation"
        }
        _ if name.contains("lora") => "low-rank adapter",
        _ => "additional tensor",
    })
}
