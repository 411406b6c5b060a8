//! The blobs of a push on their way: several at once, each from where it stopped.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use rookery_model::bundle::{BundleInfo, Progress};
use rookery_proto::v1::{MissingBlob, UploadBlobRequest};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Client;
use super::push::Stop;
use super::retry::is_final;
use crate::error::{Failure, OrFail};

/// Bytes of a message.
const PIECE_BYTES: usize = 256 << 10;

/// A connection that takes no piece for so long is dead, whatever it says.
const STALL: Duration = Duration::from_secs(60);

/// After the last piece: time for the endpoint to check the blob, and to put it into an object store.
const ANSWER: Duration = Duration::from_secs(600);

/// How often a blob may arrive as something else before the file is to blame.
const MOST_MISMATCHES: u32 = 2;

/// Where a bundle's blobs lie, and what became of them.
pub(super) struct Uploads {
    files: HashMap<String, PathBuf>,
    parallel: usize,
    mismatches: HashMap<String, u32>,
}

impl Uploads {
    pub(super) fn new(bundle: &Path, info: &BundleInfo, parallel: usize) -> Self {
        let blobs = info.contents().into_iter();
        let files = blobs.map(|blob| (blob.digest.to_string(), bundle.join(blob.path()))).collect();
        Self { files, parallel, mismatches: HashMap::new() }
    }

    /// Sends every missing blob once. What one of them fails with does not stop the others, unless it is final.
    ///
    /// # Errors
    /// The first final error, else the last one.
    pub(super) async fn send(
        &mut self,
        client: &Client,
        mut missing: Vec<MissingBlob>,
        meter: &Meter,
    ) -> Result<(), Stop> {
        // Of two pushes of the same bundle each begins elsewhere, so that they share the work.
        let random = RandomState::new().build_hasher().finish() as usize;
        let middle = random % missing.len().max(1);
        missing.rotate_left(middle);
        let mut result = Ok(());
        {
            let files = &self.files;
            let sends = missing.into_iter().map(async |blob| {
                let digest = blob.digest.clone();
                let file = files.get(&digest);
                (digest, send_blob(client.clone(), blob, file, meter).await)
            });
            let mut sends = stream::iter(sends).buffer_unordered(self.parallel);
            while let Some((digest, sent)) = sends.next().await {
                match sent {
                    Ok(()) => {}
                    Err(Stop::Status(status)) if !is_final(&status) => {
                        if status.code() == Code::DataLoss {
                            let count = self.mismatches.entry(digest.clone()).or_default();
                            *count += 1;
                            if *count >= MOST_MISMATCHES {
                                return Err(damaged(&digest).into());
                            }
                        }
                        result = Err(Stop::Status(status));
                    }
                    Err(other) => return Err(other),
                }
            }
        }
        result
    }
}

fn damaged(digest: &str) -> Failure {
    Failure::new(format!("the bundle's blob {digest} does not have that digest"))
        .hint("the bundle is damaged: pack or fetch it again")
}

async fn send_blob(
    mut client: Client,
    blob: MissingBlob,
    path: Option<&PathBuf>,
    meter: &Meter,
) -> Result<(), Stop> {
    let path = path.ok_or_else(|| {
        Failure::new(format!("the endpoint asks for {}, which the bundle lacks", blob.digest))
    })?;
    let unreadable = || format!("could not read {}", path.display());
    let mut file = File::open(path).await.or_fail(unreadable)?;
    file.seek(SeekFrom::Start(blob.offset)).await.or_fail(unreadable)?;
    let failed = Arc::new(Mutex::new(None));
    let (size, offset) = (blob.size, blob.offset);
    let pulse = Pulse::new();
    let pieces = pieces(file, blob, meter.clone(), Arc::clone(&failed), pulse.clone());
    let sent = tokio::select! {
        sent = client.upload_blob(pieces) => sent,
        () = pulse.stops() => Err(Status::unavailable("the connection takes no more bytes")),
    };
    // A file that cannot be read ends the call early; the cause is here and not at the endpoint.
    if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(Failure::new(unreadable()).caused_by(error).into());
    }
    let answer = sent?.into_inner();
    if !answer.complete && answer.offset >= offset && answer.offset < size {
        let bytes = tokio::fs::metadata(path).await.or_fail(unreadable)?.len();
        if bytes < size {
            let why = format!("{} has {bytes} bytes instead of {size}", path.display());
            return Err(Failure::new(why).hint("the bundle is damaged: pack or fetch it again").into());
        }
    }
    Ok(())
}

/// The messages of an upload: the first says what it is of, and is there even if there is nothing left to send.
fn pieces(
    file: File,
    blob: MissingBlob,
    meter: Meter,
    failed: Arc<Mutex<Option<std::io::Error>>>,
    pulse: Pulse,
) -> impl Stream<Item = UploadBlobRequest> + Send + 'static {
    let left = blob.size.saturating_sub(blob.offset);
    let state = (file.take(left), Some(blob), meter, failed, pulse);
    stream::unfold(state, |(mut file, mut head, meter, failed, pulse)| async move {
        let mut data = Vec::with_capacity(PIECE_BYTES);
        while data.len() < PIECE_BYTES {
            match file.read_buf(&mut data).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return None;
                }
            }
        }
        let head = head.take();
        pulse.beat(if data.len() < PIECE_BYTES { ANSWER } else { STALL });
        if data.is_empty() && head.is_none() {
            return None;
        }
        meter.add(data.len() as u64);
        let MissingBlob { digest, size, offset } = head.unwrap_or_default();
        Some((UploadBlobRequest { digest, size, offset, data }, (file, None, meter, failed, pulse)))
    })
}

/// When the connection last took something, so that one that is dead without saying so is given up.
#[derive(Clone)]
struct Pulse {
    until: Arc<Mutex<Instant>>,
}

impl Pulse {
    fn new() -> Self {
        Self { until: Arc::new(Mutex::new(Instant::now() + STALL)) }
    }

    /// Something was taken; the next sign of life is due within `limit`.
    fn beat(&self, limit: Duration) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + limit;
    }

    /// Resolves when a sign of life is overdue.
    async fn stops(&self) {
        loop {
            let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// What the person sees: bytes that are there, by the endpoint's word or because they were sent since. Clones are the
/// same one.
#[derive(Clone)]
pub(super) struct Meter {
    shared: Arc<Shown>,
}

struct Shown {
    progress: Box<dyn Progress + Send>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Of all blobs, once the endpoint has said so.
    total: Option<u64>,
    /// There when the endpoint was asked last, and the most that it has said.
    present: u64,
    most_present: u64,
    /// Sent since then, and in all.
    round: u64,
    sent: u64,
    shown: u64,
}

impl Meter {
    pub(super) fn new(progress: impl Progress + Send + 'static) -> Self {
        Self { shared: Arc::new(Shown { progress: Box::new(progress), counts: Mutex::default() }) }
    }

    /// Takes the endpoint's word for what is there. True if that is more than it ever said.
    pub(super) fn is_at(&self, present: u64, total: u64) -> bool {
        let mut counts = self.counts();
        if counts.total.is_none() {
            self.shared.progress.start("pushing", total);
        }
        let more = counts.total.is_none() || present > counts.most_present;
        counts.total = Some(total);
        counts.most_present = counts.most_present.max(present);
        (counts.present, counts.round) = (present, 0);
        self.show(&mut counts);
        more
    }

    /// Bytes that were handed to the connection, some of them perhaps in vain.
    pub(super) fn sent(&self) -> u64 {
        self.counts().sent
    }

    /// The push is over.
    pub(super) fn finish(&self) {
        self.shared.progress.finish();
    }

    fn add(&self, bytes: u64) {
        let mut counts = self.counts();
        counts.round += bytes;
        counts.sent += bytes;
        self.show(&mut counts);
    }

    /// Never goes back: a bar that does looks broken.
    fn show(&self, counts: &mut Counts) {
        let there = (counts.present + counts.round).min(counts.total.unwrap_or(0));
        if there > counts.shown {
            self.shared.progress.advance(there - counts.shown);
            counts.shown = there;
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_takes_nothing_is_given_up() {
        let short = Duration::from_millis(20);
        let pulse = Pulse::new();
        pulse.beat(short);
        let (began, stops) = (Instant::now(), pulse.stops());
        // A beat while somebody waits counts too.
        pulse.beat(3 * short);
        stops.await;
        assert!(began.elapsed() >= 3 * short && began.elapsed() < STALL);
    }

    #[test]
    fn the_bar_never_goes_back_and_progress_is_what_is_new() {
        #[derive(Default)]
        struct Bar(Arc<Mutex<u64>>);
        impl Progress for Bar {
            fn start(&self, _: &str, _: u64) {}
            fn advance(&self, bytes: u64) {
                *self.0.lock().unwrap() += bytes;
            }
            fn finish(&self) {}
        }
        let bar = Bar::default();
        let shown = Arc::clone(&bar.0);
        let meter = Meter::new(bar);
        let shows = |bytes| assert_eq!(*shown.lock().unwrap(), bytes);
        assert!(meter.is_at(10, 100));
        meter.add(30);
        shows(40);
        // Some of it was lost on the way.
        assert!(meter.is_at(25, 100));
        meter.add(10);
        shows(40);
        meter.add(10);
        shows(45);
        // A blob was thrown away.
        assert!(!meter.is_at(20, 100));
        meter.add(1000);
        shows(100);
        assert_eq!(meter.sent(), 1050);
    }
}
