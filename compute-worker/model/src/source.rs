//! An imported model: one interface over every file format, and the errors of reading them.

pub(crate) mod bytes;
pub(crate) mod parallel;
pub(crate) mod rows;

use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{ConfigError, ModelConfig};
use crate::gguf::GgufModel;
use crate::hf::HfModel;
use crate::names::TensorName;
use crate::tokenizer::{TokenizerConfig, TokenizerError};

/// A model read from someone else's file format. Everything behind this trait is alike for all formats:
/// tensor names, row order, half-split rotary embedding.
pub trait ModelSource: Sync {
    /// Shape of the model; validated.
    fn config(&self) -> &ModelConfig;

    /// Rows `rows` of a tensor as f32, row-major; a vector is one row. Bounds memory while packing large
    /// models.
    ///
    /// # Errors
    /// Names the tensor: missing, unreadable, or holding values that are not finite.
    ///
    /// # Panics
    /// If `rows` reaches past the tensor's rows as [`ModelConfig::shape`] gives them.
    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError>;

    /// A whole tensor as f32, row-major, shaped as [`ModelConfig::shape`] says.
    ///
    /// # Errors
    /// As [`ModelSource::tensor_rows`].
    fn tensor(&self, name: TensorName) -> Result<Vec<f32>, ImportError> {
        self.tensor_rows(name, 0..self.config().shape(name).0)
    }

    /// Tokenizer in the JSON form of the `tokenizers` crate.
    fn tokenizer_json(&self) -> &str;

    /// Special tokens and chat template.
    fn tokenizer_config(&self) -> &TokenizerConfig;

    /// `sha256:…` of the source: of the file, or of the sorted list of digests and names of a folder's files.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn digest(&self) -> Result<String, ImportError>;

    /// One line for people: format, family, the name inside the file if it has one, storage types. Depends on contents
    /// only, never on where they lie.
    fn description(&self) -> String;

    /// Number of weights, a tied head counted once.
    fn parameters(&self) -> u64 {
        self.config().parameters()
    }
}

/// Opens a `.gguf` file or a Hugging Face folder and checks it whole, except for the weights' values.
///
/// # Errors
/// Whatever is wrong with the file; see [`ImportError`].
pub fn open(path: &Path) -> Result<Box<dyn ModelSource>, ImportError> {
    let metadata = std::fs::metadata(path).map_err(|source| ImportError::io(path, source))?;
    if metadata.is_dir() { Ok(Box::new(HfModel::open(path)?)) } else { Ok(Box::new(GgufModel::open(path)?)) }
}

/// Why a model could not be imported. Messages name the file part at fault: header, metadata key, tensor or
/// JSON field.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not of the format, or is cut off before its tensors.
    #[error("{place}: {fault}")]
    Malformed {
        /// Part of the file, e.g. `gguf header`.
        place: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A metadata key or JSON field is missing, of the wrong type or out of range.
    #[error("metadata {key:?}: {fault}")]
    Key {
        /// Key as the file spells it.
        key: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A tensor is missing, misplaced, misshapen or holds bad values.
    #[error("tensor {tensor:?}: {fault}")]
    Tensor {
        /// Name as the file spells it.
        tensor: String,
        /// What is wrong with it.
        fault: TensorFault,
    },
    /// The file is sound but asks for something that is not implemented.
    #[error("{what} is not supported ({hint})")]
    Unsupported {
        /// Feature asked for, by name.
        what: String,
        /// What is supported, or what to do instead.
        hint: String,
    },
    /// The model's shape breaks a rule.
    #[error("model configuration")]
    Config(#[from] ConfigError),
    /// The vocabulary cannot be turned into a tokenizer.
    #[error("tokenizer")]
    Tokenizer(#[source] TokenizerError),
}

/// What is wrong with one tensor.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TensorFault {
    /// The model needs it and the file lacks it.
    #[error("missing")]
    Missing,
    /// It is listed twice.
    #[error("listed more than once")]
    Duplicate,
    /// It has no dimensions or too many.
    #[error("{found} dimensions (expected 1 to {max})")]
    DimensionCount {
        /// Number of dimensions found.
        found: u64,
        /// Largest number allowed.
        max: u64,
    },
    /// A dimension is zero.
    #[error("a dimension is zero in shape {shape:?}")]
    ZeroDimension {
        /// Shape as listed.
        shape: Vec<u64>,
    },
    /// The number of elements or bytes does not fit 63 bits.
    #[error("shape {shape:?} overflows")]
    Overflow {
        /// Shape as listed.
        shape: Vec<u64>,
    },
    /// Its values are stored in a way import does not read.
    #[error("storage type {found} is not supported (supported: {supported})")]
    StorageType {
        /// Type name or number found.
        found: String,
        /// Types that are read.
        supported: &'static str,
    },
    /// Rows do not fill whole quantisation blocks.
    #[error("row length {columns} is not a multiple of {block}, the block size of {storage}")]
    PartialBlock {
        /// Elements in a row.
        columns: u64,
        /// Elements in a block.
        block: u64,
        /// Name of the storage type.
        storage: &'static str,
    },
    /// Its offset breaks the file's alignment.
    #[error("offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// Offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// It reaches past the end of the file.
    #[error(
        "bytes {start}..{end} lie outside the data section of {available} bytes; the file is cut off or corrupt"
    )]
    OutOfBounds {
        /// First byte in the data section.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Size of the data section.
        available: u64,
    },
    /// It shares bytes with another tensor.
    #[error("overlaps tensor {other:?}")]
    Overlap {
        /// The tensor that starts before it.
        other: String,
    },
    /// Its byte range and its shape disagree.
    #[error("{found} bytes listed where shape and type need {expected}")]
    ByteLength {
        /// Bytes listed.
        found: u64,
        /// Bytes needed.
        expected: u64,
    },
    /// Its shape is not what the configuration says.
    #[error("shape {found:?} where the configuration needs {expected:?}")]
    Shape {
        /// Shape in rows-first order.
        found: Vec<u64>,
        /// Shape needed, rows first.
        expected: Vec<u64>,
    },
    /// A value is infinite or not a number, or a block's scale is.
    #[error("value {value} at row {row}, column {column}; the weights or a block's scale are corrupt")]
    NotFinite {
        /// The value read.
        value: f32,
        /// Row of the stored tensor.
        row: usize,
        /// Column of the stored tensor.
        column: usize,
    },
    /// It would change the result and nothing here computes with it.
    #[error("this model family's {0} is not supported, and ignoring it would change the results")]
    Unused(&'static str),
}

impl ImportError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        ImportError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(place: impl Into<String>, fault: impl Into<String>) -> Self {
        ImportError::Malformed { place: place.into(), fault: fault.into() }
    }

    pub(crate) fn key(key: impl Into<String>, fault: impl Into<String>) -> Self {
        ImportError::Key { key: key.into(), fault: fault.into() }
    }

    pub(crate) fn tensor(tensor: impl Into<String>, fault: TensorFault) -> Self {
        ImportError::Tensor { tensor: tensor.into(), fault }
    }

    pub(crate) fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Self {
        ImportError::Unsupported { what: what.into(), hint: hint.into() }
    }
}

#[cfg(test)]
mod tests;
