//! A blob of an open bundle and the file it lies in, so that another bundle can take it over.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;
use crate::mapping::Mapping;

/// A mapped blob and the file it was mapped from.
#[derive(Clone, Debug)]
pub(crate) struct MappedBlob {
    digest: Digest,
    path: PathBuf,
    /// Device and inode: what `path` means may change, these do not.
    identity: (u64, u64),
    map: Arc<Mapping>,
}

impl MappedBlob {
    /// Maps `file`, which was opened at `path`.
    pub(super) fn new(digest: Digest, path: PathBuf, file: &File) -> io::Result<Self> {
        let map = Arc::new(Mapping::new(file)?);
        Ok(Self { digest, path, identity: identity(file)?, map })
    }

    pub(super) fn map(&self) -> Arc<Mapping> {
        Arc::clone(&self.map)
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where the file was when the bundle was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// Whether `file` is the mapped one, under whatever name.
    pub(crate) fn is(&self, file: &File) -> bool {
        identity(file).is_ok_and(|identity| identity == self.identity)
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}
