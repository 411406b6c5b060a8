//! Which services there are, and on which port.

use rookery_proto::{
    server::{add_health, add_reflection},
    v1::inference_service_server::InferenceServiceServer,
    validate::limit,
};
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::server::HealthReporter;

use super::{ControlPlaneError, RunningControlPlane};
use crate::{
    config::ValidControlPlaneConfig,
    peers::Peers,
    service::{Blobs, Enrolment, FleetAdmin, Inference, Metrics, Models, Rollouts},
    trust::{Access, AccessLayer},
};

impl RunningControlPlane {
    pub(super) fn peers(&self, config: &ValidControlPlaneConfig) -> Peers {
        let address = config.replica.address.clone();
        Peers {
            store: self.store.clone(),
            inventory: self.inventory.clone(),
            fleet: self.fleet.clone(),
            tls: self.link_tls.clone(),
            address: address.unwrap_or_else(|| self.link_address.to_string()),
            gate: self.gate.clone(),
            tasks: self.tasks.clone(),
        }
    }

    /// What clients call.
    pub(super) fn routes(
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
        let inference = InferenceServiceServer::new(inference)
            .max_decoding_message_size(most_bytes)
            .max_encoding_message_size(limit::ANSWER_BYTES);
        let (store, inventory, gate) = (&self.store, &self.inventory, &self.gate);
        let models =
            Models::new(store.clone(), self.artifacts.clone(), inventory.clone(), gate.clone()).server();
        let fleet = FleetAdmin::new(
            store.clone(),
            inventory.clone(),
            self.fleet.clone(),
            gate.clone(),
            self.authority.clone(),
        );
        let mut routes = RoutesBuilder::default();
        let rollouts = Rollouts::new(self.reconciler.clone(), gate.clone()).server();
        routes.add_service(inference).add_service(models).add_service(fleet.server()).add_service(rollouts);
        let health = add_health(&mut routes);
        add_reflection(&mut routes)?;
        let access = match &self.tls {
            Some(_) => Access::tokens(store.clone(), self.refusals.clone()),
            None => Access::everybody(),
        };
        let routes = routes.routes().into_axum_router().layer(AccessLayer(access));
        Ok((routes.into(), health))
    }

    /// What gateways and other replicas call.
    pub(super) fn link_routes(&self, config: &ValidControlPlaneConfig, peers: &Peers) -> Routes {
        let (store, artifacts) = (self.store.clone(), self.artifacts.clone());
        let most = config.downloads.max_at_once.get() as usize;
        let blobs = Blobs::new(store.clone(), artifacts, most, self.tasks.clone(), self.gate.clone());
        let life = config.link.certificate_life;
        let enrolment = Enrolment::new(store, self.authority.clone(), self.refusals.clone(), life);
        let mut routes = RoutesBuilder::default();
        routes
            .add_service(enrolment.server())
            .add_service(blobs.server())
            .add_service(peers.service())
            .add_service(peers.forward());
        routes.routes()
    }
}
