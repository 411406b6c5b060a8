//! Hugging Face folder import.

use std::ops::Range;
use std::path::Path;

use crate::config::ModelConfig;
use crate::names::TensorName;
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::TokenizerConfig;

/// A model in a Hugging Face folder.
pub struct HfModel;

impl HfModel {
    /// Opens and checks a folder.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn open(_path: &Path) -> Result<Self, ImportError> {
        todo!()
    }
}

impl ModelSource for HfModel {
    fn config(&self) -> &ModelConfig {
        todo!()
    }
    fn tensor_rows(&self, _name: TensorName, _rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        todo!()
    }
    fn tokenizer_json(&self) -> &str {
        todo!()
    }
    fn tokenizer_config(&self) -> &TokenizerConfig {
        todo!()
    }
    fn digest(&self) -> Result<String, ImportError> {
        todo!()
    }
    fn description(&self) -> String {
        todo!()
    }
}
