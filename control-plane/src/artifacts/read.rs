//! Reading blobs, in pieces.

use std::{ops::Range, sync::Arc};

use futures_util::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, path::Path};

use super::{ArtifactError, Artifacts, blob_path};
use crate::domain::Digest;

/// Most bytes of a piece.
pub const PIECE_BYTES: usize = 256 << 10;

/// Bytes of a blob, in order.
pub type Pieces = BoxStream<'static, Result<Vec<u8>, ArtifactError>>;

impl Artifacts {
    /// A range of a blob: `length` bytes from `offset` on, or as many as there are; 0 is all the rest.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`]; [`ArtifactError::Range`] if the offset is beyond the end; others if the store fails, also
    /// in the middle.
    pub async fn read(&self, digest: &Digest, offset: u64, length: u64) -> Result<Pieces, ArtifactError> {
        let size = self.size(digest).await?.ok_or_else(|| ArtifactError::Missing(digest.clone()))?;
        if offset > size {
            return Err(ArtifactError::Range { digest: digest.clone(), size, offset });
        }
        let end = if length == 0 { size } else { offset.saturating_add(length).min(size) };
        if offset == end {
            return Ok(futures_util::stream::empty().boxed());
        }
        let (store, path) = (Arc::clone(&self.inner.store), blob_path(digest));
        if self.inner.local {
            Ok(by_pieces(store, path, offset..end).boxed())
        } else {
            streamed(store, path, offset..end).await
        }
    }

    /// A blob as a whole, if it has at most `most` bytes.
    ///
    /// # Errors
    /// As [`Artifacts::read`]; [`ArtifactError::TooLong`].
    pub async fn read_whole(&self, digest: &Digest, most: u64) -> Result<Vec<u8>, ArtifactError> {
        let pieces = self.read(digest, 0, most.saturating_add(1)).await?;
        let whole = pieces.try_concat().await?;
        if whole.len() as u64 > most {
            return Err(ArtifactError::TooLong { digest: digest.clone(), size: most });
        }
        Ok(whole)
    }
}

/// For a folder: one read of the file for each piece, as large as a piece may be.
fn by_pieces(
    store: Arc<dyn ObjectStore>,
    path: Path,
    range: Range<u64>,
) -> impl Stream<Item = Result<Vec<u8>, ArtifactError>> {
    futures_util::stream::try_unfold((store, path, range), |(store, path, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let next = range.start.saturating_add(PIECE_BYTES as u64).min(range.end);
        let piece = store.get_range(&path, range.start..next).await;
        let piece = piece.map_err(|source| ArtifactError::store("read", &path, source))?;
        Ok(Some((piece.into(), (store, path, next..range.end))))
    })
}

/// For everything else: one request, whose answer comes in whatever pieces the network makes.
async fn streamed(
    store: Arc<dyn ObjectStore>,
    path: Path,
    range: Range<u64>,
) -> Result<Pieces, ArtifactError> {
    let options = GetOptions::new().with_range(Some(range));
    let got = store.get_opts(&path, options).await;
    let got = got.map_err(|source| ArtifactError::store("read", &path, source))?;
    let pieces = got.into_stream().map_err(move |source| ArtifactError::store("read", &path, source));
    let small = pieces.map_ok(|bytes| {
        let parts: Vec<_> = bytes.chunks(PIECE_BYTES).map(|part| Ok(part.to_vec())).collect();
        futures_util::stream::iter(parts)
    });
    Ok(small.try_flatten().boxed())
}
