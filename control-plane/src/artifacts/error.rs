//! What can go wrong with artifacts.

use std::{io, path::PathBuf};

use object_store::path::Path;
use rookery_model::bundle::BundleError;

use crate::domain::Digest;

/// Artifacts cannot be read or written, or what was sent is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Nothing of that kind is known.
    #[error("{url:?} is no place for artifacts: {why}")]
    Url {
        /// What was configured.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The object store failed.
    #[error("cannot {doing} {path} in the artifact store")]
    Store {
        /// What was tried.
        doing: &'static str,
        /// The object.
        path: String,
        /// Why not.
        #[source]
        source: object_store::Error,
    },
    /// A local file or folder failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another call appends to the blob.
    #[error("{digest} is being sent by another call, and has {offset} bytes here; try again in a moment")]
    Busy {
        /// The blob.
        digest: Digest,
        /// Bytes that are here.
        offset: u64,
    },
    /// The upload begins at the wrong place.
    #[error("{digest} has {offset} bytes here; go on from there")]
    Offset {
        /// The blob.
        digest: Digest,
        /// Bytes that are here.
        offset: u64,
    },
    /// More was sent than the blob has.
    #[error("{digest} has {size} bytes, and more were sent")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// The bytes are not those that the digest names; they were thrown away.
    #[error("what was sent as {digest} has the digest {found}; it was thrown away")]
    Digest {
        /// The blob.
        digest: Digest,
        /// What its bytes have.
        found: Digest,
    },
    /// No push that has begun needs the blob.
    #[error("no push that has begun needs {digest} with {size} bytes; begin the push again")]
    NotAwaited {
        /// The blob.
        digest: Digest,
        /// Its size as sent.
        size: u64,
    },
    /// Too many pushes have begun.
    #[error("{0} pushes have begun and not ended, which is the limit; collecting garbage ends old ones")]
    TooManyPushes(usize),
    /// No such push has begun.
    #[error("no push of {0} has begun, or it was given up long ago; begin it again")]
    NotBegun(Digest),
    /// Blobs that a version needs are not here.
    #[error("{count} blobs of the version are missing, {first} among them; begin the push again")]
    Incomplete {
        /// How many.
        count: usize,
        /// One of them.
        first: Digest,
    },
    /// Garbage is being collected.
    #[error("garbage is being collected; try again in a moment")]
    Collecting,
    /// There is no such blob.
    #[error("there is no blob {0}")]
    Missing(Digest),
    /// The range is not inside the blob.
    #[error("{digest} has {size} bytes: there is no byte {offset}")]
    Range {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// First byte asked for.
        offset: u64,
    },
    /// The manifest or config breaks the rules of bundles.
    #[error("this is no Rookery bundle")]
    Bundle(#[source] BundleError),
    /// The manifest breaks a rule of its own.
    #[error("this manifest is refused: {0}")]
    Manifest(String),
    /// A thread of the runtime panicked or the runtime is going down.
    #[error("the work was given up: the control plane stops")]
    Stopping,
}

impl ArtifactError {
    pub(super) fn store(doing: &'static str, path: &Path, source: object_store::Error) -> Self {
        Self::Store { doing, path: path.to_string(), source }
    }
}
