//! Why a bundle cannot be opened.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::ConfigError;
use crate::names::TensorName;
use crate::tokenizer::TokenizerError;

/// Why a bundle cannot be opened or lacks what was asked of it. Messages name the file or tensor and the fault.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The folder holds no OCI image layout.
    #[error("{} is not a bundle ({fault}); make one with `rookery pack`", path.display())]
    NotABundle {
        /// The folder.
        path: PathBuf,
        /// What is missing or different.
        fault: String,
    },
    /// A folder that a packer left behind before it was complete.
    #[error("{} was never finished; pack the model again", path.display())]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read or mapped.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A JSON document does not parse or breaks a rule.
    #[error("{document}: {fault}")]
    Document {
        /// `index.json`, `manifest` or `config`.
        document: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The schema is one this version does not know.
    #[error(
        "bundle schema {found} is not supported (this version reads 1 to {supported}); use the version that packed it, or pack again"
    )]
    SchemaVersion {
        /// Version found.
        found: u64,
        /// Newest version read.
        supported: u32,
    },
    /// The config describes a model that cannot be served.
    #[error("config: model")]
    Model(#[from] ConfigError),
    /// A blob's file is missing.
    #[error("blob {title} ({digest}) is missing; copy the bundle again or pack the model again")]
    BlobMissing {
        /// Title in the manifest.
        title: String,
        /// Its digest.
        digest: String,
    },
    /// A blob has another length than the manifest says.
    #[error(
        "blob {title} ({digest}) has {found} bytes instead of {expected}; copy the bundle again or pack the model again"
    )]
    BlobSize {
        /// Title in the manifest.
        title: String,
        /// Its digest.
        digest: String,
        /// Bytes in the file.
        found: u64,
        /// Bytes in the manifest.
        expected: u64,
    },
    /// A blob's contents are not what its name says.
    #[error(
        "blob {title} hashes to {found} instead of {digest}; it is corrupt: copy the bundle again or pack the model again"
    )]
    BlobDigest {
        /// Title in the manifest.
        title: String,
        /// Digest in the manifest.
        digest: String,
        /// Digest of the file.
        found: String,
    },
    /// A weight blob is not the safetensors file that it should be.
    #[error("blob {title}: {fault}")]
    Blob {
        /// Title in the manifest.
        title: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A tensor is missing, misshapen, misplaced or holds values that no packer writes.
    #[error("blob {title}: tensor {tensor}: {fault}")]
    Tensor {
        /// Title of the blob.
        title: String,
        /// Name in the safetensors header.
        tensor: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The model has no such tensor, or it is of the other kind (matrix or vector).
    #[error("the model has no {kind} {name}")]
    NoTensor {
        /// `matrix` or `vector`.
        kind: &'static str,
        /// The name asked for.
        name: TensorName,
    },
    /// The tokenizer blob is not a usable tokenizer.
    #[error("tokenizer")]
    Tokenizer(#[source] TokenizerError),
}
