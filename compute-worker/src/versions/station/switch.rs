//! Moving requests from engine to engine.

use std::sync::Arc;

use rookery_model::bundle::Digest;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Station;
use crate::{engine::Engine, one_line::one_line, service::Entry, versions::machine::Outcome};

impl Station {
    /// New requests go to the version from now on.
    pub(super) async fn let_in(&self, model: &str, digest: &Digest) -> Outcome {
        if let Some(entry) = self.entry(digest) {
            self.models.activate(entry);
            return Outcome::passed();
        }
        let core = self.loaded().get_mut(digest).and_then(|loaded| loaded.core.take());
        let Some(core) = core else { return Outcome::failed("the version's engine is not there") };
        let engine = match Engine::start_core(*core) {
            Ok(engine) => engine,
            Err(error) => return Outcome::failed(one_line(&error)),
        };
        let entry = Entry::new(model.to_owned(), engine);
        if let Some(loaded) = self.loaded().get_mut(digest) {
            loaded.entry = Some(Arc::clone(&entry));
        }
        self.models.activate(entry);
        info!(model, %digest, "requests go to this version");
        Outcome::passed()
    }

    /// Serves a committed version, whose engine may be there still.
    pub(super) async fn serve_again(&self, model: &str, digest: &Digest) -> Outcome {
        if self.entry(digest).is_none() {
            match self.open_bundle(model, digest).await {
                Outcome::Passed { .. } => {}
                other @ (Outcome::Failed { .. } | Outcome::Damaged { .. } | Outcome::NoRoom { .. }) => {
                    return other;
                }
            }
            let bundle = self.loaded().get(digest).and_then(|loaded| loaded.bundle.clone());
            let Some(bundle) = bundle else { return Outcome::failed("the version was not verified") };
            if let Err(reason) = self.make_engine(digest, bundle, self.config.self_check).await {
                self.unload(digest).await;
                return Outcome::failed(reason);
            }
        }
        self.let_in(model, digest).await
    }

    /// Lets the version's requests end, and frees its engine.
    pub(super) async fn let_out(&self, digest: &Digest) {
        let Some(entry) = self.entry(digest) else { return self.unload(digest).await };
        self.models.retire(&entry);
        if timeout(self.config.drain_limit, entry.idle()).await.is_err() {
            warn!(%digest, limit = ?self.config.drain_limit, "streams of a replaced version are cut");
        }
        let engine = entry.engine().clone();
        if self.tasks.run_blocking("stop engine", move || engine.shutdown()).await.is_none() {
            warn!(%digest, "stopping the engine of a replaced version panicked");
        }
        drop(entry);
        self.unload(digest).await;
    }

    /// Frees what is in memory of a version.
    pub(super) async fn unload(&self, digest: &Digest) {
        let (loaded, digest) = (Arc::clone(&self.loaded), digest.clone());
        let free = move || {
            let gone = loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&digest);
            // Unmapping gigabytes takes a moment; nobody waits for the lock meanwhile.
            drop(gone);
        };
        // After whatever thread is still at work on it.
        let _ = self.heavily("free version", free).await;
    }
}
