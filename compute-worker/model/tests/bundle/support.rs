//! A source with random weights, and a way to edit a bundle so that all digests are right again.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rookery_model::bundle::{Bundle, BundleError, Digest, NoProgress};
use rookery_model::config::{Architecture, ModelConfig};
use rookery_model::names::TensorName;
use rookery_model::pack::{PackOptions, Recipe, pack};
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model whose weights are a function of their name and place.
pub(crate) struct RandomSource {
    pub(crate) config: ModelConfig,
    /// A weight that is not a number: tensor and row.
    pub(crate) broken: Option<(TensorName, usize)>,
    tokenizer_json: String,
    tokenizer_config: TokenizerConfig,
}

/// Awkward on purpose: no dimension is a multiple of a tile, the last multiplier group is short.
pub(crate) fn small_config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden: 144,
        layers: 2,
        heads: 3,
        kv_heads: 1,
        head_dim: 48,
        ffn: 200,
        vocab: 131,
        context: 64,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_position_scale: 1.0,
        rope_factors: None,
        tied_head: true,
        qkv_bias: true,
        qk_norm: true,
        ffn_hadamard: None,
    }
}

impl RandomSource {
    pub(crate) fn new(config: ModelConfig) -> Self {
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        });
        let tokenizer_config = TokenizerConfig { eos: vec![1], ..TokenizerConfig::default() };
        Self { config, broken: None, tokenizer_json: tokenizer.to_string(), tokenizer_config }
    }
}

impl ModelSource for RandomSource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let (count, cols) = self.config.shape(name);
        assert!(rows.end <= count);
        let digest = Digest::of(name.to_string().as_bytes());
        let seed = u64::from_str_radix(&digest.hex()[..16], 16).unwrap();
        let mut weights = Vec::with_capacity(rows.len() * cols);
        for row in rows {
            let broken = self.broken == Some((name, row));
            for col in 0..cols {
                let mixed = (seed ^ (row * cols + col) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let uniform = (mixed >> 40) as f32 / (1 << 24) as f32 - 0.5;
                weights.push(if broken { f32::NAN } else { uniform * (1.0 + row as f32) * 0.01 });
            }
        }
        Ok(weights)
    }

    fn tokenizer_json(&self) -> &str {
        &self.tokenizer_json
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        &self.tokenizer_config
    }

    fn digest(&self) -> Result<String, ImportError> {
        Ok(Digest::of(b"random").to_string())
    }

    fn description(&self) -> String {
        "random weights\nof a test".to_owned()
    }
}

pub(crate) fn options(recipe: Recipe, threads: usize) -> PackOptions {
    PackOptions { name: "org/random:1".to_owned(), recipe, threads, ..PackOptions::default() }
}

/// Packs into a new temporary folder.
pub(crate) fn packed(config: ModelConfig, recipe: Recipe) -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    pack(&RandomSource::new(config), &options(recipe, 2), &path, &NoProgress).unwrap();
    (parent, path)
}

pub(crate) fn open_error(path: &Path) -> BundleError {
    match Bundle::open(path, &NoProgress) {
        Ok(_) => panic!("a faulty bundle opened"),
        Err(error) => error,
    }
}

/// The error and its causes, as people see them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Edits a bundle; every edit makes the digests above it right again.
pub(crate) struct Editor<'a>(pub(crate) &'a Path);

impl Editor<'_> {
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.0.join(digest.parse::<Digest>().unwrap().path())
    }

    pub(crate) fn read_json(&self, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob_path(digest)).unwrap()).unwrap()
    }

    pub(crate) fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.0.join("index.json")).unwrap()).unwrap()
    }

    pub(crate) fn manifest(&self) -> Value {
        self.read_json(self.index()["manifests"][0]["digest"].as_str().unwrap())
    }

    pub(crate) fn config(&self) -> Value {
        self.read_json(self.manifest()["config"]["digest"].as_str().unwrap())
    }

    /// Digest of the layer with this title.
    pub(crate) fn layer(&self, title: &str) -> String {
        let manifest = self.manifest();
        let layers = manifest["layers"].as_array().unwrap();
        let layer =
            layers.iter().find(|layer| layer["annotations"]["org.opencontainers.image.title"] == title);
        layer.unwrap()["digest"].as_str().unwrap().to_owned()
    }

    pub(crate) fn layer_path(&self, title: &str) -> PathBuf {
        self.blob_path(&self.layer(title))
    }

    fn add_blob(&self, bytes: &[u8]) -> (String, usize) {
        let digest = Digest::of(bytes).to_string();
        fs::write(self.blob_path(&digest), bytes).unwrap();
        (digest, bytes.len())
    }

    pub(crate) fn set_index(&self, index: &Value) {
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }

    pub(crate) fn set_manifest(&self, bytes: &[u8]) {
        let (digest, size) = self.add_blob(bytes);
        let mut index = self.index();
        index["manifests"][0]["digest"] = digest.into();
        index["manifests"][0]["size"] = size.into();
        self.set_index(&index);
    }

    pub(crate) fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        edit(&mut manifest);
        self.set_manifest(manifest.to_string().as_bytes());
    }

    pub(crate) fn set_config(&self, bytes: &[u8]) {
        let (digest, size) = self.add_blob(bytes);
        self.edit_manifest(|manifest| {
            manifest["config"]["digest"] = digest.into();
            manifest["config"]["size"] = size.into();
        });
    }

    pub(crate) fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = self.config();
        edit(&mut config);
        self.set_config(config.to_string().as_bytes());
    }

    pub(crate) fn edit_layer(&self, title: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.layer_path(title)).unwrap();
        edit(&mut bytes);
        let (digest, size) = self.add_blob(&bytes);
        self.edit_manifest(|manifest| {
            let layers = manifest["layers"].as_array_mut().unwrap();
            for layer in layers {
                if layer["annotations"]["org.opencontainers.image.title"] == title {
                    layer["digest"] = digest.clone().into();
                    layer["size"] = size.into();
                }
            }
        });
    }

    /// Overwrites bytes of one tensor in a weight layer.
    pub(crate) fn edit_tensor(&self, title: &str, tensor: &str, edit: impl FnOnce(&mut [u8])) {
        self.edit_layer(title, |bytes| {
            let range = tensor_range(bytes, tensor);
            edit(&mut bytes[range]);
        });
    }
}

/// Where a tensor lies in a safetensors file.
pub(crate) fn tensor_range(bytes: &[u8], tensor: &str) -> Range<usize> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offset = |i: usize| 8 + length + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    offset(0)..offset(1)
}
