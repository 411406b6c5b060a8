//! Weight blobs: safetensors headers checked against the config, and the values behind them.

use std::collections::HashMap;
use std::ops::Range;

use safetensors::SafeTensors;

use super::config::{BundleConfig, Precision, TensorEntry};
use super::error::BundleError;
use super::layout::{PAGE, Part, Role, StoredTensor, stored_tensors};
use super::values;

/// Largest safetensors header; 14 tensors in 128 segments of 4 tensors each take about 1 MB.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// A stored tensor and where it lies in its file.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) stored: StoredTensor,
    pub(crate) range: Range<usize>,
}

/// A segment of a model tensor and where its parts lie in the file.
#[derive(Clone, Debug)]
pub(crate) struct LocatedSegment<'a> {
    pub(crate) entry: &'a TensorEntry,
    pub(crate) index: usize,
    pub(crate) parts: Vec<Located>,
}

impl LocatedSegment<'_> {
    /// Byte range of the part with this role; empty if the precision has none.
    pub(crate) fn range(&self, role: Role) -> Range<usize> {
        self.parts.iter().find(|part| part.stored.role == role).map_or(0..0, |part| part.range.clone())
    }

    pub(crate) fn precision(&self) -> Precision {
        self.entry.segments[self.index].precision
    }

    /// Checks the values: finite, in range, sums and padding as a packer writes them.
    ///
    /// # Errors
    /// [`BundleError::Tensor`] naming the stored tensor, the row and the value.
    pub(crate) fn check_values(&self, title: &str, bytes: &[u8]) -> Result<(), BundleError> {
        values::check(self, bytes).map_err(|(role, fault)| {
            let part = self.parts.iter().find(|part| part.stored.role == role);
            let tensor = part.map_or_else(|| self.entry.name.to_string(), |part| part.stored.name.clone());
            BundleError::Tensor { title: title.to_owned(), tensor, fault }
        })
    }
}

/// Checks the header of a part's blob: exactly the tensors that the config says, with their types, shapes and
/// alignment. Gives the segments in the order of the forward pass.
///
/// # Errors
/// [`BundleError::Blob`] or [`BundleError::Tensor`] with the title of the part.
pub(crate) fn locate<'a>(
    config: &'a BundleConfig,
    part: Part,
    bytes: &[u8],
) -> Result<Vec<LocatedSegment<'a>>, BundleError> {
    let title = part.title();
    let (data_start, header) = read_header(&title, bytes)?;
    let mut segments = Vec::new();
    let mut expected = 0;
    for entry in config.tensors.iter().filter(|entry| Part::of(entry.name, config.model.tied_head) == part) {
        let mut by_segment: Vec<Vec<Located>> = entry.segments.iter().map(|_| Vec::new()).collect();
        for stored in stored_tensors(entry) {
            expected += 1;
            let segment = stored.segment;
            by_segment[segment].push(locate_tensor(&title, &header, data_start, stored)?);
        }
        let located = |(index, parts)| LocatedSegment { entry, index, parts };
        segments.extend(by_segment.into_iter().enumerate().map(located));
    }
    // All expected names are there, so a different count means extra ones.
    if header.len() != expected {
        let fault = format!("holds {} tensors, {expected} belong to it", header.len());
        return Err(BundleError::Blob { title, fault });
    }
    Ok(segments)
}

/// Checks one weight blob in memory, header and values, without its digest. Opening a bundle does the same behind
/// the digest check.
///
/// # Errors
/// [`BundleError::Blob`] or [`BundleError::Tensor`] with the title of the part.
pub fn check_weight_blob(config: &BundleConfig, part: Part, bytes: &[u8]) -> Result<(), BundleError> {
    let title = part.title();
    locate(config, part, bytes)?.iter().try_for_each(|segment| segment.check_values(&title, bytes))
}

type Header = HashMap<String, (safetensors::Dtype, Vec<usize>, Range<usize>)>;

/// Offset of the data and the tensors by name. The safetensors crate checks that ranges follow each other without
/// holes, fill the file and fit type and shape.
fn read_header(title: &str, bytes: &[u8]) -> Result<(usize, Header), BundleError> {
    let fault = |fault: String| BundleError::Blob { title: title.to_owned(), fault };
    let Some((length, _)) = bytes.split_first_chunk::<8>() else {
        return Err(fault(format!("{} bytes are too few for a safetensors header", bytes.len())));
    };
    // Bounded before parsing: the parser's memory grows with the header.
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(fault(format!(
            "safetensors header of {length} bytes exceeds the limit of {MAX_HEADER_BYTES}"
        )));
    }
    let (length, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| fault(format!("safetensors header: {error}")))?;
    let data_start = 8 + length;
    if !data_start.is_multiple_of(PAGE) {
        return Err(fault(format!("data starts at byte {data_start}, not at a multiple of {PAGE}")));
    }
    let tensor = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        (name, (info.dtype, info.shape.clone(), info.data_offsets.0..info.data_offsets.1))
    };
    Ok((data_start, metadata.tensors().into_iter().map(tensor).collect()))
}

fn locate_tensor(
    title: &str,
    header: &Header,
    data_start: usize,
    stored: StoredTensor,
) -> Result<Located, BundleError> {
    let fault =
        |fault: String| BundleError::Tensor { title: title.to_owned(), tensor: stored.name.clone(), fault };
    let Some((dtype, shape, offsets)) = header.get(&stored.name) else {
        return Err(fault("is missing".to_owned()));
    };
    if (dtype, shape) != (&stored.dtype, &stored.shape) {
        return Err(fault(format!("is {dtype} {shape:?} instead of {} {:?}", stored.dtype, stored.shape)));
    }
    let range = data_start + offsets.start..data_start + offsets.end;
    // Tiles go to kernels and hardware in whole cache lines; f32 and int32 are read in place.
    let alignment = match stored.role {
        Role::Tiles => 64,
        Role::Scales | Role::RowSums | Role::Values => 4,
        Role::Multipliers => 1,
    };
    if !range.start.is_multiple_of(alignment) {
        return Err(fault(format!("starts at byte {}, not at a multiple of {alignment}", range.start)));
    }
    Ok(Located { stored, range })
}
