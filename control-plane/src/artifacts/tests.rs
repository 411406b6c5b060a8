//! Uploads cut everywhere, wrong bytes, garbage beside pushes: over a folder and over a store without rename.

mod garbage;
mod hostile;

use std::path::Path as FilePath;

use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::*;

/// Bytes of a piece in these tests.
const PIECE: usize = 1000;

/// A place for artifacts and the folder that it lies in, or stages in.
struct Place {
    artifacts: Artifacts,
    folder: TempDir,
    memory: Option<Arc<InMemory>>,
}

impl Place {
    async fn folder() -> Self {
        let folder = TempDir::new().unwrap();
        let url = format!("file://{}", folder.path().display());
        let artifacts = Artifacts::open(&url, FilePath::new("/nowhere")).await.unwrap();
        Self { artifacts, folder, memory: None }
    }

    async fn memory() -> Self {
        let (memory, folder) = (Arc::new(InMemory::new()), TempDir::new().unwrap());
        let store: Arc<dyn ObjectStore> = Arc::clone(&memory) as _;
        let artifacts = Artifacts::with_store(store, folder.path().join("uploads")).await.unwrap();
        Self { artifacts, folder, memory: Some(memory) }
    }

    /// What a new process over the same place finds.
    async fn reopened(&self) -> Artifacts {
        match &self.memory {
            None => Artifacts::open(self.folder.path().to_str().unwrap(), self.folder.path()).await.unwrap(),
            Some(memory) => {
                let store: Arc<dyn ObjectStore> = Arc::clone(memory) as _;
                Artifacts::with_store(store, self.folder.path().join("uploads")).await.unwrap()
            }
        }
    }

    fn staged(&self, digest: &Digest) -> PathBuf {
        self.artifacts.inner.uploads.path(digest)
    }
}

async fn places() -> [Place; 2] {
    [Place::folder().await, Place::memory().await]
}

/// Bytes that look random and are a function of the seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn digest(bytes: &[u8]) -> Digest {
    manifest::sha256(bytes).unwrap()
}

/// Sends what is missing of a blob, in one call.
async fn send(artifacts: &Artifacts, bytes: &[u8]) -> Result<bool, ArtifactError> {
    let (digest, size) = (digest(bytes), bytes.len() as u64);
    let offset = artifacts.staged_bytes(&digest, size)?;
    let mut upload = artifacts.begin_upload(&digest, size, offset)?;
    upload.append(&bytes[offset as usize..]).await?;
    upload.finish().await
}

async fn stored(artifacts: &Artifacts, digest: &Digest) -> Vec<u8> {
    artifacts.read(digest, 0, 0).await.unwrap().try_concat().await.unwrap()
}

#[tokio::test]
async fn an_upload_that_is_cut_at_any_piece_goes_on_in_another_process() {
    for place in places().await {
        for (seed, length) in [(1, 0), (2, 1), (3, PIECE), (4, 3 * PIECE + 7), (5, 9 * PIECE)] {
            let bytes = noise(seed, length);
            let pieces = bytes.chunks(PIECE).count();
            for cut in 0..=pieces {
                let (digest, size) = (digest(&bytes), length as u64);
                let mut upload = place.artifacts.begin_upload(&digest, size, 0).unwrap();
                for piece in bytes.chunks(PIECE).take(cut) {
                    upload.append(piece).await.unwrap();
                }
                upload.pause().await.unwrap();
                assert!(!place.artifacts.has(&digest).await.unwrap(), "nothing unchecked is published");
                let again = place.reopened().await;
                let here = (cut * PIECE).min(length) as u64;
                assert_eq!(again.staged_bytes(&digest, size).unwrap(), here, "{length} cut at {cut}");
                assert!(send(&again, &bytes).await.unwrap());
                assert_eq!(stored(&again, &digest).await, bytes);
                assert!(!place.staged(&digest).exists());
                again.delete(&digest).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn ranges_are_what_was_asked_for() {
    for place in places().await {
        let bytes = noise(6, 3 * PIECE_BYTES + 5);
        assert!(send(&place.artifacts, &bytes).await.unwrap());
        let (digest, size) = (digest(&bytes), bytes.len() as u64);
        let piece = PIECE_BYTES as u64;
        for (offset, length) in [(0, 0), (0, 1), (1, piece), (piece - 1, piece + 2), (size - 1, 9), (size, 0)]
        {
            let end = if length == 0 { size } else { (offset + length).min(size) };
            let pieces = place.artifacts.read(&digest, offset, length).await.unwrap();
            let pieces: Vec<Vec<u8>> = pieces.try_collect().await.unwrap();
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
            assert_eq!(pieces.concat(), bytes[offset as usize..end as usize], "{offset}+{length}");
        }
        let beyond = place.artifacts.read(&digest, size + 1, 0).await.err().unwrap();
        assert!(matches!(beyond, ArtifactError::Range { .. }));
        let whole = place.artifacts.read_whole(&digest, size).await.unwrap();
        assert_eq!(whole, bytes);
        assert!(place.artifacts.read_whole(&digest, size - 1).await.is_err());
    }
}

#[tokio::test]
async fn large_blobs_go_to_object_stores_in_parts() {
    let place = Place::memory().await;
    // Three parts, the last one short.
    let bytes = noise(7, (20 << 20) + 1);
    assert!(send(&place.artifacts, &bytes).await.unwrap());
    assert_eq!(stored(&place.artifacts, &digest(&bytes)).await, bytes);
}

#[tokio::test]
async fn the_store_is_an_image_layout() {
    for place in places().await {
        let bytes = noise(8, PIECE);
        send(&place.artifacts, &bytes).await.unwrap();
        let version = ("org/m".parse().unwrap(), "1.0".parse().unwrap(), digest(&bytes));
        let gone = ("org/m".parse().unwrap(), "0.9".parse().unwrap(), digest(b"gone"));
        place.artifacts.write_index([version, gone]).await.unwrap();
        let get = async |name: &str| {
            let got = place.artifacts.inner.store.get(&Path::from(name)).await.unwrap();
            String::from_utf8(got.bytes().await.unwrap().into()).unwrap()
        };
        assert_eq!(get("oci-layout").await, r#"{"imageLayoutVersion":"1.0.0"}"#);
        let index: serde_json::Value = serde_json::from_str(&get("index.json").await).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1, "what is not there is not listed");
        assert_eq!(manifests[0]["digest"], digest(&bytes).as_str());
        assert_eq!(manifests[0]["annotations"]["org.opencontainers.image.ref.name"], "org/m:1.0");
    }
}

#[tokio::test]
async fn urls_that_are_no_places_are_refused() {
    for url in ["gs://bucket", "s3://", "s3:///x", "file://relative", "http://host/x"] {
        let error = Artifacts::open(url, FilePath::new("/nowhere")).await.unwrap_err();
        assert!(matches!(error, ArtifactError::Url { .. }), "{url}: {error}");
    }
}
