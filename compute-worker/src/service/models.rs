//! The models that this worker serves, by name and by digest.
//!
//! ```text
//!  bundles named at the start ── for as long as the worker lives ──┐
//!                                                                  ├─► Set ─► find(name | sha256:…) ─► Served
//!  versions that were assigned ── activate ─► … ─► retire ─────────┘
//! ```
//!
//! A request looks its model up once, at its start, and holds a [`Served`] from then on: what is retired meanwhile goes on
//! for it, and whoever retired it can wait until the last one has ended.

use std::{collections::BTreeMap, ops::Deref, pin::Pin, sync::Arc, time::Instant};

use futures_util::future::{pending, select_all};
use rookery_proto::{
    status::{self, Reason},
    v1,
};
use tokio::sync::watch;
use tonic::Status;

use super::numbers::{Counted, Tally};
use crate::engine::{EngineHandle, Load, ModelInfo};

/// How digests begin; no name of a model does, as names of versions' models have no colon.
const DIGEST: &str = "sha256:";

/// What is served now. Clones share it.
#[derive(Clone)]
pub(crate) struct Models(Arc<watch::Sender<Arc<Set>>>);

/// What is served at one moment.
#[derive(Clone, Default)]
pub(crate) struct Set {
    by_name: BTreeMap<String, Arc<Entry>>,
    by_digest: BTreeMap<String, Arc<Entry>>,
}

/// One engine and its requests.
pub(crate) struct Entry {
    /// What requests call it: the name in the control plane, or in the bundle.
    name: String,
    engine: EngineHandle,
    tally: Tally,
    /// Requests that run.
    running: watch::Sender<usize>,
}

/// A model that a request has found. While it is held, the engine is not taken away, unless time is up.
pub(crate) struct Served(Arc<Entry>);

impl Models {
    /// Nothing yet.
    pub(crate) fn none() -> Self {
        Self(Arc::default())
    }

    /// Models by the names in their bundles.
    ///
    /// # Errors
    /// Gives back a name that two engines have.
    pub(crate) fn new(engines: Vec<EngineHandle>) -> Result<Self, String> {
        let mut set = Set::default();
        for engine in engines {
            let name = engine.info().name.clone();
            let entry = Entry::new(name.clone(), engine);
            set.by_digest.insert(entry.digest().to_owned(), Arc::clone(&entry));
            if set.by_name.insert(name.clone(), entry).is_some() {
                return Err(name);
            }
        }
        Ok(Self(Arc::new(watch::Sender::new(Arc::new(set)))))
    }

    /// The model of that name or digest, or the only one if `name` is empty.
    pub(crate) fn find(&self, name: &str) -> Result<Served, Status> {
        // What is found is counted before the set can change: `activate` waits for this borrow to end.
        let set = self.0.borrow();
        if name.is_empty() {
            let mut all = set.by_name.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(Served::new(only)),
                _ => {
                    let rule = format!("must be set, to one of {}", set.names());
                    Err(status::invalid_field("model", &rule))
                }
            };
        }
        let found = if name.starts_with(DIGEST) { set.by_digest.get(name) } else { set.by_name.get(name) };
        found.map(Served::new).ok_or_else(|| {
            let message = format!("model {name:?} is not served here; there is {}", set.names());
            status::refuse_with(Reason::ModelNotFound, message, &[("available", set.names())], None)
        })
    }

    /// The models as clients see them, sorted by name. Those whose engine has failed are left out.
    pub(crate) fn list(&self) -> Vec<v1::Model> {
        self.healthy(describe_state)
    }

    /// The models and their load, as the control plane sees them. Those whose engine has failed are left out.
    pub(crate) fn loads(&self) -> Vec<v1::ModelLoad> {
        self.healthy(describe_load)
    }

    fn healthy<T>(&self, describe: impl Fn(&Entry, Load) -> T) -> Vec<T> {
        let set = self.current();
        let loads = set.by_name.values().map(|entry| (entry, entry.engine.load()));
        loads.filter(|(_, load)| !load.failed).map(|(entry, load)| describe(entry, load)).collect()
    }

    /// What is served now.
    pub(crate) fn current(&self) -> Arc<Set> {
        Arc::clone(&self.0.borrow())
    }

    /// Follows what is served.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Set>> {
        self.0.subscribe()
    }

    /// From now on requests for the name and for the engine's digest go to `entry`. What served the name before gets no more
    /// of them.
    pub(crate) fn activate(&self, entry: Arc<Entry>) {
        self.change(|set| {
            if let Some(before) = set.by_name.insert(entry.name.clone(), Arc::clone(&entry)) {
                set.forget_digest(&before);
            }
            set.by_digest.insert(entry.digest().to_owned(), entry);
        });
    }

    /// Requests do not find `entry` any more.
    pub(crate) fn retire(&self, entry: &Arc<Entry>) {
        self.change(|set| {
            if set.by_name.get(&entry.name).is_some_and(|other| Arc::ptr_eq(other, entry)) {
                set.by_name.remove(&entry.name);
            }
            set.forget_digest(entry);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Set)) {
        self.0.send_modify(|set| change(Arc::make_mut(set)));
    }

    /// Resolves with the name of the first model whose engine fails while it is served.
    pub(crate) async fn engine_failed(&self) -> String {
        let mut changes = self.changes();
        loop {
            let set = Arc::clone(&changes.borrow_and_update());
            let failed = async {
                if set.by_digest.is_empty() {
                    return pending().await;
                }
                let waits = set.by_digest.values().map(|entry| Box::pin(entry.failed()));
                select_all(waits).await.0
            };
            tokio::select! {
                // An engine that is ended on purpose is taken out of the set before.
                biased;
                changed = changes.changed() => if changed.is_err() { return pending().await },
                name = failed => return name,
            }
        }
    }
}

impl Set {
    /// Every engine.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &EngineHandle> {
        self.by_digest.values().map(|entry| &entry.engine)
    }

    fn forget_digest(&mut self, entry: &Arc<Entry>) {
        if self.by_digest.get(entry.digest()).is_some_and(|other| Arc::ptr_eq(other, entry)) {
            self.by_digest.remove(entry.digest());
        }
    }

    fn names(&self) -> String {
        if self.by_name.is_empty() {
            return "none yet".to_owned();
        }
        status::list(&self.by_name.keys().cloned().collect::<Vec<_>>())
    }
}

impl Entry {
    /// An engine under the name that requests use.
    pub(crate) fn new(name: String, engine: EngineHandle) -> Arc<Self> {
        Arc::new(Self { name, engine, tally: Tally::default(), running: watch::Sender::new(0) })
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Its requests.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Resolves when no request holds it. It must have been retired, or others come.
    pub(crate) async fn idle(&self) {
        // An error is impossible: the sender is part of `self`.
        let _ = self.running.subscribe().wait_for(|&running| running == 0).await;
    }

    fn digest(&self) -> &str {
        &self.engine.info().digest
    }

    async fn failed(&self) -> String {
        // An error means that the engine's thread is gone, which is a failure as well.
        let _ = self.engine.load_changes().wait_for(|load| load.failed).await;
        self.name.clone()
    }
}

impl Served {
    fn new(entry: &Arc<Entry>) -> Self {
        entry.running.send_modify(|running| *running += 1);
        Self(Arc::clone(entry))
    }

    /// What requests call the model.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The answer to a request that arrived at `arrival`, counted among the version's requests and keeping the engine.
    pub(crate) fn count<S>(self, answer: S, arrival: Instant) -> Counted<Pin<Box<S>>, Self> {
        self.0.tally.begun();
        Counted::new(Box::pin(answer), self, arrival)
    }
}

impl Deref for Served {
    type Target = EngineHandle;

    fn deref(&self) -> &EngineHandle {
        &self.0.engine
    }
}

impl AsRef<Tally> for Served {
    fn as_ref(&self) -> &Tally {
        &self.0.tally
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

fn describe(entry: &Entry) -> v1::Model {
    let info: &ModelInfo = entry.engine.info();
    v1::Model {
        name: entry.name.clone(),
        digest: info.digest.clone(),
        architecture: info.architecture.clone(),
        recipe: info.recipe.clone(),
        parameters: info.parameters,
        context_tokens: saturate(info.context_tokens),
        vocabulary: saturate(info.vocabulary),
        gateways: 1,
        ..v1::Model::default()
    }
}

/// The model with where and how well it is computed.
fn describe_state(entry: &Entry, load: Load) -> v1::Model {
    v1::Model {
        backends: vec![entry.engine.info().backend.clone()],
        degraded_gateways: load.degraded.is_some().into(),
        degraded: reason(load),
        ..describe(entry)
    }
}

fn describe_load(entry: &Entry, load: Load) -> v1::ModelLoad {
    v1::ModelLoad {
        model: Some(describe(entry)),
        running: load.running,
        queued: load.queued,
        queued_tokens: load.queued_tokens,
        free_blocks: load.free_blocks,
        total_blocks: load.total_blocks,
        backend: entry.engine.info().backend.clone(),
        degraded: reason(load),
    }
}

/// Why it computes slower than it should, in words; empty if it does not.
fn reason(load: Load) -> String {
    load.degraded.map(|kind| format!("NPU: {kind}")).unwrap_or_default()
}

fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
