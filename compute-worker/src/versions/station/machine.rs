//! The steps of a version, as the state machine asks for them.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use rookery_model::bundle::{BlobInfo, BundleConfig, CONFIG_TYPE, Digest, check_manifest};
use tokio::time::sleep;

use super::Station;
use crate::{
    one_line::one_line,
    versions::{
        download::DownloadError,
        gates,
        machine::{Kept, Machine, NotKept, Numbers, Outcome, Progress, Room},
        memory::{Demand, room_alone},
        state::{Assignment, Saved, State, Verdict, Wanted},
        store::StoreError,
    },
};

impl Machine for Station {
    async fn load(&self) -> Saved {
        let store = Arc::clone(&self.store);
        self.tasks.run_blocking("load versions", move || store.load()).await.unwrap_or_default()
    }

    async fn keep_assignment(&self, assignment: &Assignment) -> Result<(), NotKept> {
        let (store, assignment) = (Arc::clone(&self.store), assignment.clone());
        kept(self.tasks.run_blocking("keep assignment", move || store.keep_assignment(&assignment)).await)
    }

    async fn keep_state(&self, state: &State) -> Result<(), NotKept> {
        let (store, state) = (Arc::clone(&self.store), state.clone());
        kept(self.tasks.run_blocking("keep state", move || store.keep_state(&state)).await)
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn download(&self, wanted: &Arc<Wanted>, progress: &Progress) -> Outcome {
        let mut verdicts = vec![gates::signature(wanted)];
        match self.fetch(wanted, progress, &mut verdicts).await {
            Ok(()) => Outcome::Passed { verdicts },
            Err(reason) => Outcome::Failed { reason, verdicts },
        }
    }

    async fn verify(&self, wanted: &Arc<Wanted>) -> Outcome {
        self.open_bundle(&wanted.model, &wanted.digest).await
    }

    async fn stage(&self, wanted: &Arc<Wanted>, room: Room) -> Outcome {
        self.load_engine(wanted, room).await
    }

    async fn probe(&self, wanted: &Arc<Wanted>) -> Outcome {
        self.try_engine(wanted).await
    }

    async fn activate(&self, model: &str, digest: &Digest) -> Outcome {
        self.let_in(model, digest).await
    }

    async fn restore(&self, model: &str, digest: &Digest) -> Outcome {
        self.serve_again(model, digest).await
    }

    async fn drain(&self, _model: &str, digest: &Digest) {
        self.let_out(digest).await;
    }

    async fn discard(&self, _model: &str, digest: &Digest) {
        self.unload(digest).await;
    }

    async fn prune(&self, kept: &Kept) {
        let (store, kept) = (Arc::clone(&self.store), kept.clone());
        let pruned = self.tasks.run_blocking("prune versions", move || store.prune(&kept)).await;
        if let Some(Err(error)) = pruned {
            tracing::warn!(error = one_line(&error), "versions that nobody needs could not be removed");
        }
    }

    fn numbers(&self, digest: &Digest) -> Numbers {
        self.entry(digest).map(|entry| entry.tally().numbers()).unwrap_or_default()
    }
}

impl Station {
    /// Everything before the version is whole on disk.
    async fn fetch(
        &self,
        wanted: &Wanted,
        progress: &Progress,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), String> {
        refuse(verdicts)?;
        let manifest = wanted.manifest.as_bytes();
        let blobs = unique(check_manifest(manifest).map_err(|error| one_line(&error))?);
        let here = |blob: &BlobInfo| {
            if self.store.has(&blob.digest, blob.size) {
                blob.size
            } else {
                self.store.partial_bytes(&blob.digest)
            }
        };
        let (done, total) = blobs.iter().fold((0u64, 0u64), |(done, total), blob| {
            (done.saturating_add(here(blob).min(blob.size)), total.saturating_add(blob.size))
        });
        progress.set(done, total);
        if done == 0 {
            let spread = std::time::Duration::from_millis(wanted.start_spread_ms);
            sleep(self.downloader.start_after(&wanted.digest, spread)).await;
        }
        verdicts.push(self.room_on_disk(total - done).await?);
        refuse(verdicts)?;
        let (store, digest, bytes) = (Arc::clone(&self.store), wanted.digest.clone(), manifest.to_vec());
        let put = self.tasks.run_blocking("put manifest", move || store.put(&digest, &bytes)).await;
        put.ok_or("writing the manifest panicked")?.map_err(|error| one_line(&error))?;
        self.downloader.limit(wanted.bandwidth_limit);
        let (configs, others): (Vec<_>, Vec<_>) =
            blobs.into_iter().partition(|blob| blob.media_type == CONFIG_TYPE);
        let config = configs.first().map(|blob| blob.digest.clone());
        self.downloader.fetch(configs, progress).await.map_err(|error| failed(&error, verdicts))?;
        // Memory before the large blobs: what does not fit need not travel.
        if let Some(config) = config {
            verdicts.push(self.fits_at_all(&wanted.model, &config)?);
            refuse(verdicts)?;
        }
        self.downloader.fetch(others, progress).await.map_err(|error| failed(&error, verdicts))
    }

    async fn room_on_disk(&self, missing: u64) -> Result<Verdict, String> {
        let (store, headroom) = (Arc::clone(&self.store), self.config.disk_headroom);
        let free = self.tasks.run_blocking("make room on disk", move || {
            if missing > 0 {
                store.make_room(missing.saturating_add(headroom))?;
            }
            store.free_bytes()
        });
        let free =
            free.await.ok_or("looking for room on disk panicked")?.map_err(|error| one_line(&error))?;
        // What is here already costs nothing more.
        let headroom = if missing > 0 { headroom } else { 0 };
        Ok(gates::disk(missing, headroom, free))
    }

    /// Whether an engine would fit once the model's present one is gone.
    fn fits_at_all(&self, model: &str, config: &Digest) -> Result<Verdict, String> {
        let bytes = self.store.read(config).map_err(|error| one_line(&error))?;
        let config = BundleConfig::parse(&bytes).map_err(|error| one_line(&error))?;
        let demand = Demand::of(&config, &self.config.engine).map_err(|error| one_line(&error))?;
        let (own, others) = self.demands(model);
        let memory = self.config.board.memory();
        let room = if memory.total == 0 { u64::MAX } else { room_alone(&memory, &others, own.first()) };
        Ok(gates::memory(&demand, room))
    }
}

fn refuse(verdicts: &[Verdict]) -> Result<(), String> {
    gates::refusal(verdicts).map_or(Ok(()), Err)
}

fn unique(blobs: Vec<BlobInfo>) -> Vec<BlobInfo> {
    let mut seen = BTreeSet::new();
    blobs.into_iter().filter(|blob| seen.insert(blob.digest.clone())).collect()
}

/// Why a download failed; notes the gate if it was one.
fn failed(error: &DownloadError, verdicts: &mut Vec<Verdict>) -> String {
    match error {
        DownloadError::Digest { title, expected, found, .. } => {
            verdicts.push(gates::digest_wrong(title, expected.as_str(), found.as_str()));
            gates::refusal(verdicts).unwrap_or_default()
        }
        DownloadError::Refused { .. } | DownloadError::Lost { .. } | DownloadError::Store { .. } => {
            one_line(error)
        }
    }
}

fn kept(result: Option<Result<(), StoreError>>) -> Result<(), NotKept> {
    match result {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(NotKept(one_line(&error))),
        None => Err(NotKept("writing panicked".to_owned())),
    }
}
