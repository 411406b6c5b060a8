//! Packs an imported model into a bundle: quantise, put in tile order, name by digest.
//!
//! ```text
//! for each part (embedding, blocks, head):
//!     header                                    from shapes alone
//!     for each matrix, in row chunks:           all threads: read rows → quantise → tiles
//!         tiles to the file                     meanwhile: hash and write the chunks before
//!     scales, row sums, multipliers, vectors
//! tokenizer, config, manifest, index → fsync → rename
//! ```
//!
//! Memory holds a few chunks of 4 MiB for each thread and the small tensors of one part, whatever the model's size.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::bundle::config::check_name;
use crate::bundle::oci::{self, Descriptor, Index, Manifest};
use crate::bundle::{
    Bundle, BundleConfig, BundleError, BundleInfo, Part, Precision, Progress, SCHEMA_VERSION, SegmentEntry,
    TensorEntry,
};
use crate::config::ModelConfig;
use crate::names::TensorName;
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::{Tokenizer, TokenizerError};
use layout_writer::LayoutWriter;
use weight_blob::BlobPacker;

pub use draft::{Draft, describe};
pub use stored::{Content, StoredRows};

mod draft;
mod layout_writer;
mod quantize;
mod stored;
mod weight_blob;

/// Version of the packer, part of every bundle: the same version, source and recipe give the same bytes.
pub const PACKER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// How weights are quantised. Norms and biases stay f32; embedding and head are always `w8`.
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

/// What to do when the target folder exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExistingTarget {
    /// Leave it and fail with [`PackError::TargetExists`].
    #[default]
    Refuse,
    /// Put the new bundle in its place once that is complete. Refused if the folder is not a bundle.
    Replace,
}

/// How to pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// What people will call the model.
    pub name: String,
    /// How to quantise.
    pub recipe: Recipe,
    /// Threads that compute; 0 means one for each core.
    pub threads: usize,
    /// What to do when the target exists.
    pub existing: ExistingTarget,
}

/// Why packing failed. The target is as it was before.
#[derive(Debug, Error)]
pub enum PackError {
    /// The target exists and may not be replaced.
    #[error("{} exists; choose another folder or ask to overwrite it", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// The target exists and is no bundle, so it is not replaced.
    #[error("{} exists and is not a bundle; it is left alone", path.display())]
    TargetNotABundle {
        /// The target.
        path: PathBuf,
    },
    /// The name is empty or has characters that people cannot type.
    #[error("model name {name:?} {fault}")]
    Name {
        /// The name given.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The source could not be read.
    #[error("cannot read the source")]
    Source(#[from] ImportError),
    /// The source's tokenizer cannot be served.
    #[error("tokenizer")]
    Tokenizer(#[source] TokenizerError),
    /// A weight is infinite or not a number.
    #[error("tensor {tensor} holds {value} in row {row}; the source is corrupt")]
    NotFinite {
        /// Tensor at fault.
        tensor: TensorName,
        /// Row of the value.
        row: usize,
        /// The value.
        value: f32,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another packer is at work on the same target.
    #[error("{} is being packed by another process; wait until it has finished or choose another folder", path.display())]
    InProgress {
        /// The target.
        path: PathBuf,
    },
    /// Rows given for a matrix do not fit what the table of tensors says of it.
    #[error("tensor {tensor}: {fault}")]
    Misfit {
        /// Tensor at fault.
        tensor: TensorName,
        /// What does not fit.
        fault: String,
    },
    /// A part has not been written, or is not in the bundle it was to be copied from.
    #[error("part {part} is missing")]
    NoPart {
        /// The part.
        part: Part,
    },
    /// An optional document is of an unknown type or too large.
    #[error("document {title}: {fault}")]
    Document {
        /// Its title.
        title: String,
        /// What is wrong with it.
        fault: String,
    },
    /// What makes the contents of a matrix failed.
    #[error("tensor {tensor}")]
    Content {
        /// The matrix.
        tensor: TensorName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The folder just written does not read back.
    #[error("the packed bundle does not read back")]
    ReadBack(#[source] BundleError),
}

/// Packs `source` into a new bundle folder `out`.
///
/// Bytes depend on source, name and recipe only, never on threads or time. Memory use is bounded by a few row
/// blocks, whatever the model's size. The folder appears complete or not at all.
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
    let writer = LayoutWriter::create(out, options.existing)?;
    // Built once to find every fault now that would otherwise show when the bundle is served.
    Tokenizer::for_model(source.tokenizer_json(), source.tokenizer_config().clone(), source.config().vocab)
        .map_err(PackError::Tokenizer)?;
    let config = BundleConfig {
        schema_version: SCHEMA_VERSION,
        name: options.name.clone(),
        model: source.config().clone(),
        recipe: options.recipe.to_string(),
        tensors: tensor_table(source.config(), options.recipe),
        source_digest: source.digest()?,
        source: source.description().replace(char::is_control, " "),
        parameters: source.parameters(),
        quality: None,
        packer_version: PACKER_VERSION.to_owned(),
    };
    let layers = write_layers(source, &config, &writer, options, progress)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: oci::MANIFEST_TYPE.to_owned(),
        artifact_type: oci::ARTIFACT_TYPE.to_owned(),
        config: writer.json_blob(oci::CONFIG_TYPE, "config.json", &config)?,
        layers,
        annotations: annotations(&config),
    };
    let mut descriptor = writer.json_blob(oci::MANIFEST_TYPE, "manifest.json", &manifest)?;
    descriptor.artifact_type = Some(oci::ARTIFACT_TYPE.to_owned());
    descriptor.annotations = [(oci::REF_NAME.to_owned(), "latest".to_owned())].into();
    let index =
        Index { schema_version: 2, media_type: oci::INDEX_TYPE.to_owned(), manifests: vec![descriptor] };
    writer.publish(&index)?;
    progress.finish();
    Bundle::inspect(out).map_err(PackError::ReadBack)
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

fn write_layers(
    source: &dyn ModelSource,
    config: &BundleConfig,
    writer: &LayoutWriter,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<Vec<Descriptor>, PackError> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    progress.start("packing", weight_blob::data_bytes(&config.tensors));
    let packer = BlobPacker { source, writer, threads, progress };
    let mut layers = Vec::new();
    for part in config.parts() {
        let of_part = |entry: &&TensorEntry| Part::of(entry.name, config.model.tied_head) == part;
        let entries: Vec<_> = config.tensors.iter().filter(of_part).collect();
        layers.push(packer.pack(part, &entries)?);
    }
    let tokenizer = source.tokenizer_json().as_bytes();
    layers.push(writer.small_blob(oci::TOKENIZER_TYPE, "tokenizer.json", tokenizer)?);
    let tokenizer_config = source.tokenizer_config();
    layers.push(writer.json_blob(oci::TOKENIZER_CONFIG_TYPE, "tokenizer_config.json", tokenizer_config)?);
    Ok(layers)
}

/// What generic OCI tools show of the model. No dates: the same model has the same digest whenever it is packed.
fn annotations(config: &BundleConfig) -> BTreeMap<String, String> {
    let annotations = [
        (oci::TITLE, config.name.clone()),
        ("org.opencontainers.image.description", config.source.clone()),
        ("vnd.rookery.model.architecture", config.model.architecture.to_string()),
        ("vnd.rookery.model.parameters", config.parameters.to_string()),
        ("vnd.rookery.model.recipe", config.recipe.clone()),
    ];
    annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
