//! Writes GGUF v3 files: metadata, then tensors whose rows come from the caller piece by piece, so that a file may be much
//! larger than memory. The file appears under its name only when it is whole.
//!
//! Numbers of the metadata are written as the 32-bit types that readers of GGUF expect wherever they fit.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use half::f16;
use thiserror::Error;

use super::value::{Array, Value};
use crate::dequant::StorageType;
use crate::source::ImportError;

/// Data and every tensor in it start at a multiple of this.
const ALIGNMENT: usize = 32;
/// f32 values that are asked for at a time.
const CHUNK_VALUES: usize = 1 << 20;
/// Values of a Q8_0 block.
const Q8_BLOCK: usize = 32;

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// Name in the file.
    pub name: String,
    /// Rows; `None` for a vector.
    pub rows: Option<usize>,
    /// Columns; of a vector its length.
    pub columns: usize,
    /// F32, F16 or Q8_0.
    pub storage: StorageType,
}

/// Why a file could not be written. Nothing is left under its name.
#[derive(Debug, Error)]
pub enum GgufWriteError {
    /// The file system would not.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The caller's rows could not be had.
    #[error("cannot read what is to be written")]
    Rows(#[from] ImportError),
    /// The storage type is one that is read only.
    #[error(
        "tensor {tensor:?} cannot be written as {storage} (F32, F16 and Q8_0 can be written; Q8_0 in rows of whole blocks of 32)"
    )]
    Storage {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        storage: &'static str,
    },
}

/// Gives rows `range` of tensor number `index` as f32, row-major.
pub type Rows<'a> = dyn FnMut(usize, Range<usize>) -> Result<Vec<f32>, ImportError> + 'a;

/// Writes a file.
///
/// # Errors
/// See [`GgufWriteError`].
///
/// # Panics
/// When `rows` gives another number of values than it was asked for.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorPlan],
    rows: &mut Rows<'_>,
) -> Result<(), GgufWriteError> {
    for tensor in tensors {
        tensor.check()?;
    }
    let io = |source| GgufWriteError::Io { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Temporary files are private unless told otherwise; a model is for whom the umask says.
    let permissions = Permissions::from_mode(0o666);
    let file =
        tempfile::Builder::new().prefix(".gguf-").permissions(permissions).tempfile_in(folder).map_err(io)?;
    let mut out = Counted { inner: BufWriter::with_capacity(1 << 20, file.as_file()), written: 0 };
    out.write_all(&header(metadata, tensors)).map_err(io)?;
    for (index, tensor) in tensors.iter().enumerate() {
        out.pad().map_err(io)?;
        let count = tensor.rows.unwrap_or(1);
        let step = (CHUNK_VALUES / tensor.columns).max(1);
        for first in (0..count).step_by(step) {
            let range = first..count.min(first + step);
            let values = rows(index, range.clone())?;
            assert_eq!(values.len(), range.len() * tensor.columns, "{}: rows {range:?}", tensor.name);
            out.write_all(&encode(tensor.storage, &values)).map_err(io)?;
        }
    }
    out.pad().and_then(|()| out.inner.flush()).map_err(io)?;
    drop(out);
    publish(file, path, folder).map_err(io)
}

fn publish(file: tempfile::NamedTempFile, path: &Path, folder: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // The name is durable with the folder.
    File::open(folder)?.sync_all()
}

impl TensorPlan {
    fn check(&self) -> Result<(), GgufWriteError> {
        let whole = self.columns.is_multiple_of(Q8_BLOCK);
        let known = match self.storage {
            StorageType::F32 | StorageType::F16 => true,
            StorageType::Q8_0 => whole,
            StorageType::BF16
            | StorageType::Q4_0
            | StorageType::Q4_1
            | StorageType::Q5_0
            | StorageType::Q5_1
            | StorageType::Q4_K
            | StorageType::Q5_K
            | StorageType::Q6_K => false,
        };
        if known && self.columns > 0 {
            return Ok(());
        }
        Err(GgufWriteError::Storage { tensor: self.name.clone(), storage: self.storage.name() })
    }

    fn bytes(&self) -> usize {
        self.rows.unwrap_or(1) * self.columns / self.storage.block_values() * self.storage.block_bytes()
    }
}

fn header(metadata: &[(String, Value)], tensors: &[TensorPlan]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, 3);
    put_u64(&mut out, tensors.len());
    put_u64(&mut out, metadata.len());
    for (key, value) in metadata {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_string(&mut out, &tensor.name);
        // Columns come first in the file.
        let shape = [Some(tensor.columns), tensor.rows];
        put_u32(&mut out, shape.iter().flatten().count() as u32);
        shape.into_iter().flatten().for_each(|size| put_u64(&mut out, size));
        put_u32(&mut out, tensor.storage.to_gguf());
        put_u64(&mut out, offset);
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    out
}

fn encode(storage: StorageType, values: &[f32]) -> Vec<u8> {
    if storage == StorageType::F16 {
        values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
    } else if storage == StorageType::Q8_0 {
        values.chunks(Q8_BLOCK).flat_map(q8_block).collect()
    } else {
        // All but these two and F32 were refused.
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

/// d = max|x| / 127 as f16, then round(x / d).
fn q8_block(values: &[f32]) -> [u8; 34] {
    let d = f16::from_f32(values.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0);
    let inverse = if d == f16::ZERO { 0.0 } else { 1.0 / d.to_f32() };
    let mut block = [0; 34];
    block[..2].copy_from_slice(&d.to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
    block
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&(value as u64).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Type number and value.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(value) => put_array_items(out, &Array::Unsigned(vec![*value])),
        Value::Signed(value) => put_array_items(out, &Array::Signed(vec![*value])),
        Value::Float(value) => put_array_items(out, &Array::Float(vec![*value])),
        Value::Bool(value) => put_array_items(out, &Array::Bool(vec![*value])),
        Value::String(value) => put_array_items(out, &Array::String(vec![value.clone()])),
        Value::Array(array) => {
            put_u32(out, 9);
            put_array(out, array);
        }
    }
}

/// Type of the items, their number, the items.
fn put_array(out: &mut Vec<u8>, array: &Array) {
    let mut items = Vec::new();
    put_array_items(&mut items, array);
    let (kind, items) = items.split_at(4);
    out.extend_from_slice(kind);
    put_u64(out, array.len());
    out.extend_from_slice(items);
}

/// Type of the items, then the items: one item is a value by itself.
fn put_array_items(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::Unsigned(values) if values.iter().all(|&value| value <= u64::from(u32::MAX)) => {
            put_u32(out, 4);
            values.iter().for_each(|&value| put_u32(out, value as u32));
        }
        Array::Unsigned(values) => {
            put_u32(out, 10);
            values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        }
        Array::Signed(values) if values.iter().all(|&value| i32::try_from(value).is_ok()) => {
            put_u32(out, 5);
            values.iter().for_each(|&value| out.extend_from_slice(&(value as i32).to_le_bytes()));
        }
        Array::Signed(values) => {
            put_u32(out, 11);
            values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        }
        Array::Float(values) => {
            put_u32(out, 6);
            values.iter().for_each(|&value| out.extend_from_slice(&(value as f32).to_le_bytes()));
        }
        Array::Bool(values) => {
            put_u32(out, 7);
            out.extend(values.iter().map(|&value| u8::from(value)));
        }
        Array::String(values) => {
            put_u32(out, 8);
            values.iter().for_each(|value| put_string(out, value));
        }
        Array::Array(values) => {
            put_u32(out, 9);
            values.iter().for_each(|value| put_array(out, value));
        }
    }
}

/// Knows where in the file it is.
struct Counted<W> {
    inner: W,
    written: usize,
}

impl<W: Write> Counted<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.inner.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let zeros = [0; ALIGNMENT];
        self.write_all(&zeros[..self.written.next_multiple_of(ALIGNMENT) - self.written])
    }
}

#[cfg(test)]
mod tests {
    use super::super::GgufFile;
    use super::*;

    fn plan(name: &str, rows: Option<usize>, columns: usize, storage: StorageType) -> TensorPlan {
        TensorPlan { name: name.to_owned(), rows, columns, storage }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let metadata = [
            ("a.number", Value::Unsigned(7)),
            ("a.large", Value::Unsigned(1 << 40)),
            ("a.signed", Value::Signed(-3)),
            ("a.float", Value::Float(0.25)),
            ("a.flag", Value::Bool(true)),
            ("a.text", Value::String("é".to_owned())),
            ("a.list", Value::Array(Array::String(vec!["x".to_owned(), String::new()]))),
            ("a.types", Value::Array(Array::Signed(vec![1, -1]))),
            ("a.nested", Value::Array(Array::Array(vec![Array::Bool(vec![true]), Array::Float(vec![1.5])]))),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let tensors = [
            plan("vector", None, 5, StorageType::F32),
            plan("half", Some(3), 7, StorageType::F16),
            plan("eight", Some(2), 64, StorageType::Q8_0),
        ];
        let value = |index: usize, at: usize| ((index * 31 + at * 7) % 17) as f32 / 8.0 - 1.0;
        let mut rows = |index: usize, range: Range<usize>| {
            let columns = tensors[index].columns;
            Ok((range.start * columns..range.end * columns).map(|at| value(index, at)).collect())
        };
        write_gguf(&path, &metadata, &tensors, &mut rows).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        let plain = folder.path().join("plain");
        File::create(&plain).unwrap();
        assert_eq!(mode(&path), mode(&plain), "as the umask says");
        let file = GgufFile::open(&path).unwrap();
        for (key, value) in &metadata {
            assert_eq!(file.metadata().get(key), Some(value), "{key}");
        }
        for (index, tensor) in tensors.iter().enumerate() {
            let mut read = Vec::new();
            file.read_rows(&tensor.name, 0..tensor.rows.unwrap_or(1), &mut read).unwrap();
            let step = if tensor.storage == StorageType::Q8_0 { 1.1 / 127.0 } else { 0.0 };
            for (at, read) in read.iter().enumerate() {
                assert!((read - value(index, at)).abs() <= step, "{} at {at}: {read}", tensor.name);
            }
        }
    }

    #[test]
    fn types_that_are_only_read_are_refused_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        for tensor in [plan("t", Some(1), 256, StorageType::Q4_K), plan("t", Some(1), 33, StorageType::Q8_0)]
        {
            let error = write_gguf(&path, &[], &[tensor], &mut |_, _| Ok(Vec::new())).unwrap_err();
            assert!(error.to_string().contains("F32, F16 and Q8_0"), "{error}");
        }
        let missing =
            |_: usize, _: Range<usize>| Err(ImportError::tensor("gone", crate::source::TensorFault::Missing));
        let tensors = [plan("t", None, 4, StorageType::F32)];
        write_gguf(&path, &[], &tensors, &mut { missing }).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
