//! Blobs on their way: staged files that are appended to, checked as a whole, and only then published.

use std::{
    fs::{File, TryLockError},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path as FilePath, PathBuf},
    time::{Duration, SystemTime},
};

use object_store::{ObjectStoreExt, RenameOptions, RenameTargetMode, WriteMultipart, path::Path};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::{ArtifactError, Artifacts, blob_path, manifest};
use crate::domain::Digest;

/// Bytes that are read and hashed at a time.
const READ_BYTES: usize = 1 << 20;

/// Parts of a put in several: S3 wants 5 MiB at least, and 10,000 of them at most.
const PART_BYTES: u64 = 8 << 20;
const MOST_PARTS: u64 = 9_000;

/// Parts under way at the same time.
const PARTS_AT_ONCE: usize = 4;

/// The folder of staged files.
#[derive(Debug)]
pub(super) struct Uploads {
    folder: PathBuf,
}

impl Uploads {
    pub(super) fn open(folder: PathBuf) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
        Ok(Self { folder })
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        // Hexadecimal by construction.
        self.folder.join(format!("{}.part", digest.as_str().trim_start_matches("sha256:")))
    }

    /// Deletes staged files that nobody appends to, that nothing awaits, and that are older than `grace`.
    pub(super) fn sweep(
        &self,
        awaited: impl Fn(&Digest) -> bool,
        grace: Duration,
    ) -> Result<(), ArtifactError> {
        let failed = io_error("read the folder", &self.folder);
        for entry in std::fs::read_dir(&self.folder).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            let Some(digest) = digest_of(&path) else { continue };
            let old = path.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|modified| {
                SystemTime::now().duration_since(modified).is_ok_and(|age| age >= grace)
            });
            if old && !awaited(&digest) && lock(&path, false).is_ok_and(|file| file.is_some()) {
                std::fs::remove_file(&path).map_err(io_error("delete", &path))?;
            }
        }
        Ok(())
    }
}

fn digest_of(path: &FilePath) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?.strip_suffix(".part")?).parse().ok()
}

/// One call's hold on a staged file. Dropped, it leaves the bytes that came for the next call.
#[derive(Debug)]
pub struct Upload {
    artifacts: Artifacts,
    digest: Digest,
    size: u64,
    offset: u64,
    path: PathBuf,
    /// Locked: another call, in whatever process, is told that the blob is busy.
    file: tokio::fs::File,
}

impl Artifacts {
    /// Bytes of a blob of `size` bytes that were sent so far and are not published yet.
    ///
    /// # Errors
    /// If the staged file cannot be looked at.
    pub fn staged_bytes(&self, digest: &Digest, size: u64) -> Result<u64, ArtifactError> {
        let path = self.inner.uploads.path(digest);
        match path.metadata() {
            Ok(metadata) => Ok(metadata.len()).map(|bytes| if bytes > size { 0 } else { bytes }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(io_error("look at", &path)(source)),
        }
    }

    /// Begins to append to a blob of `size` bytes at `offset`, which must be what [`Artifacts::staged_bytes`] tells.
    ///
    /// # Errors
    /// [`ArtifactError::Busy`] while another upload of the blob lives; [`ArtifactError::Offset`].
    pub fn begin_upload(&self, digest: &Digest, size: u64, offset: u64) -> Result<Upload, ArtifactError> {
        let path = self.inner.uploads.path(digest);
        let locked = lock(&path, true).map_err(io_error("open", &path))?;
        let Some(file) = locked else {
            let offset = self.staged_bytes(digest, size)?;
            return Err(ArtifactError::Busy { digest: digest.clone(), offset });
        };
        let mut here = file.metadata().map_err(io_error("look at", &path))?.len();
        if here > size {
            // Left by somebody who thought the blob larger.
            file.set_len(0).map_err(io_error("empty", &path))?;
            here = 0;
        }
        if here != offset {
            return Err(ArtifactError::Offset { digest: digest.clone(), offset: here });
        }
        let file = tokio::fs::File::from_std(file);
        Ok(Upload { artifacts: self.clone(), digest: digest.clone(), size, offset, path, file })
    }
}

/// Opens and locks a staged file; `None` if somebody else holds it.
fn lock(path: &FilePath, create: bool) -> io::Result<Option<File>> {
    let file = File::options().read(true).append(true).create(create).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever held the lock until now may have published the very file: it must still have this name.
    let (ours, named) = (file.metadata()?, path.metadata());
    let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
    Ok(same.then_some(file))
}

impl Upload {
    /// Bytes that are here, those of earlier calls among them.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`ArtifactError::TooLong`], with nothing written, if the blob does not have as many; [`ArtifactError::Io`], such as of
    /// a full disk.
    pub async fn append(&mut self, data: &[u8]) -> Result<(), ArtifactError> {
        let end = self.offset.saturating_add(data.len() as u64);
        if end > self.size {
            return Err(ArtifactError::TooLong { digest: self.digest.clone(), size: self.size });
        }
        self.file.write_all(data).await.map_err(io_error("write", &self.path))?;
        self.offset = end;
        Ok(())
    }

    /// Ends the call before its end: what came stays for the next one, which may be on its way already.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn pause(mut self) -> Result<(), ArtifactError> {
        self.file.flush().await.map_err(io_error("write", &self.path))
    }

    /// Ends the call. If all bytes are here, checks and publishes the blob and gives `true`; else keeps what there is for
    /// the next call.
    ///
    /// # Errors
    /// [`ArtifactError::Digest`] if the bytes are others: they are thrown away. Others if a disk or the store fails; the
    /// bytes stay then.
    pub async fn finish(mut self) -> Result<bool, ArtifactError> {
        self.file.flush().await.map_err(io_error("write", &self.path))?;
        if self.offset < self.size {
            return Ok(false);
        }
        self.file.sync_all().await.map_err(io_error("make durable", &self.path))?;
        if self.artifacts.inner.local {
            self.check().await?;
            self.rename().await?;
        } else {
            self.put().await?;
            self.discard()?;
        }
        Ok(true)
    }

    /// Reads the file back and compares its digest: what is checked is what the disk has.
    async fn check(&self) -> Result<(), ArtifactError> {
        let mut pieces = Pieces::open(&self.path)?;
        while pieces.next().await?.is_some() {}
        self.compare(pieces)
    }

    fn compare(&self, pieces: Pieces) -> Result<(), ArtifactError> {
        let found = manifest::digest_of(pieces.hasher)?;
        if found == self.digest {
            return Ok(());
        }
        self.discard()?;
        Err(ArtifactError::Digest { digest: self.digest.clone(), found })
    }

    /// One rename, which the store makes durable.
    async fn rename(&self) -> Result<(), ArtifactError> {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (from, to) = (Path::from_iter(["uploads", name]), blob_path(&self.digest));
        let options = RenameOptions::new().with_target_mode(RenameTargetMode::Overwrite);
        let renamed = self.artifacts.inner.store.rename_opts(&from, &to, options).await;
        renamed.map_err(|source| ArtifactError::store("publish", &to, source))
    }

    /// Sends the file to the object store. The last step, which makes it appear, is taken only if what was sent has the
    /// digest.
    async fn put(&self) -> Result<(), ArtifactError> {
        let (store, to) = (&self.artifacts.inner.store, blob_path(&self.digest));
        let failed = |source| ArtifactError::store("write", &to, source);
        let mut pieces = Pieces::open(&self.path)?;
        if self.size <= PART_BYTES {
            let mut whole = Vec::new();
            while let Some(piece) = pieces.next().await? {
                whole.extend_from_slice(&piece);
            }
            self.compare(pieces)?;
            return store.put(&to, whole.into()).await.map(|_| ()).map_err(failed);
        }
        let part = PART_BYTES.max(self.size.div_ceil(MOST_PARTS));
        let upload = store.put_multipart(&to).await.map_err(failed)?;
        let mut writer =
            WriteMultipart::new_with_chunk_size(upload, usize::try_from(part).unwrap_or(usize::MAX));
        let sent = async {
            while let Some(piece) = pieces.next().await? {
                writer.wait_for_capacity(PARTS_AT_ONCE).await.map_err(failed)?;
                writer.write(&piece);
            }
            self.compare(pieces)
        };
        match sent.await {
            Ok(()) => writer.finish().await.map(|_| ()).map_err(failed),
            Err(error) => {
                // The first error is the one to tell; parts that stay are the store's to clean up.
                let _ = writer.abort().await;
                Err(error)
            }
        }
    }

    fn discard(&self) -> Result<(), ArtifactError> {
        std::fs::remove_file(&self.path).map_err(io_error("delete", &self.path))
    }
}

/// A file in pieces, hashed as they are read, off the runtime's threads.
struct Pieces {
    path: PathBuf,
    file: Option<File>,
    hasher: Sha256,
}

impl Pieces {
    fn open(path: &FilePath) -> Result<Self, ArtifactError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        Ok(Self { path: path.to_owned(), file: Some(file), hasher: Sha256::new() })
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, ArtifactError> {
        let Some(mut file) = self.file.take() else { return Ok(None) };
        let mut hasher = std::mem::take(&mut self.hasher);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(READ_BYTES);
            (&mut file).take(READ_BYTES as u64).read_to_end(&mut piece)?;
            hasher.update(&piece);
            io::Result::Ok((piece, file, hasher))
        });
        let read = read.await.map_err(|_| ArtifactError::Stopping)?;
        let (piece, file, hasher) = read.map_err(io_error("read", &self.path))?;
        self.hasher = hasher;
        if piece.is_empty() {
            return Ok(None);
        }
        self.file = Some(file);
        Ok(Some(piece))
    }
}

pub(super) fn io_error(doing: &'static str, path: &FilePath) -> impl Fn(io::Error) -> ArtifactError + use<> {
    let path = path.to_owned();
    move |source| ArtifactError::Io { doing, path: path.clone(), source }
}
