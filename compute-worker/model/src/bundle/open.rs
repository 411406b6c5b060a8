//! From verified files to typed views.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::blob::{LocatedSegment, locate};
use super::config::{BundleConfig, Precision};
use super::digest::Digest;
use super::error::BundleError;
use super::folder::Folder;
use super::layout::Role;
use super::mapped_blob::MappedBlob;
use super::oci::{DOCUMENT_TYPES, Descriptor, TOKENIZER_CONFIG_TYPE, TOKENIZER_TYPE};
use super::weights::{LinearWeights, Parts, Segment, Vector};
use super::{Bundle, BundleInfo};
use crate::mapping::Mapping;

/// A weight blob that is mapped and whose header fits the config.
struct MappedPart<'a> {
    title: String,
    map: Arc<Mapping>,
    segments: Vec<LocatedSegment<'a>>,
}

/// Maps verified files, checks headers and values, and makes the table of tensors.
pub(super) fn map(folder: Folder, files: &BTreeMap<Digest, File>) -> Result<Bundle, BundleError> {
    let mut blobs = BTreeMap::new();
    for (digest, file) in files {
        let path = folder.path.join(digest.path());
        let blob = MappedBlob::new(digest.clone(), path.clone(), file)
            .map_err(|source| BundleError::Io { path, source })?;
        blobs.insert(digest, blob);
    }
    let blob_of = |layer: Option<&Descriptor>| -> &MappedBlob {
        let layer = layer.expect("reading the folder made sure that this layer is listed");
        blobs.get(&layer.digest).expect("opening the layers left out none")
    };
    let config: &BundleConfig = &folder.info.config;
    let (mut parts, mut part_blobs) = (Vec::new(), HashMap::new());
    for part in config.parts() {
        let blob = blob_of(folder.manifest.weights(part));
        let segments = locate(config, part, blob.bytes())?;
        parts.push(MappedPart { title: part.title(), map: blob.map(), segments });
        part_blobs.insert(part, blob.clone());
    }
    check_values(&parts)?;
    let tokenizer = blob_of(folder.manifest.layer_of_type(TOKENIZER_TYPE)).map();
    let tokenizer_config = blob_of(folder.manifest.layer_of_type(TOKENIZER_CONFIG_TYPE)).map();
    let document = |media_type: &str| {
        let layer = folder.manifest.document(media_type)?;
        Some((media_type.to_owned(), blob_of(Some(layer)).map()))
    };
    let documents = DOCUMENT_TYPES.into_iter().filter_map(document).collect();
    let (mut matrices, mut vectors) = (HashMap::new(), HashMap::new());
    for (part, segment) in
        parts.iter().flat_map(|part| part.segments.iter().map(move |segment| (part, segment)))
    {
        let (name, rows, cols) = (segment.entry.name, segment.entry.rows, segment.entry.cols);
        let map = Arc::clone(&part.map);
        if segment.precision() == Precision::F32 {
            vectors.insert(name, Vector { map, values: segment.range(Role::Values) });
        } else {
            let matrix =
                matrices.entry(name).or_insert_with(|| LinearWeights { rows, cols, segments: Vec::new() });
            matrix.segments.push(typed_segment(segment, map));
        }
    }
    drop(parts);
    let info: BundleInfo = folder.info;
    Ok(Bundle { info, matrices, vectors, parts: part_blobs, documents, tokenizer, tokenizer_config })
}

fn typed_segment(segment: &LocatedSegment<'_>, map: Arc<Mapping>) -> Segment {
    let entry = segment.entry.segments[segment.index];
    Segment {
        first_row: entry.first_row,
        rows: entry.rows,
        cols: segment.entry.cols,
        precision: entry.precision,
        map,
        moved: None,
        parts: Parts {
            tiles: segment.range(Role::Tiles),
            scales: segment.range(Role::Scales),
            row_sums: segment.range(Role::RowSums),
            multipliers: segment.range(Role::Multipliers),
        },
    }
}

/// Checks all values on all cores; reports the first fault in the order of the forward pass.
fn check_values(parts: &[MappedPart<'_>]) -> Result<(), BundleError> {
    let jobs: Vec<_> =
        parts.iter().flat_map(|part| part.segments.iter().map(move |segment| (part, segment))).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some((part, segment)) = jobs.get(job) else { break };
            if let Err(error) = segment.check_values(&part.title, part.map.bytes()) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).insert(job, error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner).pop_first() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}
