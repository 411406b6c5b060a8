//! The registry shared between links and the service, with a way to wait for a change.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rookery_proto::v1;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    domain::{
        GatewayId, GatewayState, Labels, LinkId, NameTable, NoRoute, Prompt, Query, Registry, Reservation,
        ServedModel, Traits, VersionTraffic, routing::traffic::Traffic,
    },
    link::Connection,
};

/// The live fleet. Clones are the same one.
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Mutex<Registry<Connection>>,
    traffic: Mutex<Traffic>,
    /// Counts links, unlinks and reports, so that waiters try again.
    changes: watch::Sender<u64>,
}

/// Which gateways a request may go to, and what speaks for one of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// As the request names it.
    pub(crate) model: &'a str,
    /// Only this version: it began the answer.
    pub(crate) digest: Option<&'a str>,
    pub(crate) labels: &'a Labels,
    pub(crate) session: Option<&'a str>,
    pub(crate) prompt: &'a Prompt,
}

/// A request's place on a gateway; given back when dropped.
pub(crate) struct Place {
    pub(crate) reservation: Reservation<Connection>,
    fleet: Fleet,
    since: Instant,
}

impl Place {
    /// The gateway has begun to answer. `counts`: how soon tells how well the version serves.
    pub(crate) fn begun(&mut self, counts: bool) {
        let now = Instant::now();
        let freed = self.fleet.registry().begun(&mut self.reservation);
        if freed {
            self.fleet.changed();
        }
        if !counts {
            return;
        }
        let after = now.saturating_duration_since(self.since);
        self.fleet.traffic_counts().began(&self.reservation.digest, after, now.into_std());
    }

    /// How it ended: `failed` if the gateway is to blame.
    pub(crate) fn ended(&mut self, failed: bool) {
        let now = Instant::now().into_std();
        if failed {
            self.fleet.registry().failed(&self.reservation, now);
        }
        self.fleet.traffic_counts().ended(&self.reservation.digest, failed, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let freed = self.fleet.registry().release(&mut self.reservation);
        if freed {
            self.fleet.changed();
        }
    }
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let shared = Shared {
            registry: Mutex::new(Registry::default()),
            traffic: Mutex::default(),
            changes: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// From now on requests are resolved by these names.
    pub fn set_names(&self, names: NameTable) {
        if self.registry().set_names(names) {
            self.changed();
        }
    }

    /// What the store and people say of all gateways, linked or not: labels, and whether they are drained.
    pub fn set_traits(&self, traits: BTreeMap<GatewayId, Traits>) {
        if self.registry().set_traits(traits) {
            self.changed();
        }
    }

    /// What traffic of the last minutes showed of the version with this digest.
    pub fn traffic(&self, digest: &str) -> VersionTraffic {
        self.traffic_counts().of(digest, Instant::now().into_std())
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
        wanted: &Wanted<'_>,
        tried: &[LinkId],
        end: Instant,
    ) -> Result<Place, NoRoute> {
        // Subscribed before the first try, so that no change falls between a try and the wait.
        let mut changes = self.shared.changes.subscribe();
        loop {
            let since = Instant::now();
            let query = Query {
                model: wanted.model,
                digest: wanted.digest,
                labels: wanted.labels,
                session: wanted.session,
                prompt: wanted.prompt,
                tried,
                random: uuid::Uuid::new_v4().as_u64_pair().0,
                now: since.into_std(),
            };
            let result = self.registry().reserve(&query);
            let error = match result {
                Ok(reservation) => return Ok(Place { reservation, fleet: self.clone(), since }),
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

    fn traffic_counts(&self) -> MutexGuard<'_, Traffic> {
        // Counters; each change is whole.
        self.shared.traffic.lock().unwrap_or_else(PoisonError::into_inner)
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
