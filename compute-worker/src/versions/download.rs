//! Fetching a version's blobs: several at a time, from where each was left, checked before they get their names.
//!
//! ```text
//!  source.read(digest, offset) ─► token bucket ─► partial/HEX ─► all there? ─► sync, hash ─► blobs/sha256/HEX
//!        ▲                                            │ interrupted: wait, longer each time without a byte
//!        └────────────────────────────────────────────┘ refused for now: as long as RetryInfo says
//! ```

mod bucket;
mod source;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::stream::{self, StreamExt};
use rookery_model::bundle::{BlobInfo, Digest};
use rookery_proto::server::Tasks;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::{
    machine::Progress,
    store::{Partial, Store, StoreError},
};
pub use bucket::Bucket;
pub use source::{BlobSource, BlobStream, SourceError};

/// How patient a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Blobs that are fetched at the same time. Default 4.
    pub parallel: usize,
    /// Time without a byte after which a stream is taken for lost. Default 60 s.
    pub stall: Duration,
    /// Pause after the first interruption; it doubles with each further one that brought no byte. Default 1 s.
    pub pause_min: Duration,
    /// Longest pause. Default 60 s.
    pub pause_max: Duration,
    /// Time without a byte after which the download fails. Default one day: gateways may be away for hours.
    pub give_up: Duration,
    /// Times that a blob is fetched whose bytes turn out to be others than its digest says. Default 3.
    pub attempts: u32,
    /// Times that the source may say, one after the other, that there is no such blob. Default 5.
    pub refusals: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            parallel: 4,
            stall: Duration::from_secs(60),
            pause_min: Duration::from_secs(1),
            pause_max: Duration::from_secs(60),
            give_up: Duration::from_secs(24 * 3600),
            attempts: 3,
            refusals: 5,
        }
    }
}

/// A download has failed for good.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// What comes is something else, again and again.
    #[error("blob {title} came {attempts} times with the digest {found}")]
    Digest {
        /// Title of the blob.
        title: String,
        /// How often.
        attempts: u32,
        /// What its name says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The control plane does not have it.
    #[error("blob {title} is not to be had: {why}")]
    Refused {
        /// Title of the blob.
        title: String,
        /// As the control plane says.
        why: String,
    },
    /// Nothing came for too long.
    #[error("no byte of blob {title} came for {patience:?}: {why}")]
    Lost {
        /// Title of the blob.
        title: String,
        /// How long.
        patience: Duration,
        /// What happened last.
        why: String,
    },
    /// The disk refuses.
    #[error("blob {title} cannot be kept")]
    Store {
        /// Title of the blob.
        title: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// Fetches blobs for one gateway. Clones share the limit of bandwidth.
#[derive(Clone)]
pub struct Downloader {
    store: Arc<Store>,
    source: Arc<dyn BlobSource>,
    bucket: Arc<Bucket>,
    patience: Patience,
    tasks: Tasks,
    /// Draws pauses; other gateways have others.
    seed: u64,
}

impl Downloader {
    /// For the gateway of this name.
    pub fn new(
        store: Arc<Store>,
        source: Arc<dyn BlobSource>,
        patience: Patience,
        gateway: &str,
        tasks: Tasks,
    ) -> Self {
        let bucket = Arc::default();
        Self { store, source, bucket, patience, tasks, seed: hash_of(&gateway) }
    }

    /// From now on at most so many bytes a second are fetched; 0: as many as come.
    pub fn limit(&self, bytes_per_second: u64) {
        self.bucket.limit(bytes_per_second);
    }

    /// How long this gateway waits before it begins with a version, of at most `spread`: always the same, and evenly spread
    /// over gateways and versions.
    pub fn start_after(&self, version: &Digest, spread: Duration) -> Duration {
        spread.mul_f64(unit(hash_of(&(self.seed, version.as_str()))))
    }

    /// Fetches those of `blobs` that are missing. Dropping the future breaks off; what has come stays.
    ///
    /// # Errors
    /// The first blob that cannot be had.
    pub async fn fetch(&self, blobs: Vec<BlobInfo>, progress: &Progress) -> Result<(), DownloadError> {
        let missing = blobs.into_iter().filter(|blob| !self.store.has(&blob.digest, blob.size));
        let fetches = missing.map(|blob| self.fetch_blob(blob, progress));
        let mut fetches = pin!(stream::iter(fetches).buffer_unordered(self.patience.parallel.max(1)));
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(())
    }

    async fn fetch_blob(&self, blob: BlobInfo, progress: &Progress) -> Result<(), DownloadError> {
        let failed = |source| DownloadError::Store { title: blob.title.clone(), source };
        let mut attempts = 0;
        loop {
            let mut partial = self.store.partial(&blob.digest, blob.size).map_err(failed)?;
            self.fill(&blob, &mut partial, progress).await?;
            let store = Arc::clone(&self.store);
            // Hashing takes seconds for large blobs.
            let adopted = self.tasks.run_blocking("adopt blob", move || store.adopt(partial)).await;
            match adopted {
                Some(Ok(())) => return Ok(()),
                Some(Err(StoreError::Digest { expected, found })) => {
                    attempts += 1;
                    progress.take_back(blob.size);
                    warn!(blob = blob.title, %expected, %found, attempts, "a blob came with other bytes");
                    if attempts >= self.patience.attempts {
                        let title = blob.title;
                        return Err(DownloadError::Digest { title, attempts, expected, found });
                    }
                }
                Some(Err(source)) => return Err(failed(source)),
                None => return Err(failed(StoreError::Missing(blob.digest.clone()))),
            }
        }
    }

    /// Fetches until all bytes are there.
    async fn fill(
        &self,
        blob: &BlobInfo,
        partial: &mut Partial,
        progress: &Progress,
    ) -> Result<(), DownloadError> {
        let mut last_byte = Instant::now();
        let (mut interruptions, mut refusals) = (0u32, 0u32);
        while partial.missing() > 0 {
            let before = partial.written();
            let title = || blob.title.clone();
            let ended = self.stream(&blob.digest, partial, progress).await;
            if partial.written() > before {
                (last_byte, interruptions, refusals) = (Instant::now(), 0, 0);
            }
            let (pause, why) = match ended {
                Ok(()) => (None, "the stream ended early".to_owned()),
                Err(StreamError::Store(source)) => {
                    return Err(DownloadError::Store { title: title(), source });
                }
                Err(StreamError::Source(SourceError::Busy { retry })) => (Some(retry), "busy".to_owned()),
                Err(StreamError::Source(SourceError::Lost(why))) => (None, why),
                Err(StreamError::Source(SourceError::Refused(why))) => {
                    refusals += 1;
                    if refusals >= self.patience.refusals {
                        return Err(DownloadError::Refused { title: title(), why });
                    }
                    (None, why)
                }
            };
            if partial.missing() == 0 {
                return Ok(());
            }
            if last_byte.elapsed() >= self.patience.give_up {
                let patience = self.patience.give_up;
                return Err(DownloadError::Lost { title: title(), patience, why });
            }
            let pause = self.pause(pause, interruptions, &blob.digest);
            interruptions = interruptions.saturating_add(1);
            debug!(blob = blob.title, why, ?pause, at = partial.written(), "a download goes on later");
            sleep(pause).await;
        }
        Ok(())
    }

    /// Reads one stream to its end or its failure.
    async fn stream(
        &self,
        digest: &Digest,
        partial: &mut Partial,
        progress: &Progress,
    ) -> Result<(), StreamError> {
        let mut bytes = self.source.read(digest, partial.written());
        while partial.missing() > 0 {
            let next = timeout(self.patience.stall, bytes.next()).await;
            let next = next.map_err(|_| StreamError::Source(SourceError::Lost("nothing came".to_owned())))?;
            let Some(chunk) = next else { return Ok(()) };
            let chunk = chunk.map_err(StreamError::Source)?;
            self.bucket.take(chunk.len() as u64).await;
            // A write goes to the system's cache; where that is full, waiting is what is wanted.
            partial.write(&chunk).map_err(StreamError::Store)?;
            progress.advance(chunk.len() as u64);
        }
        Ok(())
    }

    /// As long as the source says, or twice as long each time; a random part more or less, so that a fleet does not come
    /// back in step.
    fn pause(&self, asked: Option<Duration>, interruptions: u32, digest: &Digest) -> Duration {
        let random = unit(hash_of(&(self.seed, digest.as_str(), interruptions)));
        let Patience { pause_min, pause_max, .. } = self.patience;
        match asked {
            Some(asked) => asked.clamp(pause_min, pause_max).mul_f64(1.0 + random / 2.0),
            None => {
                let doubled = 1u32.checked_shl(interruptions).unwrap_or(u32::MAX);
                pause_min.saturating_mul(doubled).min(pause_max).mul_f64(0.5 + random / 2.0)
            }
        }
    }
}

enum StreamError {
    Source(SourceError),
    Store(StoreError),
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Evenly spread over [0, 1).
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}
