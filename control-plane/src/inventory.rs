//! The gateways as people and planner see them: the store's rows, and what each linked one reported last.
pub mod report;

use std::{sync::Arc, time::Duration};

use rookery_proto::v1;
use tokio::sync::watch;

pub use report::{GatewayFacts, Phase, Transition, Verdict, VersionStatus};

use crate::{
    domain::{GatewayId, Labels},
    store::{GatewayRecord, Store, StoreError},
};

/// What every download of every gateway keeps to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownloadLimits {
    /// Bytes a second for each gateway; 0: no limit.
    pub bandwidth_bytes: u64,
    /// Longest random wait before a download begins.
    pub start_spread: Duration,
}

/// A gateway as it is known now.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayView {
    /// Its row.
    pub record: GatewayRecord,
    /// Whether it is linked, to whichever replica.
    pub online: bool,
    /// What it reported of its versions: now if it is linked, else at last.
    pub versions: Vec<VersionStatus>,
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

struct Shared {}

impl Inventory {
    /// An inventory of `replica` over `store`. [`Inventory::run`] has to run beside it.
    pub fn new(store: Store, replica: String, downloads: DownloadLimits) -> Self {
        let _ = (store, replica, downloads);
        unimplemented!()
    }

    /// Saves what gateways report until it is dropped: spawn it once, with `OnPanic::StopNode`.
    pub async fn run(self) {
        unimplemented!()
    }

    /// A gateway has linked here, and this is its first status. Never blocks: the store follows.
    pub fn linked(&self, id: &GatewayId, status: &v1::GatewayStatus) -> Ticket {
        let _ = (id, status);
        unimplemented!()
    }

    /// A further status of a gateway that is linked here.
    pub fn status(&self, id: &GatewayId, status: &v1::GatewayStatus) {
        let _ = (id, status);
        unimplemented!()
    }

    /// The link has ended. Does nothing if a newer one of the same gateway is here.
    pub fn unlinked(&self, id: &GatewayId, ticket: Ticket) {
        let _ = (id, ticket);
        unimplemented!()
    }

    /// All gateways that have joined, by id.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn views(&self) -> Result<Vec<GatewayView>, StoreError> {
        unimplemented!()
    }

    /// Changes when a gateway came, went, or reported something that a roll-out may wait for; and on [`Inventory::poke`].
    pub fn changed(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// The store's rows were changed by this replica: read them again at once instead of within a second.
    pub fn poke(&self) {
        unimplemented!()
    }

    /// What has to be sent to a gateway that is linked here, if anything: it holds an older generation, or transitions
    /// that it keeps were saved. A complete message. It is not given again until the gateway has reported the
    /// generation, [`Inventory::assigned`] told of a failure, or ten seconds have passed.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn assignment_for(&self, id: &GatewayId) -> Result<Option<v1::Assignment>, StoreError> {
        let _ = id;
        unimplemented!()
    }

    /// Waits until something has to be sent to the gateway and gives it. Ends never otherwise, not even while the store
    /// fails. Cancel safe: for a link's session beside its statuses.
    pub async fn next_assignment(&self, id: &GatewayId, ticket: Ticket) -> v1::Assignment {
        let _ = (id, ticket);
        unimplemented!()
    }

    /// What became of an assignment that was sent: the gateway's answer, or why it did not take it.
    pub fn assigned(&self, id: &GatewayId, generation: u64, answer: Result<(), &tonic::Status>) {
        let _ = (id, generation, answer);
        unimplemented!()
    }
}
