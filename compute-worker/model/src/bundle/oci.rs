//! The few OCI documents that a bundle consists of, and their limits.
//!
//! These are our own structs rather than a crate's: available ones keep annotations in a hash map, whose order
//! changes from run to run, and a manifest must have the same bytes, hence the same digest, every time it is
//! written. Unknown fields are ignored, as the OCI specification asks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::BundleError;

/// Media type of the index.
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of the manifest.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Artifact type: this image is a Rookery model.
pub const ARTIFACT_TYPE: &str = "application/vnd.rookery.model.v1";
/// Media type of the config blob.
pub const CONFIG_TYPE: &str = "application/vnd.rookery.model.config.v1+json";
/// Media type of a weight blob.
pub const WEIGHTS_TYPE: &str = "application/vnd.rookery.model.weights.v1+safetensors";
/// Media type of the tokenizer blob (JSON of the `tokenizers` crate).
pub const TOKENIZER_TYPE: &str = "application/vnd.rookery.model.tokenizer.v1+json";
/// Media type of the blob with special tokens and chat template.
pub const TOKENIZER_CONFIG_TYPE: &str = "application/vnd.rookery.model.tokenizer-config.v1+json";
/// Media type of the optional blob with golden probes: prompts, and what this very model answers.
pub const PROBES_TYPE: &str = "application/vnd.rookery.model.probes.v1+json";
/// Media type of the optional blob that says how precisions and roundings were chosen.
pub const QUANTIZATION_TYPE: &str = "application/vnd.rookery.model.quantization.v1+json";
/// The optional documents, of each of which a bundle has at most one.
pub(crate) const DOCUMENT_TYPES: [&str; 2] = [PROBES_TYPE, QUANTIZATION_TYPE];

/// Annotation with a file name for people; weight blobs are found by it.
pub(crate) const TITLE: &str = "org.opencontainers.image.title";
/// Annotation with the tag of a manifest in the index.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Name and contents of the file that marks a layout.
pub(crate) const LAYOUT_FILE: &str = "oci-layout";
pub(crate) const LAYOUT_CONTENTS: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
pub(crate) const INDEX_FILE: &str = "index.json";

/// Largest index that is read; real ones have a few hundred bytes.
pub(crate) const MAX_INDEX_BYTES: u64 = 1 << 20;
/// Largest manifest that is read: what registries accept.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest config that is read; one entry for each head of a 100-layer model takes about 3 MB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Largest tokenizer that is read; the largest vocabularies in use take 35 MB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Largest optional document that is read; a line for each head of a 100-layer model takes about 3 MB.
pub const MAX_DOCUMENT_BYTES: u64 = 16 << 20;

/// Points at a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The bundle's table of contents; its digest is the bundle's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) artifact_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// `index.json`: which manifest the folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

impl Descriptor {
    /// Title for people, or the digest where there is none.
    pub(crate) fn title(&self) -> &str {
        self.annotations.get(TITLE).map_or(self.digest.as_str(), String::as_str)
    }
}

impl Index {
    /// The index of one manifest, as packing writes it.
    pub(crate) fn of(digest: Digest, size: u64) -> Self {
        let manifest = Descriptor {
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            digest,
            size,
            annotations: [(REF_NAME.to_owned(), "latest".to_owned())].into(),
        };
        Self { schema_version: 2, media_type: INDEX_TYPE.to_owned(), manifests: vec![manifest] }
    }

    /// The one manifest of a bundle's index.
    ///
    /// # Errors
    /// [`BundleError::Document`] unless there is exactly one, of the right kind and an acceptable size.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Descriptor, BundleError> {
        let document = "index.json";
        let fault = |fault: String| BundleError::Document { document, fault };
        let index: Index = parse_json(document, bytes)?;
        if index.schema_version != 2 {
            return Err(fault(format!("schemaVersion is {} instead of 2", index.schema_version)));
        }
        let count = index.manifests.len();
        let [manifest] = <[Descriptor; 1]>::try_from(index.manifests)
            .map_err(|_| fault(format!("lists {count} manifests instead of 1")))?;
        if manifest.media_type != MANIFEST_TYPE {
            return Err(fault(format!("media type {:?} is not an image manifest", manifest.media_type)));
        }
        check_size(document, "manifest", manifest.size, MAX_MANIFEST_BYTES)?;
        Ok(manifest)
    }
}

impl Manifest {
    /// Parses a manifest and checks what does not need the config.
    ///
    /// # Errors
    /// [`BundleError::Document`] naming the field at fault.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let document = "manifest";
        let fault = |fault: String| BundleError::Document { document, fault };
        let manifest: Manifest = parse_json(document, bytes)?;
        if manifest.schema_version != 2 {
            return Err(fault(format!("schemaVersion is {} instead of 2", manifest.schema_version)));
        }
        let types = [
            ("mediaType", &manifest.media_type, MANIFEST_TYPE),
            ("artifactType", &manifest.artifact_type, ARTIFACT_TYPE),
            ("config.mediaType", &manifest.config.media_type, CONFIG_TYPE),
        ];
        for (field, found, expected) in types {
            if found != expected {
                return Err(fault(format!(
                    "{field} is {found:?} instead of {expected:?}; this is no Rookery model"
                )));
            }
        }
        for text in manifest.layers.iter().flat_map(|layer| [layer.title(), &layer.media_type]) {
            if text.chars().any(char::is_control) {
                return Err(fault(format!("title or media type {text:?} has control characters")));
            }
        }
        check_size(document, "config", manifest.config.size, MAX_CONFIG_BYTES)?;
        for media_type in [TOKENIZER_TYPE, TOKENIZER_CONFIG_TYPE] {
            let found: Vec<_> =
                manifest.layers.iter().filter(|layer| layer.media_type == media_type).collect();
            let [layer] = found[..] else {
                return Err(fault(format!("{} layers of type {media_type} instead of 1", found.len())));
            };
            check_size(document, layer.title(), layer.size, MAX_TOKENIZER_BYTES)?;
        }
        for media_type in DOCUMENT_TYPES {
            let found: Vec<_> =
                manifest.layers.iter().filter(|layer| layer.media_type == media_type).collect();
            match found[..] {
                [] => {}
                [layer] => check_size(document, layer.title(), layer.size, MAX_DOCUMENT_BYTES)?,
                _ => {
                    return Err(fault(format!("{} layers of type {media_type} instead of 1", found.len())));
                }
            }
        }
        Ok(manifest)
    }

    /// The layer of an optional document.
    pub(crate) fn document(&self, media_type: &str) -> Option<&Descriptor> {
        DOCUMENT_TYPES.contains(&media_type).then(|| self.layer_of_type(media_type))?
    }

    /// The only layer with a media type; [`Manifest::parse`] made sure of it for both tokenizer types.
    pub(crate) fn layer_of_type(&self, media_type: &str) -> Option<&Descriptor> {
        self.layers.iter().find(|layer| layer.media_type == media_type)
    }
}

/// Parses JSON, saying which document was at fault.
pub(crate) fn parse_json<'a, T: Deserialize<'a>>(
    document: &'static str,
    bytes: &'a [u8],
) -> Result<T, BundleError> {
    serde_json::from_slice(bytes)
        .map_err(|error| BundleError::Document { document, fault: error.to_string() })
}

fn check_size(document: &'static str, what: &str, size: u64, limit: u64) -> Result<(), BundleError> {
    if size <= limit {
        return Ok(());
    }
    Err(BundleError::Document {
        document,
        fault: format!("{what} has {size} bytes, more than the limit of {limit}"),
    })
}
