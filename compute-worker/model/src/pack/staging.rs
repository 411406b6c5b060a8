//! The folder in which a bundle comes into being, beside its target.
//!
//! ```text
//! .NAME.packing/
//!   lock          held while a packer is alive
//!   state.json    whose it is, and the parts done: digest and size
//!   scratch/      the caller's own
//!   bundle/       an OCI image layout, in the end renamed to the target, or exchanged with it
//!   replaced/     the old target, for a moment, where the system cannot exchange two folders
//! ```
//!
//! A blob is durable before the state names it, and the state is replaced in one step. So whenever a packer is killed,
//! the next one finds either parts that it can take over or nothing that it would believe.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::blob_writer::{BlobWriter, sync_folder, write_atomically};
use super::error::{PackError, io_error};
use super::state::{STATE_FILE, State};
use crate::bundle::oci;

const LOCK_FILE: &str = "lock";
/// A packer that finishes takes its folder away just as the next one has made sure that it is there; that this happens
/// more than a few times in a row is absurd.
const LOCK_ATTEMPTS: usize = 16;

/// What to do when the target folder exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExistingTarget {
    /// Leave it and fail with [`PackError::TargetExists`].
    #[default]
    Refuse,
    /// Put the new bundle in its place once that is complete. Refused if the folder is not a bundle.
    Replace,
}

/// A staging folder, ours while this value lives.
#[derive(Debug)]
pub(super) struct Staging {
    target: PathBuf,
    existing: ExistingTarget,
    root: PathBuf,
    bundle: PathBuf,
    scratch: PathBuf,
    /// Blobs begun, for the names of unfinished ones.
    begun: AtomicU64,
    /// Closing it releases the lock.
    _lock: File,
}

impl Staging {
    /// Takes the staging folder of `target`, with the state of an interrupted packing if it has the key of `fresh`, and
    /// cleared otherwise.
    pub(super) fn take(
        target: &Path,
        existing: ExistingTarget,
        fresh: State,
    ) -> Result<(Self, State), PackError> {
        check_target(target, existing)?;
        let target = resolve(target)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(PackError::TargetNotABundle { path: target });
        };
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        let root = parent.join(format!(".{}.packing", name.to_string_lossy()));
        let lock = lock(&root, &target)?;
        let (bundle, scratch) = (root.join("bundle"), root.join("scratch"));
        let staging = Self { target, existing, root, bundle, scratch, begun: AtomicU64::new(0), _lock: lock };
        staging.restore_replaced()?;
        check_target(&staging.target, existing)?;
        let state = staging.resume(fresh)?;
        Ok((staging, state))
    }

    /// The layout under construction.
    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The caller's folder.
    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Where the target will appear.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Replaces what is noted as done.
    pub(super) fn save(&self, state: &State) -> Result<(), PackError> {
        state.save(&self.root)
    }

    /// A path beside the blobs that nothing else uses.
    pub(super) fn unfinished(&self) -> PathBuf {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.blobs().join(format!("unfinished-{number}"))
    }

    /// Begins a blob.
    pub(super) fn blob(&self) -> Result<BlobWriter, PackError> {
        BlobWriter::create(self.unfinished())
    }

    /// Deletes all blobs but some.
    pub(super) fn keep_blobs(&self, kept: &dyn Fn(&str) -> bool) -> Result<(), PackError> {
        let blobs = self.blobs();
        for entry in fs::read_dir(&blobs).map_err(io_error(&blobs))? {
            let entry = entry.map_err(io_error(&blobs))?;
            if !entry.file_name().to_str().is_some_and(kept) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes the index, makes everything durable and gives the layout its place.
    pub(super) fn publish(&self, index: &[u8]) -> Result<(), PackError> {
        check_target(&self.target, self.existing)?;
        write_atomically(&self.bundle.join(oci::INDEX_FILE), index)?;
        for folder in ["blobs/sha256", "blobs", "."] {
            sync_folder(&self.bundle.join(folder))?;
        }
        // An empty folder is replaced by rename; any other existing one makes it fail.
        match fs::rename(&self.bundle, &self.target) {
            Ok(()) => {}
            Err(error) if !exists_error(&error) => return Err(io_error(&self.target)(error)),
            Err(_) if self.existing == ExistingTarget::Replace => self.exchange()?,
            Err(_) => return Err(PackError::TargetExists { path: self.target.clone() }),
        }
        self.target.parent().map_or(Ok(()), sync_folder)
    }

    /// Deletes the staging folder. What cannot be deleted is only disk space.
    pub(super) fn delete(self) {
        let lock = self.root.join(LOCK_FILE);
        let deleted = self.clear().and_then(|()| fs::remove_file(&lock).map_err(io_error(&lock)));
        if let Err(error) = deleted {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(path = %self.root.display(), error, "cannot delete a staging folder");
        }
        // Fails if another packer has put its own lock there by now, as it should.
        let _ = fs::remove_dir(&self.root);
    }

    fn blobs(&self) -> PathBuf {
        self.bundle.join("blobs/sha256")
    }

    /// Puts the target back that a packer had moved aside when it was killed.
    fn restore_replaced(&self) -> Result<(), PackError> {
        let replaced = self.root.join("replaced");
        if replaced.is_dir() && !self.target.exists() {
            fs::rename(&replaced, &self.target).map_err(io_error(&self.target))?;
        }
        Ok(())
    }

    /// What an earlier packer has done, if it was after the same; else all of it is deleted.
    fn resume(&self, fresh: State) -> Result<State, PackError> {
        let mut state = fresh.load(&self.root).or_else(|why| {
            if self.root.join(STATE_FILE).exists() || self.bundle.exists() {
                tracing::info!(path = %self.root.display(), why, "deleting what an interrupted packing left");
            }
            self.clear().map(|()| fresh)
        })?;
        state.forget_damaged(&self.bundle);
        let blobs = self.blobs();
        for folder in [&blobs, &self.scratch] {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
        }
        self.keep_blobs(&|name| state.parts.values().any(|blob| blob.digest.hex() == name))?;
        write_atomically(&self.bundle.join(oci::LAYOUT_FILE), oci::LAYOUT_CONTENTS.as_bytes())?;
        self.save(&state)?;
        Ok(state)
    }

    /// Deletes all but the lock, first of all what would make the rest be believed.
    fn clear(&self) -> Result<(), PackError> {
        remove(&self.root.join(STATE_FILE))?;
        for entry in fs::read_dir(&self.root).map_err(io_error(&self.root))? {
            let entry = entry.map_err(io_error(&self.root))?;
            if entry.file_name() != LOCK_FILE {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Swaps layout and target: in one step where the system can, else with a moment in which the target is absent.
    fn exchange(&self) -> Result<(), PackError> {
        if renameat_with(CWD, &self.bundle, CWD, &self.target, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
        let replaced = self.root.join("replaced");
        remove(&replaced)?;
        fs::rename(&self.target, &replaced).map_err(io_error(&self.target))?;
        let placed = fs::rename(&self.bundle, &self.target).map_err(io_error(&self.target));
        if placed.is_err() {
            self.restore_replaced()?;
        }
        placed
    }
}

/// Refuses early what publishing would refuse after hours of work. A packer that has anything lengthy to do before it takes
/// a [`super::Draft`], such as hashing its source, calls this first.
///
/// # Errors
/// [`PackError::TargetExists`], [`PackError::TargetNotABundle`], [`PackError::Io`].
pub fn check_target(target: &Path, existing: ExistingTarget) -> Result<(), PackError> {
    let path = target.to_owned();
    let mut entries = match fs::read_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && without_slash(target).is_symlink() => {
            return Err(PackError::TargetNotABundle { path });
        }
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

/// The absolute path of a target, and if it exists that of the folder itself: a rename cannot put a folder in the place of
/// a link, and what lies beside the link may be another file system.
fn resolve(target: &Path) -> Result<PathBuf, PackError> {
    match fs::canonicalize(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::path::absolute(without_slash(target)).map_err(io_error(target))
        }
        resolved => resolved.map_err(io_error(target)),
    }
}

/// With a slash behind it a link stands for what it points to.
fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Makes the folder and locks it. The system releases the lock with the process, however that ends.
fn lock(root: &Path, target: &Path) -> Result<File, PackError> {
    let in_progress = || PackError::InProgress { path: target.to_owned() };
    for _ in 0..LOCK_ATTEMPTS {
        match fs::create_dir(root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(root)(error)),
            _ => {}
        }
        let path = root.join(LOCK_FILE);
        let lock = match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(io_error(&path))?,
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_progress()),
            // Two packers at once are a mistake that cannot be noticed there; each by itself is right.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "the file system has no locks");
            }
        }
        // A packer that finished in between has deleted the very file that was opened here.
        let ours = lock.metadata().map_err(io_error(&path))?;
        if fs::symlink_metadata(&path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()))
        {
            return Ok(lock);
        }
    }
    Err(in_progress())
}

/// Deletes a file, a link or a folder with all that is in it, if it is there.
fn remove(path: &Path) -> Result<(), PackError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

fn exists_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

#[cfg(test)]
mod tests;
