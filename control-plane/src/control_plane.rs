//! Puts a control plane together from its checked configuration, and takes it apart again.

use std::{io, net::SocketAddr, time::Duration};

use rookery_proto::{
    server::{Gate, OnPanic, ReflectionError, Tasks, accept, accept_and_serve, add_health, add_reflection},
    v1::inference_service_server::{InferenceServiceServer, SERVICE_NAME},
    validate::limit,
};
use tokio::net::TcpListener;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::info;

use crate::{
    config::ValidControlPlaneConfig,
    fleet::Fleet,
    link::Links,
    service::{Inference, Metrics},
};

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
    /// The compiled-in descriptors are broken.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
}

impl ControlPlane {
    /// Starts serving clients and accepting workers.
    ///
    /// # Errors
    /// Tells which port cannot be used; nothing is left running then.
    pub async fn start(config: ValidControlPlaneConfig) -> Result<RunningControlPlane, ControlPlaneError> {
        let (clients, address) = listen(config.listen).await?;
        let (workers, link_address) = listen(config.link.listen).await?;
        let control_plane = RunningControlPlane {
            address,
            link_address,
            drain_timeout: config.drain_timeout,
            gate: Gate::new(config.limits.max_calls.get()),
            tasks: Tasks::new(),
            fleet: Fleet::new(),
        };
        let (routes, health) = control_plane.routes(&config)?;
        control_plane.spawn_health(health);
        control_plane.spawn_clients(clients, routes, &config);
        control_plane.spawn_links(workers, config);
        info!(%address, %link_address, "the control plane serves");
        Ok(control_plane)
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ControlPlaneError> {
    let error = |source| ControlPlaneError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let address = listener.local_addr().map_err(error)?;
    Ok((listener, address))
}

/// A control plane that serves. Dropping it does not stop it; [`RunningControlPlane::drain`] does.
pub struct RunningControlPlane {
    address: SocketAddr,
    link_address: SocketAddr,
    drain_timeout: Duration,
    gate: Gate,
    tasks: Tasks,
    fleet: Fleet,
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

    /// The linked gateways.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
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
        info!(clean, "the control plane has stopped");
        clean
    }

    fn routes(
        &self,
        config: &ValidControlPlaneConfig,
    ) -> Result<(Routes, HealthReporter), ControlPlaneError> {
        let metrics = Metrics::new(&self.fleet);
        let inference = Inference::new(
            self.fleet.clone(),
            self.gate.clone(),
            self.tasks.clone(),
            config.routing.clone(),
            metrics,
        );
        let most_bytes = config.limits.max_message_bytes.get() as usize;
        let mut routes = RoutesBuilder::default();
        let inference = InferenceServiceServer::new(inference)
            .max_decoding_message_size(most_bytes)
            .max_encoding_message_size(limit::ANSWER_BYTES);
        routes.add_service(inference);
        let health = add_health(&mut routes);
        add_reflection(&mut routes)?;
        Ok((routes.routes(), health))
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

    fn spawn_clients(&self, listener: TcpListener, routes: Routes, config: &ValidControlPlaneConfig) {
        let most = config.limits.max_connections.get() as usize;
        let limits = config.connection.clone();
        let serving = accept_and_serve(listener, most, routes, limits, self.tasks.clone(), self.gate.clone());
        self.tasks.spawn("client listener", OnPanic::StopNode, serving);
    }

    fn spawn_links(&self, listener: TcpListener, config: ValidControlPlaneConfig) {
        let most = config.link.max_links;
        let links = Links {
            config: config.link,
            fleet: self.fleet.clone(),
            tasks: self.tasks.clone(),
            gate: self.gate.clone(),
        };
        let accepting = accept(listener, most, self.tasks.clone(), self.gate.clone(), move |socket, peer| {
            links.clone().session(socket, peer)
        });
        self.tasks.spawn("link listener", OnPanic::StopNode, accepting);
    }
}
