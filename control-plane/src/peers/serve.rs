//! `PeerService`: tells other replicas which gateways are linked here.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::Pin,
    time::Duration,
};

use futures_util::{Stream, stream};
use rookery_proto::{server::Gate, v1};
use tokio::{sync::watch, time::sleep};
use tonic::{Request, Response, Status};
use tracing::info;

use crate::{domain::GatewayId, inventory::Inventory, trust::require_replica};

/// Changes that come closer together than this are told in one go.
const COALESCE: Duration = Duration::from_millis(100);

/// The service. Clones share everything.
#[derive(Clone)]
pub struct PeerLinks {
    inventory: Inventory,
    gate: Gate,
}

impl PeerLinks {
    pub(super) fn new(inventory: Inventory, gate: Gate) -> Self {
        Self { inventory, gate }
    }
}

type Changes = Pin<Box<dyn Stream<Item = Result<v1::LinkChange, Status>> + Send>>;

#[tonic::async_trait]
impl v1::peer_service_server::PeerService for PeerLinks {
    type WatchLinksStream = Changes;

    async fn watch_links(
        &self,
        request: Request<v1::WatchLinksRequest>,
    ) -> Result<Response<Changes>, Status> {
        let replica = require_replica(&request)?;
        info!(replica, "another replica follows the links of this one");
        let mut published = self.inventory.published();
        published.mark_changed();
        let links = Links {
            inventory: self.inventory.clone(),
            gate: self.gate.clone(),
            published,
            seen: 0,
            told: BTreeSet::new(),
            waiting: VecDeque::new(),
        };
        let changes = stream::unfold(Some(links), |links| async {
            let mut links = links?;
            match links.next().await {
                Ok(change) => Some((Ok(change), Some(links))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// What one replica has been told.
struct Links {
    inventory: Inventory,
    gate: Gate,
    published: watch::Receiver<u64>,
    /// Everything published up to this number has been told or waits.
    seen: u64,
    told: BTreeSet<GatewayId>,
    /// At most two for every gateway.
    waiting: VecDeque<v1::LinkChange>,
}

impl Links {
    async fn next(&mut self) -> Result<v1::LinkChange, Status> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            let gate = self.gate.clone();
            tokio::select! {
                biased;
                // Both arms are cancel safe.
                () = gate.draining() => return Err(Gate::draining_status()),
                changed = self.published.changed() => {
                    changed.map_err(|_| Gate::draining_status())?;
                }
            }
            sleep(COALESCE).await;
            self.published.mark_unchanged();
            self.collect();
        }
    }

    /// Puts what has changed into the queue.
    fn collect(&mut self) {
        let (seen, here, news) = self.inventory.published_since(self.seen);
        self.seen = seen;
        let gone: Vec<_> = self.told.difference(&here).cloned().collect();
        let lost = gone.into_iter().map(|id| v1::LinkChange { gateway_id: id.into(), status: None });
        self.waiting.extend(lost);
        let linked = news.into_iter().map(|(id, status)| v1::LinkChange {
            gateway_id: id.into(),
            status: Some(v1::GatewayStatus::clone(&status)),
        });
        self.waiting.extend(linked);
        self.told = here;
    }
}
