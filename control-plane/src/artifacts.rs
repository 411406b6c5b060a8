//! Where versions of models lie: an OCI image layout in a folder or in an S3-compatible object store.
//!
//! ```text
//! oci-layout                 marks the layout
//! index.json                 the manifests of all versions, for tools; written anew from the database
//! blobs/sha256/<digest>      manifests, configs, weights: each under the digest of its bytes
//! pushes/<digest>.json       the manifest of each push that is not finished
//! collecting                 there while garbage is being collected
//! uploads/<digest>.part      blobs that are on their way (folders only; else in a local folder)
//! ```
//!
//! # Uploads
//!
//! Bytes are appended to a staged file, whose length is where an interrupted upload goes on. When all are there, the file
//! is made durable, read back and hashed, and only then published: in a folder by a durable rename, elsewhere by a
//! put of the whole, which S3 shows once it is complete. So a blob under its digest has that digest, whatever was sent and
//! whenever the power failed. One call appends to a blob at a time; another is told so, across processes too.
//!
//! # Garbage
//!
//! A blob is needed by the versions in the database and by the pushes under `pushes/`. Whoever collects first puts down the
//! marker `collecting`, and only then reads what is needed. Whoever finishes a push first makes the version, then waits
//! until there is no marker, and then looks again whether every blob is there: either the collector saw the version, or the
//! push sees what the collector took and sends it again. Neither needs the clocks of two machines to agree.

mod collect;
mod error;
mod layout;
mod manifest;
mod pushes;
mod read;
mod uploads;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use futures_util::{StreamExt, TryStreamExt};
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};

use crate::domain::Digest;

pub use collect::{Collected, GRACE};
pub use error::ArtifactError;
pub use manifest::{Manifest, PushedVersion};
pub use read::{PIECE_BYTES, Pieces};
pub use uploads::Upload;

/// Questions to the object store at the same time.
const QUESTIONS: usize = 16;

/// The artifacts of a control plane. Clones share everything.
#[derive(Clone, Debug)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    /// Whether staged files are under the store's own root, so that publishing is a rename.
    local: bool,
    uploads: uploads::Uploads,
    pushes: pushes::Pushes,
    /// One writer of `index.json` at a time.
    index: tokio::sync::Mutex<()>,
}

impl Artifacts {
    /// Opens what `url` names, making it if it is a folder that is not there: `/a/folder`, `a/folder`, `file:///a/folder`
    /// or `s3://bucket/prefix`. S3 takes its credentials, region and endpoint from the usual `AWS_*` variables. `staging` is a
    /// local folder for blobs on their way, which folders do not need: theirs is inside.
    ///
    /// # Errors
    /// [`ArtifactError::Url`] for a URL that is none of these; others if the layout cannot be written.
    pub async fn open(url: &str, staging: &std::path::Path) -> Result<Self, ArtifactError> {
        let wrong = |why: String| ArtifactError::Url { url: url.to_owned(), why };
        match url.split_once("://") {
            None => Self::folder(std::path::Path::new(url)).await,
            Some(("file", path)) if path.starts_with('/') => Self::folder(std::path::Path::new(path)).await,
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(wrong("it names no bucket".to_owned()));
                }
                let prefix = Path::parse(prefix).map_err(|error| wrong(error.to_string()))?;
                let store = s3(bucket).map_err(|error| wrong(error.to_string()))?;
                Self::with_store(Arc::new(PrefixStore::new(store, prefix)), staging.to_owned()).await
            }
            Some(_) => Err(wrong("it is neither a folder nor s3://BUCKET/PREFIX".to_owned())),
        }
    }

    async fn folder(root: &std::path::Path) -> Result<Self, ArtifactError> {
        let io = |source| ArtifactError::Io { doing: "make the folder", path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(io)?;
        let root = root.canonicalize().map_err(io)?;
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|source| ArtifactError::Store {
            doing: "open",
            path: root.display().to_string(),
            source,
        })?;
        let staging = root.join("uploads");
        Self::build(Arc::new(store.with_fsync(true)), true, staging).await
    }

    /// Takes any object store, with `staging` for blobs on their way.
    ///
    /// # Errors
    /// If the layout cannot be written there.
    pub async fn with_store(store: Arc<dyn ObjectStore>, staging: PathBuf) -> Result<Self, ArtifactError> {
        Self::build(store, false, staging).await
    }

    async fn build(
        store: Arc<dyn ObjectStore>,
        local: bool,
        staging: PathBuf,
    ) -> Result<Self, ArtifactError> {
        let uploads = uploads::Uploads::open(staging)?;
        let index = tokio::sync::Mutex::new(());
        let inner = Inner { store, local, uploads, pushes: pushes::Pushes::default(), index };
        let artifacts = Self { inner: Arc::new(inner) };
        artifacts.write_marker().await?;
        Ok(artifacts)
    }

    /// Bytes of a blob, or `None` if it is not here.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>, ArtifactError> {
        let path = blob_path(digest);
        match self.inner.store.head(&path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(ArtifactError::store("look at", &path, source)),
        }
    }

    /// Whether a blob is here.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn has(&self, digest: &Digest) -> Result<bool, ArtifactError> {
        Ok(self.size(digest).await?.is_some())
    }

    /// Which of `blobs` are not here, in their order. One that has another size than stated counts as missing: sending it
    /// again replaces it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn missing<'a>(
        &self,
        blobs: impl IntoIterator<Item = (&'a Digest, u64)>,
    ) -> Result<Vec<(Digest, u64)>, ArtifactError> {
        let blobs: Vec<_> = blobs.into_iter().map(|(digest, size)| (digest.clone(), size)).collect();
        let asked = futures_util::stream::iter(blobs)
            .map(
                |(digest, size)| async move { Ok((self.size(&digest).await? != Some(size), (digest, size))) },
            )
            .buffered(QUESTIONS);
        let found: Vec<(bool, (Digest, u64))> = asked.try_collect().await?;
        Ok(found.into_iter().filter_map(|(missing, blob)| missing.then_some(blob)).collect())
    }

    /// Removes a blob. One that is not here is fine.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn delete(&self, digest: &Digest) -> Result<(), ArtifactError> {
        self.remove(&blob_path(digest)).await
    }

    /// Every blob with its size. Names that are no digests are passed over: nobody here wrote them.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(&self) -> Result<BTreeMap<Digest, u64>, ArtifactError> {
        let blobs = self.entries("blobs/sha256").await?;
        let named = blobs.into_iter().filter_map(|meta| {
            let digest = format!("sha256:{}", meta.location.filename()?).parse().ok()?;
            Some((digest, meta.size))
        });
        Ok(named.collect())
    }

    async fn entries(&self, folder: &str) -> Result<Vec<ObjectMeta>, ArtifactError> {
        let path = Path::from(folder);
        let listed = self.inner.store.list(Some(&path)).try_collect().await;
        listed.map_err(|source| ArtifactError::store("list", &path, source))
    }

    async fn remove(&self, path: &Path) -> Result<(), ArtifactError> {
        match self.inner.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ArtifactError::store("delete", path, source)),
        }
    }

    /// Writes a small object whole and durably.
    async fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        let put = self.inner.store.put(path, bytes.into()).await;
        put.map(|_| ()).map_err(|source| ArtifactError::store("write", path, source))
    }
}

fn blob_path(digest: &Digest) -> Path {
    // A digest is hexadecimal by construction: nobody can make it a path to elsewhere.
    let hex = digest.as_str().trim_start_matches("sha256:");
    Path::from_iter(["blobs", "sha256", hex])
}

/// An S3 client from the environment. Plain HTTP is for endpoints that are named as such, which test servers are.
fn s3(bucket: &str) -> Result<impl ObjectStore + use<>, object_store::Error> {
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    // The client takes the process's default. That there may be one already is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    builder.with_allow_http(plain).build()
}

#[cfg(test)]
mod tests;
