//! Pushes that have begun and are not finished: which blobs they await, kept in the store so that every replica and the
//! collection of garbage see them, and so that a push outlives the control plane.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use object_store::{ObjectStoreExt, path::Path};

use super::{ArtifactError, Artifacts, GRACE, Manifest};
use crate::domain::{Digest, Millis};

/// Pushes under way at the same time: each keeps blobs from being collected.
const MOST: usize = 256;

/// What is known of the store's pushes. The store is asked again before anything is refused.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    awaited: RwLock<HashMap<Digest, u64>>,
}

impl Pushes {
    fn awaits(&self, digest: &Digest, size: u64) -> bool {
        self.awaited.read().unwrap_or_else(PoisonError::into_inner).get(digest) == Some(&size)
    }

    fn add(&self, manifest: &Manifest) {
        let mut awaited = self.awaited.write().unwrap_or_else(PoisonError::into_inner);
        awaited.extend(manifest.blobs().map(|(digest, size)| (digest.clone(), size)));
    }

    fn replace(&self, manifests: &[Manifest]) {
        self.awaited.write().unwrap_or_else(PoisonError::into_inner).clear();
        manifests.iter().for_each(|manifest| self.add(manifest));
    }
}

impl Artifacts {
    /// Begins a push, or goes on with it: its blobs may be sent from now on, and none of them is collected.
    ///
    /// # Errors
    /// [`ArtifactError::TooManyPushes`] while too many pushes are under way; others if the store fails.
    pub async fn begin_push(&self, manifest: &Manifest) -> Result<(), ArtifactError> {
        let path = push_path(manifest.digest());
        let others = self.entries("pushes").await?.into_iter().filter(|meta| meta.location != path);
        if others.filter(|meta| age(meta) < GRACE).count() >= MOST {
            return Err(ArtifactError::TooManyPushes(MOST));
        }
        self.put(&path, manifest.text().as_bytes().to_vec()).await?;
        self.inner.pushes.add(manifest);
        Ok(())
    }

    /// The manifest of a push that has begun.
    ///
    /// # Errors
    /// [`ArtifactError::NotBegun`]; others if the store fails.
    pub async fn push(&self, digest: &Digest) -> Result<Manifest, ArtifactError> {
        let path = push_path(digest);
        let got = match self.inner.store.get(&path).await {
            Ok(got) => got.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Err(ArtifactError::NotBegun(digest.clone())),
            Err(error) => Err(error),
        };
        let bytes = got.map_err(|source| ArtifactError::store("read", &path, source))?;
        Manifest::parse(bytes.into())
    }

    /// Ends a push. Ending one that has ended is fine.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn end_push(&self, digest: &Digest) -> Result<(), ArtifactError> {
        // What is known is forgotten whole: another push may await the same blobs.
        self.inner.pushes.replace(&[]);
        self.remove(&push_path(digest)).await
    }

    /// Checks that some push awaits a blob of this size.
    ///
    /// # Errors
    /// [`ArtifactError::NotAwaited`]; others if the store fails.
    pub async fn check_awaited(&self, digest: &Digest, size: u64) -> Result<(), ArtifactError> {
        if self.inner.pushes.awaits(digest, size) {
            return Ok(());
        }
        let pushes = self.pushes(GRACE).await?;
        self.inner.pushes.replace(&pushes);
        if self.inner.pushes.awaits(digest, size) {
            Ok(())
        } else {
            Err(ArtifactError::NotAwaited { digest: digest.clone(), size })
        }
    }

    /// The manifests of pushes that were begun or gone on with since `grace` ago.
    pub(super) async fn pushes(&self, grace: Duration) -> Result<Vec<Manifest>, ArtifactError> {
        let mut manifests = Vec::new();
        for meta in self.entries("pushes").await? {
            let Some(digest) = push_digest(&meta.location).filter(|_| age(&meta) < grace) else { continue };
            match self.push(&digest).await {
                Ok(manifest) => manifests.push(manifest),
                // Ended since it was listed.
                Err(ArtifactError::NotBegun(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(manifests)
    }

    /// Forgets the pushes that nobody has gone on with for `grace`.
    pub(super) async fn give_up_pushes(&self, grace: Duration) -> Result<(), ArtifactError> {
        for meta in self.entries("pushes").await? {
            if age(&meta) >= grace {
                self.remove(&meta.location).await?;
            }
        }
        self.inner.pushes.replace(&[]);
        Ok(())
    }
}

pub(super) fn age(meta: &object_store::ObjectMeta) -> Duration {
    Millis::now().since(Millis(meta.last_modified.timestamp_millis()))
}

fn push_path(digest: &Digest) -> Path {
    Path::from_iter(["pushes", &format!("{}.json", digest.as_str().trim_start_matches("sha256:"))])
}

fn push_digest(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.filename()?.strip_suffix(".json")?).parse().ok()
}
