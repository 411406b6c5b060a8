//! The two documents that make the store an OCI image layout.

use std::collections::BTreeMap;

use object_store::path::Path;
use rookery_model::bundle::ARTIFACT_TYPE;
use serde::Serialize;

use super::{ArtifactError, Artifacts};
use crate::domain::{Digest, ModelName, VersionName};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'static str,
    artifact_type: &'static str,
    digest: &'a Digest,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

impl<'a> Descriptor<'a> {
    fn new(digest: &'a Digest, size: u64) -> Self {
        let annotations = BTreeMap::new();
        Self { media_type: MANIFEST_TYPE, artifact_type: ARTIFACT_TYPE, digest, size, annotations }
    }
}

/// The index of a bundle with one manifest.
pub(super) fn index_of(digest: &Digest, size: u64) -> String {
    render(vec![Descriptor::new(digest, size)])
}

fn render(manifests: Vec<Descriptor<'_>>) -> String {
    let index = Index { schema_version: 2, media_type: INDEX_TYPE, manifests };
    // Plain structs with string keys: serde_json has no reason to refuse them.
    serde_json::to_string(&index).unwrap_or_default()
}

impl Artifacts {
    pub(super) async fn write_marker(&self) -> Result<(), ArtifactError> {
        let path = Path::from("oci-layout");
        self.put(&path, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()).await
    }

    /// Writes `index.json`: the manifest of every version, under the name `MODEL:VERSION`. For tools that read the
    /// layout; nothing here relies on it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn write_index(
        &self,
        versions: impl IntoIterator<Item = (ModelName, VersionName, Digest)>,
    ) -> Result<(), ArtifactError> {
        let _one_at_a_time = self.inner.index.lock().await;
        let mut named = Vec::new();
        for (model, version, digest) in versions {
            if let Some(size) = self.size(&digest).await? {
                named.push((format!("{model}:{version}"), digest, size));
            }
        }
        named.sort();
        let manifests = named.iter().map(|(name, digest, size)| {
            let mut descriptor = Descriptor::new(digest, *size);
            descriptor.annotations.insert(REF_NAME, name.clone());
            descriptor
        });
        self.put(&Path::from("index.json"), render(manifests.collect()).into_bytes()).await
    }

    /// Keeps a manifest among the blobs.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn put_manifest(&self, manifest: &super::Manifest) -> Result<(), ArtifactError> {
        self.put(&super::blob_path(manifest.digest()), manifest.text().as_bytes().to_vec()).await
    }
}
