//! Versions on disk.
//!
//! ```text
//! versions/
//!   lock                          held by the one process that uses the folder
//!   assignment.json, state.json   what is wanted, and what is: see below
//!   partial/HEX                   blobs that are being fetched: bytes from the first on, digest not yet known to be right
//!   blobs/sha256/HEX              whole blobs, shared by all versions
//!   layouts/HEX/                  one OCI image layout for each version, of hard links into blobs/
//! ```
//!
//! # What a crash leaves
//!
//! A blob gets its name by a rename, after its bytes were forced to disk, read back and found to have the digest. So what has
//! a name was whole once. Whether it still is, is found out by hashing all of it in this life of the process before it is
//! served ([`rookery_model::bundle::Bundle::open`] does): a mark of inode and size would be cheaper and would not notice
//! what flash memory does to bytes in the course of years.
//!
//! The two documents begin with the SHA-256 of what follows, are written under another name, forced to disk and renamed; the
//! one before stays as `*.old.json` and is read if the newer one turns out to be damaged. `state.json` is the commit: what it
//! names as committed serves after the next start, whatever else was going on.
//!
//! A layout may be half built; it is built again before each use, which costs nothing where the links are there.

mod document;
mod layout;
mod partial;
mod prune;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use nix::fcntl::{Flock, FlockArg};
use rookery_model::bundle::{BundleError, Digest};

use super::{
    machine::Kept,
    state::{Assignment, Saved, State},
};
pub use partial::Partial;

/// Called with the name of each operation before it changes the disk: tests end the process in it.
pub type OnStep = Arc<dyn Fn(&'static str) + Send + Sync>;

/// A folder of versions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refuses.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else uses it.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The bytes have another digest.
    #[error("the bytes of {expected} have the digest {found}")]
    Digest {
        /// What they should have.
        expected: Digest,
        /// What they have.
        found: Digest,
    },
    /// A manifest is none.
    #[error("the manifest cannot be used")]
    Manifest(#[from] BundleError),
    /// A blob of a version is not here.
    #[error("blob {0} is missing")]
    Missing(Digest),
}

/// The folder of versions of one gateway. All calls may block for as long as the disk takes.
pub struct Store {
    root: PathBuf,
    _lock: Flock<File>,
    /// What must not be pruned; also keeps pruning and adopting apart.
    kept: Mutex<Kept>,
    on_step: OnStep,
}

impl Store {
    /// Opens the folder and makes it if it is not there.
    ///
    /// # Errors
    /// [`StoreError::InUse`], or what the system says.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_observed(root, Arc::new(|_| {}))
    }

    /// The same, telling `on_step` of every operation.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_observed(root: &Path, on_step: OnStep) -> Result<Self, StoreError> {
        for folder in ["", "partial", "blobs", "blobs/sha256", "layouts"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let path = root.join("lock");
        let file = File::create(&path).map_err(io_error("create", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| StoreError::InUse(root.to_owned()))?;
        Ok(Self { root: root.to_owned(), _lock: lock, kept: Mutex::default(), on_step })
    }

    /// What was kept. What cannot be read is as if it had never been there, and the log says so.
    pub fn load(&self) -> Saved {
        Saved {
            state: document::load(&self.root, "state").unwrap_or_default(),
            assignment: document::load(&self.root, "assignment").unwrap_or_default(),
        }
    }

    /// Keeps the state: when this has returned, it is what the next start finds; if the process ends before, the next start
    /// finds this one or the one before.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep_state(&self, state: &State) -> Result<(), StoreError> {
        document::keep(self, "state", state)
    }

    /// Keeps the assignment, likewise.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep_assignment(&self, assignment: &Assignment) -> Result<(), StoreError> {
        document::keep(self, "assignment", assignment)
    }

    /// Whether a blob is here under its name, with this size. That its bytes are right is for verifying to find out.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        self.blob(digest).metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Reads a small blob and checks its digest.
    ///
    /// # Errors
    /// [`StoreError::Digest`] if it is damaged, [`StoreError::Missing`] if it is not here.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(digest.clone()));
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(StoreError::Digest { expected: digest.clone(), found }) }
    }

    /// Takes a damaged blob away, from all layouts too. An engine that has it mapped keeps what it has.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        (self.on_step)("remove damaged blob");
        for layout in self.layouts()? {
            remove(&self.root.join("layouts").join(layout).join(digest.path()))?;
        }
        remove(&self.blob(digest))?;
        sync_folder(&self.root.join("blobs/sha256"))
    }

    /// Bytes that may be written to the file system of the folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let space = nix::sys::statvfs::statvfs(&self.root)
            .map_err(|error| io_error("look at", &self.root)(error.into()))?;
        Ok(space.blocks_available().saturating_mul(space.fragment_size()))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.path())
    }

    fn layouts(&self) -> Result<Vec<String>, StoreError> {
        names(&self.root.join("layouts"))
    }
}

/// Names of the files of a folder.
fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(folder).map_err(io_error("read", folder))?;
    // A name that is not text is nobody's here.
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

/// Forces to disk which names a folder has.
fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", path))
}
