//! What must outlive the process, in SQLite or PostgreSQL.

mod access;
mod assignments;
mod audit;
mod error;
mod gateways;
mod replicas;
mod rollouts;
mod secrets;
mod transitions;
mod versions;

use std::sync::Arc;

use tokio::sync::watch;

pub use access::{NewJoinToken, TokenRecord};
pub use assignments::{AssignmentChange, AssignmentRecord};
pub use audit::AuditEntry;
pub use error::{JoinTokenRefusal, StoreError};
pub use gateways::{Admission, GatewayRecord, LinkRecord, NewGateway, Report};
pub use replicas::ReplicaRecord;
pub use rollouts::{NewRollout, Owner, RolloutRecord};
pub use secrets::TrustedKey;
pub use transitions::{GatewayTransition, TransitionFilter, TransitionRecord};
pub use versions::{Alias, NewVersion, SignatureRecord, Version, VersionSummary};

/// The database. A handle: clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    written: Arc<watch::Sender<u64>>,
}

impl Store {
    /// Opens a database and brings its schema up to date. `sqlite:PATH` makes the file if there is none; `postgres://…` is
    /// a database that exists.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer program has written it; [`StoreError::Url`]; [`StoreError::File`];
    /// [`StoreError::Migrate`]; [`StoreError::Database`] if it cannot be reached.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let _ = url;
        unimplemented!()
    }

    /// Grows with each write through this handle and its clones; other replicas' writes do not show.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Waits until every connection is closed.
    pub async fn close(&self) {}
}
