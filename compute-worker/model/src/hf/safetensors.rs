//! Header of a safetensors file: a length, a JSON object, then the data it points into.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::json::{Fields, parse};
use crate::dequant::StorageType;
use crate::source::bytes::Bytes;
use crate::source::rows::StoredMatrix;
use crate::source::{ImportError, TensorFault};

/// The bound of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// An open file whose header has been checked: each tensor lies inside it and overlaps no other.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    bytes: Bytes,
    tensors: BTreeMap<String, Tensor>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    /// Dimensions, rows first.
    pub(super) shape: Vec<u64>,
    /// Name of the type as the file spells it.
    pub(super) dtype: String,
    /// `None` for a type that is not read; such a tensor must not be needed.
    pub(super) storage: Option<StorageType>,
    /// First byte in the file.
    offset: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl SafetensorsFile {
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        Self::read(Bytes::open(path)?)
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImportError> {
        Self::read(Bytes::memory(bytes))
    }

    fn read(bytes: Bytes) -> Result<Self, ImportError> {
        let place = format!("safetensors header of {}", bytes.path().display());
        let (text, data_start) = header_text(&bytes, &place)?;
        let Fields(entries) = parse::<Fields<Value>>(&place, &text)?;
        let available = bytes.len() - data_start;
        let mut tensors = BTreeMap::new();
        let mut ranges = Vec::new();
        for (name, value) in entries {
            if name == "__metadata__" {
                continue;
            }
            let entry: Entry = serde_json::from_value(value).map_err(|error| {
                ImportError::malformed(format!("{place}, tensor {name:?}"), error.to_string())
            })?;
            let range = entry.data_offsets;
            let tensor = describe(entry, data_start, available)
                .map_err(|fault| ImportError::tensor(name.clone(), fault))?;
            ranges.push((range, name.clone()));
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(ImportError::tensor(name, TensorFault::Duplicate));
            }
        }
        check_overlap(ranges)?;
        Ok(Self { bytes, tensors })
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Appends rows of a tensor, seen as `(rows, columns)` of `shape`, to `out`.
    pub(super) fn read_rows(
        &self,
        name: &str,
        shape: (usize, usize),
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), ImportError> {
        let missing = || ImportError::tensor(name, TensorFault::Missing);
        let tensor = self.tensor(name).ok_or_else(missing)?;
        let storage = tensor.storage.ok_or_else(|| ImportError::tensor(name, tensor.bad_storage()))?;
        let matrix = StoredMatrix { storage, rows: shape.0, columns: shape.1, offset: tensor.offset };
        matrix.read(&self.bytes, name, rows, out)
    }

    pub(super) fn path(&self) -> &Path {
        self.bytes.path()
    }
}

impl Tensor {
    pub(super) fn bad_storage(&self) -> TensorFault {
        TensorFault::StorageType { found: self.dtype.clone(), supported: "F32, F16, BF16" }
    }
}

/// The JSON text and where the data section starts.
fn header_text(bytes: &Bytes, place: &str) -> Result<(String, u64), ImportError> {
    if bytes.len() < 8 {
        return Err(ImportError::malformed(
            place,
            format!("the file has {} bytes, fewer than 8", bytes.len()),
        ));
    }
    let mut prefix = [0; 8];
    bytes.read_at(0, &mut prefix)?;
    let len = u64::from_le_bytes(prefix);
    let room = bytes.len() - 8;
    if len > room.min(MAX_HEADER) {
        let fault = format!("claims {len} bytes where the file has {room} and the limit is {MAX_HEADER}");
        return Err(ImportError::malformed(place, fault));
    }
    // Lossless: at most MAX_HEADER.
    let mut text = vec![0; len as usize];
    bytes.read_at(8, &mut text)?;
    let text = String::from_utf8(text).map_err(|_| ImportError::malformed(place, "not UTF-8"))?;
    Ok((text, 8 + len))
}

fn describe(entry: Entry, data_start: u64, available: u64) -> Result<Tensor, TensorFault> {
    let Entry { dtype, shape, data_offsets: (start, end) } = entry;
    if start > end || end > available {
        return Err(TensorFault::OutOfBounds { start, end, available });
    }
    let storage = match dtype.as_str() {
        "F32" => Some(StorageType::F32),
        "F16" => Some(StorageType::F16),
        "BF16" => Some(StorageType::BF16),
        _ => None,
    };
    if let Some(storage) = storage {
        if shape.contains(&0) {
            return Err(TensorFault::ZeroDimension { shape });
        }
        let size = storage.block_bytes() as u64;
        let expected = shape.iter().try_fold(size, |product, &n| product.checked_mul(n));
        let Some(expected) = expected else { return Err(TensorFault::Overflow { shape }) };
        if end - start != expected {
            return Err(TensorFault::ByteLength { found: end - start, expected });
        }
    }
    Ok(Tensor { shape, dtype, storage, offset: data_start + start })
}

fn check_overlap(mut ranges: Vec<((u64, u64), String)>) -> Result<(), ImportError> {
    ranges.sort();
    for pair in ranges.windows(2) {
        let ((before, first), (after, second)) = (&pair[0], &pair[1]);
        if before.1 > after.0 {
            return Err(ImportError::tensor(second, TensorFault::Overlap { other: first.clone() }));
        }
    }
    Ok(())
}
