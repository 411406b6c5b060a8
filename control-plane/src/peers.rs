//! Several control planes over one database: each knows the gateways of the others and reaches them through these.
//!
//! ```text
//!  client ─► replica A ── rookery-gateway: gw-7 ──► replica B ──► link ──► gw-7
//!                │              (mutual TLS)            │
//!                └────────── WatchLinks ◄───────────────┘
//! ```
//!
//! Every replica beats in the store. Of each other one that does, a task follows the links and puts them into the registry
//! as gateways that are reached [`through`](crate::link::Connection) that replica. What a replica passes on goes to its own
//! links only, never to a third one, so that no call can go in circles.
//!
//! # Failure
//!
//! A replica that stops beating is dead after `inventory::DEAD_AFTER`: its task ends, and its gateways are offline
//! until they have dialled another one. So they are at once when the connection to it breaks.

mod forward;
mod serve;
mod watch;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use rookery_proto::{
    server::{Gate, OnPanic, Tasks, chain},
    v1::peer_service_server::PeerServiceServer,
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    domain::Millis,
    fleet::Fleet,
    inventory::{DEAD_AFTER, Inventory},
    store::{ReplicaRecord, Store, StoreError},
    trust::ServerTls,
};
pub use forward::Forward;
pub use serve::PeerLinks;

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(2);

/// Replicas that are followed; more are a mistake in the database.
const MOST_REPLICAS: usize = 64;

/// The other replicas, as this one knows them.
#[derive(Clone)]
pub struct Peers {
    /// The database that all share.
    pub store: Store,
    /// This replica's links, and where others' go.
    pub inventory: Inventory,
    /// Where requests find them.
    pub fleet: Fleet,
    /// Of the link port. Without TLS replicas do not know each other, and none is followed.
    pub tls: Option<ServerTls>,
    /// Where others reach this replica's link port, `host:port`.
    pub address: String,
    /// Ends it.
    pub gate: Gate,
    /// Runs it.
    pub tasks: Tasks,
}

impl Peers {
    /// What other replicas ask of this one, for the link port. Needs [`crate::trust::Identity`] in requests.
    pub fn service(&self) -> PeerServiceServer<PeerLinks> {
        PeerServiceServer::new(PeerLinks::new(self.inventory.clone(), self.gate.clone()))
    }

    /// Calls of other replicas that this one passes on to its links, for the link port. Needs
    /// [`crate::trust::Identity`] in requests.
    pub fn forward(&self) -> Forward {
        Forward::new(self.inventory.clone())
    }

    /// Beats, and follows the other replicas, until the gate closes.
    pub async fn run(self) {
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut followed: BTreeMap<String, Followed> = BTreeMap::new();
        let mut failing = false;
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                () = self.gate.closed() => break,
                _ = ticks.tick() => {}
            }
            match self.beat().await {
                Ok(replicas) => {
                    failing = false;
                    self.follow(&mut followed, replicas);
                }
                // Those who are followed are followed on: their connections tell whether they live.
                Err(error) => {
                    if !failing {
                        warn!(error = chain(&error), "this replica cannot say in the store that it lives");
                    }
                    failing = true;
                }
            }
        }
        followed.into_values().for_each(|replica| replica.end.cancel());
    }

    /// Says that this replica lives, and gives the others that do.
    async fn beat(&self) -> Result<Vec<ReplicaRecord>, StoreError> {
        let own = self.inventory.replica();
        let now = Millis::now();
        self.store.beat(own, &self.address, now).await?;
        let since = Millis(now.0.saturating_sub(DEAD_AFTER.as_millis() as i64));
        let mut replicas = self.store.replicas(since).await?;
        replicas.retain(|replica| replica.id != own);
        replicas.truncate(MOST_REPLICAS);
        Ok(replicas)
    }

    /// Starts to follow replicas that are new, and stops where one is dead or has moved.
    fn follow(&self, followed: &mut BTreeMap<String, Followed>, replicas: Vec<ReplicaRecord>) {
        followed.retain(|id, known| {
            let lives = |replica: &ReplicaRecord| replica.id == *id && replica.address == known.address;
            let keep = replicas.iter().any(lives);
            if !keep {
                info!(replica = id, "a replica is gone");
                known.end.cancel();
            }
            keep
        });
        let Some(tls) = &self.tls else { return };
        for ReplicaRecord { id, address, .. } in replicas {
            if followed.contains_key(&id) {
                continue;
            }
            info!(replica = id, address, "another replica of the control plane lives");
            let end = CancellationToken::new();
            let watch = watch::Watch {
                replica: id.clone(),
                channel: tls.peer(&address, watch::CONNECT_LIMIT),
                inventory: self.inventory.clone(),
                fleet: self.fleet.clone(),
                end: end.clone(),
                seed: seed(),
            };
            self.tasks.spawn("links of a replica", OnPanic::StopNode, watch.run());
            followed.insert(id, Followed { address, end });
        }
    }
}

/// A replica that a task follows.
struct Followed {
    address: String,
    end: CancellationToken,
}

/// Differs between replicas that were started together, so that they do not try again in step.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ u64::from(std::process::id())
}
