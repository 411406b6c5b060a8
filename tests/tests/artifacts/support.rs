//! Bundles to push, and a client that pushes by hand, so that it can stop anywhere.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use futures_util::stream;
use rookery_control_plane::{config::ControlPlaneConfig, control_plane::RunningControlPlane};
use rookery_model::bundle::{Bundle, BundleInfo, Digest};
use rookery_proto::v1::{self, model_service_client::ModelServiceClient};
use rookery_tests::{bundles, client::channel, fleet};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

/// Bytes of a message in these tests.
pub(crate) const PIECE: usize = 64 << 10;

pub(crate) type Models = ModelServiceClient<Channel>;

/// A control plane whose state is in `folder`, so that another can come after it.
pub(crate) async fn control_plane(folder: &Path) -> RunningControlPlane {
    control_plane_with(folder, |_| {}).await
}

pub(crate) async fn control_plane_with(
    folder: &Path,
    edit: impl FnOnce(&mut ControlPlaneConfig),
) -> RunningControlPlane {
    let started = fleet::control_plane(|config| {
        config.state.folder = Some(folder.to_owned());
        edit(config);
    });
    started.await.unwrap()
}

pub(crate) fn models(address: SocketAddr) -> Models {
    ModelServiceClient::new(channel(address))
}

/// Bytes that look random and are a function of the seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(length).collect()
}

/// A small generator: what is random here is a function of a seed, which tests print.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// A bundle folder, deleted when dropped.
pub(crate) struct TestBundle {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) info: BundleInfo,
}

impl TestBundle {
    /// The tiny model, with a layer of noise for each of `lengths`: readers ignore layers of other kinds, and check their
    /// digests.
    pub(crate) fn with_noise(seed: u64, lengths: &[usize]) -> Self {
        let packed = bundles::tiny().unwrap();
        let folder = TempDir::with_prefix("rookery-tests-").unwrap();
        let path = folder.path().join("bundle");
        copy(packed.path(), &path);
        let info = Bundle::inspect(&path).unwrap();
        let file = path.join(info.digest.path());
        let mut manifest: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for (at, length) in lengths.iter().enumerate() {
            let bytes = noise(seed + at as u64, *length);
            let digest = Digest::of(&bytes);
            fs::write(path.join(digest.path()), &bytes).unwrap();
            let layer = json!({"mediaType": "application/octet-stream", "digest": digest, "size": length});
            manifest["layers"].as_array_mut().unwrap().push(layer);
        }
        fs::remove_file(&file).unwrap();
        write_manifest(&path, &manifest);
        let info = Bundle::inspect(&path).unwrap();
        Self { _folder: folder, path, info }
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        self.blob(self.info.digest.as_str())
    }

    pub(crate) fn digest(&self) -> String {
        self.info.digest.to_string()
    }

    pub(crate) fn blob(&self, digest: &str) -> Vec<u8> {
        fs::read(self.path.join(digest.parse::<Digest>().unwrap().path())).unwrap()
    }

    pub(crate) fn begin(&self, version: &str) -> v1::BeginPushRequest {
        v1::BeginPushRequest {
            model: "tiny".to_owned(),
            version: version.to_owned(),
            manifest: self.manifest(),
        }
    }

    pub(crate) fn finish(&self, version: &str) -> v1::FinishPushRequest {
        v1::FinishPushRequest {
            model: "tiny".to_owned(),
            version: version.to_owned(),
            digest: self.digest(),
            signatures: Vec::new(),
        }
    }
}

/// Makes `manifest` the one of the bundle at `path`.
pub(crate) fn write_manifest(path: &Path, manifest: &Value) {
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    fs::write(path.join(digest.path()), &bytes).unwrap();
    let mut index: Value = serde_json::from_slice(&fs::read(path.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"] = json!(digest);
    index["manifests"][0]["size"] = json!(bytes.len());
    fs::write(path.join("index.json"), index.to_string()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The messages that send `bytes` of a blob from `offset` on.
pub(crate) fn pieces(digest: &str, bytes: &[u8], offset: u64) -> Vec<v1::UploadBlobRequest> {
    let mut messages: Vec<_> = bytes[offset as usize..]
        .chunks(PIECE)
        .map(|piece| v1::UploadBlobRequest { data: piece.to_vec(), ..Default::default() })
        .collect();
    if messages.is_empty() {
        messages.push(v1::UploadBlobRequest::default());
    }
    let head = &mut messages[0];
    (head.digest, head.size, head.offset) = (digest.to_owned(), bytes.len() as u64, offset);
    messages
}

/// Sends messages in one call.
pub(crate) async fn upload(
    models: &mut Models,
    messages: Vec<v1::UploadBlobRequest>,
) -> Result<v1::UploadBlobResponse, Status> {
    Ok(models.upload_blob(stream::iter(messages)).await?.into_inner())
}

/// Pushes as a client does: asks and sends until nothing is missing, and again if others were faster or garbage was
/// collected.
pub(crate) async fn push(
    models: &mut Models,
    bundle: &TestBundle,
    version: &str,
) -> Result<v1::ModelVersion, Status> {
    for _ in 0..1000 {
        let missing = models.begin_push(bundle.begin(version)).await?.into_inner().missing;
        let mut busy = false;
        for blob in missing {
            let messages = pieces(&blob.digest, &bundle.blob(&blob.digest), blob.offset);
            match upload(models, messages).await {
                Err(status) if status.code() == Code::Aborted => busy = true,
                other => drop(other?),
            }
        }
        if busy {
            continue;
        }
        match models.finish_push(bundle.finish(version)).await {
            Err(status) if status.code() == Code::Aborted => {}
            other => return other.map(tonic::Response::into_inner),
        }
    }
    Err(Status::aborted("the push went on for ever"))
}

/// Whether every blob of the bundle is kept, byte for byte, under `root`.
pub(crate) fn assert_kept(root: &Path, bundle: &TestBundle) {
    for blob in bundle.info.contents() {
        let kept = fs::read(root.join(blob.path())).unwrap();
        assert!(kept == bundle.blob(blob.digest.as_str()), "{} is kept as it is", blob.title);
    }
}

/// The bundle as the control plane keeps it can be opened where it lies.
pub(crate) fn staged_files(root: &Path) -> usize {
    fs::read_dir(root.join("uploads")).unwrap().count()
}
