//! One OCI image layout for each version, of hard links.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rookery_model::bundle::{BlobInfo, Digest, check_manifest, layout_files};

use super::{Store, StoreError, io_error, remove, sync_folder};

impl Store {
    /// Folder of a version whose blobs are all here, for [`rookery_model::bundle::Bundle::open`], which checks them.
    ///
    /// # Errors
    /// [`StoreError::Missing`] for the first blob that is not here, [`StoreError::Digest`] for a damaged manifest.
    pub fn layout(&self, version: &Digest) -> Result<PathBuf, StoreError> {
        let manifest = self.read(version)?;
        let folder = self.root.join("layouts").join(version.hex());
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        self.link(&folder, version)?;
        for blob in check_manifest(&manifest)? {
            self.link(&folder, &blob.digest)?;
        }
        // Last: a folder without an index is no bundle yet.
        for (name, contents) in layout_files(&manifest)? {
            let path = folder.join(name);
            if fs::read(&path).is_ok_and(|found| found == contents) {
                continue;
            }
            (self.on_step)("write file of layout");
            let write = File::create(&path).and_then(|mut file| {
                file.write_all(&contents)?;
                file.sync_all()
            });
            write.map_err(io_error("write", &path))?;
        }
        sync_folder(&folder)?;
        Ok(folder)
    }

    /// Blobs of a version whose manifest is here.
    ///
    /// # Errors
    /// As [`Store::layout`].
    pub fn blobs(&self, version: &Digest) -> Result<Vec<BlobInfo>, StoreError> {
        Ok(check_manifest(&self.read(version)?)?)
    }

    fn link(&self, folder: &Path, digest: &Digest) -> Result<(), StoreError> {
        let (blob, link) = (self.blob(digest), folder.join(digest.path()));
        let Ok(target) = blob.metadata() else { return Err(StoreError::Missing(digest.clone())) };
        if link.metadata().is_ok_and(|metadata| metadata.ino() == target.ino()) {
            return Ok(());
        }
        (self.on_step)("link blob");
        remove(&link)?;
        match fs::hard_link(&blob, &link) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(io_error("link", &link)(error)),
        }
    }
}
