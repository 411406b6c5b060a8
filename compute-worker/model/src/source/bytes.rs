//! Bytes of a source file, read at offsets.
//!
//! Source files are read, never mapped: they lie wherever their owner keeps them and may be cut short or
//! rewritten while they are packed. A read then fails with an error; a map would end the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::source::ImportError;

/// A file, or bytes in memory that stand for one.
#[derive(Debug)]
pub(crate) struct Bytes {
    path: PathBuf,
    len: u64,
    from: From,
}

#[derive(Debug)]
enum From {
    File(File),
    Memory(Vec<u8>),
}

impl Bytes {
    /// Opens a file; its length is taken once.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let io = |source| ImportError::io(path, source);
        // Before opening: to open a pipe is to wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(ImportError::malformed(path.display().to_string(), "not a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        Ok(Self { path: path.to_owned(), len: metadata.len(), from: From::File(file) })
    }

    /// Bytes that were never a file.
    pub(crate) fn memory(bytes: Vec<u8>) -> Self {
        Self { path: PathBuf::from("(memory)"), len: bytes.len() as u64, from: From::Memory(bytes) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// When the file ends before, or the system refuses.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ImportError> {
        let result = match &self.from {
            From::File(file) => file.read_exact_at(out, offset),
            From::Memory(bytes) => usize::try_from(offset)
                .ok()
                .and_then(|start| bytes.get(start..start.checked_add(out.len())?))
                .map(|found| out.copy_from_slice(found))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        };
        result.map_err(|source| ImportError::io(&self.path, source))
    }

    /// SHA-256 of all bytes, in hexadecimal.
    pub(crate) fn sha256(&self) -> Result<String, ImportError> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < self.len {
            let count = (self.len - offset).min(buffer.len() as u64);
            // Lossless: the buffer bounds it.
            let chunk = &mut buffer[..count as usize];
            self.read_at(offset, chunk)?;
            hasher.update(&*chunk);
            offset += count;
        }
        Ok(hex(&hasher.finalize()))
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
