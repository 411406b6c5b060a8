//! Puts a worker together from its checked configuration, and takes it apart again.
//!
//! ```text
//!  start:  bundles (verified) ─► engines (probed) ─► services ─► own port, link to the control plane (their own thread)
//!          committed versions, one after the other, while it serves
//!  drain:  versions stay as they are ─► refuse new calls ─► running streams end, or are cut ─► connections close
//!          ─► engines stop
//! ```

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rookery_model::bundle::{Bundle, BundleError, NoProgress, Progress};
use rookery_proto::{
    server::{
        Gate, OnPanic, ReflectionError, Tasks, TrafficThread, accept_and_serve, add_health, add_reflection,
        add_shared_health,
    },
    v1::{
        gateway_service_server::GatewayServiceServer,
        inference_service_server::{InferenceServiceServer, SERVICE_NAME},
    },
    validate::limit,
};
use tokio::{net::TcpListener, time::timeout};
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{error, info};

use crate::{
    agent::{self, Gateway},
    backend::{BackendError, BackendSettings, Backends},
    config::{ValidLink, ValidWorkerConfig},
    engine::{Engine, EngineConfig, EngineCore, EngineError, EngineHandle, Load},
    probes::{SelfCheck, SelfCheckError, self_check},
    service::{Inference, Metrics, Models},
    versions::{
        Agent, Board,
        memory::Demand,
        station::{Station, StationConfig},
        store::StoreError,
    },
};

/// Time for the engines' last steps, after the drain.
const ENGINE_LIMIT: Duration = Duration::from_secs(5);

/// Starts workers.
pub struct Worker;

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A bundle is damaged or not there.
    #[error("cannot open the bundle {path:?}")]
    Bundle {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BundleError,
    },
    /// Two bundles hold models of the same name.
    #[error("two bundles hold a model named {0:?}")]
    DuplicateModel(String),
    /// An engine could not be started.
    #[error("cannot start the engine of model {model:?}")]
    Engine {
        /// The model.
        model: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// A model does not answer as it did when it was packed.
    #[error("the model must not be served")]
    SelfCheck(#[from] SelfCheckError),
    /// The backend that is asked for cannot be had.
    #[error("the configured backend cannot be used")]
    Backend(#[source] BackendError),
    /// Starting panicked; the panic hook has printed why.
    #[error("the start of the engines failed")]
    Panicked,
    /// The folder of versions cannot be used.
    #[error("cannot use the folder of versions (worker.state)")]
    Versions(#[source] StoreError),
    /// There is no thread for traffic.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The port cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// Configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The compiled-in descriptors are broken.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
}

impl Worker {
    /// Opens the configured bundles: checks every digest, then maps the files. Blocks for as long as hashing takes.
    ///
    /// # Errors
    /// Names the first bundle that cannot be used.
    pub fn open_bundles(
        config: &ValidWorkerConfig,
        progress: &dyn Progress,
    ) -> Result<Vec<Arc<Bundle>>, WorkerError> {
        let open = |path: &PathBuf| {
            Bundle::open(path, progress).map_err(|source| WorkerError::Bundle { path: path.clone(), source })
        };
        config.bundles.iter().map(open).collect()
    }

    /// Opens the bundles and starts serving them.
    ///
    /// # Errors
    /// Tells which part could not be started; nothing is left running then.
    pub async fn start(config: ValidWorkerConfig) -> Result<RunningWorker, WorkerError> {
        let tasks = Tasks::new();
        let (config, bundles) = tasks
            .run_blocking("open bundles", move || {
                let bundles = Self::open_bundles(&config, &NoProgress);
                (config, bundles)
            })
            .await
            .ok_or(WorkerError::Panicked)?;
        Self::start_with(config, bundles?).await
    }

    /// Starts serving bundles that are open already.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn start_with(
        config: ValidWorkerConfig,
        bundles: Vec<Arc<Bundle>>,
    ) -> Result<RunningWorker, WorkerError> {
        let (engine_config, backend, extent) =
            (config.engine.clone(), config.backend.clone(), config.self_check);
        // Reserving the cache, resolving weights and copying them to an accelerator touches a lot of memory.
        let start = move || start_engines(bundles, &engine_config, &backend, extent);
        let started = Tasks::new().run_blocking("start engines", start).await;
        let started = started.ok_or(WorkerError::Panicked)??;
        Self::assemble(config, started).await
    }

    /// Starts serving engines that run already, whatever they compute on.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn start_with_engines(
        config: ValidWorkerConfig,
        engines: Vec<EngineHandle>,
    ) -> Result<RunningWorker, WorkerError> {
        Self::assemble(config, Started { engines, ..Started::default() }).await
    }

    async fn assemble(config: ValidWorkerConfig, started: Started) -> Result<RunningWorker, WorkerError> {
        let Started { engines, demands, backends } = started;
        let models = Models::new(engines.clone()).map_err(WorkerError::DuplicateModel)?;
        let traffic = TrafficThread::start().map_err(WorkerError::Thread)?;
        let listening = traffic.listen(config.listen).await;
        let (listener, address) =
            listening.map_err(|source| WorkerError::Listen { address: config.listen, source })?;
        let tasks = Tasks::new();
        let backend_reason = backends.as_ref().map(|backends| backends.reason().to_owned());
        let versions = open_versions(&config, &tasks, &models, demands, backends).await?;
        let worker = RunningWorker {
            address,
            gateway_id: config.gateway_id.clone(),
            drain_timeout: config.drain_timeout,
            gate: Gate::new(config.limits.max_calls.get()),
            tasks,
            traffic,
            models,
            bundles: engines,
            versions,
            backend_reason,
        };
        let (routes, link_routes, health) = worker.routes(&config)?;
        worker.spawn_health(health);
        {
            let _inside = worker.traffic.enter();
            worker.spawn_listener(listener, routes, &config);
            if let Some(link) = config.link {
                worker.spawn_agent(link, link_routes);
            }
        }
        info!(%address, gateway_id = worker.gateway_id, "the worker serves");
        Ok(worker)
    }
}

/// An engine for each bundle, and why they compute where they do.
fn start_engines(
    bundles: Vec<Arc<Bundle>>,
    config: &EngineConfig,
    settings: &BackendSettings,
    extent: SelfCheck,
) -> Result<Started, WorkerError> {
    let backends = Arc::new(Backends::open(settings).map_err(WorkerError::Backend)?);
    let reason = backends.reason();
    let demand = |bundle: &Arc<Bundle>| Demand::of(&bundle.info().config, config).unwrap_or_default();
    let demands = bundles.iter().map(demand).collect();
    let start = |bundle: Arc<Bundle>| {
        let model = bundle.info().config.name.clone();
        let failed = |source| WorkerError::Engine { model: model.clone(), source };
        let backend = backends.backend(config.kernels().map_err(failed)?);
        info!(model, backend = backend.name(), reason, "linear layers have a backend");
        let mut core = EngineCore::with_backend(&bundle, config.clone(), backend).map_err(failed)?;
        self_check(&mut core, &bundle, extent)?;
        Engine::start_core(core).map_err(failed)
    };
    let engines = bundles.into_iter().map(start).collect::<Result<_, _>>()?;
    Ok(Started { engines, demands, backends: Some(backends) })
}

/// What runs before there is a worker.
#[derive(Default)]
struct Started {
    engines: Vec<EngineHandle>,
    /// What each of them takes, as far as it is known.
    demands: Vec<Demand>,
    backends: Option<Arc<Backends>>,
}

/// Versions that the control plane assigns, if there are a control plane and a folder for them. What was committed is loaded
/// while the worker serves.
async fn open_versions(
    config: &ValidWorkerConfig,
    tasks: &Tasks,
    models: &Models,
    demands: Vec<Demand>,
    backends: Option<Arc<Backends>>,
) -> Result<Option<Agent<Station>>, WorkerError> {
    let (Some(state), Some(upstream)) = (&config.state, agent::upstream(config)) else { return Ok(None) };
    let station = StationConfig {
        engine: config.engine.clone(),
        backend: config.backend.clone(),
        self_check: config.self_check,
        drain_limit: config.drain_timeout,
        disk_headroom: config.versions.disk_headroom.as_u64(),
        patience: config.versions.patience(),
        board: Board::at(&config.versions.system_root),
        ..StationConfig::new(state.join("versions"), config.gateway_id.clone())
    };
    let station = Station::open(station, Arc::new(upstream), tasks.clone()).map_err(WorkerError::Versions)?;
    let station = station.beside(models.clone(), demands, backends);
    Ok(Some(Agent::start(Arc::new(station), tasks).await))
}

/// A worker that serves. [`RunningWorker::drain`] stops it; dropping it only cuts all its connections.
pub struct RunningWorker {
    address: SocketAddr,
    gateway_id: String,
    drain_timeout: Duration,
    gate: Gate,
    tasks: Tasks,
    traffic: TrafficThread,
    models: Models,
    /// Engines of the bundles that it was started with.
    bundles: Vec<EngineHandle>,
    versions: Option<Agent<Station>>,
    backend_reason: Option<String>,
}

/// Why a running worker should be stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The engine of this model has failed.
    #[error("the engine of model {0:?} has failed")]
    Engine(String),
    /// A task that the worker cannot do without has panicked.
    #[error("a vital task has panicked")]
    Task,
}

impl RunningWorker {
    /// Address of the worker's own port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Id of this gateway.
    pub fn gateway_id(&self) -> &str {
        &self.gateway_id
    }

    /// Why engines compute where they do; `None` if they were started by somebody else.
    pub fn backend_reason(&self) -> Option<&str> {
        self.backend_reason.as_deref()
    }

    /// How busy the engine of a model is; `None` if the model is not served.
    pub fn load(&self, model: &str) -> Option<Load> {
        self.models.find(model).ok().map(|engine| engine.load())
    }

    /// The engines of the bundles that it was started with, for measurements.
    pub fn engines(&self) -> impl Iterator<Item = &EngineHandle> {
        self.bundles.iter()
    }

    /// Resolves when the worker has failed for good and should be drained and restarted.
    pub async fn failed(&self) -> Failure {
        tokio::select! {
            model = self.models.engine_failed() => Failure::Engine(model),
            () = self.tasks.failed() => Failure::Task,
        }
    }

    /// Refuses new calls from now on, as the first part of [`RunningWorker::drain`].
    pub fn begin_drain(&self) {
        self.gate.begin_drain();
    }

    /// Stops the worker within its drain time-out: new calls are refused, health says NOT_SERVING, running streams
    /// end or are cut with UNAVAILABLE, connections close. Then the engines stop, within a few seconds more. True if
    /// nothing had to be cut.
    pub async fn drain(self) -> bool {
        if let Some(versions) = &self.versions {
            versions.stop().await;
        }
        let clean = self.gate.drain(self.drain_timeout, &self.tasks).await;
        let served = self.models.current();
        served.engines().for_each(EngineHandle::stop_admitting);
        let stop = move || served.engines().for_each(EngineHandle::shutdown);
        // An engine ends after its current step. One whose step does not end must not keep the process.
        match timeout(ENGINE_LIMIT, self.tasks.run_blocking("stop engines", stop)).await {
            Ok(Some(())) => {}
            Ok(None) => error!("stopping the engines failed"),
            Err(_) => error!(limit = ?ENGINE_LIMIT, "an engine did not end, and is left behind"),
        }
        info!(gateway_id = self.gateway_id, clean, "the worker has stopped");
        clean
    }

    /// What is served on the worker's own port, and on the link.
    fn routes(&self, config: &ValidWorkerConfig) -> Result<(Routes, Routes, HealthReporter), WorkerError> {
        let inference = Inference::new(
            self.gateway_id.clone(),
            self.models.clone(),
            self.gate.clone(),
            self.tasks.clone(),
            Metrics::new(),
        );
        let most_bytes = config.limits.max_message_bytes.get() as usize;
        let inference = InferenceServiceServer::new(inference)
            .max_decoding_message_size(most_bytes)
            .max_encoding_message_size(limit::ANSWER_BYTES);
        let mut own = RoutesBuilder::default();
        own.add_service(inference.clone());
        let health = add_health(&mut own);
        add_reflection(&mut own)?;
        let mut link = RoutesBuilder::default();
        link.add_service(inference);
        add_shared_health(&mut link, &health);
        let gateway = Gateway::new(
            self.gateway_id.clone(),
            self.models.clone(),
            self.gate.clone(),
            self.versions.clone(),
        );
        link.add_service(GatewayServiceServer::new(gateway));
        Ok((own.routes(), link.routes(), health))
    }

    /// Sets what the health service answers: serving until the drain begins or an engine fails.
    fn spawn_health(&self, health: HealthReporter) {
        let (gate, models) = (self.gate.clone(), self.models.clone());
        self.tasks.spawn("health", OnPanic::StopNode, async move {
            let set = async |status| {
                health.set_service_status("", status).await;
                health.set_service_status(SERVICE_NAME, status).await;
            };
            set(ServingStatus::Serving).await;
            tokio::select! {
                () = gate.draining() => {}
                model = models.engine_failed() => error!(model, "the engine has failed"),
            }
            set(ServingStatus::NotServing).await;
        });
    }

    fn spawn_listener(&self, listener: TcpListener, routes: Routes, config: &ValidWorkerConfig) {
        let most = config.limits.max_connections.get() as usize;
        let limits = config.connection.clone();
        let serving = accept_and_serve(listener, most, routes, limits, self.tasks.clone(), self.gate.clone());
        self.tasks.spawn("listener", OnPanic::StopNode, serving);
    }

    fn spawn_agent(&self, link: ValidLink, routes: Routes) {
        let agent = agent::run(link, routes, self.tasks.clone(), self.gate.clone());
        self.tasks.spawn("agent", OnPanic::StopNode, agent);
    }
}
