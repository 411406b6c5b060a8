//! Versions of models, their aliases and signatures.

use std::collections::BTreeSet;

use crate::domain::{AliasName, Digest, Millis, ModelName, VersionName};

use super::{Store, StoreError};

/// What a bundle says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionSummary {
    /// Such as `qwen2`.
    pub architecture: String,
    /// Packing recipe.
    pub recipe: String,
    /// Number of weights.
    pub parameters: u64,
}

/// A version to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVersion {
    /// The model.
    pub model: ModelName,
    /// The version's name.
    pub version: VersionName,
    /// Of the manifest.
    pub digest: Digest,
    /// Bytes of all blobs.
    pub size_bytes: u64,
    /// The bundle's manifest, as its blob has it.
    pub manifest: String,
    /// What the bundle says about itself.
    pub summary: VersionSummary,
    /// When it was pushed.
    pub created: Millis,
    /// Who pushed it.
    pub created_by: String,
}

/// A version. Its manifest is read by [`Store::manifest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The model.
    pub model: ModelName,
    /// The version's name.
    pub version: VersionName,
    /// Of the manifest. Several versions may have the same.
    pub digest: Digest,
    /// Bytes of all blobs.
    pub size_bytes: u64,
    /// What the bundle says about itself.
    pub summary: VersionSummary,
    /// When it was pushed.
    pub created: Millis,
    /// Who pushed it.
    pub created_by: String,
    /// Of the digest, by key.
    pub signatures: Vec<SignatureRecord>,
    /// Those that point here, sorted.
    pub aliases: Vec<AliasName>,
}

/// A detached signature of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureRecord {
    /// Which key made it.
    pub key_id: String,
    /// Its bytes.
    pub signature: Vec<u8>,
}

/// A name that points at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The model.
    pub model: ModelName,
    /// The alias.
    pub alias: AliasName,
    /// The version.
    pub version: VersionName,
    /// The version's digest.
    pub digest: Digest,
}

impl Store {
    /// Keeps a version. The same again does nothing.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the name stands for another digest or is an alias; [`StoreError::Invalid`] if the manifest
    /// is none.
    pub async fn insert_version(&self, version: &NewVersion) -> Result<(), StoreError> {
        let _ = version;
        unimplemented!()
    }

    /// Versions of a model, or of all, by model and newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn versions(&self, model: Option<&ModelName>) -> Result<Vec<Version>, StoreError> {
        let _ = model;
        unimplemented!()
    }

    /// A version by name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn version(&self, model: &ModelName, version: &VersionName) -> Result<Version, StoreError> {
        let _ = (model, version);
        unimplemented!()
    }

    /// The oldest version with a digest, of `model` if it is given.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn version_by_digest(
        &self,
        model: Option<&ModelName>,
        digest: &Digest,
    ) -> Result<Option<Version>, StoreError> {
        let _ = (model, digest);
        unimplemented!()
    }

    /// The manifest with a digest.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if no version has it.
    pub async fn manifest(&self, digest: &Digest) -> Result<String, StoreError> {
        let _ = digest;
        unimplemented!()
    }

    /// Forgets a version.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::InUse`] while an alias, an unfinished roll-out or a gateway's assignment
    /// refers to it.
    pub async fn delete_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        actor: &str,
    ) -> Result<(), StoreError> {
        let _ = (model, version, actor);
        unimplemented!()
    }

    /// Points an alias at a version.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without that version; [`StoreError::Exists`] if a version has the alias's name.
    pub async fn set_alias(
        &self,
        model: &ModelName,
        alias: &AliasName,
        version: &VersionName,
        actor: &str,
    ) -> Result<(), StoreError> {
        let _ = (model, alias, version, actor);
        unimplemented!()
    }

    /// Deletes an alias.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_alias(
        &self,
        model: &ModelName,
        alias: &AliasName,
        actor: &str,
    ) -> Result<(), StoreError> {
        let _ = (model, alias, actor);
        unimplemented!()
    }

    /// All aliases, by model and name.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn aliases(&self) -> Result<Vec<Alias>, StoreError> {
        unimplemented!()
    }

    /// Adds a signature to a digest; one by the same key is replaced.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if no version has the digest.
    pub async fn add_signature(
        &self,
        digest: &Digest,
        key_id: &str,
        signature: &[u8],
        actor: &str,
    ) -> Result<(), StoreError> {
        let _ = (digest, key_id, signature, actor);
        unimplemented!()
    }

    /// Every blob of every version, manifests among them.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn referenced_blobs(&self) -> Result<BTreeSet<Digest>, StoreError> {
        unimplemented!()
    }

    /// Whether a blob belongs to a version.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn is_referenced(&self, blob: &Digest) -> Result<bool, StoreError> {
        let _ = blob;
        unimplemented!()
    }
}
