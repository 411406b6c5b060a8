//! Writes an OCI image layout beside its target and renames it into place.
//!
//! ```text
//! create ── blobs ── publish:  index.json, fsync ── rename ──► target
//!    │                                                │
//!    └─ .NAME.packing-XXXXXX, locked while alive      └─ or exchange with the old target, which is then deleted
//! ```
//!
//! A crash leaves the temporary folder. Its lock is gone with the process, so the next packing to the same target
//! finds it and deletes it; one whose lock is held belongs to a live packer and is left alone.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{ExistingTarget, PackError};
use crate::bundle::Digest;
use crate::bundle::oci::{self, Descriptor, Index};

const LOCK_FILE: &str = ".lock";

/// A layout under construction; deleted on drop unless published.
#[derive(Debug)]
pub(super) struct LayoutWriter {
    target: PathBuf,
    existing: ExistingTarget,
    folder: TempDir,
    /// Held until the folder has its final name, or is deleted.
    _lock: File,
}

/// A blob under construction. Its name is known when it is finished.
#[derive(Debug)]
pub(super) struct BlobWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl LayoutWriter {
    /// Makes the temporary folder beside `target`, after clearing away what crashed packers of the same target left.
    pub(super) fn create(target: &Path, existing: ExistingTarget) -> Result<Self, PackError> {
        let target = std::path::absolute(target).map_err(io_error(target))?;
        check_target(&target, existing)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(PackError::TargetNotABundle { path: target });
        };
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        let prefix = format!(".{}.packing-", name.to_string_lossy());
        remove_leftovers(parent, &prefix);
        // The umask applies; the default of 0700 would keep a server under another user from reading the bundle.
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(io_error(parent))?;
        let lock_path = folder.path().join(LOCK_FILE);
        let lock = File::create_new(&lock_path).map_err(io_error(&lock_path))?;
        // Where the file system has no locks, a leftover is never cleared away; nothing else is lost.
        let _ = lock.try_lock();
        let blobs = folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_error(&blobs))?;
        let writer = Self { target, existing, folder, _lock: lock };
        writer.write_file(oci::LAYOUT_FILE, oci::LAYOUT_CONTENTS.as_bytes())?;
        Ok(writer)
    }

    /// Begins a blob.
    pub(super) fn blob(&self) -> Result<BlobWriter, PackError> {
        let path = self.folder.path().join("blobs/sha256/unfinished");
        let file = File::create(&path).map_err(io_error(&path))?;
        Ok(BlobWriter { path, file: BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), size: 0 })
    }

    /// Writes a small blob and describes it.
    pub(super) fn small_blob(
        &self,
        media_type: &str,
        title: &str,
        bytes: &[u8],
    ) -> Result<Descriptor, PackError> {
        let mut blob = self.blob()?;
        blob.write(bytes)?;
        blob.finish(media_type, title)
    }

    /// Writes a document as a blob.
    pub(super) fn json_blob(
        &self,
        media_type: &str,
        title: &str,
        value: &impl Serialize,
    ) -> Result<Descriptor, PackError> {
        let json = serde_json::to_vec(value).map_err(|error| io_error(self.folder.path())(error.into()))?;
        self.small_blob(media_type, title, &json)
    }

    /// Writes the index, makes everything durable and gives the folder its final name.
    pub(super) fn publish(self, index: &Index) -> Result<(), PackError> {
        let json = serde_json::to_vec(index).map_err(|error| io_error(self.folder.path())(error.into()))?;
        self.write_file(oci::INDEX_FILE, &json)?;
        for folder in ["blobs/sha256", "blobs", "."] {
            sync_folder(&self.folder.path().join(folder))?;
        }
        let temporary = self.folder.path();
        // An empty folder is replaced by rename; any other existing one makes it fail.
        match (fs::rename(temporary, &self.target), self.existing) {
            (Ok(()), _) => {}
            (Err(error), ExistingTarget::Refuse) if exists_error(&error) => {
                return Err(PackError::TargetExists { path: self.target });
            }
            (Err(error), ExistingTarget::Replace) if exists_error(&error) => {
                exchange(temporary, &self.target)?
            }
            (Err(error), _) => return Err(io_error(&self.target)(error)),
        }
        if let Some(parent) = self.target.parent() {
            sync_folder(parent)?;
        }
        // Readers ignore it; left behind by a crash right here it does no harm.
        let lock = self.target.join(LOCK_FILE);
        fs::remove_file(&lock).map_err(io_error(&lock))
        // Dropping the temporary folder deletes the old bundle after an exchange and finds nothing otherwise.
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), PackError> {
        let path = self.folder.path().join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error(&path))
    }
}

impl BlobWriter {
    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes).map_err(io_error(&self.path))
    }

    /// Makes the blob durable under its digest. The same contents twice are one file.
    pub(super) fn finish(self, media_type: &str, title: &str) -> Result<Descriptor, PackError> {
        let Self { path, file, hasher, size } = self;
        let file = file.into_inner().map_err(|error| io_error(&path)(error.into_error()))?;
        file.sync_all().map_err(io_error(&path))?;
        let digest = Digest::finish(hasher);
        let named = path.with_file_name(digest.hex());
        fs::rename(&path, &named).map_err(io_error(&named))?;
        let annotations = [(oci::TITLE.to_owned(), title.to_owned())].into();
        Ok(Descriptor { media_type: media_type.to_owned(), artifact_type: None, digest, size, annotations })
    }
}

/// Refuses early what [`LayoutWriter::publish`] would refuse after minutes of work.
fn check_target(target: &Path, existing: ExistingTarget) -> Result<(), PackError> {
    let path = target.to_owned();
    let mut entries = match fs::read_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(PackError::TargetNotABundle { path });
        }
        Err(error) => return Err(io_error(target)(error)),
        Ok(entries) => entries,
    };
    match existing {
        _ if entries.next().is_none() => Ok(()),
        ExistingTarget::Refuse => Err(PackError::TargetExists { path }),
        ExistingTarget::Replace if target.join(oci::LAYOUT_FILE).is_file() => Ok(()),
        ExistingTarget::Replace => Err(PackError::TargetNotABundle { path }),
    }
}

/// Deletes what crashed packers of this target left. What cannot be deleted is only disk space.
fn remove_leftovers(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(prefix) && is_leftover(&path) {
            tracing::info!(path = %path.display(), "deleting what an interrupted packing left");
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot delete a leftover folder");
            }
        }
    }
}

/// A live packer holds its folder's lock from the start until the rename. A finished bundle without one was swapped
/// out by a packer that crashed before deleting it. Anything else may just be coming into being.
fn is_leftover(folder: &Path) -> bool {
    match File::open(folder.join(LOCK_FILE)) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock | TryLockError::Error(_))),
        Err(_) => folder.join(oci::INDEX_FILE).is_file(),
    }
}

/// Swaps two folders: in one step where the system can, else with a moment in which the target is absent.
fn exchange(temporary: &Path, target: &Path) -> Result<(), PackError> {
    if renameat_with(CWD, temporary, CWD, target, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    let aside = temporary.with_extension("old");
    fs::rename(target, &aside).map_err(io_error(target))?;
    fs::rename(temporary, target).map_err(io_error(target))?;
    fs::rename(&aside, temporary).map_err(io_error(temporary))
}

fn exists_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

fn sync_folder(folder: &Path) -> Result<(), PackError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(io_error(folder))
}

pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> PackError + '_ {
    move |source| PackError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
