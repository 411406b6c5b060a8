//! Packing by plain rounding, which needs no data: one precision for all blocks.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

use super::error::PackError;
use super::staging::{ExistingTarget, check_target};
use super::{Content, Draft, check_tokenizer, describe};
use crate::bundle::config::check_name;
use crate::bundle::{BundleConfig, BundleInfo, Digest, Part, Precision, Progress, SegmentEntry, TensorEntry};
use crate::config::ModelConfig;
use crate::names::TensorName;
use crate::source::ModelSource;

/// How [`pack`] rounds. Norms and biases stay f32; embedding and head are always `w8`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recipe {
    /// int8, one scale per output channel.
    #[default]
    W8,
    /// int4 with an integer multiplier for every 128 inputs, one scale per output channel.
    W4,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::W8 => "w8",
            Self::W4 => "w4",
        })
    }
}

/// A recipe name that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown recipe {0:?} (known: w8, w4)")]
pub struct UnknownRecipe(pub String);

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        match name {
            "w8" => Ok(Self::W8),
            "w4" => Ok(Self::W4),
            _ => Err(UnknownRecipe(name.to_owned())),
        }
    }
}

/// How [`pack`] packs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// What people will call the model.
    pub name: String,
    /// How to round.
    pub recipe: Recipe,
    /// Threads that compute; 0 means one for each core.
    pub threads: usize,
    /// What to do when the target exists.
    pub existing: ExistingTarget,
}

/// Packs `source` into a new bundle folder `out`, rounding plainly.
///
/// Bytes depend on source, name and recipe only, never on threads or time. Memory use is bounded by a few row
/// blocks, whatever the model's size. The folder appears complete or not at all. A packer that was killed leaves parts
/// that the next one with the same arguments takes over; one that failed leaves nothing.
///
/// # Errors
/// See [`PackError`].
pub fn pack(
    source: &dyn ModelSource,
    options: &PackOptions,
    out: &Path,
    progress: &dyn Progress,
) -> Result<BundleInfo, PackError> {
    check_name(&options.name).map_err(|fault| PackError::Name { name: options.name.clone(), fault })?;
    // Faults that need no work to find come before hashing the source.
    check_target(out, options.existing)?;
    check_tokenizer(source)?;
    let tensors = tensor_table(source.config(), options.recipe);
    let config = describe(source, &options.name, &options.recipe.to_string(), tensors)?;
    let mut draft = Draft::create(out, options.existing, &key(&config))?;
    progress.start("packing", config.tensors.iter().map(TensorEntry::bytes).sum());
    let written = write_parts(&mut draft, source, &config, options.threads, progress);
    let placed = written.and_then(|()| draft.place(&config, source));
    draft.discard();
    let info = placed?;
    progress.finish();
    Ok(info)
}

/// What identifies the bytes of a bundle's parts: all that its config says.
fn key(config: &BundleConfig) -> String {
    let json = serde_json::to_vec(config).expect("structs of strings and numbers serialise");
    format!("plain {}", Digest::of(&json))
}

fn write_parts(
    draft: &mut Draft,
    source: &dyn ModelSource,
    config: &BundleConfig,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), PackError> {
    for part in config.parts() {
        let of_part = |entry: &&TensorEntry| Part::of(entry.name, config.model.tied_head) == part;
        let entries: Vec<_> = config.tensors.iter().filter(of_part).cloned().collect();
        if draft.has(part) {
            progress.advance(entries.iter().map(TensorEntry::bytes).sum());
        } else {
            draft.part(part, source, &entries, &mut |_| Ok(Content::Round), threads, progress)?;
        }
    }
    Ok(())
}

/// The model's tensors in order, each at one precision.
fn tensor_table(model: &ModelConfig, recipe: Recipe) -> Vec<TensorEntry> {
    let entry = |name: TensorName| {
        let (rows, cols) = model.shape(name);
        let precision = match (name, recipe) {
            (name, _) if !name.is_linear() => Precision::F32,
            (TensorName::Layer(..), Recipe::W4) => Precision::W4,
            // The head's errors go straight into the probabilities, and an embedding row is read one at a time.
            _ => Precision::W8,
        };
        TensorEntry { name, rows, cols, segments: vec![SegmentEntry { first_row: 0, rows, precision }] }
    };
    model.tensor_names().into_iter().map(entry).collect()
}
