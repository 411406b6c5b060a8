//! Writes one blob under a passing name and gives it its digest's when it is whole and durable.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::error::{PackError, io_error};
use crate::bundle::Digest;

/// A blob's contents, durable under its name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StagedBlob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// A blob under construction. Its name is known when it is finished.
#[derive(Debug)]
pub(super) struct BlobWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl BlobWriter {
    /// Begins a blob in the new file `path`, beside which the finished one will lie.
    pub(super) fn create(path: PathBuf) -> Result<Self, PackError> {
        let file = File::create_new(&path).map_err(io_error(&path))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), size: 0 })
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(io_error(&self.path))
    }

    /// Makes the blob durable under its digest. The same contents twice are one file.
    pub(super) fn finish(self) -> Result<StagedBlob, PackError> {
        let Self { path, file, hasher, size } = self;
        let file = file.into_inner().map_err(|error| io_error(&path)(error.into_error()))?;
        let digest = Digest::finish(hasher);
        name_durably(&file, &path, &digest)?;
        Ok(StagedBlob { digest, size })
    }
}

/// Makes `file` durable and renames it from `path` to its digest, and makes that durable too.
pub(super) fn name_durably(file: &File, path: &Path, digest: &Digest) -> Result<(), PackError> {
    file.sync_all().map_err(io_error(path))?;
    let named = path.with_file_name(digest.hex());
    fs::rename(path, &named).map_err(io_error(&named))?;
    // Renaming one of two names of the same file to the other does nothing.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io_error(path)(error)),
        _ => {}
    }
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), PackError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(io_error(folder))
}

/// Writes a whole file durably under a passing name and renames it: readers find the old contents or the new.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), PackError> {
    let passing = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&passing)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&passing, path)
    };
    write().map_err(io_error(path))?;
    path.parent().map_or(Ok(()), sync_folder)
}
