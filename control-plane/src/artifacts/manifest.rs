//! Manifests as pushes bring them: checked by the rules that readers of bundles have.

use rookery_model::bundle::{self, BundleInfo};
use sha2::{Digest as _, Sha256};

use super::ArtifactError;
use crate::domain::Digest;

/// Largest manifest that is taken.
const MAX_MANIFEST_BYTES: usize = 1 << 20;

/// Largest version that is taken: more than any gateway has room for, and sums of sizes stay far from overflow.
const MAX_VERSION_BYTES: u64 = 1 << 42;

/// A manifest that could be a bundle's. Its blobs have not been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    digest: Digest,
    text: String,
    config: Digest,
    blobs: Vec<(Digest, u64)>,
}

/// What manifest and config together say of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedVersion {
    /// Such as `qwen2`.
    pub architecture: String,
    /// Packing recipe.
    pub recipe: String,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of all blobs and the manifest, each counted once.
    pub size_bytes: u64,
}

impl Manifest {
    /// Parses a manifest and checks it as far as that goes without its config: kinds and limits of sizes.
    ///
    /// # Errors
    /// [`ArtifactError::Bundle`] or [`ArtifactError::Manifest`] naming what is wrong.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ArtifactError> {
        let refused = |why: &str| ArtifactError::Manifest(why.to_owned());
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(refused("it has more than 1 MiB"));
        }
        let listed = bundle::check_manifest(&bytes).map_err(ArtifactError::Bundle)?;
        let text = String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8"))?;
        let mut blobs: Vec<(Digest, u64)> = Vec::with_capacity(listed.len());
        let mut sizes = std::collections::HashMap::new();
        let mut total = text.len() as u64;
        for blob in listed {
            let digest = convert(blob.digest.as_str())?;
            match sizes.insert(digest.clone(), blob.size) {
                None => {
                    total = total.saturating_add(blob.size);
                    blobs.push((digest, blob.size));
                }
                Some(size) if size == blob.size => {}
                Some(_) => return Err(refused("it gives the same blob two sizes")),
            }
        }
        if total > MAX_VERSION_BYTES {
            return Err(refused("its blobs have more than 4 TiB"));
        }
        let config = blobs.first().map(|(digest, _)| digest.clone());
        let config = config.ok_or_else(|| refused("it names no config"))?;
        Ok(Self { digest: sha256(text.as_bytes())?, text, config, blobs })
    }

    /// Checks the manifest against its config, by the rules that readers have.
    ///
    /// # Errors
    /// [`ArtifactError::Bundle`].
    pub fn check(&self, config: &[u8]) -> Result<PushedVersion, ArtifactError> {
        let index = super::layout::index_of(&self.digest, self.text.len() as u64);
        let info: BundleInfo = bundle::check_documents(index.as_bytes(), self.text.as_bytes(), config)
            .map_err(ArtifactError::Bundle)?;
        Ok(PushedVersion {
            architecture: info.config.model.architecture.to_string(),
            recipe: info.config.recipe,
            parameters: info.config.parameters,
            size_bytes: info.total_bytes,
        })
    }

    /// Its own digest, which names the version.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its bytes, which are text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Digest of the config.
    pub fn config(&self) -> &Digest {
        &self.config
    }

    /// Every blob that it names, once, config first, with its size.
    pub fn blobs(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.blobs.iter().map(|(digest, size)| (digest, *size))
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Result<Digest, ArtifactError> {
    digest_of(Sha256::new_with_prefix(bytes))
}

pub(super) fn digest_of(hasher: Sha256) -> Result<Digest, ArtifactError> {
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    convert(&format!("sha256:{hex}"))
}

fn convert(text: &str) -> Result<Digest, ArtifactError> {
    text.parse()
        .map_err(|error: crate::domain::version::InvalidName| ArtifactError::Manifest(error.to_string()))
}
