//! A real gateway as a `Machine`: versions on disk, blobs from the control plane, engines in this process.
//!
//! ```text
//!  download ─► verify ──────► stage ────────► probe ──────► activate ─────────► drain
//!  blobs       Arc<Bundle>    EngineCore      the same      thread, Entry in    thread ends,
//!  on disk     hashed, mapped takes requests  EngineCore    Models              memory is free
//!              whole          from nobody
//! ```
//!
//! Opening a bundle hashes what it maps, and the engine computes on that very mapping, so what serves was verified in this
//! life of the process. Whatever takes memory or all cores holds the one permit for it, also when the step that began it was
//! broken off: its thread goes on, and the next one waits.

mod load;
mod machine;
mod switch;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rookery_model::bundle::{Bundle, Digest};
use rookery_proto::{server::Tasks, v1};

use super::{
    board::Board,
    download::{BlobSource, Downloader, Patience},
    memory::Demand,
    store::{OnStep, Store, StoreError},
};
use crate::{
    backend::{BackendSettings, Backends},
    engine::{EngineConfig, EngineCore, EngineHandle},
    probes::SelfCheck,
    service::{Entry, Models},
};

/// How a gateway treats versions.
#[derive(Clone)]
pub struct StationConfig {
    /// Folder of versions; made if it is not there.
    pub folder: PathBuf,
    /// Id of the gateway.
    pub gateway_id: String,
    /// Settings of every engine.
    pub engine: EngineConfig,
    /// Where engines compute.
    pub backend: BackendSettings,
    /// What a version that was committed before must show when it is loaded again.
    pub self_check: SelfCheck,
    /// Longest wait for the streams of a version that is replaced.
    pub drain_limit: Duration,
    /// Bytes of disk that stay free.
    pub disk_headroom: u64,
    /// How patient downloads are.
    pub patience: Patience,
    /// The system.
    pub board: Board,
}

impl StationConfig {
    /// Settings for a folder and a gateway, all else by default: 30 s to drain, 1 GiB of disk that stays free.
    pub fn new(folder: PathBuf, gateway_id: String) -> Self {
        Self {
            folder,
            gateway_id,
            engine: EngineConfig::default(),
            backend: BackendSettings::default(),
            self_check: SelfCheck::default(),
            drain_limit: Duration::from_secs(30),
            disk_headroom: 1 << 30,
            patience: Patience::default(),
            board: Board::default(),
        }
    }
}

/// Versions of this gateway: on disk, in memory, serving.
pub struct Station {
    config: StationConfig,
    store: Arc<Store>,
    downloader: Downloader,
    models: Models,
    loaded: Arc<Mutex<BTreeMap<Digest, Loaded>>>,
    /// Engines of bundles that are served whatever is assigned.
    fixed: Vec<Demand>,
    backends: Arc<Mutex<Option<Arc<Backends>>>>,
    /// The one permit for what takes memory or all cores.
    heavy: Arc<tokio::sync::Mutex<()>>,
    tasks: Tasks,
}

/// A version in memory.
#[derive(Default)]
struct Loaded {
    model: String,
    bundle: Option<Arc<Bundle>>,
    demand: Demand,
    /// Before it is activated.
    core: Option<Box<EngineCore>>,
    /// Since it is activated.
    entry: Option<Arc<Entry>>,
}

impl Station {
    /// A station with nothing else to serve.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(
        config: StationConfig,
        source: Arc<dyn BlobSource>,
        tasks: Tasks,
    ) -> Result<Self, StoreError> {
        Self::open_observed(config, source, tasks, Arc::new(|_| {}))
    }

    /// The same, telling `on_step` of everything that changes the disk.
    ///
    /// # Errors
    /// As [`Station::open`].
    pub fn open_observed(
        config: StationConfig,
        source: Arc<dyn BlobSource>,
        tasks: Tasks,
        on_step: OnStep,
    ) -> Result<Self, StoreError> {
        let store = Arc::new(Store::open_observed(&config.folder, on_step)?);
        let downloader = Downloader::new(
            store.clone(),
            source,
            config.patience.clone(),
            &config.gateway_id,
            tasks.clone(),
        );
        Ok(Self {
            config,
            store,
            downloader,
            models: Models::none(),
            loaded: Arc::default(),
            fixed: Vec::new(),
            backends: Arc::default(),
            heavy: Arc::default(),
            tasks,
        })
    }

    /// Serves into `models`, beside engines that take `fixed`, on `backends` if they are open already.
    pub(crate) fn beside(self, models: Models, fixed: Vec<Demand>, backends: Option<Arc<Backends>>) -> Self {
        Self { models, fixed, backends: Arc::new(Mutex::new(backends)), ..self }
    }

    /// The engine that takes requests for a name or digest now.
    pub fn engine(&self, model: &str) -> Option<EngineHandle> {
        self.models.find(model).ok().map(|served| (*served).clone())
    }

    /// A request on the engine that takes requests for a name or digest now: while the guard is held, draining waits.
    pub fn request(&self, model: &str) -> Option<impl std::ops::Deref<Target = EngineHandle> + Send + use<>> {
        self.models.find(model).ok()
    }

    /// The folder of versions.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What the gateway is, as the control plane is told.
    pub fn facts(&self) -> v1::GatewayFacts {
        self.config.board.facts(self.store.free_bytes().unwrap_or(0))
    }

    fn loaded(&self) -> MutexGuard<'_, BTreeMap<Digest, Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, digest: &Digest) -> Option<Arc<Entry>> {
        self.loaded().get(digest)?.entry.clone()
    }

    /// What the engines in this process take: those of `model`, and all others.
    fn demands(&self, model: &str) -> (Vec<Demand>, Vec<Demand>) {
        let loaded = self.loaded();
        let live = loaded.values().filter(|loaded| loaded.core.is_some() || loaded.entry.is_some());
        let (own, others): (Vec<&Loaded>, Vec<&Loaded>) = live.partition(|loaded| loaded.model == model);
        let demands = |list: Vec<&Loaded>| list.into_iter().map(|loaded| loaded.demand).collect();
        let mut rest: Vec<Demand> = demands(others);
        rest.extend(&self.fixed);
        (demands(own), rest)
    }
}
