//! Follows the links of one other replica.

use std::{collections::BTreeMap, time::Duration};

use rookery_proto::{
    server::chain,
    v1::{LinkChange, WatchLinksRequest, peer_service_client::PeerServiceClient},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};
use tracing::{debug, warn};

use crate::{
    domain::{GatewayId, GatewayState, LinkId},
    fleet::Fleet,
    inventory::Inventory,
    link::{Connection, state_of},
};

/// Time for a connection to a replica.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Pause before the connection is tried again, and the most that it grows to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A connection that lived this long was a working one.
const WORKING: Duration = Duration::from_secs(10);

/// How often the own links are looked at, which may have taken over a gateway, or lost one.
const LOOK: Duration = Duration::from_millis(500);

/// Largest change that a replica may send: as large as a gateway's status may be, and a bit.
const MOST_BYTES: usize = (1 << 20) + 1024;

/// The task that follows a replica.
pub(super) struct Watch {
    pub(super) replica: String,
    pub(super) channel: Channel,
    pub(super) inventory: Inventory,
    pub(super) fleet: Fleet,
    /// The replica is dead.
    pub(super) end: CancellationToken,
    pub(super) seed: u64,
}

impl Watch {
    /// Follows until the replica is dead.
    pub(super) async fn run(self) {
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            // Whatever ends it, the links are dropped, and the gateways are offline.
            let mut links = Links { watch: &self, known: BTreeMap::new() };
            let error = tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                result = links.follow() => result.err(),
            };
            drop(links);
            let replica = &self.replica;
            match error {
                Some(error) => debug!(replica, error = chain(&error), "the links of a replica are not known"),
                None => debug!(replica, "a replica stopped telling its links"),
            }
            pause = if began.elapsed() >= WORKING { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
            let spread = 0.5 + (self.seed % 1000) as f64 / 2000.0;
            tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                () = sleep(pause.mul_f64(spread)) => {}
            }
        }
    }
}

/// The gateways of one connection's life.
struct Links<'a> {
    watch: &'a Watch,
    known: BTreeMap<GatewayId, Known>,
}

/// A gateway of the replica.
struct Known {
    /// Where the registry has it; `None` while it is linked here too.
    link: Option<LinkId>,
    state: GatewayState,
}

impl Links<'_> {
    async fn follow(&mut self) -> Result<(), Status> {
        let mut client =
            PeerServiceClient::new(self.watch.channel.clone()).max_decoding_message_size(MOST_BYTES);
        let request = WatchLinksRequest { replica_id: self.watch.inventory.replica().to_owned() };
        let mut changes = client.watch_links(request).await?.into_inner();
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut here = self.watch.inventory.changed();
        loop {
            // All arms are cancel safe.
            tokio::select! {
                change = changes.message() => match change? {
                    Some(change) => self.change(change),
                    None => return Ok(()),
                },
                _ = ticks.tick() => {
                    if here.has_changed().unwrap_or(false) {
                        here.mark_unchanged();
                        let ids: Vec<_> = self.known.keys().cloned().collect();
                        ids.iter().for_each(|id| self.place(id));
                    }
                }
            }
        }
    }

    fn change(&mut self, LinkChange { gateway_id, status }: LinkChange) {
        let replica = &self.watch.replica;
        let Some(status) = status else {
            match gateway_id.parse() {
                Ok(id) => self.lost(&id),
                Err(error) => warn!(replica, %error, "a replica tells of no gateway"),
            }
            return;
        };
        match state_of(&status) {
            Ok((id, state)) => {
                self.watch.inventory.remote_status(replica, &id, &status);
                let link = self.known.get(&id).and_then(|known| known.link);
                // One that is not current any more was replaced by a link here, or by one of a third replica.
                let link = link.filter(|link| self.watch.fleet.update(&id, *link, state.clone()));
                self.known.insert(id.clone(), Known { link, state });
                self.place(&id);
            }
            Err(error) => warn!(replica, %error, "a replica tells of an unusable status"),
        }
    }

    /// Sees to it that the registry has the gateway, unless it is linked here: that way is shorter, and a link here that
    /// is dead is noticed in seconds.
    fn place(&mut self, id: &GatewayId) {
        let Watch { channel, inventory, fleet, .. } = self.watch;
        let Some(known) = self.known.get_mut(id) else { return };
        match (inventory.is_here(id), known.link) {
            (true, Some(link)) => {
                fleet.unlink(id, link);
                known.link = None;
            }
            (false, None) => {
                let connection = Connection::through(channel.clone(), id);
                known.link = Some(fleet.link(id.clone(), connection, known.state.clone()).0);
            }
            (true, None) | (false, Some(_)) => {}
        }
    }

    fn lost(&mut self, id: &GatewayId) {
        if let Some(known) = self.known.remove(id) {
            self.forget(id, &known);
            self.watch.inventory.remote_lost(&self.watch.replica, Some(id));
        }
    }

    fn forget(&self, id: &GatewayId, known: &Known) {
        if let Some(link) = known.link {
            self.watch.fleet.unlink(id, link);
        }
    }
}

impl Drop for Links<'_> {
    fn drop(&mut self) {
        self.known.iter().for_each(|(id, known)| self.forget(id, known));
        self.watch.inventory.remote_lost(&self.watch.replica, None);
    }
}
