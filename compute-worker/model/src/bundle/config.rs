//! The bundle's config blob: what the model is and how each tensor is stored.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::BundleError;
use super::layout::{Part, stored_tensors};
use super::oci::parse_json;
use crate::config::ModelConfig;
use crate::names::TensorName;

/// What errors call this blob.
const DOCUMENT: &str = "config";

/// The schema version that this code writes; it reads all from 1 on.
///
/// 2 added `ffn_hadamard` and the optional documents.
pub const SCHEMA_VERSION: u32 = 2;

/// Contents of the config blob (JSON). Unknown fields are refused: a newer writer must raise the schema version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// [`SCHEMA_VERSION`] of the writer, or what was read.
    pub schema_version: u32,
    /// What people call the model; requests name it.
    pub name: String,
    /// Architecture and shapes.
    pub model: ModelConfig,
    /// How weights were quantised, as [`crate::pack::Recipe`] displays it, or a later recipe's name.
    pub recipe: String,
    /// How each tensor is stored, in the order of [`ModelConfig::tensor_names`].
    pub tensors: Vec<TensorEntry>,
    /// SHA-256 of the source the weights came from, `sha256:` and 64 hex digits.
    pub source_digest: String,
    /// What the source was, for people: file format and stored precision.
    pub source: String,
    /// Parameters of the model, counted once each (a tied head adds none).
    pub parameters: u64,
    /// Quality measured against the source, when it has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Version of the packer that wrote the bundle.
    pub packer_version: String,
}

/// How one tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Canonical name, spelled as in GGUF.
    pub name: TensorName,
    /// Rows (output channels) of a matrix; 1 for a vector.
    pub rows: usize,
    /// Columns (input channels) of a matrix; elements of a vector.
    pub cols: usize,
    /// Row ranges with their precision; they cover `0..rows` in order without gaps.
    pub segments: Vec<SegmentEntry>,
}

/// A range of rows stored at one precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentEntry {
    /// First row of the range.
    pub first_row: usize,
    /// Rows in the range.
    pub rows: usize,
    /// How they are stored.
    pub precision: Precision,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// int8 tiles, one f32 scale a row.
    W8,
    /// int4 tiles, an integer multiplier for every 128 columns, one f32 scale a row.
    W4,
    /// Plain f32 (norms and biases).
    F32,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::W8 => "w8",
            Self::W4 => "w4",
            Self::F32 => "f32",
        })
    }
}

/// What was measured of a packed model against its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// What it was measured on, for people.
    pub data: String,
    /// Positions measured.
    pub positions: u64,
    /// Mean Kullback–Leibler divergence from the source's next-token distribution, in nats.
    pub mean_kl: f64,
    /// Share of positions where both put the same token first, 0 to 1.
    pub top_1_agreement: f64,
}

impl BundleConfig {
    /// Parses a config blob and checks it whole: what it says of the model, and that the tensor table is exactly the
    /// model's tensors in order, each fully covered by segments of a fitting precision.
    ///
    /// # Errors
    /// [`BundleError`] naming the field or tensor at fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        /// Read before the rest, so that a newer schema is not reported as an unknown field.
        #[derive(Deserialize)]
        struct Version {
            schema_version: u64,
        }
        let Version { schema_version } = parse_json(DOCUMENT, bytes)?;
        if !(1..=u64::from(SCHEMA_VERSION)).contains(&schema_version) {
            return Err(BundleError::SchemaVersion { found: schema_version, supported: SCHEMA_VERSION });
        }
        let config: Self = parse_json(DOCUMENT, bytes)?;
        config.validate()?;
        Ok(config)
    }

    /// The parts whose blobs hold the model, in order: embedding, blocks, head if it is separate.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let head = (!self.model.tied_head).then_some(Part::Head);
        std::iter::once(Part::Embedding).chain((0..self.model.layers).map(Part::Block)).chain(head)
    }

    fn validate(&self) -> Result<(), BundleError> {
        let fault = |fault: String| Err(BundleError::Document { document: DOCUMENT, fault });
        if let Err(problem) = check_name(&self.name) {
            return fault(format!("name {:?} {problem}", self.name));
        }
        let texts =
            [("recipe", &self.recipe), ("source", &self.source), ("packer_version", &self.packer_version)];
        for (field, text) in texts {
            if text.chars().any(char::is_control) {
                return fault(format!("{field} {text:?} has control characters"));
            }
        }
        if self.source_digest.parse::<Digest>().is_err() {
            return fault(format!("source_digest {:?} is not a SHA-256 digest", self.source_digest));
        }
        // A reader of the first schema would leave it out and compute something else.
        if self.schema_version < 2 && self.model.ffn_hadamard.is_some() {
            return fault(format!("model.ffn_hadamard does not exist in schema {}", self.schema_version));
        }
        self.model.validate()?;
        let names = self.model.tensor_names();
        if self.tensors.len() != names.len() {
            return fault(format!("lists {} tensors, the model needs {}", self.tensors.len(), names.len()));
        }
        for (entry, name) in self.tensors.iter().zip(names) {
            if entry.name != name {
                return fault(format!("tensor {} where {name} belongs", entry.name));
            }
            if let Err(problem) = entry.check(self.model.shape(name)) {
                return fault(format!("tensor {name}: {problem}"));
            }
        }
        if self.parameters != self.model.parameters() {
            return fault(format!(
                "parameters is {}, the model has {}",
                self.parameters,
                self.model.parameters()
            ));
        }
        Ok(())
    }
}

impl TensorEntry {
    /// Bytes that the tensor takes in its blob: tiles with padding, scales, row sums, multipliers, or f32 values.
    pub fn bytes(&self) -> u64 {
        stored_tensors(self).iter().map(|stored| stored.bytes as u64).sum()
    }

    /// Bits stored for each weight, everything counted.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes() as f64 * 8.0 / (self.rows * self.cols) as f64
    }

    /// Checks shape and segments; the fault in words.
    pub(crate) fn check(&self, (rows, cols): (usize, usize)) -> Result<(), String> {
        if (self.rows, self.cols) != (rows, cols) {
            return Err(format!("shape [{}, {}] instead of [{rows}, {cols}]", self.rows, self.cols));
        }
        let mut next_row = 0;
        for segment in &self.segments {
            let SegmentEntry { first_row, rows: count, precision } = *segment;
            if first_row != next_row || count == 0 || count > rows - next_row {
                return Err(format!(
                    "segment of {count} rows from row {first_row} does not go on at {next_row} of {rows}"
                ));
            }
            if (precision == Precision::F32) == self.name.is_linear() {
                return Err(format!("cannot be stored as {precision}"));
            }
            next_row += count;
        }
        if next_row != rows {
            return Err(format!("segments cover {next_row} of {rows} rows"));
        }
        Ok(())
    }
}

/// Checks a model name: it goes into requests, routes and metric labels.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    const MAX_NAME_BYTES: usize = 128;
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("has more than 128 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b)) {
        return Err("has characters other than letters, digits and -_./:");
    }
    Ok(())
}
