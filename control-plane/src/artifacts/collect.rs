//! Collecting garbage: what no version and no push needs.

use std::{
    collections::BTreeSet,
    error::Error,
    time::{Duration, Instant},
};

use object_store::{ObjectStoreExt, PutMode, path::Path};
use uuid::Uuid;

use super::{ArtifactError, Artifacts, pushes::age};
use crate::domain::Digest;

/// How long a push that nobody goes on with keeps its blobs.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// A collector that is killed leaves its marker, which counts for so long.
const STALE: Duration = Duration::from_secs(600);

/// A collector stops by itself long before that; the next one goes on.
const LONGEST: Duration = Duration::from_secs(300);

/// What was freed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs that nothing needs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Artifacts {
    /// Deletes the blobs that are neither in what `needed` gives nor awaited by a push that was gone on with since `grace`
    /// ago; with `dry_run` only counts them. `needed` is asked once the collection is announced.
    ///
    /// # Errors
    /// [`ArtifactError::Collecting`] while another collection runs, whatever `needed` fails with, and others if the store
    /// fails.
    pub async fn collect<E, F>(&self, needed: F, grace: Duration, dry_run: bool) -> Result<Collected, E>
    where
        F: AsyncFnOnce() -> Result<BTreeSet<Digest>, E>,
        E: From<ArtifactError> + Error,
    {
        if dry_run {
            let (garbage, _) = self.garbage(needed, grace).await?;
            return Ok(sum(&garbage));
        }
        let marker = self.announce().await?;
        let collected = self.sweep(&marker, needed, grace).await;
        // Whatever became of it; one that cannot be removed counts for ten minutes.
        let withdrawn = self.withdraw(&marker).await;
        let collected = collected?;
        withdrawn?;
        Ok(collected)
    }

    /// Whether garbage is being collected.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn collecting(&self) -> Result<bool, ArtifactError> {
        match self.inner.store.head(&marker_path()).await {
            Ok(meta) => Ok(age(&meta) < STALE),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(ArtifactError::store("look at", &marker_path(), source)),
        }
    }

    async fn sweep<E, F>(&self, marker: &str, needed: F, grace: Duration) -> Result<Collected, E>
    where
        F: AsyncFnOnce() -> Result<BTreeSet<Digest>, E>,
        E: From<ArtifactError>,
    {
        let began = Instant::now();
        let (garbage, kept) = self.garbage(needed, grace).await?;
        let mut freed = Vec::new();
        for (digest, size) in garbage {
            if began.elapsed() > LONGEST || !self.announced_by(marker).await? {
                break;
            }
            self.delete(&digest).await?;
            freed.push((digest, size));
        }
        self.give_up_pushes(grace).await?;
        self.inner.uploads.sweep(|digest| kept.contains(digest), grace)?;
        Ok(sum(&freed))
    }

    /// The blobs that nothing needs with their sizes, and everything that something needs.
    async fn garbage<E, F>(
        &self,
        needed: F,
        grace: Duration,
    ) -> Result<(Vec<(Digest, u64)>, BTreeSet<Digest>), E>
    where
        F: AsyncFnOnce() -> Result<BTreeSet<Digest>, E>,
        E: From<ArtifactError>,
    {
        // Blobs first: one that comes later is not garbage yet. Pushes before versions: one that ends in between is a
        // version by then.
        let blobs = self.list().await?;
        let pushes = self.pushes(grace).await?;
        let mut kept = needed().await?;
        for push in &pushes {
            kept.insert(push.digest().clone());
            kept.extend(push.blobs().map(|(digest, _)| digest.clone()));
        }
        let garbage = blobs.into_iter().filter(|(digest, _)| !kept.contains(digest)).collect();
        Ok((garbage, kept))
    }

    async fn announce(&self) -> Result<String, ArtifactError> {
        if self.inner.store.head(&marker_path()).await.is_ok_and(|meta| age(&meta) >= STALE) {
            self.remove(&marker_path()).await?;
        }
        let marker = Uuid::new_v4().to_string();
        let bytes = marker.clone().into_bytes();
        match self.inner.store.put_opts(&marker_path(), bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(marker),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Err(ArtifactError::Collecting)
            }
            Err(source) => Err(ArtifactError::store("write", &marker_path(), source)),
        }
    }

    /// Whether the marker is this collector's: two that found a stale one at the same moment could each have put theirs.
    async fn announced_by(&self, marker: &str) -> Result<bool, ArtifactError> {
        let got = match self.inner.store.get(&marker_path()).await {
            Ok(got) => got.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => Err(error),
        };
        let bytes = got.map_err(|source| ArtifactError::store("read", &marker_path(), source))?;
        Ok(bytes == marker.as_bytes())
    }

    async fn withdraw(&self, marker: &str) -> Result<(), ArtifactError> {
        if self.announced_by(marker).await? { self.remove(&marker_path()).await } else { Ok(()) }
    }
}

fn marker_path() -> Path {
    Path::from("collecting")
}

fn sum(blobs: &[(Digest, u64)]) -> Collected {
    let bytes = blobs.iter().fold(0, |sum: u64, (_, size)| sum.saturating_add(*size));
    Collected { blobs: blobs.len() as u64, bytes }
}
