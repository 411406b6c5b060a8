//! Writes one weight blob: header first (it depends on shapes only), then tensors in file order, tiles computed in
//! row chunks on all threads while the chunks before are hashed and written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rookery_kernels::tiles;
use serde::ser::SerializeMap;

use super::blob_writer::{BlobWriter, StagedBlob};
use super::{Content, PackError, StoredRows, quantize};
use crate::bundle::layout::{GROUP, PAGE, Role, StoredTensor, file_order, stored_tensors};
use crate::bundle::{Precision, Progress, SegmentEntry, TensorEntry};
use crate::source::ModelSource;

/// f32 values that one thread quantises at a time: 4 MiB, so memory stays small however large the tensor.
const CHUNK_VALUES: usize = 1 << 20;
/// Rows of a chunk are a multiple of this, so that chunks consist of whole tiles of either precision.
const CHUNK_ROWS: usize = 64;
/// Chunks that each thread computes between two writes.
const CHUNKS_PER_THREAD: usize = 4;

/// What packing a blob needs.
pub(super) struct BlobPacker<'a> {
    pub(super) source: &'a dyn ModelSource,
    pub(super) threads: usize,
    pub(super) progress: &'a dyn Progress,
}

/// Rows of one segment, quantised.
#[derive(Default)]
struct Chunk {
    tiles: Vec<u8>,
    sides: Sides,
}

/// What is stored beside the tiles, in row order, as bytes.
#[derive(Default)]
struct Sides {
    scales: Vec<u8>,
    row_sums: Vec<u8>,
    multipliers: Vec<u8>,
}

/// Rows that the caller quantised, by segment, until they are written; none if they are to be rounded here.
type Given = Vec<Option<StoredRows>>;

impl BlobPacker<'_> {
    /// Packs the tensors of one part into a blob.
    pub(super) fn pack(
        &self,
        mut blob: BlobWriter,
        entries: &[TensorEntry],
        content: &mut dyn FnMut(&TensorEntry) -> Result<Content, PackError>,
    ) -> Result<StagedBlob, PackError> {
        let mut tensors: Vec<(&TensorEntry, StoredTensor)> = Vec::new();
        for entry in entries {
            tensors.extend(stored_tensors(entry).into_iter().map(|stored| (entry, stored)));
        }
        file_order(&mut tensors, |(_, stored)| stored);
        blob.write(&header(&tensors))?;
        let mut given: HashMap<_, Given> = HashMap::new();
        let mut sides: HashMap<_, Sides> = HashMap::new();
        for (entry, stored) in &tensors {
            let key = (entry.name, stored.segment);
            // File order puts all tiles before anything that is computed along with them.
            let bytes = match stored.role {
                Role::Tiles => {
                    let given = match given.entry(entry.name) {
                        Entry::Occupied(asked) => asked.into_mut(),
                        Entry::Vacant(place) => place.insert(given_rows(entry, content(entry)?)?),
                    };
                    let of_segment = match given.get_mut(stored.segment).and_then(Option::take) {
                        Some(rows) => self.write_rows(&mut blob, &rows)?,
                        None => self.pack_segment(&mut blob, entry, &entry.segments[stored.segment])?,
                    };
                    sides.insert(key, of_segment);
                    continue;
                }
                Role::Scales => std::mem::take(&mut sides.entry(key).or_default().scales),
                Role::RowSums => std::mem::take(&mut sides.entry(key).or_default().row_sums),
                Role::Multipliers => std::mem::take(&mut sides.entry(key).or_default().multipliers),
                Role::Values => self.vector(entry)?,
            };
            assert_eq!(bytes.len(), stored.bytes, "{}: length as in the header", stored.name);
            blob.write(&bytes)?;
            self.progress.advance(bytes.len() as u64);
        }
        blob.finish()
    }

    /// Writes the tiles of a segment that is quantised already; gives what goes beside them.
    fn write_rows(&self, blob: &mut BlobWriter, rows: &StoredRows) -> Result<Sides, PackError> {
        blob.write(rows.tiles())?;
        self.progress.advance(rows.tiles().len() as u64);
        Ok(Sides {
            scales: rows.scales().iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            row_sums: rows.row_sums().iter().flat_map(|sum| sum.to_le_bytes()).collect(),
            multipliers: rows.multipliers().to_vec(),
        })
    }

    fn vector(&self, entry: &TensorEntry) -> Result<Vec<u8>, PackError> {
        let values = self.source.tensor(entry.name)?;
        check_finite(entry, 0, &values)?;
        Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Quantises a segment and writes its tiles; gives what goes beside them.
    fn pack_segment(
        &self,
        blob: &mut BlobWriter,
        entry: &TensorEntry,
        segment: &SegmentEntry,
    ) -> Result<Sides, PackError> {
        let step = (CHUNK_VALUES / entry.cols / CHUNK_ROWS * CHUNK_ROWS).max(CHUNK_ROWS);
        let end = segment.first_row + segment.rows;
        let chunks: Vec<Range<usize>> =
            (segment.first_row..end).step_by(step).map(|first| first..end.min(first + step)).collect();
        let mut sides = Sides::default();
        let mut ready: Vec<Chunk> = Vec::new();
        for batch in chunks.chunks(self.threads * CHUNKS_PER_THREAD).map(Some).chain([None]) {
            // One batch is computed while the one before it is hashed and written.
            let (computed, written) = thread::scope(|scope| {
                let computing = batch.map(|batch| scope.spawn(|| self.quantize_batch(entry, segment, batch)));
                let written =
                    ready.drain(..).try_for_each(|chunk| self.write_chunk(blob, &mut sides, &chunk));
                let computed =
                    computing.map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
                (computed, written)
            });
            written?;
            ready = computed.transpose()?.unwrap_or_default();
        }
        Ok(sides)
    }

    fn write_chunk(&self, blob: &mut BlobWriter, sides: &mut Sides, chunk: &Chunk) -> Result<(), PackError> {
        blob.write(&chunk.tiles)?;
        self.progress.advance(chunk.tiles.len() as u64);
        sides.scales.extend_from_slice(&chunk.sides.scales);
        sides.row_sums.extend_from_slice(&chunk.sides.row_sums);
        sides.multipliers.extend_from_slice(&chunk.sides.multipliers);
        Ok(())
    }

    /// Quantises chunks on all threads; results in order, or the error of the first faulty chunk.
    fn quantize_batch(
        &self,
        entry: &TensorEntry,
        segment: &SegmentEntry,
        chunks: &[Range<usize>],
    ) -> Result<Vec<Chunk>, PackError> {
        let results: Vec<Mutex<Option<Result<Chunk, PackError>>>> =
            chunks.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(rows) = chunks.get(index) else { break };
                let chunk = self.quantize_chunk(entry, segment.precision, rows.clone());
                *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(chunk);
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.threads.min(chunks.len()) {
                scope.spawn(work);
            }
            work();
        });
        let finished = |slot: Mutex<Option<_>>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        results
            .into_iter()
            .map(|slot| finished(slot).expect("every index below the count was worked on"))
            .collect()
    }

    fn quantize_chunk(
        &self,
        entry: &TensorEntry,
        precision: Precision,
        rows: Range<usize>,
    ) -> Result<Chunk, PackError> {
        let weights = self.source.tensor_rows(entry.name, rows.clone())?;
        check_finite(entry, rows.start, &weights)?;
        let (rows, cols) = (rows.len(), entry.cols);
        let mut chunk = Chunk::default();
        let mut values = vec![0i8; rows * cols];
        let groups = cols.div_ceil(GROUP);
        let mut multipliers = vec![0u8; groups];
        for (row, values) in weights.chunks_exact(cols).zip(values.chunks_exact_mut(cols)) {
            let (scale, sum) = if precision == Precision::W4 {
                let quantized = quantize::w4_row(row, values, &mut multipliers);
                chunk.sides.multipliers.extend_from_slice(&multipliers);
                quantized
            } else {
                quantize::w8_row(row, values)
            };
            chunk.sides.scales.extend_from_slice(&scale.to_le_bytes());
            chunk.sides.row_sums.extend_from_slice(&sum.to_le_bytes());
        }
        drop(weights);
        if precision == Precision::W4 {
            chunk.tiles = vec![0; tiles::w4_len(rows, cols)];
            tiles::pack_w4(rows, cols, &values, &mut chunk.tiles);
        } else {
            let mut packed = vec![0; tiles::w8_len(rows, cols)];
            tiles::pack_w8(rows, cols, &values, &mut packed);
            chunk.tiles = packed.into_iter().map(i8::cast_unsigned).collect();
        }
        Ok(chunk)
    }
}

/// The rows that the caller gave for a matrix, which must be what its entry says.
fn given_rows(entry: &TensorEntry, content: Content) -> Result<Given, PackError> {
    let Content::Rows(given) = content else { return Ok(Given::new()) };
    let misfit = |fault: String| Err(PackError::Misfit { tensor: entry.name, fault });
    if given.len() != entry.segments.len() {
        return misfit(format!("{} segments given instead of {}", given.len(), entry.segments.len()));
    }
    for (rows, segment) in given.iter().zip(&entry.segments) {
        let found = (rows.rows(), rows.cols(), rows.precision());
        if found != (segment.rows, entry.cols, segment.precision) {
            return misfit(format!(
                "{rows:?} given for {} x {} at {} from row {}",
                segment.rows, entry.cols, segment.precision, segment.first_row
            ));
        }
        let broken = |scale: &f32| !scale.is_finite() || scale.is_sign_negative();
        if let Some(row) = rows.scales().iter().position(broken) {
            let scale = rows.scales()[row];
            return misfit(format!("scale of row {} is {scale}", segment.first_row + row));
        }
    }
    Ok(given.into_iter().map(Some).collect())
}

fn check_finite(entry: &TensorEntry, first_row: usize, values: &[f32]) -> Result<(), PackError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => {
            let (tensor, row, value) = (entry.name, first_row + at / entry.cols, values[at]);
            Err(PackError::NotFinite { tensor, row, value })
        }
        None => Ok(()),
    }
}

/// A safetensors header padded with spaces so that the data starts on a page.
fn header(tensors: &[(&TensorEntry, StoredTensor)]) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Info<'a> {
        dtype: safetensors::Dtype,
        shape: &'a [usize],
        data_offsets: [usize; 2],
    }
    let mut json = serde_json::Serializer::new(Vec::new());
    let mut write = || -> serde_json::Result<()> {
        let mut map = serde::Serializer::serialize_map(&mut json, Some(tensors.len()))?;
        let mut start = 0;
        for (_, stored) in tensors {
            let end = start + stored.bytes;
            let info = Info { dtype: stored.dtype, shape: &stored.shape, data_offsets: [start, end] };
            map.serialize_entry(&stored.name, &info)?;
            start = end;
        }
        map.end()
    };
    write().expect("strings and integers serialise, and a vector takes all bytes");
    let json = json.into_inner();
    let length = (8 + json.len()).next_multiple_of(PAGE) - 8;
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend_from_slice(&json);
    header.resize(8 + length, b' ');
    header
}
