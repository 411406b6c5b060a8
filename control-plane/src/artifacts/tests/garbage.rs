//! Garbage, beside pushes that run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use rookery_model::bundle::{
    ARTIFACT_TYPE, CONFIG_TYPE, TOKENIZER_CONFIG_TYPE, TOKENIZER_TYPE, WEIGHTS_TYPE,
};
use serde_json::json;

use super::*;

/// In place of the database: the blobs of each version.
#[derive(Default)]
struct Versions(Mutex<BTreeMap<Digest, BTreeSet<Digest>>>);

impl Versions {
    fn of(blobs: &[&[u8]]) -> Self {
        let blobs = blobs.iter().map(|bytes| digest(bytes)).collect();
        Self(Mutex::new([(digest(b"a manifest"), blobs)].into()))
    }

    fn needed(&self) -> BTreeSet<Digest> {
        self.0.lock().unwrap().values().flatten().cloned().collect()
    }

    /// Whether it is new.
    fn insert(&self, manifest: &Manifest) -> bool {
        let blobs =
            manifest.blobs().map(|(blob, _)| blob.clone()).chain([manifest.digest().clone()]).collect();
        self.0.lock().unwrap().insert(manifest.digest().clone(), blobs).is_none()
    }

    fn remove(&self, manifest: &Manifest) {
        self.0.lock().unwrap().remove(manifest.digest());
    }
}

/// A manifest of these weights, and of a config and tokenizer that are the same in all.
pub(super) fn manifest(weights: &[&[u8]]) -> Manifest {
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes).as_str(), "size": bytes.len()});
    let mut layers: Vec<_> = weights.iter().map(|bytes| descriptor(WEIGHTS_TYPE, bytes)).collect();
    layers.push(descriptor(TOKENIZER_TYPE, b"tokenizer"));
    layers.push(descriptor(TOKENIZER_CONFIG_TYPE, b"tokenizer config"));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": ARTIFACT_TYPE, "config": descriptor(CONFIG_TYPE, b"config"), "layers": layers,
    });
    Manifest::parse(manifest.to_string().into_bytes()).unwrap()
}

async fn collect(
    artifacts: &Artifacts,
    versions: &Versions,
    grace: Duration,
) -> Result<Collected, ArtifactError> {
    artifacts.collect(async || Ok(versions.needed()), grace, false).await
}

#[tokio::test]
async fn only_what_nothing_needs_is_freed() {
    for place in places().await {
        let artifacts = &place.artifacts;
        let blobs: Vec<_> = (0..4).map(|seed| noise(20 + seed, PIECE)).collect();
        for blob in &blobs {
            send(artifacts, blob).await.unwrap();
        }
        let versions = Versions::of(&[&blobs[0]]);
        let push = manifest(&[&blobs[1]]);
        artifacts.begin_push(&push).await.unwrap();
        let expected = Collected { blobs: 2, bytes: 2 * PIECE as u64 };
        let dry = artifacts.collect(async || Ok::<_, ArtifactError>(versions.needed()), GRACE, true);
        assert_eq!(dry.await.unwrap(), expected);
        assert_eq!(artifacts.list().await.unwrap().len(), 4, "a dry run frees nothing");
        assert_eq!(collect(artifacts, &versions, GRACE).await.unwrap(), expected);
        assert_eq!(artifacts.list().await.unwrap().len(), 2);
        assert!(!artifacts.collecting().await.unwrap());
        // A push that nobody went on with.
        assert_eq!(collect(artifacts, &versions, Duration::ZERO).await.unwrap().blobs, 1);
        assert!(matches!(artifacts.push(push.digest()).await, Err(ArtifactError::NotBegun(_))));
        assert_eq!(stored(artifacts, &digest(&blobs[0])).await, blobs[0]);
    }
}

#[tokio::test]
async fn staged_files_go_when_nothing_awaits_them_and_nobody_appends() {
    for place in places().await {
        let artifacts = &place.artifacts;
        let blobs: Vec<_> = (0..3).map(|seed| noise(30 + seed, 2 * PIECE)).collect();
        let mut uploads = Vec::new();
        for blob in &blobs {
            let mut upload = artifacts.begin_upload(&digest(blob), blob.len() as u64, 0).unwrap();
            upload.append(&blob[..PIECE]).await.unwrap();
            uploads.push(upload);
        }
        let held = uploads.pop().unwrap();
        for upload in uploads {
            assert!(!upload.finish().await.unwrap());
        }
        let versions = Versions::of(&[&blobs[0]]);
        collect(artifacts, &versions, GRACE).await.unwrap();
        assert!(blobs.iter().all(|blob| place.staged(&digest(blob)).exists()), "young ones stay");
        collect(artifacts, &versions, Duration::ZERO).await.unwrap();
        let left: Vec<_> = blobs.iter().map(|blob| place.staged(&digest(blob)).exists()).collect();
        assert_eq!(left, [true, false, true]);
        drop(held);
    }
}

#[tokio::test]
async fn one_collection_runs_at_a_time() {
    for place in places().await {
        let (artifacts, other) = (&place.artifacts, place.reopened().await);
        let needed = async || {
            assert!(other.collecting().await?);
            let second = other.collect(async || Ok::<_, ArtifactError>([].into()), GRACE, false).await;
            assert!(matches!(second, Err(ArtifactError::Collecting)));
            Ok::<_, ArtifactError>([].into())
        };
        artifacts.collect(needed, GRACE, false).await.unwrap();
        // One that fails withdraws its marker too.
        let failed = artifacts.collect(async || Err(ArtifactError::Stopping), GRACE, false).await;
        assert!(failed.is_err() && !artifacts.collecting().await.unwrap());
    }
}

/// What the service does, in its order, over a set in place of the database.
async fn push(
    artifacts: &Artifacts,
    versions: &Versions,
    weights: &[Vec<u8>],
) -> Result<Manifest, ArtifactError> {
    let all: Vec<&[u8]> = weights.iter().map(Vec::as_slice).collect();
    let manifest = manifest(&all);
    let small: [&[u8]; 3] = [b"config", b"tokenizer", b"tokenizer config"];
    // A collection may go over many rounds where processors are busy.
    for _ in 0..10_000 {
        artifacts.begin_push(&manifest).await?;
        for (missing, _) in artifacts.missing(manifest.blobs()).await? {
            let bytes = all.iter().chain(&small).find(|bytes| digest(bytes) == missing).unwrap();
            match send(artifacts, bytes).await {
                Ok(_) | Err(ArtifactError::Busy { .. } | ArtifactError::Offset { .. }) => {}
                Err(error) => return Err(error),
            }
            tokio::task::yield_now().await;
        }
        if !artifacts.missing(manifest.blobs()).await?.is_empty() {
            continue;
        }
        artifacts.put_manifest(&manifest).await?;
        let new = versions.insert(&manifest);
        while artifacts.collecting().await? {
            tokio::task::yield_now().await;
        }
        let lost = !artifacts.missing(manifest.blobs()).await?.is_empty();
        if !lost && artifacts.has(manifest.digest()).await? {
            artifacts.end_push(manifest.digest()).await?;
            return Ok(manifest);
        }
        if new {
            versions.remove(&manifest);
        }
    }
    panic!("the push did not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_finished_push_loses_a_blob_to_a_collection_beside_it() {
    for place in places().await {
        let versions = Versions::default();
        let collecting = async {
            // Without grace: whatever a push under way has sent may be taken from it at any moment.
            for _ in 0..60 {
                match collect(&place.artifacts, &versions, Duration::ZERO).await {
                    Ok(_) | Err(ArtifactError::Collecting) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let other = place.reopened().await;
        let pushing = async |artifacts: &Artifacts, seed: u64| {
            let mut pushed = Vec::new();
            for n in 0..12 {
                let weights: Vec<_> = (0..4).map(|part| noise(seed + n + part, PIECE)).collect();
                pushed.push(push(artifacts, &versions, &weights).await.unwrap());
            }
            pushed
        };
        let ((), mut pushed, others) =
            tokio::join!(collecting, pushing(&place.artifacts, 100), pushing(&other, 500));
        pushed.extend(others);
        for manifest in &pushed {
            assert_eq!(place.artifacts.missing(manifest.blobs()).await.unwrap(), []);
            assert!(place.artifacts.has(manifest.digest()).await.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pushes_of_the_same_bundle_both_end_and_each_byte_is_written_once() {
    for place in places().await {
        let versions = Versions::default();
        let weights: Vec<_> = (0..8).map(|part| noise(700 + part, 5 * PIECE)).collect();
        let other = place.reopened().await;
        let (one, two) =
            tokio::join!(push(&place.artifacts, &versions, &weights), push(&other, &versions, &weights));
        assert_eq!(one.unwrap(), two.unwrap());
        for bytes in &weights {
            assert_eq!(stored(&place.artifacts, &digest(bytes)).await, *bytes);
        }
    }
}
