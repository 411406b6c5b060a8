//! The registry shared between links and the service, with a way to wait for a change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rookery_proto::v1;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    domain::{GatewayId, GatewayState, LinkId, NoRoute, Registry, Reservation, ServedModel},
    link::Connection,
};

/// The live fleet. Clones are the same one.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Mutex<Registry<Connection>>,
    /// Counts links, unlinks and reports, so that waiters try again.
    changes: watch::Sender<u64>,
}

/// A request's place on a gateway; given back when dropped.
pub(crate) struct Place {
    pub(crate) reservation: Reservation<Connection>,
    fleet: Fleet,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.fleet.registry().release(&self.reservation.gateway, self.reservation.link);
    }
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let shared = Shared { registry: Mutex::new(Registry::default()), changes: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn link(
        &self,
        id: GatewayId,
        connection: Connection,
        state: GatewayState,
    ) -> (LinkId, Option<Connection>) {
        let linked = self.registry().link(id, connection, state);
        self.changed();
        linked
    }

    pub(crate) fn update(&self, id: &GatewayId, link: LinkId, state: GatewayState) -> bool {
        let current = self.registry().update(id, link, state);
        self.changed();
        current
    }

    pub(crate) fn unlink(&self, id: &GatewayId, link: LinkId) -> bool {
        let removed = self.registry().unlink(id, link);
        self.changed();
        removed
    }

    /// A place for a request, waiting until `end` if gateways may come that could take it.
    pub(crate) async fn place(
        &self,
        model: &str,
        session: Option<&str>,
        tried: &[LinkId],
        end: Instant,
    ) -> Result<Place, NoRoute> {
        // Subscribed before the first try, so that no change falls between a try and the wait.
        let mut changes = self.shared.changes.subscribe();
        loop {
            let random = uuid::Uuid::new_v4().as_u64_pair().0;
            let result = self.registry().reserve(model, session, tried, random);
            let error = match result {
                Ok(reservation) => return Ok(Place { reservation, fleet: self.clone() }),
                Err(error @ (NoRoute::NoneLive | NoRoute::AllTried)) => error,
                Err(final_) => return Err(final_),
            };
            if timeout_at(end, changes.changed()).await.is_err() {
                return Err(error);
            }
        }
    }

    pub(crate) fn models(&self) -> Vec<ServedModel> {
        self.registry().models()
    }

    /// The linked gateways with the requests in flight on each and their last report.
    pub fn gateways(&self) -> Vec<(GatewayId, u64, GatewayState)> {
        let registry = self.registry();
        registry.gateways().map(|(id, in_flight, state)| (id.clone(), in_flight, state.clone())).collect()
    }

    /// Changes with every link, unlink and report.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn registry(&self) -> MutexGuard<'_, Registry<Connection>> {
        // The registry's methods leave it whole even if one panics, so a poisoned lock is usable.
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The model as clients see it.
pub(crate) fn to_wire(served: ServedModel) -> v1::Model {
    let ServedModel { model, gateways, backends, degraded_gateways, degraded } = served;
    v1::Model {
        name: model.name,
        digest: model.digest,
        architecture: model.architecture,
        recipe: model.recipe,
        parameters: model.parameters,
        context_tokens: model.context_tokens,
        vocabulary: model.vocabulary,
        gateways,
        backends: backends.into_iter().collect(),
        degraded_gateways,
        degraded: degraded.map(|(gateway, reason)| format!("{gateway}: {reason}")).unwrap_or_default(),
    }
}
