//! Bundles: packed models as OCI image layouts, verified on opening and mapped into memory.
//!
//! ```text
//! oci-layout                 marks the folder
//! index.json                 → manifest, by digest
//! blobs/sha256/<manifest>    → config and layers, by digest; its own digest is the bundle's identity
//! blobs/sha256/<config>      BundleConfig: architecture, shapes, precision of every tensor, source
//! blobs/sha256/<layer> …     safetensors: embedding, one for each block, head; tokenizer; tokenizer config;
//!                            optionally golden probes, and how precisions were chosen
//! ```
//!
//! `docs/bundle.md` is the format's specification. Opening goes from the outside in, and nothing is believed before
//! it is checked: documents are bounded and parsed, every layer's size and digest is checked on all cores, the very
//! files that were hashed are mapped, headers are checked against the config, values against what kernels rely on.
//! After that, views cannot fail and cost nothing: tiles are used where the file system put them.
//!
//! Resident memory besides the mapped pages is the config and one entry for each tensor.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

pub use blob::check_weight_blob;
pub use config::{BundleConfig, Precision, Quality, SCHEMA_VERSION, SegmentEntry, TensorEntry};
pub use digest::{Digest, InvalidDigest};
pub use error::BundleError;
pub use info::{BlobInfo, BundleInfo};
pub use layout::Part;
pub use oci::{
    ARTIFACT_TYPE, CONFIG_TYPE, MAX_DOCUMENT_BYTES, PROBES_TYPE, QUANTIZATION_TYPE, TOKENIZER_CONFIG_TYPE,
    TOKENIZER_TYPE, WEIGHTS_TYPE,
};
pub use progress::{NoProgress, Progress};
pub use weights::{LinearWeights, Segment, TileStorage};

use crate::mapping::Mapping;
use crate::names::TensorName;
use crate::tokenizer::Tokenizer;
pub(crate) use mapped_blob::MappedBlob;

use folder::Folder;
use weights::Vector;

mod blob;
pub(crate) mod config;
mod digest;
mod error;
pub(crate) mod folder;
mod info;
pub(crate) mod layout;
mod mapped_blob;
pub(crate) mod oci;
mod open;
mod progress;
mod values;
mod weights;

/// Checks a bundle's documents in memory, each by itself and config against manifest, without their digests.
/// Opening a bundle does the same with what it reads from disk.
///
/// # Errors
/// [`BundleError`] naming the document and field at fault.
pub fn check_documents(index: &[u8], manifest: &[u8], config: &[u8]) -> Result<BundleInfo, BundleError> {
    folder::join(oci::Index::parse(index)?, &oci::Manifest::parse(manifest)?, config)
}

/// Checks a manifest in memory as far as that goes without its config, and gives the blobs that it names: config first,
/// then layers in order. The same digest may appear twice.
///
/// # Errors
/// [`BundleError`] naming the field at fault.
pub fn check_manifest(manifest: &[u8]) -> Result<Vec<BlobInfo>, BundleError> {
    Ok(folder::blobs(&oci::Manifest::parse(manifest)?))
}

/// The two files beside `blobs/` that make a folder the bundle of this manifest: names and contents, in the order in
/// which they are to be written.
///
/// # Errors
/// [`BundleError`] naming the manifest's field at fault.
pub fn layout_files(manifest: &[u8]) -> Result<[(&'static str, Vec<u8>); 2], BundleError> {
    oci::Manifest::parse(manifest)?;
    let index = oci::Index::of(Digest::of(manifest), manifest.len() as u64);
    let index = serde_json::to_vec(&index)
        .map_err(|error| BundleError::Document { document: oci::INDEX_FILE, fault: error.to_string() })?;
    Ok([(oci::LAYOUT_FILE, oci::LAYOUT_CONTENTS.into()), (oci::INDEX_FILE, index)])
}

/// An open bundle: every digest checked, every blob mapped. Shared by `Arc`; immutable.
#[derive(Debug)]
pub struct Bundle {
    info: BundleInfo,
    matrices: HashMap<TensorName, LinearWeights>,
    vectors: HashMap<TensorName, Vector>,
    parts: HashMap<Part, MappedBlob>,
    /// By media type.
    documents: BTreeMap<String, Arc<Mapping>>,
    tokenizer: Arc<Mapping>,
    tokenizer_config: Arc<Mapping>,
}

impl Bundle {
    /// Opens the bundle folder `path`: hashes every blob on all cores, maps them and checks headers and values.
    ///
    /// `progress` hears of the hashing. The folder must not be rewritten while the bundle is open; replacing it
    /// with a rename, as packing does, is fine.
    ///
    /// # Errors
    /// Names the file or tensor at fault; see [`BundleError`].
    pub fn open(path: &Path, progress: &dyn Progress) -> Result<Arc<Bundle>, BundleError> {
        let folder = Folder::read(path)?;
        let files = folder.verify(progress)?;
        Ok(Arc::new(open::map(folder, &files)?))
    }

    /// Reads manifest and config only; the files of the layers are not even looked at.
    ///
    /// # Errors
    /// Names the document at fault; see [`BundleError`].
    pub fn inspect(path: &Path) -> Result<BundleInfo, BundleError> {
        Ok(Folder::read(path)?.info)
    }

    /// Reads an optional document, [`PROBES_TYPE`] or [`QUANTIZATION_TYPE`], checking its digest and nothing else:
    /// the files of the weights are not looked at.
    ///
    /// # Errors
    /// Names the document at fault; see [`BundleError`].
    pub fn read_document(path: &Path, media_type: &str) -> Result<Option<Vec<u8>>, BundleError> {
        Folder::read(path)?.document(media_type)
    }

    /// Digest, config and blobs.
    pub fn info(&self) -> &BundleInfo {
        &self.info
    }

    /// Digest of the manifest, `sha256:…`: the identity of this model version.
    pub fn digest(&self) -> &str {
        self.info.digest.as_str()
    }

    /// The weights of a matrix. A tied head's [`TensorName::Output`] gives the embedding's weights.
    ///
    /// # Errors
    /// [`BundleError::NoTensor`] if the model has no such matrix.
    pub fn linear(&self, name: TensorName) -> Result<LinearWeights, BundleError> {
        let tied = name == TensorName::Output && self.info.config.model.tied_head;
        let stored = if tied { TensorName::TokenEmbedding } else { name };
        self.matrices.get(&stored).cloned().ok_or(BundleError::NoTensor { kind: "matrix", name })
    }

    /// A norm's or bias's values, `[n]`.
    ///
    /// # Errors
    /// [`BundleError::NoTensor`] if the model has no such vector.
    pub fn vector(&self, name: TensorName) -> Result<Vec<f32>, BundleError> {
        self.vectors.get(&name).map(Vector::values).ok_or(BundleError::NoTensor { kind: "vector", name })
    }

    /// The bundle's tokenizer, parsed anew at each call.
    ///
    /// # Errors
    /// [`BundleError::Tokenizer`] if its JSON is not a tokenizer for this model, [`BundleError::Document`] if that of its
    /// config is not one.
    pub fn tokenizer(&self) -> Result<Tokenizer, BundleError> {
        let config = oci::parse_json("tokenizer config", self.tokenizer_config.bytes())?;
        let json = std::str::from_utf8(self.tokenizer.bytes())
            .map_err(|error| BundleError::Document { document: "tokenizer", fault: error.to_string() })?;
        Tokenizer::for_model(json, config, self.info.config.model.vocab).map_err(BundleError::Tokenizer)
    }

    /// An optional document of the bundle, [`PROBES_TYPE`] or [`QUANTIZATION_TYPE`], if it has one.
    pub fn document(&self, media_type: &str) -> Option<&[u8]> {
        self.documents.get(media_type).map(|map| map.bytes())
    }

    /// The blob of a part.
    pub(crate) fn part(&self, part: Part) -> Option<&MappedBlob> {
        self.parts.get(&part)
    }

    /// Bytes of mapped weights.
    pub fn weight_bytes(&self) -> u64 {
        self.info.weight_bytes
    }
}
