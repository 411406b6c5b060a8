//! From blobs on disk to an engine that has shown what it can.

use std::{path::Path, sync::Arc};

use rookery_model::bundle::{Bundle, BundleError, Digest, NoProgress};
use tokio::sync::OwnedMutexGuard;

use super::{Loaded, Station};
use crate::{
    backend::Backends,
    engine::EngineCore,
    one_line::one_line,
    probes::{SelfCheck, self_check},
    versions::{
        gates,
        machine::{Outcome, Room},
        memory::{Demand, room_alone, room_beside},
        state::Wanted,
        store::{Store, StoreError},
    },
};

impl Station {
    /// Hashes and maps all of a version. What is damaged is taken away.
    pub(super) async fn open_bundle(&self, model: &str, digest: &Digest) -> Outcome {
        let (store, version) = (Arc::clone(&self.store), digest.clone());
        let opened = self.heavily("open version", move || open(&store, &version)).await;
        let bundle = match opened {
            Some(Ok(bundle)) => bundle,
            Some(Err(outcome)) => return outcome,
            None => return Outcome::failed("opening the version panicked"),
        };
        let config = &bundle.info().config;
        let demand = match Demand::of(config, &self.config.engine) {
            Ok(demand) => demand,
            Err(error) => return Outcome::failed(one_line(&error)),
        };
        let blobs = bundle.info().contents().len();
        let model = model.to_owned();
        let loaded = Loaded { model, bundle: Some(bundle), demand, ..Loaded::default() };
        self.loaded().insert(digest.clone(), loaded);
        Outcome::Passed { verdicts: vec![gates::digests_right(blobs)] }
    }

    /// Makes an engine of a version that was opened, if memory allows.
    pub(super) async fn load_engine(&self, wanted: &Wanted, room: Room) -> Outcome {
        let opened = self.loaded().get(&wanted.digest).map(|loaded| (loaded.bundle.clone(), loaded.demand));
        let Some((Some(bundle), demand)) = opened else {
            return Outcome::failed("the version was not verified");
        };
        let (own, others) = self.demands(&wanted.model);
        let serving: Vec<Demand> = own.iter().chain(&others).copied().collect();
        let memory = self.config.board.memory();
        let beside = if memory.total == 0 { u64::MAX } else { room_beside(&memory, &serving) };
        let verdict = gates::memory(&demand, beside);
        if !verdict.passed {
            if room == Room::Beside && demand.total() <= room_alone(&memory, &others, own.first()) {
                let reason = format!(
                    "memory has no room for two versions at once: expected {}; {}",
                    verdict.expected, verdict.seen
                );
                return Outcome::NoRoom { reason };
            }
            let verdicts = vec![verdict];
            return Outcome::Failed { reason: gates::refusal(&verdicts).unwrap_or_default(), verdicts };
        }
        // Its probes were passed here before; what can have changed since is found by a few tokens.
        let extent = if wanted.rolls_back { self.config.self_check } else { SelfCheck::Off };
        match self.make_engine(&wanted.digest, bundle, extent).await {
            Ok(()) => Outcome::Passed { verdicts: vec![verdict] },
            Err(reason) => Outcome::failed(reason),
        }
    }

    /// Makes an engine and lets it show something.
    pub(super) async fn make_engine(
        &self,
        digest: &Digest,
        bundle: Arc<Bundle>,
        extent: SelfCheck,
    ) -> Result<(), String> {
        let (config, settings) = (self.config.engine.clone(), self.config.backend.clone());
        let (backends, loaded, digest) =
            (Arc::clone(&self.backends), Arc::clone(&self.loaded), digest.clone());
        let make = move || -> Result<(), String> {
            let mut open = backends.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let backends = match &*open {
                Some(backends) => Arc::clone(backends),
                None => {
                    let opened = Backends::open(&settings).map_err(|error| one_line(&error))?;
                    Arc::clone(open.insert(Arc::new(opened)))
                }
            };
            drop(open);
            let kernels = config.kernels().map_err(|error| one_line(&error))?;
            let backend = backends.backend(kernels);
            let mut core =
                EngineCore::with_backend(&bundle, config, backend).map_err(|error| one_line(&error))?;
            if extent != SelfCheck::Off {
                self_check(&mut core, &bundle, extent).map_err(|error| one_line(&error))?;
            }
            let mut loaded = loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // Gone if the step was broken off and what it had was discarded meanwhile.
            if let Some(loaded) = loaded.get_mut(&digest) {
                loaded.core = Some(Box::new(core));
            }
            Ok(())
        };
        self.heavily("make engine", make)
            .await
            .unwrap_or_else(|| Err("making the engine panicked".to_owned()))
    }

    /// Probes, speed and temperature.
    pub(super) async fn try_engine(&self, wanted: &Arc<Wanted>) -> Outcome {
        let (loaded, wanted) = (Arc::clone(&self.loaded), Arc::clone(wanted));
        let board = self.config.board.clone();
        let work = move || {
            let lock = || loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let taken = lock().get_mut(&wanted.digest).and_then(|l| l.core.take().zip(l.bundle.clone()));
            let (mut core, bundle) = taken?;
            let (verdict, set) = gates::probes(&mut core, &bundle);
            let right = verdict.passed;
            let mut verdicts = vec![verdict];
            if right {
                verdicts.extend(gates::speed(
                    &mut core,
                    set.as_ref(),
                    &board.name(),
                    wanted.min_speed_percent,
                ));
                verdicts.extend(gates::temperature(board.celsius(), wanted.max_celsius));
            }
            if let Some(loaded) = lock().get_mut(&wanted.digest) {
                loaded.core = Some(core);
            }
            Some(verdicts)
        };
        match self.heavily("probe version", work).await {
            Some(Some(verdicts)) => match gates::refusal(&verdicts) {
                None => Outcome::Passed { verdicts },
                Some(reason) => Outcome::Failed { reason, verdicts },
            },
            Some(None) => Outcome::failed("the version's engine is not there"),
            None => Outcome::failed("replaying the probes panicked"),
        }
    }

    /// Runs work that takes memory or all cores, one at a time.
    pub(super) async fn heavily<T, F>(&self, name: &'static str, work: F) -> Option<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let permit: OwnedMutexGuard<()> = Arc::clone(&self.heavy).lock_owned().await;
        self.tasks
            .run_blocking(name, move || {
                // Held until the thread is done, also if nobody waits for it any more.
                let _permit = permit;
                work()
            })
            .await
    }
}

/// Opens a version, or takes away what is damaged of it.
fn open(store: &Store, version: &Digest) -> Result<Arc<Bundle>, Outcome> {
    let folder = store.layout(version).map_err(|error| match &error {
        StoreError::Missing(blob) => damaged(store, blob, "no file"),
        StoreError::Digest { expected, found } => damaged(store, expected, found.as_str()),
        StoreError::Io { .. } | StoreError::InUse(_) | StoreError::Manifest(_) => {
            Outcome::failed(one_line(&error))
        }
    })?;
    Bundle::open(&folder, &NoProgress).map_err(|error| refused(store, &error))
}

fn damaged(store: &Store, blob: &Digest, found: &str) -> Outcome {
    let verdict = gates::digest_wrong("a blob", blob.as_str(), found);
    take_away(store, blob);
    let verdicts = vec![verdict];
    Outcome::Damaged { reason: gates::refusal(&verdicts).unwrap_or_default(), verdicts }
}

fn refused(store: &Store, error: &BundleError) -> Outcome {
    let blob = match error {
        BundleError::BlobMissing { digest, .. }
        | BundleError::BlobSize { digest, .. }
        | BundleError::BlobDigest { digest, .. } => digest.parse::<Digest>().ok(),
        // Flash memory that cannot be read any more.
        BundleError::Io { path, .. } => blob_of(path),
        BundleError::NotABundle { .. }
        | BundleError::Unfinished { .. }
        | BundleError::Document { .. }
        | BundleError::SchemaVersion { .. }
        | BundleError::Model(_)
        | BundleError::Blob { .. }
        | BundleError::Tensor { .. }
        | BundleError::NoTensor { .. }
        | BundleError::Tokenizer(_) => None,
    };
    let Some(blob) = blob else { return Outcome::failed(one_line(error)) };
    take_away(store, &blob);
    match gates::damage(error) {
        Some(verdict) => {
            let verdicts = vec![verdict];
            Outcome::Damaged { reason: gates::refusal(&verdicts).unwrap_or_default(), verdicts }
        }
        None => Outcome::Damaged { reason: one_line(error), verdicts: Vec::new() },
    }
}

fn blob_of(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

fn take_away(store: &Store, blob: &Digest) {
    if let Err(error) = store.remove_blob(blob) {
        tracing::warn!(%blob, error = one_line(&error), "a damaged blob could not be removed");
    }
}
