//! A bundle made from nothing, so that there is something to roll out: tiny, whole, and another one for each number.

use std::ops::Range;
use std::path::Path;

use rookery_model::bundle::{Digest, NoProgress};
use rookery_model::config::{Architecture, ModelConfig};
use rookery_model::names::TensorName;
use rookery_model::pack::{PackOptions, pack};
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerConfig;

use super::faults::Dice;
use crate::error::{Failure, OrFail};

/// Knows two letters.
const TOKENIZER: &str = r#"{
    "version": "1.0",
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
}"#;

/// A model of one small block with random weights.
struct MadeUp {
    number: u64,
    config: ModelConfig,
    tokenizer: TokenizerConfig,
}

impl ModelSource for MadeUp {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let (_, columns) = self.config.shape(name);
        let row = |row: usize| {
            let mut dice = Dice::new(self.number, row as u64, 300);
            (0..columns).map(move |_| dice.unit() as f32 - 0.5)
        };
        Ok(rows.flat_map(row).collect())
    }

    fn tokenizer_json(&self) -> &str {
        TOKENIZER
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        &self.tokenizer
    }

    fn digest(&self) -> Result<String, ImportError> {
        Ok(Digest::of(&self.number.to_le_bytes()).to_string())
    }

    fn description(&self) -> String {
        "made up for a simulation".to_owned()
    }
}

/// Makes bundle `number` in `folder`, which must not exist.
///
/// # Errors
/// If it cannot be written.
pub(super) fn make(number: u64, folder: &Path) -> Result<(), Failure> {
    let source = MadeUp {
        number,
        config: ModelConfig {
            architecture: Architecture::Llama,
            hidden: 32,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            ffn: 32,
            vocab: 2,
            context: 128,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_position_scale: 1.0,
            rope_factors: None,
            tied_head: true,
            qkv_bias: false,
            qk_norm: false,
            ffn_hadamard: None,
        },
        tokenizer: TokenizerConfig::default(),
    };
    let options = PackOptions { name: "simulated".to_owned(), threads: 1, ..PackOptions::default() };
    pack(&source, &options, folder, &NoProgress)
        .or_fail(|| format!("could not make a bundle in {}", folder.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rookery_model::bundle::Bundle;

    use super::*;

    #[test]
    fn each_number_makes_a_bundle_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let digest = |name: &str, number| {
            make(number, &folder.path().join(name)).unwrap();
            Bundle::open(&folder.path().join(name), &NoProgress).unwrap();
            Bundle::inspect(&folder.path().join(name)).unwrap().digest
        };
        let first = digest("a", 1);
        assert_eq!(digest("b", 1), first);
        assert_ne!(digest("c", 2), first);
    }
}
