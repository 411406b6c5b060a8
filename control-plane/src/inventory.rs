//! The gateways as people and planner see them: the store's rows, and what each linked one reported last.
//!
//! ```text
//!  link session ─ linked, status, unlinked ─► Live (memory) ─ what is new ─► run() ─► store
//!       ▲                                       │                              │
//!       └──── next_assignment ◄─ due ───────────┴── generations, acknowledged ◄┘
//! ```
//!
//! # Ownership
//!
//! `live::Live` is behind a lock that is never held across an await. One task, [`Inventory::run`], writes to the store:
//! links, transitions, and reports when they change or a minute has passed, so that heartbeats cost the store nothing. Its
//! queue holds every gateway at most once.
//!
//! # Failure
//!
//! A store that fails delays what is saved and sent, and cuts no link: the task tries again every second, and gateways go
//! on telling their transitions until these are acknowledged.

mod assignment;
mod live;
pub mod report;
mod rows;
mod save;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rookery_proto::v1;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tracing::{debug, warn};

pub use report::{GatewayFacts, Phase, Transition, Verdict, VersionStatus};

use crate::{
    domain::{GatewayId, Labels, Millis},
    link::LinkChannel,
    store::{GatewayRecord, Store, StoreError},
};
use assignment::Parts;
use live::{Live, Published, Report};
pub(crate) use rows::DEAD_AFTER;
use rows::Rows;

/// How often a session looks again whether something has to be sent, without being told.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The same while the store fails.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What every download of every gateway keeps to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownloadLimits {
    /// Bytes a second for each gateway; 0: no limit.
    pub bandwidth_bytes: u64,
    /// Longest random wait before a download begins.
    pub start_spread: Duration,
}

/// What gateways are that nobody has enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Their links end. For link ports with TLS.
    Refuse,
    /// They join by linking. For link ports without TLS, which are on loopback.
    Adopt,
}

/// A gateway as it is known now.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayView {
    /// Its row.
    pub record: Arc<GatewayRecord>,
    /// Whether it is linked, to whichever replica.
    pub online: bool,
    /// What it reported of its versions: now if it is linked, else at last.
    pub versions: Arc<[VersionStatus]>,
    /// What it reported of itself.
    pub facts: GatewayFacts,
    /// Its own labels, with `id`, and `board`, `driver` and `processor` where it reports them.
    pub labels: Labels,
}

/// One link of a gateway here: a later one has a larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The inventory. Clones are the same one.
#[derive(Clone)]
pub struct Inventory {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    replica: String,
    downloads: DownloadLimits,
    unknown: Unknown,
    live: Mutex<Live>,
    /// How to reach the gateways that are linked here.
    channels: Mutex<BTreeMap<GatewayId, (Ticket, LinkChannel)>>,
    rows: Rows,
    /// The rows that were last taken in.
    taken: Mutex<Option<Arc<rows::Read>>>,
    parts: Parts,
    /// Something is to be saved, or to be read again.
    work: Notify,
    changes: watch::Sender<u64>,
    /// Counts what other replicas are told.
    published: watch::Sender<u64>,
}

impl Inventory {
    /// An inventory of `replica` over `store`. [`Inventory::run`] has to run beside it.
    pub fn new(store: Store, replica: String, downloads: DownloadLimits, unknown: Unknown) -> Self {
        let shared = Shared {
            rows: Rows::new(&store),
            taken: Mutex::default(),
            parts: Parts::default(),
            store,
            replica,
            downloads,
            unknown,
            live: Mutex::default(),
            channels: Mutex::default(),
            work: Notify::new(),
            changes: watch::Sender::new(0),
            published: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Id of this replica.
    pub fn replica(&self) -> &str {
        &self.shared.replica
    }

    /// A gateway has linked here, and this is its first status. Never blocks: the store follows. Other replicas reach it by
    /// `channel`, if there is one.
    pub fn linked(&self, id: &GatewayId, status: &v1::GatewayStatus, channel: Option<LinkChannel>) -> Ticket {
        let ticket = self.live().link(id, status, Millis::now());
        if let Some(channel) = channel {
            self.channels().insert(id.clone(), (ticket, channel));
        }
        self.publish();
        self.shared.work.notify_one();
        self.bump();
        ticket
    }

    /// A further status of a gateway that is linked here.
    pub fn status(&self, id: &GatewayId, status: &v1::GatewayStatus) {
        let (changed, unsaved) = {
            let mut live = self.live();
            (live.status(id, status, Millis::now()), live.has_work())
        };
        self.publish();
        if unsaved {
            self.shared.work.notify_one();
        }
        if changed {
            self.bump();
        }
    }

    /// The link has ended. Does nothing if a newer one of the same gateway is here.
    pub fn unlinked(&self, id: &GatewayId, ticket: Ticket) {
        if self.live().unlink(id, ticket) {
            let mut channels = self.channels();
            if channels.get(id).is_some_and(|(own, _)| *own <= ticket) {
                channels.remove(id);
            }
            drop(channels);
            self.shared.published.send_modify(|_| {});
            self.shared.work.notify_one();
            self.bump();
        }
    }

    /// Whether a gateway is linked here.
    pub fn is_here(&self, id: &GatewayId) -> bool {
        self.live().here(id).is_some()
    }

    /// How to reach a gateway that is linked here.
    pub(crate) fn channel(&self, id: &GatewayId) -> Option<LinkChannel> {
        self.channels().get(id).map(|(_, channel)| channel.clone())
    }

    /// Changes with everything that other replicas are to be told.
    pub(crate) fn published(&self) -> watch::Receiver<u64> {
        self.shared.published.subscribe()
    }

    /// A number, the gateways that are linked here, and those statuses that came after the number `seen`.
    pub(crate) fn published_since(&self, seen: u64) -> (u64, BTreeSet<GatewayId>, Vec<Published>) {
        let live = self.live();
        let (here, news) = live.published_since(seen);
        (live.last_published(), here, news)
    }

    /// Number of gateways that are linked here.
    pub fn linked_here(&self) -> usize {
        self.live().linked_here()
    }

    /// All gateways that have joined, by id.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn views(&self) -> Result<Vec<GatewayView>, StoreError> {
        let rows = self.shared.rows.get(&self.shared.store).await?;
        self.take_in(&rows);
        let live = self.live();
        Ok(rows.gateways.iter().map(|record| self.view(&live, &rows, record)).collect())
    }

    /// One gateway.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or if the store cannot be read.
    pub async fn view_of(&self, id: &GatewayId) -> Result<GatewayView, StoreError> {
        let record = Arc::new(self.shared.store.gateway(id).await?);
        let rows = self.shared.rows.get(&self.shared.store).await?;
        Ok(self.view(&self.live(), &rows, &record))
    }

    /// Changes when a gateway came, went, or reported something that a roll-out may wait for, and when rows changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Other replicas may have changed rows: read them again now.
    pub fn poke(&self) {
        self.shared.rows.forget();
        self.shared.work.notify_one();
    }

    /// What has to be sent to a gateway that is linked here, if anything: it holds an older generation, or transitions
    /// that it keeps were saved. A complete message. It is not given again until the gateway has reported the
    /// generation, [`Inventory::assigned`] told of a failure, or ten seconds have passed.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn assignment_for(&self, id: &GatewayId) -> Result<Option<v1::Assignment>, StoreError> {
        let due = self.live().due(id, Millis::now());
        let Some(acknowledged) = due else { return Ok(None) };
        let shared = &self.shared;
        let built = shared.parts.assignment(&shared.store, &shared.downloads, id, acknowledged).await?;
        self.live().sent(id, built.generation, acknowledged, Millis::now());
        Ok(Some(built))
    }

    /// Waits until something has to be sent to the gateway and gives it. Does not end otherwise, not even while the store
    /// fails or when the link has ended. Cancel safe: for a link's session beside its statuses.
    pub async fn next_assignment(&self, id: &GatewayId, ticket: Ticket) -> v1::Assignment {
        loop {
            let session = self.live().session(id, ticket);
            let Some((wake, _)) = session else { return std::future::pending().await };
            let mut woken = std::pin::pin!(wake.notified());
            // From here on no wake-up is missed.
            woken.as_mut().enable();
            // Boxed, because every session waits here for as long as it lives.
            let wait = match Box::pin(self.assignment_for(id)).await {
                Ok(Some(assignment)) => return assignment,
                Ok(None) => LOOK_AGAIN,
                Err(error) => {
                    debug!(gateway = %id, %error, "an assignment cannot be read");
                    TRY_AGAIN
                }
            };
            let _ = timeout(wait, woken).await;
        }
    }

    /// Waits until the gateway is removed from the fleet: its link is to end. Cancel safe.
    pub async fn removed(&self, id: &GatewayId, ticket: Ticket) {
        loop {
            let session = self.live().session(id, ticket);
            let Some((wake, removed)) = session else { return std::future::pending().await };
            if removed {
                return;
            }
            let mut woken = std::pin::pin!(wake.notified());
            woken.as_mut().enable();
            // It may have been removed between the look and the wait.
            if !self.live().session(id, ticket).is_some_and(|(_, removed)| removed) {
                woken.await;
            }
        }
    }

    /// What became of an assignment that was sent: the gateway's answer, or why it did not take it.
    pub fn assigned(&self, id: &GatewayId, generation: u64, answer: Result<(), &tonic::Status>) {
        match answer {
            Ok(()) => debug!(gateway = %id, generation, "a gateway took its assignment"),
            Err(status) => {
                let (code, message) = (status.code(), status.message());
                warn!(gateway = %id, generation, ?code, message, "a gateway did not take its assignment");
                self.live().refused(id, generation, Millis::now());
            }
        }
    }

    /// A gateway is linked to another replica, and reports this.
    pub fn remote_status(&self, replica: &str, id: &GatewayId, status: &v1::GatewayStatus) {
        if self.live().remote(replica, id, status) {
            self.bump();
        }
    }

    /// Another replica has lost a gateway, or without an id: it is lost itself, and all of its gateways with it.
    pub fn remote_lost(&self, replica: &str, id: Option<&GatewayId>) {
        if self.live().remote_lost(replica, id) {
            self.bump();
        }
    }

    /// Notes the generations that rows want, which wakes sessions with something to send, and whether people have changed
    /// anything: those who route are to know at once of a gateway that is drained.
    fn take_in(&self, rows: &Arc<rows::Read>) {
        let before =
            self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(rows));
        let edited = before.is_none_or(|before| !before.is_like(rows));
        let wanted = rows.gateways.iter().map(|row| (row.id.clone(), row.generation)).collect();
        if self.live().set_wanted(wanted, rows.at, Millis::now()) || edited {
            self.bump();
        }
    }

    fn view(&self, live: &Live, rows: &rows::Read, record: &Arc<GatewayRecord>) -> GatewayView {
        let stored = record.link.as_ref();
        // A link here counts unless the store has a newer one of another replica.
        let newer = |epoch: Option<u64>| epoch.is_none_or(|own| stored.is_none_or(|link| own >= link.epoch));
        let here = live.here(&record.id).filter(|entry| newer(entry.epoch)).map(|entry| &entry.report);
        let reported = here.or_else(|| live.elsewhere(&record.id).map(|(_, report)| report));
        let others = stored
            .is_some_and(|link| link.replica != self.shared.replica && rows.replicas.contains(&link.replica));
        let (facts, versions) = match reported {
            Some(report) => (report.facts.clone(), Arc::clone(&report.versions)),
            None => Report::from_row(record),
        };
        let mut labels = record.labels.clone();
        facts.labels(&mut labels);
        labels.insert("id".to_owned(), record.id.to_string());
        GatewayView {
            record: Arc::clone(record),
            online: reported.is_some() || others,
            versions,
            facts,
            labels,
        }
    }

    /// Tells those who wait for what other replicas are told, if there is anything new.
    fn publish(&self) {
        let last = self.live().last_published();
        self.shared.published.send_if_modified(|told| std::mem::replace(told, last) != last);
    }

    fn bump(&self) {
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<GatewayId, (Ticket, LinkChannel)>> {
        self.shared.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Its methods leave it whole even if one panics, so a poisoned lock is usable.
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    /// As it was last saved. What cannot be read was written by another version of this program and is left out.
    fn from_row(record: &GatewayRecord) -> (GatewayFacts, Arc<[VersionStatus]>) {
        let facts = record.facts_json.as_deref().and_then(|json| serde_json::from_str(json).ok());
        let versions =
            record.versions_json.as_deref().and_then(|json| serde_json::from_str::<Vec<_>>(json).ok());
        (facts.unwrap_or_default(), versions.unwrap_or_default().into())
    }
}
