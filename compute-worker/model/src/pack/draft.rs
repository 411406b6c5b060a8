//! A bundle under construction that survives its packer.

use std::path::Path;
use std::sync::Arc;

use super::{Content, ExistingTarget, PackError};
use crate::bundle::{Bundle, BundleConfig, BundleInfo, Part, Progress, TensorEntry};
use crate::source::ModelSource;

/// A bundle under construction in a staging folder beside its target, locked while this value lives.
///
/// Dropping it keeps what is complete: the next draft with the same target and key goes on from there, one with
/// another key clears it away.
#[derive(Debug)]
pub struct Draft {}

impl Draft {
    /// Begins a bundle at `out`, or goes on with an interrupted one of the same `key`, which identifies everything that
    /// the bytes of the parts and of [`Draft::scratch`] depend on.
    ///
    /// # Errors
    /// [`PackError::TargetExists`], [`PackError::TargetNotABundle`], [`PackError::InProgress`] while another packer
    /// works on this target, [`PackError::Io`].
    pub fn create(out: &Path, existing: ExistingTarget, key: &str) -> Result<Self, PackError> {
        let _ = (out, existing, key);
        unimplemented!()
    }

    /// A folder for the caller's own resumable state; kept with the parts, gone when the bundle is published.
    pub fn scratch(&self) -> &Path {
        unimplemented!()
    }

    /// Whether a part has been written completely, by this run or an earlier one.
    pub fn has(&self, part: Part) -> bool {
        let _ = part;
        unimplemented!()
    }

    /// Writes a part: `entries` are its tensors, `content` is asked once for each matrix.
    ///
    /// `threads` of 0 means one for each core. Only [`Progress::advance`] is called, with [`TensorEntry::bytes`] of all
    /// entries in total: phases are the caller's.
    ///
    /// # Errors
    /// Those of the source and of `content`, [`PackError::Misfit`] for rows that do not fit their entry,
    /// [`PackError::Io`].
    pub fn part(
        &mut self,
        part: Part,
        source: &dyn ModelSource,
        entries: &[TensorEntry],
        content: &mut dyn FnMut(&TensorEntry) -> Result<Content, PackError>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<(), PackError> {
        let _ = (part, source, entries, content, threads, progress);
        unimplemented!()
    }

    /// Takes a part's blob from another bundle: a hard link where the file system can, else a copy.
    ///
    /// # Errors
    /// [`PackError::NoPart`] if it has no such part, [`PackError::Io`].
    pub fn copy_part(&mut self, from: &Bundle, part: Part) -> Result<(), PackError> {
        let _ = (from, part);
        unimplemented!()
    }

    /// Adds an optional document, [`crate::bundle::PROBES_TYPE`] or [`crate::bundle::QUANTIZATION_TYPE`]; one of the same
    /// type given before is replaced. Not kept from run to run.
    ///
    /// # Errors
    /// [`PackError::Document`] for an unknown type or more than [`crate::bundle::MAX_DOCUMENT_BYTES`],
    /// [`PackError::Io`].
    pub fn document(&mut self, media_type: &str, title: &str, bytes: &[u8]) -> Result<(), PackError> {
        let _ = (media_type, title, bytes);
        unimplemented!()
    }

    /// The staged parts as a bundle, to run the engine on before it is published. Its digest is the one that publishing
    /// now would give.
    ///
    /// # Errors
    /// [`PackError::NoPart`] if a part is missing, [`PackError::Tokenizer`], [`PackError::ReadBack`] if a part is not
    /// what `config` says.
    pub fn open(&self, config: &BundleConfig, source: &dyn ModelSource) -> Result<Arc<Bundle>, PackError> {
        let _ = (config, source);
        unimplemented!()
    }

    /// Makes everything durable and gives the bundle its place.
    ///
    /// # Errors
    /// As [`Draft::open`], [`PackError::TargetExists`] if the target came into being meanwhile, [`PackError::Io`]. The
    /// staging folder stays.
    pub fn publish(self, config: &BundleConfig, source: &dyn ModelSource) -> Result<BundleInfo, PackError> {
        let _ = (config, source);
        unimplemented!()
    }

    /// Deletes the staging folder.
    pub fn discard(self) {
        unimplemented!()
    }
}

/// The config of a bundle of `source` at the precisions of `tensors`, with the current schema and packer version and no
/// measured quality.
///
/// # Errors
/// [`PackError::Name`], or [`PackError::Source`] if the source cannot be hashed.
pub fn describe(
    source: &dyn ModelSource,
    name: &str,
    recipe: &str,
    tensors: Vec<TensorEntry>,
) -> Result<BundleConfig, PackError> {
    let _ = (source, name, recipe, tensors);
    unimplemented!()
}
