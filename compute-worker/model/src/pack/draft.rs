//! A bundle under construction that survives its packer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::blob_writer::{StagedBlob, name_durably};
use super::error::{PackError, io_error};
use super::staging::{ExistingTarget, Staging};
use super::state::State;
use super::weight_blob::BlobPacker;
use super::{Content, check_tokenizer};
use crate::bundle::folder::{self, Folder};
use crate::bundle::oci::{self, Descriptor, Index, Manifest};
use crate::bundle::{
    Bundle, BundleConfig, BundleInfo, MAX_DOCUMENT_BYTES, MappedBlob, Part, Progress, TensorEntry,
};
use crate::source::ModelSource;

/// A bundle under construction in a staging folder beside its target, locked while this value lives.
///
/// Dropping it keeps what is complete: the next draft with the same target and key goes on from there, one with
/// another key clears it away.
///
/// ```text
/// create ──► part | copy_part, until all are there ──► open ──► document ──► publish
///    │                                                 (run it)
///    └─ has(part) after an interruption
/// ```
#[derive(Debug)]
pub struct Draft {
    staging: Staging,
    state: State,
    /// By media type.
    documents: BTreeMap<String, Descriptor>,
}

/// The documents of the bundle, written as blobs.
struct Assembled {
    index: Index,
    manifest: Manifest,
    info: BundleInfo,
}

impl Draft {
    /// Begins a bundle at `out`, or goes on with an interrupted one of the same `key`, which identifies everything that
    /// the bytes of the parts and of [`Draft::scratch`] depend on.
    ///
    /// Parts taken over are read once, and packed again if their contents are not what was made durable.
    ///
    /// # Errors
    /// [`PackError::TargetExists`], [`PackError::TargetNotABundle`], [`PackError::InProgress`] while another packer
    /// works on this target, [`PackError::Io`].
    pub fn create(out: &Path, existing: ExistingTarget, key: &str) -> Result<Self, PackError> {
        let (staging, state) = Staging::take(out, existing, State::new(key))?;
        Ok(Self { staging, state, documents: BTreeMap::new() })
    }

    /// A folder for the caller's own resumable state; kept with the parts, gone when the bundle is published.
    pub fn scratch(&self) -> &Path {
        self.staging.scratch()
    }

    /// Whether a part has been written completely, by this run or an earlier one.
    pub fn has(&self, part: Part) -> bool {
        self.state.parts.contains_key(&part)
    }

    /// Writes a part: `entries` are its tensors, all of them, and `content` is asked once for each matrix, in the order
    /// in which the blob holds them. Vectors are the source's.
    ///
    /// `threads` of 0 means one for each core. Only [`Progress::advance`] is called, with [`TensorEntry::bytes`] of all
    /// entries in total: phases are the caller's.
    ///
    /// # Errors
    /// Those of the source and of `content`, [`PackError::Misfit`] for rows that do not fit their entry,
    /// [`PackError::Io`].
    pub fn part(
        &mut self,
        part: Part,
        source: &dyn ModelSource,
        entries: &[TensorEntry],
        content: &mut dyn FnMut(&TensorEntry) -> Result<Content, PackError>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<(), PackError> {
        let model = source.config();
        for entry in entries {
            let misfit = |fault| Err(PackError::Misfit { tensor: entry.name, fault });
            if Part::of(entry.name, model.tied_head) != part {
                return misfit(format!("belongs to another part than {part}"));
            }
            if let Err(fault) = entry.check(model.shape(entry.name)) {
                return misfit(fault);
            }
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let packer = BlobPacker { source, threads, progress };
        let blob = packer.pack(self.staging.blob()?, entries, content)?;
        self.record(part, blob)
    }

    /// Takes a part's blob from another bundle: a hard link where the file system can, else a copy.
    ///
    /// # Errors
    /// [`PackError::NoPart`] if it has no such part, [`PackError::Io`].
    pub fn copy_part(&mut self, from: &Bundle, part: Part) -> Result<(), PackError> {
        let stored = from.part(part).ok_or(PackError::NoPart { part })?;
        let blob = match self.link(stored)? {
            Some(blob) => blob,
            None => {
                let mut blob = self.staging.blob()?;
                blob.write(stored.bytes())?;
                blob.finish()?
            }
        };
        self.record(part, blob)
    }

    /// Adds an optional document, [`crate::bundle::PROBES_TYPE`] or [`crate::bundle::QUANTIZATION_TYPE`]; one of the same
    /// type given before is replaced. Unlike parts it is not kept for a later run.
    ///
    /// # Errors
    /// [`PackError::Document`] for an unknown type or more than [`MAX_DOCUMENT_BYTES`], [`PackError::Io`].
    pub fn document(&mut self, media_type: &str, title: &str, bytes: &[u8]) -> Result<(), PackError> {
        let fault = |fault| Err(PackError::Document { title: title.to_owned(), fault });
        if !oci::DOCUMENT_TYPES.contains(&media_type) {
            return fault(format!("{media_type:?} is no type of an optional document"));
        }
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return fault(format!(
                "has {} bytes, more than the {MAX_DOCUMENT_BYTES} that readers take",
                bytes.len()
            ));
        }
        let descriptor = self.small_blob(media_type, title, bytes)?;
        self.documents.insert(media_type.to_owned(), descriptor);
        Ok(())
    }

    /// The staged parts as a bundle, to run the engine on before it is published. Headers and values are checked as
    /// for any bundle, digests are not. Its digest is the one that publishing now would give, and it stays usable
    /// whatever becomes of the draft.
    ///
    /// # Errors
    /// [`PackError::NoPart`] if a part is missing, [`PackError::Tokenizer`], [`PackError::ReadBack`] if a part is not
    /// what `config` says.
    pub fn open(&self, config: &BundleConfig, source: &dyn ModelSource) -> Result<Arc<Bundle>, PackError> {
        let Assembled { manifest, info, .. } = self.assemble(config, source)?;
        let folder = Folder { path: self.staging.bundle().to_owned(), manifest, info };
        folder.map_unverified().map(Arc::new).map_err(PackError::ReadBack)
    }

    /// Makes everything durable and gives the bundle its place.
    ///
    /// # Errors
    /// As [`Draft::open`], [`PackError::TargetExists`] if the target came into being meanwhile, [`PackError::Io`]. What
    /// is complete is kept, as when a draft is dropped.
    pub fn publish(self, config: &BundleConfig, source: &dyn ModelSource) -> Result<BundleInfo, PackError> {
        let info = self.place(config, source)?;
        self.discard();
        Ok(info)
    }

    /// Deletes the staging folder with all that has been done.
    pub fn discard(self) {
        self.staging.delete();
    }

    /// Publishes without deleting the staging folder.
    pub(super) fn place(
        &self,
        config: &BundleConfig,
        source: &dyn ModelSource,
    ) -> Result<BundleInfo, PackError> {
        let Assembled { index, manifest, info } = self.assemble(config, source)?;
        let folder = Folder { path: self.staging.bundle().to_owned(), manifest, info };
        folder.check_headers().map_err(PackError::ReadBack)?;
        let named: BTreeSet<_> = folder.info.contents().into_iter().map(|blob| blob.digest).collect();
        self.staging.keep_blobs(&|name| named.iter().any(|digest| digest.hex() == name))?;
        self.staging.publish(&self.json(&index)?)?;
        Bundle::inspect(self.staging.target()).map_err(PackError::ReadBack)
    }

    /// Notes a part as done. Its blob is durable.
    fn record(&mut self, part: Part, blob: StagedBlob) -> Result<(), PackError> {
        self.state.parts.insert(part, blob);
        self.staging.save(&self.state)
    }

    /// A hard link to the very file that the bundle has mapped, or `None` where there can be none.
    fn link(&self, stored: &MappedBlob) -> Result<Option<StagedBlob>, PackError> {
        let path = self.staging.unfinished();
        if fs::hard_link(stored.path(), &path).is_err() {
            return Ok(None);
        }
        let file = File::open(&path).map_err(io_error(&path))?;
        // The bundle's folder may have been replaced since it was opened.
        if !stored.is(&file) {
            fs::remove_file(&path).map_err(io_error(&path))?;
            return Ok(None);
        }
        let digest = stored.digest().clone();
        name_durably(&file, &path, &digest)?;
        Ok(Some(StagedBlob { digest, size: stored.bytes().len() as u64 }))
    }

    /// Writes config, manifest and tokenizer and checks them against each other as a reader does.
    fn assemble(&self, config: &BundleConfig, source: &dyn ModelSource) -> Result<Assembled, PackError> {
        check_tokenizer(source)?;
        let mut layers = Vec::new();
        for part in config.parts() {
            let blob = self.state.parts.get(&part).ok_or(PackError::NoPart { part })?;
            layers.push(descriptor(oci::WEIGHTS_TYPE, &part.title(), blob.clone()));
        }
        let tokenizer = source.tokenizer_json().as_bytes();
        layers.push(self.small_blob(oci::TOKENIZER_TYPE, "tokenizer.json", tokenizer)?);
        let tokenizer_config = self.json(source.tokenizer_config())?;
        layers.push(self.small_blob(
            oci::TOKENIZER_CONFIG_TYPE,
            "tokenizer_config.json",
            &tokenizer_config,
        )?);
        layers.extend(self.documents.values().cloned());
        let config_json = self.json(config)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: oci::MANIFEST_TYPE.to_owned(),
            artifact_type: oci::ARTIFACT_TYPE.to_owned(),
            config: self.small_blob(oci::CONFIG_TYPE, "config.json", &config_json)?,
            layers,
            annotations: annotations(config),
        };
        let manifest_json = self.json(&manifest)?;
        let mut entry = self.small_blob(oci::MANIFEST_TYPE, "manifest.json", &manifest_json)?;
        entry.artifact_type = Some(oci::ARTIFACT_TYPE.to_owned());
        entry.annotations = [(oci::REF_NAME.to_owned(), "latest".to_owned())].into();
        let info = Manifest::parse(&manifest_json)
            .and_then(|manifest| folder::join(entry.clone(), &manifest, &config_json))
            .map_err(PackError::ReadBack)?;
        let index =
            Index { schema_version: 2, media_type: oci::INDEX_TYPE.to_owned(), manifests: vec![entry] };
        Ok(Assembled { index, manifest, info })
    }

    fn small_blob(&self, media_type: &str, title: &str, bytes: &[u8]) -> Result<Descriptor, PackError> {
        let mut blob = self.staging.blob()?;
        blob.write(bytes)?;
        Ok(descriptor(media_type, title, blob.finish()?))
    }

    fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, PackError> {
        serde_json::to_vec(value).map_err(|error| io_error(self.staging.bundle())(error.into()))
    }
}

fn descriptor(media_type: &str, title: &str, StagedBlob { digest, size }: StagedBlob) -> Descriptor {
    let annotations = [(oci::TITLE.to_owned(), title.to_owned())].into();
    Descriptor { media_type: media_type.to_owned(), artifact_type: None, digest, size, annotations }
}

/// What generic OCI tools show of the model. No dates: the same model has the same digest whenever it is packed.
fn annotations(config: &BundleConfig) -> BTreeMap<String, String> {
    let annotations = [
        (oci::TITLE, config.name.clone()),
        ("org.opencontainers.image.description", config.source.clone()),
        ("vnd.rookery.model.architecture", config.model.architecture.to_string()),
        ("vnd.rookery.model.parameters", config.parameters.to_string()),
        ("vnd.rookery.model.recipe", config.recipe.clone()),
    ];
    annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
