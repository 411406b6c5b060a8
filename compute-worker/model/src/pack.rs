//! Packs an imported model into a bundle: quantise, put in tile order, name by digest.
//!
//! ```text
//! for each part (embedding, blocks, head):
//!     header                                    from shapes alone
//!     for each matrix:                          rows that the caller quantised, or plain rounding in row chunks:
//!                                               all threads: read rows → quantise → tiles
//!         tiles to the file                     meanwhile: hash and write the chunks before
//!     scales, row sums, multipliers, vectors
//!     fsync → note it as done
//! documents, tokenizer, config, manifest, index → fsync → rename
//! ```
//!
//! [`Draft`] is a bundle under construction, part by part, which survives its packer; [`pack`] rounds a whole model
//! plainly by it. Memory holds a few chunks of 4 MiB for each thread and the small tensors of one part, whatever the
//! model's size, besides what the caller quantised.

use crate::bundle::config::check_name;
use crate::bundle::{BundleConfig, SCHEMA_VERSION, TensorEntry};
use crate::source::ModelSource;
use crate::tokenizer::Tokenizer;

pub use draft::Draft;
pub use error::PackError;
pub use plain::{PackOptions, Recipe, UnknownRecipe, pack};
pub use staging::{ExistingTarget, check_target};
pub use stored::{Content, StoredRows};

mod blob_writer;
mod draft;
mod error;
mod plain;
mod quantize;
mod staging;
mod state;
mod stored;
mod weight_blob;

/// Version of the packer, part of every bundle: the same version, source and recipe give the same bytes.
pub const PACKER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The config of a bundle of `source` at the precisions of `tensors`, with the current schema and packer version and no
/// measured quality. Hashes the source.
///
/// # Errors
/// [`PackError::Name`], or [`PackError::Source`] if the source cannot be hashed.
pub fn describe(
    source: &dyn ModelSource,
    name: &str,
    recipe: &str,
    tensors: Vec<TensorEntry>,
) -> Result<BundleConfig, PackError> {
    check_name(name).map_err(|fault| PackError::Name { name: name.to_owned(), fault })?;
    Ok(BundleConfig {
        schema_version: SCHEMA_VERSION,
        name: name.to_owned(),
        model: source.config().clone(),
        recipe: recipe.to_owned(),
        tensors,
        source_digest: source.digest()?,
        source: source.description().replace(char::is_control, " "),
        parameters: source.parameters(),
        quality: None,
        packer_version: PACKER_VERSION.to_owned(),
    })
}

/// Builds the tokenizer once, to find every fault now that would otherwise show when the bundle is served.
fn check_tokenizer(source: &dyn ModelSource) -> Result<(), PackError> {
    let config = source.tokenizer_config().clone();
    match Tokenizer::for_model(source.tokenizer_json(), config, source.config().vocab) {
        Ok(_) => Ok(()),
        Err(error) => Err(PackError::Tokenizer(error)),
    }
}
