//! Blobs that are being fetched.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use rookery_model::bundle::Digest;

use super::{Store, StoreError, io_error, remove, sync_folder};

/// Bytes after which what was written is forced to disk, so that a power cut costs little.
const SYNC_BYTES: u64 = 64 << 20;

/// A blob that is being fetched. Dropping it leaves what is there for the next time.
pub struct Partial {
    digest: Digest,
    path: PathBuf,
    file: File,
    size: u64,
    written: u64,
    unsynced: u64,
}

impl Store {
    /// Goes on with a blob of `size` bytes from where it was left.
    ///
    /// # Errors
    /// What the system says.
    pub fn partial(&self, digest: &Digest, size: u64) -> Result<Partial, StoreError> {
        let path = self.root.join("partial").join(digest.hex());
        (self.on_step)("open partial blob");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let mut written = file.metadata().map_err(io_error("look at", &path))?.len();
        if written > size {
            // Nobody writes more than the blob has: this is something else.
            file.set_len(0).map_err(io_error("cut", &path))?;
            written = 0;
        }
        Ok(Partial { digest: digest.clone(), path, file, size, written, unsynced: 0 })
    }

    /// Bytes of a blob that are here in part.
    pub fn partial_bytes(&self, digest: &Digest) -> u64 {
        self.root.join("partial").join(digest.hex()).metadata().map_or(0, |metadata| metadata.len())
    }

    /// Gives a blob its name, if all of it is there and its bytes, read back from the file, have the digest. If they have
    /// another one, the blob must be fetched anew.
    ///
    /// # Errors
    /// [`StoreError::Digest`], or what the system says.
    pub fn adopt(&self, partial: Partial) -> Result<(), StoreError> {
        let Partial { digest, path, file, .. } = partial;
        (self.on_step)("sync blob");
        file.sync_all().map_err(io_error("sync", &path))?;
        (self.on_step)("hash blob");
        let found = File::open(&path).and_then(|mut file| Digest::of_reader(&mut file));
        let found = found.map_err(io_error("read", &path))?;
        if found != digest {
            remove(&path)?;
            return Err(StoreError::Digest { expected: digest, found });
        }
        let mut permissions = file.metadata().map_err(io_error("look at", &path))?.permissions();
        permissions.set_readonly(true);
        file.set_permissions(permissions).map_err(io_error("protect", &path))?;
        let named = self.blob(&digest);
        (self.on_step)("rename blob");
        fs::rename(&path, &named).map_err(io_error("rename", &named))?;
        (self.on_step)("sync folder of blobs");
        sync_folder(&self.root.join("blobs/sha256"))
    }

    /// Keeps a small blob whose bytes are at hand.
    ///
    /// # Errors
    /// As [`Store::adopt`].
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has(digest, bytes.len() as u64) && self.read(digest).is_ok() {
            return Ok(());
        }
        remove(&self.root.join("partial").join(digest.hex()))?;
        let mut partial = self.partial(digest, bytes.len() as u64)?;
        partial.write(bytes)?;
        self.adopt(partial)
    }
}

impl Partial {
    /// Bytes that are here.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that are missing.
    pub fn missing(&self) -> u64 {
        self.size - self.written
    }

    /// Appends bytes. More than are missing are refused.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() as u64 > self.missing() {
            let source = io::Error::other(format!("more than the {} bytes of the blob came", self.size));
            return Err(io_error("write", &self.path)(source));
        }
        self.file.write_all(bytes).map_err(io_error("write", &self.path))?;
        self.written += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data().map_err(io_error("sync", &self.path))?;
        }
        Ok(())
    }
}
