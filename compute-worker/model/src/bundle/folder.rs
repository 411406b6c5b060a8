//! A bundle on disk: reading its documents and verifying its blobs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::blob::locate;
use super::config::BundleConfig;
use super::digest::Digest;
use super::error::BundleError;
use super::info::{BlobInfo, BundleInfo};
use super::layout::Part;
use super::oci::{self, Descriptor, Index, Manifest, WEIGHTS_TYPE};
use super::progress::Progress;
use super::{Bundle, open};
use crate::mapping::Mapping;

/// Bytes a hashing thread reads at a time: large enough to keep the disk busy, small enough to stay in cache.
const READ_BYTES: usize = 256 << 10;

/// The documents of a bundle, checked against each other. No weight has been read.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) manifest: Manifest,
    pub(crate) info: BundleInfo,
}

impl Folder {
    /// Reads layout marker, index, manifest and config.
    ///
    /// # Errors
    /// [`BundleError`] naming the document at fault.
    pub(crate) fn read(path: &Path) -> Result<Self, BundleError> {
        let index = Self::read_index(path)?;
        let descriptor = Index::parse(&index)?;
        let manifest = Manifest::parse(&read_blob(path, &descriptor, "manifest")?)?;
        let config = read_blob(path, &manifest.config, "config")?;
        let info = join(descriptor, &manifest, &config)?;
        Ok(Self { path: path.to_owned(), manifest, info })
    }

    fn read_index(path: &Path) -> Result<Vec<u8>, BundleError> {
        let not_a_bundle =
            |fault: &str| BundleError::NotABundle { path: path.to_owned(), fault: fault.to_owned() };
        if !path.is_dir() {
            return Err(not_a_bundle(if path.exists() { "it is no folder" } else { "it does not exist" }));
        }
        if !path.join(oci::LAYOUT_FILE).is_file() {
            return Err(not_a_bundle("it has no oci-layout file"));
        }
        let index = path.join(oci::INDEX_FILE);
        if !index.is_file() {
            return Err(BundleError::Unfinished { path: path.to_owned() });
        }
        let io = |source| BundleError::Io { path: index.clone(), source };
        let mut bytes = Vec::new();
        let file = File::open(&index).map_err(io)?;
        file.take(oci::MAX_INDEX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > oci::MAX_INDEX_BYTES {
            let fault = format!("has more than {} bytes", oci::MAX_INDEX_BYTES);
            return Err(BundleError::Document { document: oci::INDEX_FILE, fault });
        }
        Ok(bytes)
    }

    /// Hashes every layer, on all cores, and returns the open files by digest. What is mapped later is the very
    /// file that was hashed, whatever happens to its name in between.
    ///
    /// # Errors
    /// [`BundleError`] for the first faulty layer in manifest order; missing and cut-off files come before any hashing.
    pub(crate) fn verify(&self, progress: &dyn Progress) -> Result<BTreeMap<Digest, File>, BundleError> {
        let files = self.open_layers()?;
        // Largest first: the last to finish is then a small one.
        let mut order: Vec<_> = files.values().collect();
        order.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        progress.start("verifying", order.iter().map(|(layer, _)| layer.size).sum());
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || {
            let mut buffer = vec![0; READ_BYTES];
            while let Some((layer, file)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = verify_blob(&self.path, layer, file, &mut buffer, progress) {
                    let place = self.manifest.layers.iter().position(|other| other.digest == layer.digest);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).insert(place, error);
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(order.len());
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        if let Some((_, error)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner).pop_first() {
            return Err(error);
        }
        progress.finish();
        Ok(files.into_iter().map(|(digest, (_, file))| (digest, file)).collect())
    }

    /// Maps the layers without hashing them: for what this very program has written. Headers and values are checked.
    ///
    /// # Errors
    /// [`BundleError`] naming the file or tensor at fault.
    pub(crate) fn map_unverified(self) -> Result<Bundle, BundleError> {
        let files = self.open_layers()?.into_iter().map(|(digest, (_, file))| (digest, file)).collect();
        open::map(self, &files)
    }

    /// Checks the headers of the weight layers against the config, and nothing else of them.
    ///
    /// # Errors
    /// [`BundleError`] naming the file or tensor at fault.
    pub(crate) fn check_headers(&self) -> Result<(), BundleError> {
        let config = &self.info.config;
        for part in config.parts() {
            let layer =
                self.manifest.weights(part).expect("config and manifest were checked against each other");
            let file = open_blob(&self.path, layer, layer.title())?;
            let io = |source| BundleError::Io { path: self.path.join(layer.digest.path()), source };
            locate(config, part, Mapping::new(&file).map_err(io)?.bytes())?;
        }
        Ok(())
    }

    /// Reads an optional document.
    ///
    /// # Errors
    /// [`BundleError`] if its file is missing, cut off or corrupt.
    pub(crate) fn document(&self, media_type: &str) -> Result<Option<Vec<u8>>, BundleError> {
        let layer = self.manifest.document(media_type);
        layer.map(|layer| read_blob(&self.path, layer, layer.title())).transpose()
    }

    /// Opens every layer's file, each content once, after checking its size.
    fn open_layers(&self) -> Result<BTreeMap<Digest, (&Descriptor, File)>, BundleError> {
        let mut files = BTreeMap::new();
        for layer in &self.manifest.layers {
            if !files.contains_key(&layer.digest) {
                files.insert(layer.digest.clone(), (layer, open_blob(&self.path, layer, layer.title())?));
            }
        }
        Ok(files)
    }
}

/// Parses the config and checks it against the manifest.
pub(crate) fn join(
    descriptor: Descriptor,
    manifest: &Manifest,
    config: &[u8],
) -> Result<BundleInfo, BundleError> {
    let config = BundleConfig::parse(config)?;
    check_layers(manifest, &config)?;
    Ok(describe(descriptor, manifest, config))
}

/// Every part of the model has one weight layer of its title, and there are no others.
fn check_layers(manifest: &Manifest, config: &BundleConfig) -> Result<(), BundleError> {
    let fault = |fault: String| Err(BundleError::Document { document: "manifest", fault });
    let mut titles: BTreeMap<&str, usize> = BTreeMap::new();
    for layer in manifest.layers.iter().filter(|layer| layer.media_type == WEIGHTS_TYPE) {
        *titles.entry(layer.title()).or_default() += 1;
    }
    for part in config.parts() {
        match titles.remove(part.title().as_str()) {
            Some(1) => {}
            Some(count) => return fault(format!("lists {count} layers with the title {}", part.title())),
            None => return fault(format!("lacks the layer {}", part.title())),
        }
    }
    match titles.into_keys().next() {
        Some(title) => fault(format!("lists the weight layer {title:?}, which the model has no use for")),
        None => Ok(()),
    }
}

impl Manifest {
    /// The layer of a part; [`check_layers`] made sure of it.
    pub(crate) fn weights(&self, part: Part) -> Option<&Descriptor> {
        let title = part.title();
        self.layers.iter().find(|layer| layer.media_type == WEIGHTS_TYPE && layer.title() == title)
    }
}

/// What a manifest names: config first, then layers in order.
pub(crate) fn blobs(manifest: &Manifest) -> Vec<BlobInfo> {
    let blob = |descriptor: &Descriptor, title: &str| BlobInfo {
        title: title.to_owned(),
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        size: descriptor.size,
    };
    let config_blob = std::iter::once(blob(&manifest.config, "config.json"));
    config_blob.chain(manifest.layers.iter().map(|layer| blob(layer, layer.title()))).collect()
}

fn describe(manifest_descriptor: Descriptor, manifest: &Manifest, config: BundleConfig) -> BundleInfo {
    let blobs = blobs(manifest);
    let unique: BTreeMap<_, _> = blobs.iter().map(|blob| (&blob.digest, blob)).collect();
    // Saturating: sizes are claims until the files have been looked at.
    let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    let total_bytes =
        sum(&mut unique.values().map(|blob| blob.size)).saturating_add(manifest_descriptor.size);
    let weights = |blob: &&&BlobInfo| blob.media_type == WEIGHTS_TYPE;
    let weight_bytes = sum(&mut unique.values().filter(weights).map(|blob| blob.size));
    BundleInfo {
        digest: manifest_descriptor.digest,
        manifest_size: manifest_descriptor.size,
        bits_per_weight: weight_bytes as f64 * 8.0 / config.model.parameters() as f64,
        config,
        total_bytes,
        weight_bytes,
        blobs,
    }
}

/// Opens a blob whose file has the size the descriptor says.
fn open_blob(root: &Path, descriptor: &Descriptor, title: &str) -> Result<File, BundleError> {
    let path = root.join(descriptor.digest.path());
    let (title, digest) = (title.to_owned(), descriptor.digest.to_string());
    let metadata = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BundleError::BlobMissing { title, digest });
        }
        Err(source) => return Err(BundleError::Io { path, source }),
        Ok(metadata) => metadata,
    };
    // Before opening: to open a pipe is to wait for its writer.
    if !metadata.is_file() {
        return Err(BundleError::Blob { title, fault: format!("{} is no regular file", path.display()) });
    }
    if metadata.len() != descriptor.size {
        return Err(BundleError::BlobSize {
            title,
            digest,
            found: metadata.len(),
            expected: descriptor.size,
        });
    }
    File::open(&path).map_err(|source| BundleError::Io { path, source })
}

/// Reads a small blob whole and checks its digest. Its descriptor's size has been checked against a limit.
fn read_blob(root: &Path, descriptor: &Descriptor, title: &str) -> Result<Vec<u8>, BundleError> {
    let file = open_blob(root, descriptor, title)?;
    let mut bytes = Vec::new();
    let io = |source| BundleError::Io { path: root.join(descriptor.digest.path()), source };
    file.take(descriptor.size).read_to_end(&mut bytes).map_err(io)?;
    check_digest(descriptor, title, Digest::of(&bytes))?;
    Ok(bytes)
}

fn verify_blob(
    root: &Path,
    layer: &Descriptor,
    mut file: &File,
    buffer: &mut [u8],
    progress: &dyn Progress,
) -> Result<(), BundleError> {
    let io = |source| BundleError::Io { path: root.join(layer.digest.path()), source };
    let mut hasher = Sha256::new();
    loop {
        let read = match file.read(buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io(error)),
        };
        hasher.update(&buffer[..read]);
        progress.advance(read as u64);
    }
    check_digest(layer, layer.title(), Digest::finish(hasher))
}

fn check_digest(descriptor: &Descriptor, title: &str, found: Digest) -> Result<(), BundleError> {
    if found == descriptor.digest {
        return Ok(());
    }
    let (title, digest, found) = (title.to_owned(), descriptor.digest.to_string(), found.to_string());
    Err(BundleError::BlobDigest { title, digest, found })
}
