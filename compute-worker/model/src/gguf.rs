//! Import of GGUF v3 files.
//!
//! [`GgufFile`] is the container (`gguf/file.rs`: header, tensor table, rows; `gguf/value.rs`: metadata),
//! [`GgufModel`] the decoder in it (`gguf/config.rs`: shape; `gguf/vocab.rs`: tokenizer). Opening reads the
//! header only; weights are read, decoded and checked when asked for, so that memory is bounded by the
//! request and not by the file.

mod config;
mod file;
mod reader;
mod value;
mod vocab;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub use file::{GgufFile, GgufTensor};
pub use value::{Array, Metadata, Value};
pub use writer::{GgufWriteError, Rows, TensorPlan, write_gguf};

use crate::config::{Architecture, ModelConfig};
use crate::names::{LayerTensor, TensorName};
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::{TokenizerConfig, gguf_to_tokenizer_json};

/// A model in a GGUF file.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: ModelConfig,
    tokenizer_json: String,
    tokenizer_config: TokenizerConfig,
}

impl GgufModel {
    /// Opens a file and checks all of it except the weights' values.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        Self::new(GgufFile::open(path)?)
    }

    /// The same for a file in memory.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImportError> {
        Self::new(GgufFile::from_bytes(bytes)?)
    }

    fn new(file: GgufFile) -> Result<Self, ImportError> {
        let config = config::read_config(&file)?;
        let vocab = vocab::read_vocab(file.metadata())?;
        let (tokenizer_json, tokenizer_config) =
            gguf_to_tokenizer_json(vocab).map_err(ImportError::Tokenizer)?;
        Ok(Self { file, config, tokenizer_json, tokenizer_config })
    }

    /// The container.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// How the heads' rows of `name` are ordered in the file.
    fn row_order(&self, name: TensorName) -> RowOrder {
        let TensorName::Layer(_, tensor) = name else { return RowOrder::Plain };
        let rotated = matches!(
            tensor,
            LayerTensor::AttnQ | LayerTensor::AttnK | LayerTensor::AttnQBias | LayerTensor::AttnKBias
        );
        if self.config.architecture == Architecture::Llama && rotated {
            RowOrder::Interleaved { head_dim: self.config.head_dim }
        } else {
            RowOrder::Plain
        }
    }
}

/// Llama files store q and k for a rotary embedding of neighbouring pairs; here pairs are half a head apart.
#[derive(Clone, Copy)]
enum RowOrder {
    Plain,
    Interleaved { head_dim: usize },
}

impl RowOrder {
    /// Where the file keeps output channel `channel`: `j·d/2 + i` of a head is stored at `2i + j`.
    fn stored(self, channel: usize) -> usize {
        match self {
            RowOrder::Plain => channel,
            RowOrder::Interleaved { head_dim } => {
                let (head, within) = (channel / head_dim, channel % head_dim);
                let (j, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + j
            }
        }
    }
}

impl ModelSource for GgufModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let file_name = name.to_string();
        let order = self.row_order(name);
        let mut out = Vec::with_capacity(rows.len() * self.config.shape(name).1);
        match order {
            RowOrder::Plain => self.file.read_rows(&file_name, rows, &mut out)?,
            RowOrder::Interleaved { .. } if name.is_linear() => {
                for row in rows {
                    let stored = order.stored(row);
                    self.file.read_rows(&file_name, stored..stored + 1, &mut out)?;
                }
            }
            RowOrder::Interleaved { .. } => {
                let mut stored = Vec::new();
                self.file.read_rows(&file_name, rows, &mut stored)?;
                out.extend((0..stored.len()).map(|channel| stored[order.stored(channel)]));
            }
        }
        Ok(out)
    }

    fn tokenizer_json(&self) -> &str {
        &self.tokenizer_json
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        &self.tokenizer_config
    }

    fn digest(&self) -> Result<String, ImportError> {
        Ok(format!("sha256:{}", self.file.bytes().sha256()?))
    }

    fn description(&self) -> String {
        let mut types = BTreeMap::new();
        for (_, tensor) in self.file.tensors() {
            *types.entry(tensor.storage).or_insert(0_usize) += 1;
        }
        let types: Vec<String> =
            types.into_iter().map(|(storage, count)| format!("{count} × {}", storage.name())).collect();
        let name = match self.file.metadata().get("general.name") {
            Some(Value::String(name)) => format!(" {name:?}"),
            _ => String::new(),
        };
        format!("GGUF, {}{name}, {}", self.config.architecture, types.join(", "))
    }
}

#[cfg(test)]
mod tests;
