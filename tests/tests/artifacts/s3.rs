//! Artifacts in an object store that speaks S3, over HTTP.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use object_store::{aws::AmazonS3Builder, prefix::PrefixStore};
use rookery_control_plane::{
    artifacts::{ArtifactError, Artifacts, GRACE},
    domain::Digest,
};
use rookery_proto::server::{OnPanic, Tasks};
use rookery_tests::{fleet::ANY_PORT, processes::Serving};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::{PIECE, TestBundle, assert_kept, models, noise, pieces, push, upload};

const ACCESS: &str = "rookery";
const SECRET: &str = "a secret of the tests";

/// A server of S3 with one bucket, and a folder to stage in.
struct S3 {
    address: SocketAddr,
    root: TempDir,
    staging: TempDir,
}

impl S3 {
    async fn start() -> Self {
        let (root, staging) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        std::fs::create_dir(root.path().join("models")).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = service.build();
        let listener = TcpListener::bind(SocketAddr::from(ANY_PORT)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let connections = tasks.clone();
        tasks.spawn("s3", OnPanic::Log, async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                connections.spawn("s3 connection", OnPanic::Log, async move {
                    // Whatever a client does to its connection is its own business.
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self { address, root, staging }
    }

    async fn artifacts(&self) -> Artifacts {
        // The process's default; another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_region("eu-central-1")
            .with_bucket_name("models")
            .with_access_key_id(ACCESS)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap();
        let store = Arc::new(PrefixStore::new(store, "a/prefix"));
        Artifacts::with_store(store, self.staging.path().to_owned()).await.unwrap()
    }

    /// Where the server keeps what is under the prefix.
    fn layout(&self) -> std::path::PathBuf {
        self.root.path().join("models/a/prefix")
    }
}

fn digest(bytes: &[u8]) -> Digest {
    rookery_model::bundle::Digest::of(bytes).as_str().parse().unwrap()
}

async fn send(artifacts: &Artifacts, bytes: &[u8], claimed: &Digest) -> Result<bool, ArtifactError> {
    let size = bytes.len() as u64;
    let offset = artifacts.staged_bytes(claimed, size)?;
    let mut upload = artifacts.begin_upload(claimed, size, offset)?;
    for piece in bytes[offset as usize..].chunks(PIECE) {
        upload.append(piece).await?;
    }
    upload.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_go_and_come_whole_in_one_put_or_in_parts() {
    let s3 = S3::start().await;
    let artifacts = s3.artifacts().await;
    for (seed, length) in [(1, 1), (2, 3 * PIECE + 5), (3, 8 << 20), (4, (20 << 20) + 3)] {
        let bytes = noise(seed, length);
        let digest = digest(&bytes);
        // The first half comes before the process ends.
        let mut upload = artifacts.begin_upload(&digest, length as u64, 0).unwrap();
        upload.append(&bytes[..length / 2]).await.unwrap();
        upload.pause().await.unwrap();
        let artifacts = s3.artifacts().await;
        assert!(!artifacts.has(&digest).await.unwrap());
        assert!(send(&artifacts, &bytes, &digest).await.unwrap());
        assert_eq!(artifacts.size(&digest).await.unwrap(), Some(length as u64));
        for (offset, count) in [(0, 0), (length as u64 / 3, 1000), (length as u64 - 1, 9)] {
            let read: Vec<Vec<u8>> =
                artifacts.read(&digest, offset, count).await.unwrap().try_collect().await.unwrap();
            let end = if count == 0 { length as u64 } else { (offset + count).min(length as u64) };
            assert!(read.concat() == bytes[offset as usize..end as usize], "{length}: {offset}+{count}");
        }
    }
    assert_eq!(artifacts.list().await.unwrap().len(), 4);
    assert_eq!(std::fs::read_dir(s3.staging.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_without_the_digest_never_appear() {
    let s3 = S3::start().await;
    let artifacts = s3.artifacts().await;
    for length in [PIECE, 20 << 20] {
        let bytes = noise(5, length);
        let digest = digest(&bytes);
        let mut wrong = bytes.clone();
        wrong[length - 1] ^= 1;
        let refused = send(&artifacts, &wrong, &digest).await.unwrap_err();
        assert!(matches!(refused, ArtifactError::Digest { .. }), "{refused}");
        assert!(!artifacts.has(&digest).await.unwrap());
        assert!(send(&artifacts, &bytes, &digest).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_collected_by_one_at_a_time() {
    let s3 = S3::start().await;
    let (artifacts, other) = (s3.artifacts().await, s3.artifacts().await);
    let (kept, garbage) = (noise(6, PIECE), noise(7, PIECE));
    for bytes in [&kept, &garbage] {
        send(&artifacts, bytes, &digest(bytes)).await.unwrap();
    }
    let needed = async || {
        assert!(other.collecting().await?);
        let second = other.collect(async || Ok::<_, ArtifactError>([].into()), GRACE, false).await;
        assert!(matches!(second, Err(ArtifactError::Collecting)), "{second:?}");
        Ok::<_, ArtifactError>([digest(&kept)].into())
    };
    let freed = artifacts.collect(needed, Duration::ZERO, false).await.unwrap();
    assert_eq!((freed.blobs, freed.bytes), (1, PIECE as u64));
    assert!(!other.collecting().await.unwrap() && other.has(&digest(&kept)).await.unwrap());
}

/// The whole of it: a process that finds its bucket by the usual variables, is killed, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_keeps_its_versions_in_a_bucket() {
    let s3 = S3::start().await;
    let endpoint = format!("http://{}", s3.address);
    let variables = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", ACCESS),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    let start = async |state: &Path| {
        let state = state.to_str().unwrap();
        let any = "127.0.0.1:0";
        let arguments = ["control-plane", "--listen", any, "--link-listen", any, "--state", state];
        let arguments = [&arguments[..], &["--artifacts", "s3://models/a/prefix"]].concat();
        Serving::start_with(&arguments, &variables).await.unwrap()
    };
    let bundle = TestBundle::with_noise(800, &[9 << 20, PIECE]);
    let mut plane = start(s3.staging.path()).await;
    let mut client = models(plane.listen);
    let begun = client.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    for blob in &begun.missing[..2] {
        upload(&mut client, pieces(&blob.digest, &bundle.blob(&blob.digest), 0)).await.unwrap();
    }
    plane.kill().await.unwrap();
    let mut plane = start(s3.staging.path()).await;
    let mut client = models(plane.listen);
    let again = client.begin_push(bundle.begin("1")).await.unwrap().into_inner();
    assert_eq!(again.missing.len(), begun.missing.len() - 2);
    push(&mut client, &bundle, "1").await.unwrap();
    assert_kept(&s3.layout(), &bundle);
    let index = std::fs::read_to_string(s3.layout().join("index.json")).unwrap();
    assert!(index.contains(bundle.info.digest.as_str()), "{index}");
    plane.kill().await.unwrap();
}
