//! What was done to a model, as its bundle carries it: `quantization.json`.

use rookery_model::bundle::{Bundle, Precision, QUANTIZATION_TYPE};
use rookery_model::names::TensorName;
use rookery_model::rotate::RotateOptions;
use serde::{Deserialize, Serialize};

use crate::recipe::{Bits, Budget, Pin, Rounding};

/// Title of the bundle's layer.
pub(super) const TITLE: &str = "quantization.json";
/// The document's version.
pub(super) const VERSION: u32 = 1;

/// What was done to a model, as its bundle carries it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quantization {
    /// Version of the document; another one is refused.
    pub version: u32,
    /// How linear layers of blocks are stored.
    pub bits: Bits,
    /// What a mixed bundle was allowed to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Precisions that were given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// How weights became int8.
    pub w8_rounding: Rounding,
    /// How weights became int4.
    pub w4_rounding: Rounding,
    /// Rotations in the weights.
    pub rotation: RotationRecord,
    /// Whether the source's head was tied to its embedding and is not any more, since rotation makes them different.
    pub untied_head: bool,
    /// Text that activations were taken from, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// Bits per weight of the blocks' linear layers, scales and multipliers counted.
    pub body_bits: f64,
    /// How sensitivities were measured, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<SensitivityRecord>,
    /// Sum of the sensitivities of all units at w4, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_kl: Option<f64>,
    /// What could be chosen and was, in the order of the forward pass; empty unless mixed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<Unit>,
}

/// Rotations in the weights. With the source they can be made again: their signs come from a fixed generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationRecord {
    /// Which were asked for.
    pub options: RotateOptions,
    /// Which were possible and their sizes, for people.
    pub description: String,
}

/// Text that activations were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// SHA-256 of the token ids, `sha256:…`.
    pub digest: String,
    /// Tokens in all.
    pub tokens: usize,
    /// Tokens that saw each other.
    pub sequence: usize,
    /// Whether it was the text that is built in.
    pub built_in: bool,
}

/// How sensitivities were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SensitivityRecord {
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Tokens that saw each other.
    pub sequence: usize,
    /// Positions whose distributions were compared.
    pub positions: usize,
}

/// Rows of a matrix that have one precision, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Unit {
    /// The matrix.
    pub tensor: TensorName,
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Bytes at w8.
    pub w8_bytes: u64,
    /// Bytes at w4.
    pub w4_bytes: u64,
    /// Mean KL divergence in nats from the model whose matrices are all w8, when these rows alone are w4.
    pub kl: f64,
    /// Whether `kl` is this unit's share of its tensor's, by rounding error.
    pub shared: bool,
    /// What it got.
    pub precision: Precision,
}

impl Quantization {
    /// Reads the document.
    ///
    /// # Errors
    /// Says what is wrong with it, and where.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("{TITLE} has version {version}, this program reads {VERSION}"));
        }
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }

    /// What a bundle says was done to it; `None` where it says nothing.
    ///
    /// # Errors
    /// As [`Quantization::parse`].
    pub fn of(bundle: &Bundle) -> Result<Option<Self>, String> {
        bundle.document(QUANTIZATION_TYPE).map(Self::parse).transpose()
    }

    /// The document.
    pub fn to_json(&self) -> Vec<u8> {
        // Nothing in it can fail to be written: no maps but of strings, and numbers that are not finite become null.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
