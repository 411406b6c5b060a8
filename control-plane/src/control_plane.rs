//! Puts a control plane together from its checked configuration, and takes it apart again.
//!
//! ```text
//!  start:  state folder ─► store (migrated) ─► artifacts, authority ─► inventory, reconciler, peers ─► ports (their own thread)
//!  drain:  refuse new calls ─► running streams end, or are cut ─► connections and links close ─► store closes
//! ```

mod clients;
mod routes;
mod state;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rookery_proto::{
    join_token::JoinToken,
    server::{Gate, OnPanic, ReflectionError, Tasks, TrafficThread, accept, accept_and_serve},
    v1::inference_service_server::SERVICE_NAME,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Semaphore};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::info;

use crate::{
    artifacts::{ArtifactError, Artifacts},
    config::ValidControlPlaneConfig,
    domain::{Labels, Millis},
    fleet::Fleet,
    inventory::{DownloadLimits, Inventory, Unknown},
    link::{LinkPort, Links},
    peers::Peers,
    rollout::Reconciler,
    store::{NewJoinToken, Store, StoreError},
    trust::{Authority, AuthorityError, NoRandomness, Pending, Refusals, ServerTls, TlsError},
};
use clients::{ClientsPort, clients_tls};
use state::State;

/// Starts control planes.
pub struct ControlPlane;

/// A control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// A port cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// Configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no thread for traffic.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A file of the state folder cannot be used.
    #[error("cannot {what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// The place for versions of models cannot be used.
    #[error("the artifacts cannot be used")]
    Artifacts(#[from] ArtifactError),
    /// The certificate authority cannot be used.
    #[error("the certificate authority cannot be used")]
    Authority(#[from] AuthorityError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// No token can be made.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The compiled-in descriptors are broken.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
}

impl ControlPlane {
    /// Opens what is kept, and starts serving clients and accepting workers.
    ///
    /// # Errors
    /// Tells what cannot be used; nothing is left running then.
    pub async fn start(config: ValidControlPlaneConfig) -> Result<RunningControlPlane, ControlPlaneError> {
        let traffic = TrafficThread::start().map_err(ControlPlaneError::Thread)?;
        let listen = async |address| {
            let listening = traffic.listen(address).await;
            listening.map_err(|source| ControlPlaneError::Listen { address, source })
        };
        let clients = listen(config.listen).await?;
        let workers = listen(config.link.listen).await?;
        let state = State::open(&config.state, &config.artifacts).await?;
        let store = state.store.clone();
        let started = Self::with_state(config, state, traffic, clients, workers);
        if started.is_err() {
            store.close().await;
        }
        started
    }

    fn with_state(
        config: ValidControlPlaneConfig,
        state: State,
        traffic: TrafficThread,
        (clients, address): (TcpListener, SocketAddr),
        (workers, link_address): (TcpListener, SocketAddr),
    ) -> Result<RunningControlPlane, ControlPlaneError> {
        let replica = uuid::Uuid::now_v7().simple().to_string();
        let link_tls =
            if config.link.tls { Some(ServerTls::link(&state.authority, &replica)?) } else { None };
        let tls = match &config.tls {
            Some(identity) => Some(clients_tls(&state.authority, identity, address)?),
            None => None,
        };
        let downloads = DownloadLimits {
            bandwidth_bytes: config.downloads.bandwidth.map_or(0, |bandwidth| bandwidth.as_u64()),
            start_spread: config.downloads.start_spread,
        };
        let unknown = if config.link.tls { Unknown::Refuse } else { Unknown::Adopt };
        let inventory = Inventory::new(state.store.clone(), replica, downloads, unknown);
        let fleet = Fleet::new();
        let (store, rollouts) = (state.store.clone(), config.rollouts.clone());
        let reconciler = Reconciler::new(store, inventory.clone(), fleet.clone(), rollouts);
        let control_plane = RunningControlPlane {
            address,
            link_address,
            drain_timeout: config.drain_timeout,
            gate: Gate::new(config.limits.max_calls.get()),
            tasks: Tasks::new(),
            traffic,
            fleet,
            store: state.store,
            artifacts: state.artifacts,
            authority: state.authority,
            inventory,
            reconciler,
            refusals: Refusals::default(),
            tls,
            link_tls,
            folder: state.folder,
            first_token: state.first_token,
            _temporary: state.temporary,
        };
        let peers = control_plane.peers(&config);
        let (routes, health) = control_plane.routes(&config)?;
        let link_routes = control_plane.link_routes(&config, &peers);
        control_plane.spawn_health(health);
        control_plane.spawn_upkeep(peers);
        {
            let _inside = control_plane.traffic.enter();
            control_plane.spawn_clients(clients, routes, &config);
            control_plane.spawn_links(workers, link_routes, config);
        }
        info!(
            %address,
            %link_address,
            tls = control_plane.tls.is_some(),
            link_tls = control_plane.link_tls.is_some(),
            "the control plane serves"
        );
        Ok(control_plane)
    }
}

/// Tasks for connections at the handshake: who lost the place to a newer one needs a moment to go.
fn at_handshake(pending: usize) -> usize {
    pending.saturating_mul(2)
}

/// A control plane that serves. [`RunningControlPlane::drain`] stops it; dropping it only cuts all its connections.
pub struct RunningControlPlane {
    address: SocketAddr,
    link_address: SocketAddr,
    drain_timeout: Duration,
    gate: Gate,
    tasks: Tasks,
    traffic: TrafficThread,
    fleet: Fleet,
    store: Store,
    artifacts: Artifacts,
    authority: Authority,
    inventory: Inventory,
    reconciler: Reconciler,
    refusals: Refusals,
    /// Of the clients' port.
    tls: Option<ServerTls>,
    link_tls: Option<ServerTls>,
    folder: PathBuf,
    first_token: Option<PathBuf>,
    _temporary: Option<TempDir>,
}

impl RunningControlPlane {
    /// Address that clients call.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address that workers dial.
    pub fn link_address(&self) -> SocketAddr {
        self.link_address
    }

    /// Whether clients call with TLS and tokens.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether workers dial with TLS and join with tokens.
    pub fn links_have_tls(&self) -> bool {
        self.link_tls.is_some()
    }

    /// The linked gateways.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where versions of models are kept.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// The certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The gateways that have joined.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What moves roll-outs on.
    pub fn reconciler(&self) -> &Reconciler {
        &self.reconciler
    }

    /// What was refused, and whether it was logged.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Makes a join token for `uses` gateways, good for `valid`.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub async fn join_token(&self, uses: u32, valid: Duration) -> Result<JoinToken, ControlPlaneError> {
        let (token, hash) = self.authority.join_token()?;
        let ends = Millis::now().after(valid);
        let new = NewJoinToken { hash, ends, uses, labels: Labels::new() };
        self.store.put_join_token(&new, "control plane").await?;
        Ok(token)
    }

    /// The state folder, with `ca.pem` in it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file with a token for administrators, if this was the first start.
    pub fn first_token(&self) -> Option<&Path> {
        self.first_token.as_deref()
    }

    /// Resolves when a task that the control plane cannot do without has panicked.
    pub async fn failed(&self) {
        self.tasks.failed().await;
    }

    /// Refuses new calls from now on, as the first part of [`RunningControlPlane::drain`].
    pub fn begin_drain(&self) {
        self.gate.begin_drain();
    }

    /// Stops within the drain time-out: new calls are refused, health says NOT_SERVING, running streams end or are
    /// cut with UNAVAILABLE, clients' connections and links close. True if nothing had to be cut.
    pub async fn drain(self) -> bool {
        let clean = self.gate.drain(self.drain_timeout, &self.tasks).await;
        self.store.close().await;
        info!(clean, "the control plane has stopped");
        clean
    }

    /// Sets what the health service answers: serving until the drain begins. It does not depend on gateways: a
    /// control plane without any is healthy, and taking it out of rotation would bring none back.
    fn spawn_health(&self, health: HealthReporter) {
        let gate = self.gate.clone();
        self.tasks.spawn("health", OnPanic::StopNode, async move {
            for status in [ServingStatus::Serving, ServingStatus::NotServing] {
                health.set_service_status("", status).await;
                health.set_service_status(SERVICE_NAME, status).await;
                gate.draining().await;
            }
        });
    }

    /// What runs by itself until the gate closes: saving reports, moving roll-outs on, beating, exchanging certificates.
    fn spawn_upkeep(&self, peers: Peers) {
        let until_closed = |name, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let gate = self.gate.clone();
            self.tasks.spawn(name, OnPanic::StopNode, async move {
                // Both arms end the task, so neither needs to be cancel safe.
                tokio::select! {
                    biased;
                    () = gate.closed() => {}
                    () = work => {}
                }
            });
        };
        until_closed("inventory", Box::pin(self.inventory.clone().run()));
        until_closed("roll-outs", Box::pin(self.reconciler.clone().run()));
        until_closed("replicas", Box::pin(peers.run()));
        for tls in self.tls.iter().chain(&self.link_tls) {
            until_closed("certificates", Box::pin(tls.clone().renew(self.gate.clone())));
        }
    }

    fn spawn_clients(&self, listener: TcpListener, routes: Routes, config: &ValidControlPlaneConfig) {
        let most = config.limits.max_connections.get() as usize;
        let limits = config.connection.clone();
        let (tasks, gate) = (self.tasks.clone(), self.gate.clone());
        let Some(tls) = self.tls.clone() else {
            let serving = accept_and_serve(listener, most, routes, limits, tasks, gate);
            self.tasks.spawn("client listener", OnPanic::StopNode, serving);
            return;
        };
        let port = ClientsPort {
            tls,
            routes,
            limits,
            pending: Pending::new(config.link.max_pending),
            places: Arc::new(Semaphore::new(most)),
            refusals: self.refusals.clone(),
            tasks: tasks.clone(),
            gate: gate.clone(),
        };
        let most = at_handshake(config.link.max_pending);
        let accepting =
            accept(listener, most, tasks, gate, move |socket, peer| port.clone().accepted(socket, peer));
        self.tasks.spawn("client listener", OnPanic::StopNode, accepting);
    }

    fn spawn_links(&self, listener: TcpListener, routes: Routes, config: ValidControlPlaneConfig) {
        let (most, pending) = (config.link.max_links, config.link.max_pending);
        let links = Links {
            config: config.link,
            fleet: self.fleet.clone(),
            inventory: self.inventory.clone(),
            refusals: self.refusals.clone(),
            tasks: self.tasks.clone(),
            gate: self.gate.clone(),
        };
        let port = LinkPort {
            links,
            tls: self.link_tls.clone(),
            routes,
            store: self.store.clone(),
            pending: Pending::new(pending),
            places: Arc::new(Semaphore::new(most)),
        };
        let most = at_handshake(pending);
        let accepting = accept(listener, most, self.tasks.clone(), self.gate.clone(), move |socket, peer| {
            port.clone().accepted(socket, peer)
        });
        self.tasks.spawn("link listener", OnPanic::StopNode, accepting);
    }
}
