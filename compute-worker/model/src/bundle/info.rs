//! What can be said of a bundle without its weights.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::config::BundleConfig;
use super::digest::Digest;
use super::oci::MANIFEST_TYPE;

/// A bundle's identity, config and blobs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BundleInfo {
    /// Digest of the manifest: the identity of this model version.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// Contents of the config blob.
    pub config: BundleConfig,
    /// Every blob that the manifest names, config first, then layers in order. The same digest may appear twice.
    pub blobs: Vec<BlobInfo>,
    /// Bytes of all blobs and the manifest, each content counted once.
    pub total_bytes: u64,
    /// Bytes of the weight blobs, each content counted once.
    pub weight_bytes: u64,
    /// Bits stored per parameter, everything in the weight blobs counted.
    pub bits_per_weight: f64,
}

impl BundleInfo {
    /// Every content of the bundle once, in the order a registry takes them: what the manifest names, then the
    /// manifest. [`BlobInfo::path`] says where each lies.
    pub fn contents(&self) -> Vec<BlobInfo> {
        let mut seen = BTreeSet::new();
        let mut contents: Vec<_> =
            self.blobs.iter().filter(|blob| seen.insert(&blob.digest)).cloned().collect();
        contents.push(BlobInfo {
            title: "manifest.json".to_owned(),
            media_type: MANIFEST_TYPE.to_owned(),
            digest: self.digest.clone(),
            size: self.manifest_size,
        });
        contents
    }
}

/// One blob of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlobInfo {
    /// File name for people, e.g. `block.3.safetensors`.
    pub title: String,
    /// OCI media type.
    pub media_type: String,
    /// Digest of the contents.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

impl BlobInfo {
    /// Where the blob lies, relative to the bundle's folder.
    pub fn path(&self) -> PathBuf {
        self.digest.path()
    }
}
