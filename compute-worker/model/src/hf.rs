//! Import of Hugging Face model folders: `config.json`, safetensors (one file or shards), `tokenizer.json`.
//!
//! Only the files read here matter to the result, and only they enter the digest. Opening reads JSON and
//! headers; weights are read and checked when asked for.

mod config;
mod json;
mod safetensors;
mod tokenizer;
mod weights;

use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::json::Object;
use self::weights::Weights;
use crate::config::ModelConfig;
use crate::names::TensorName;
use crate::source::bytes::{Bytes, hex};
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::TokenizerConfig;

const CONFIG: &str = "config.json";

/// A model in a Hugging Face folder.
#[derive(Debug)]
pub struct HfModel {
    folder: PathBuf,
    config: ModelConfig,
    weights: Weights,
    tokenizer_json: String,
    tokenizer_config: TokenizerConfig,
}

impl HfModel {
    /// Opens a folder and checks all of it except the weights' values.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn open(folder: &Path) -> Result<Self, ImportError> {
        let json = Object::read(folder, CONFIG)?.ok_or_else(|| {
            let fault = format!("has no {CONFIG}; expected a Hugging Face model folder or a .gguf file");
            ImportError::malformed(folder.display().to_string(), fault)
        })?;
        let config = config::read_config(&json)?;
        let weights = Weights::open(folder, &config)?;
        let (tokenizer_json, tokenizer_config) = tokenizer::read_tokenizer(folder, &json, config.vocab)?;
        Ok(Self { folder: folder.to_owned(), config, weights, tokenizer_json, tokenizer_config })
    }
}

impl ModelSource for HfModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        self.weights.rows(name, self.config.shape(name), rows)
    }

    fn tokenizer_json(&self) -> &str {
        &self.tokenizer_json
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        &self.tokenizer_config
    }

    fn digest(&self) -> Result<String, ImportError> {
        let present = |name: &&str| self.folder.join(name).exists();
        let mut names: Vec<String> =
            [CONFIG].into_iter().chain(tokenizer::FILES).filter(present).map(str::to_owned).collect();
        names.extend(self.weights.file_names());
        names.sort_unstable();
        let mut list = Sha256::new();
        for name in names {
            let digest = Bytes::open(&self.folder.join(&name))?.sha256()?;
            list.update(format!("{digest}  {name}\n"));
        }
        Ok(format!("sha256:{}", hex(&list.finalize())))
    }

    fn description(&self) -> String {
        let types: Vec<String> =
            self.weights.types().into_iter().map(|(dtype, count)| format!("{count} × {dtype}")).collect();
        // Not the folder's name: the description goes into the bundle's digest, which depends on contents only.
        format!("Hugging Face folder, {}, {}", self.config.architecture, types.join(", "))
    }
}

#[cfg(test)]
mod tests;
