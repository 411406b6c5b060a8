//! What to do to each tensor.
//!
//! A recipe is a name (`w8`, `w4`, `mixed`) or a TOML file. Everything in a file may be left out; what is not known is
//! refused.
//!
//! ```toml
//! # How linear layers are stored: "w8", "w4", or "mixed", where measured sensitivities decide.
//! bits = "mixed"
//! # Of mixed only. A size is that of all weights in the bundle, embedding and head included: "4.6GiB", "4900MB".
//! # Bits are those of the transformer blocks, per weight, scales counted: "5.0bits".
//! budget = "5.0bits"
//! # "w8" or "w4". An embedding row is read once per token, and the head's errors go straight into probabilities:
//! # at four bits the head alone costs about as much as all else.
//! embedding = "w8"
//! head = "w8"
//! # How the blocks' weights are rounded: "gptq" lets the weights that are not yet rounded make up for those that are;
//! # "nearest" takes each by itself, as embedding and head always are.
//! w4-rounding = "gptq"
//! w8-rounding = "nearest"
//! # The last of these that fits a tensor decides, whatever the budget. `*` is any run of characters, `?` any one;
//! # ".weight" at the end may be left out.
//! pins = ["blk.0.*=w8", "blk.*.attn_v=w8"]
//! # Before any rotation, moves outliers of activations into weights: the largest inputs of each channel, as the calibration
//! # text shows them, count with this power, 0 to 1. Left out, nothing is moved.
//! smooth = 0.5
//!
//! # Orthogonal transforms that spread outliers over all channels.
//! [rotate]
//! residual = true     # between layers, folded into weights
//! heads = true        # between v and o, folded into weights
//! ffn = true          # before down, computed by the engine
//!
//! [calibration]
//! # Text files, relative to this file. None: a mix of code and prose that is built in.
//! texts = []
//! tokens = 8192
//! # Tokens that see each other.
//! sequence = 512
//!
//! # Of mixed only: how the cost of four bits is measured.
//! [sensitivity]
//! tokens = 1024
//! sequence = 256
//! # Logits are compared at every so many positions.
//! stride = 4
//! # Whether heads of q, k and v are measured one by one ("measured": four times as long), or share what was measured
//! # of their tensor by their rounding errors ("shared").
//! heads = "shared"
//! ```

use std::path::{Path, PathBuf};
use std::str::FromStr;

use rookery_model::bundle::Precision;
use rookery_model::rotate::RotateOptions;
use serde::{Deserialize, Serialize};

pub use budget::{Budget, BudgetError};
pub use pin::{Pin, PinError};

mod budget;
mod pin;

/// Names that need no file.
pub const NAMES: [&str; 3] = ["w8", "w4", "mixed"];

/// Body bits of `mixed` where nothing else is asked for.
const DEFAULT_BUDGET: Budget = Budget::BodyBits(5.0);

/// What to do to each tensor. See the [module](self) for the file format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// How linear layers of the blocks are stored.
    pub bits: Bits,
    /// What a mixed bundle may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How the embedding is stored: [`Precision::W8`] or [`Precision::W4`].
    pub embedding: Precision,
    /// How a separate head is stored, likewise.
    pub head: Precision,
    /// How weights become int4.
    pub w4_rounding: Rounding,
    /// How weights become int8.
    pub w8_rounding: Rounding,
    /// Precisions that are given; the last one that fits a tensor counts.
    pub pins: Vec<Pin>,
    /// Strength of smoothing, 0 to 1 (SmoothQuant's α); none where nothing is smoothed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smooth: Option<f32>,
    /// Rotations.
    pub rotate: RotateOptions,
    /// Text that activations are taken from.
    pub calibration: Calibration,
    /// How sensitivities are measured.
    pub sensitivity: Sensitivity,
}

/// How the linear layers of blocks are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// int8.
    #[default]
    W8,
    /// int4.
    W4,
    /// Either, by tensor and attention head.
    Mixed,
}

/// How a weight becomes an integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Each by itself.
    #[default]
    Nearest,
    /// Later weights make up for the errors of earlier ones on calibration activations.
    Gptq,
}

/// Text that activations are taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// Text files; none for the text that is built in.
    pub texts: Vec<PathBuf>,
    /// Tokens in all.
    pub tokens: usize,
    /// Tokens that see each other.
    pub sequence: usize,
}

/// How sensitivities are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sensitivity {
    /// Tokens in all.
    pub tokens: usize,
    /// Tokens that see each other.
    pub sequence: usize,
    /// Logits are compared at every so many positions.
    pub stride: usize,
    /// How heads of q, k and v get their numbers.
    pub heads: HeadSensitivity,
}

/// How heads of q, k and v get their sensitivities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadSensitivity {
    /// Each is measured.
    Measured,
    /// Their tensor is measured, and they share it by their rounding errors.
    #[default]
    Shared,
}

/// A recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a known name nor a file.
    #[error("recipe {0:?} is neither a file nor one of w8, w4, mixed")]
    Unknown(String),
    /// The file cannot be read.
    #[error("cannot read the recipe {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no recipe.
    #[error("{}: {fault}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        fault: String,
    },
    /// A field is out of range.
    #[error("{field} {fault}")]
    Field {
        /// Its name in the file.
        field: &'static str,
        /// What is wrong with it.
        fault: String,
    },
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            bits: Bits::W8,
            budget: None,
            embedding: Precision::W8,
            head: Precision::W8,
            w4_rounding: Rounding::Gptq,
            w8_rounding: Rounding::Nearest,
            pins: Vec::new(),
            smooth: None,
            rotate: RotateOptions::default(),
            calibration: Calibration::default(),
            sensitivity: Sensitivity::default(),
        }
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self { texts: Vec::new(), tokens: 8192, sequence: 512 }
    }
}

impl Default for Sensitivity {
    fn default() -> Self {
        Self { tokens: 1024, sequence: 256, stride: 4, heads: HeadSensitivity::default() }
    }
}

impl Recipe {
    /// A recipe that needs no file.
    ///
    /// # Errors
    /// [`RecipeError::Unknown`].
    pub fn named(name: &str) -> Result<Self, RecipeError> {
        let bits = match name {
            "w8" => Bits::W8,
            "w4" => Bits::W4,
            "mixed" => Bits::Mixed,
            _ => return Err(RecipeError::Unknown(name.to_owned())),
        };
        Ok(Self { bits, ..Self::default() })
    }

    /// Reads a recipe file. Its text files are relative to it.
    ///
    /// # Errors
    /// [`RecipeError::Io`] and [`RecipeError::File`].
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let owned = || path.to_owned();
        let text =
            std::fs::read_to_string(path).map_err(|source| RecipeError::Io { path: owned(), source })?;
        let mut recipe: Self = toml::from_str(&text).map_err(|error| RecipeError::File {
            path: owned(),
            fault: error.to_string().trim_end().to_owned(),
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for text in &mut recipe.calibration.texts {
            *text = folder.join(&text);
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// A known name, else a file.
    ///
    /// # Errors
    /// As [`Recipe::read`]; [`RecipeError::Unknown`] when there is no such file.
    pub fn open(name_or_path: &str) -> Result<Self, RecipeError> {
        if NAMES.contains(&name_or_path) {
            return Self::named(name_or_path);
        }
        let path = Path::new(name_or_path);
        if path.exists() { Self::read(path) } else { Err(RecipeError::Unknown(name_or_path.to_owned())) }
    }

    /// Checks every field's range.
    ///
    /// # Errors
    /// [`RecipeError::Field`] with the first that is out of it.
    pub fn check(&self) -> Result<(), RecipeError> {
        let field = |field, fault: &str| Err(RecipeError::Field { field, fault: fault.to_owned() });
        let range = |name, value: usize, least: usize, most: usize| {
            let fault = || format!("is {value}, outside {least}..={most}");
            if (least..=most).contains(&value) { Ok(()) } else { field(name, &fault()) }
        };
        if self.budget.is_some() && self.bits != Bits::Mixed {
            return field("budget", "is for mixed bundles; choose bits = \"mixed\", or leave it out");
        }
        for (name, precision) in [("embedding", self.embedding), ("head", self.head)] {
            if precision == Precision::F32 {
                return field(name, "is f32; choose w8 or w4");
            }
        }
        if let Some(strength) = self.smooth.filter(|strength| !(0.0..=1.0).contains(strength)) {
            return field("smooth", &format!("is {strength}, outside 0..=1"));
        }
        let (calibration, sensitivity) = (&self.calibration, &self.sensitivity);
        range("calibration.tokens", calibration.tokens, 64, 1 << 20)?;
        range("calibration.sequence", calibration.sequence, 16, calibration.tokens)?;
        range("sensitivity.tokens", sensitivity.tokens, 16, 1 << 20)?;
        range("sensitivity.sequence", sensitivity.sequence, 16, sensitivity.tokens)?;
        range("sensitivity.stride", sensitivity.stride, 1, sensitivity.sequence)
    }

    /// What a mixed bundle may take.
    pub fn budget(&self) -> Budget {
        self.budget.unwrap_or(DEFAULT_BUDGET)
    }

    /// Short name for bundles: `w8`, `w4`, or `mixed` and the budget.
    pub fn label(&self) -> String {
        match self.bits {
            Bits::W8 => "w8".to_owned(),
            Bits::W4 => "w4".to_owned(),
            Bits::Mixed => match self.budget() {
                Budget::BodyBits(bits) => format!("mixed-{bits}bits"),
                Budget::WeightBytes(bytes) => format!("mixed-{:.2}GB", bytes as f64 / 1e9),
            },
        }
    }
}

impl FromStr for Recipe {
    type Err = RecipeError;

    fn from_str(name_or_path: &str) -> Result<Self, RecipeError> {
        Self::open(name_or_path)
    }
}

#[cfg(test)]
mod tests;
