//! A GGUF file without regard to what model it holds: header, metadata, tensor table, rows of tensors.
//!
//! Version 3, little-endian: magic, version, two counts, metadata, tensor infos, padding to the alignment,
//! data.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::reader::Reader;
use super::value::{Metadata, read_metadata};
use crate::dequant::StorageType;
use crate::source::bytes::Bytes;
use crate::source::rows::StoredMatrix;
use crate::source::{ImportError, TensorFault};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u64 = 4;
const PLACE: &str = "gguf header";

/// An open GGUF file whose tensor table has been checked: each tensor lies inside the file, is aligned,
/// overlaps no other and has a shape that fits its bytes. Values are checked as they are read.
#[derive(Debug)]
pub struct GgufFile {
    bytes: Bytes,
    metadata: Metadata,
    tensors: BTreeMap<String, GgufTensor>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Dimensions, rows first and columns last: the reverse of the file's order.
    pub shape: Vec<u64>,
    /// All dimensions but the last, multiplied.
    pub rows: usize,
    /// The last dimension.
    pub columns: usize,
    /// How values are stored.
    pub storage: StorageType,
    /// First byte in the data section.
    offset: u64,
    byte_len: u64,
    /// First byte in the file.
    file_offset: u64,
}

impl GgufFile {
    /// Reads and checks header and tensor table of a file.
    ///
    /// # Errors
    /// The part of the file, key or tensor at fault.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        Self::read(Bytes::open(path)?)
    }

    /// The same for a file in memory.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImportError> {
        Self::read(Bytes::memory(bytes))
    }

    fn read(bytes: Bytes) -> Result<Self, ImportError> {
        let mut reader = Reader::new(&bytes);
        check_magic_and_version(&mut reader)?;
        // A tensor info takes at least an empty name, one dimension, type and offset; a key an empty name and
        // one byte.
        let tensor_count = reader.count(8 + 4 + 8 + 4 + 8, "gguf header, tensor count")?;
        let key_count = reader.count(8 + 4 + 1, "gguf header, metadata count")?;
        let metadata = read_metadata(&mut reader, key_count)?;
        let alignment = alignment(&metadata)?;
        let mut infos = Vec::new();
        for index in 0..tensor_count {
            infos.push(read_info(&mut reader, index)?);
        }
        let data_start = reader.position().next_multiple_of(alignment);
        let data_len = bytes.len().saturating_sub(data_start);
        for (name, tensor) in &mut infos {
            place(tensor, alignment, data_start, data_len)
                .map_err(|fault| ImportError::tensor(&*name, fault))?;
        }
        check_overlap(&infos)?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in infos {
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(ImportError::tensor(name, TensorFault::Duplicate));
            }
        }
        Ok(Self { bytes, metadata, tensors })
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// One tensor, if the file has it.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// Appends rows of a tensor to `out` as f32.
    ///
    /// # Errors
    /// No such tensor, a failing read, or a value that is not finite.
    ///
    /// # Panics
    /// If `rows` reaches past the tensor's rows.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ImportError> {
        let tensor = self.tensor(name).ok_or_else(|| ImportError::tensor(name, TensorFault::Missing))?;
        let matrix = StoredMatrix {
            storage: tensor.storage,
            rows: tensor.rows,
            columns: tensor.columns,
            offset: tensor.file_offset,
        };
        matrix.read(&self.bytes, name, rows, out)
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

fn check_magic_and_version(reader: &mut Reader<'_>) -> Result<(), ImportError> {
    let magic: [u8; 4] = reader.array(PLACE)?;
    if magic != MAGIC {
        let fault = format!("starts with {:?}, not with \"GGUF\"", String::from_utf8_lossy(&magic));
        return Err(ImportError::malformed(PLACE, fault));
    }
    let version = reader.u32(PLACE)?;
    if version == VERSION.swap_bytes() {
        return Err(ImportError::unsupported("a big-endian GGUF file", "convert it to little-endian"));
    }
    if version != VERSION {
        let hint = format!("version {VERSION} is; convert the model again with a current tool");
        return Err(ImportError::unsupported(format!("GGUF version {version}"), hint));
    }
    Ok(())
}

fn alignment(metadata: &Metadata) -> Result<u64, ImportError> {
    let key = "general.alignment";
    let alignment = metadata.count(key)?.map_or(DEFAULT_ALIGNMENT, |alignment| alignment as u64);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(ImportError::key(key, format!("is {alignment}, not a power of two up to 1048576")));
    }
    Ok(alignment)
}

/// Reads a tensor info and checks all that does not depend on the rest of the file.
fn read_info(reader: &mut Reader<'_>, index: usize) -> Result<(String, GgufTensor), ImportError> {
    let name = reader.string(&format!("name of tensor {index}"))?;
    let place = format!("tensor {name:?}");
    let dimensions = reader.u32(&place)?;
    let found = u64::from(dimensions);
    if found == 0 || found > MAX_DIMENSIONS {
        return Err(ImportError::tensor(name, TensorFault::DimensionCount { found, max: MAX_DIMENSIONS }));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(reader.u64(&place)?);
    }
    shape.reverse();
    let storage = reader.u32(&place)?;
    let offset = reader.u64(&place)?;
    match describe(shape, storage, offset) {
        Ok(tensor) => Ok((name, tensor)),
        Err(fault) => Err(ImportError::tensor(name, fault)),
    }
}

fn describe(shape: Vec<u64>, storage: u32, offset: u64) -> Result<GgufTensor, TensorFault> {
    let supported = StorageType::SUPPORTED;
    let storage = StorageType::from_gguf(storage)
        .ok_or_else(|| TensorFault::StorageType { found: storage_name(storage), supported })?;
    if shape.contains(&0) {
        return Err(TensorFault::ZeroDimension { shape });
    }
    let overflow = || TensorFault::Overflow { shape: shape.clone() };
    // `read_info` has made sure of at least one dimension.
    let (columns, leading) = shape.split_last().ok_or_else(overflow)?;
    let rows = leading.iter().try_fold(1_u64, |product, &n| product.checked_mul(n)).ok_or_else(overflow)?;
    let block = storage.block_values() as u64;
    if !columns.is_multiple_of(block) {
        return Err(TensorFault::PartialBlock { columns: *columns, block, storage: storage.name() });
    }
    // Values are at most four bytes, so a product below 2⁶¹ bounds every size derived from the shape.
    let values = rows.checked_mul(*columns).filter(|&n| n < 1 << 61).ok_or_else(overflow)?;
    let byte_len = values / block * storage.block_bytes() as u64;
    let fit = |n: u64| usize::try_from(n).map_err(|_| overflow());
    let (rows, columns) = (fit(rows)?, fit(*columns)?);
    Ok(GgufTensor { shape, rows, columns, storage, offset, byte_len, file_offset: 0 })
}

/// Checks a tensor's place in the data section and notes its place in the file.
fn place(
    tensor: &mut GgufTensor,
    alignment: u64,
    data_start: u64,
    available: u64,
) -> Result<(), TensorFault> {
    let start = tensor.offset;
    if !start.is_multiple_of(alignment) {
        return Err(TensorFault::Misaligned { offset: start, alignment });
    }
    let end = start.saturating_add(tensor.byte_len);
    if end > available {
        return Err(TensorFault::OutOfBounds { start, end, available });
    }
    tensor.file_offset = data_start + start;
    Ok(())
}

fn check_overlap(infos: &[(String, GgufTensor)]) -> Result<(), ImportError> {
    let mut ordered: Vec<_> = infos.iter().collect();
    ordered.sort_by_key(|(_, tensor)| tensor.offset);
    for pair in ordered.windows(2) {
        let ((first, before), (second, after)) = (pair[0], pair[1]);
        if before.offset + before.byte_len > after.offset {
            return Err(ImportError::tensor(second, TensorFault::Overlap { other: first.clone() }));
        }
    }
    Ok(())
}

/// Name of a type that is not read, so that people know what to convert.
fn storage_name(number: u32) -> String {
    const NAMES: [(u32, &str); 22] = [
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (9, "Q8_1"),
        (40, "NVFP4"),
    ];
    let known = NAMES.iter().find(|(other, _)| *other == number);
    known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
}
