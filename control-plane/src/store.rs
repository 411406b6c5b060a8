//! What must outlive the process, in SQLite or PostgreSQL.
//!
//! One SQL text serves both: `$1` placeholders (SQLite numbers them alike), BIGINT and TEXT only, JSON as text, times in
//! milliseconds. `connection` makes the two behave alike, `migrate` brings the schema up to date.
//!
//! - A call that has returned is durable. A call that failed has changed nothing, unless the database was lost while it
//!   committed: read again then.
//! - What rests on more than one row (who owns which gateway, whether a version is in use) runs one at a time, over all
//!   replicas. Plans are compare-and-set, so no replica leads.
//! - Whoever changes something is in the audit log, written in the same transaction.
//! - Waits for connections and locks have an end; pools have a size.

mod access;
mod assignments;
mod audit;
mod connection;
mod error;
mod gateways;
mod migrate;
mod ownership;
mod replicas;
mod rollouts;
mod row;
mod secrets;
mod transitions;
mod versions;

use std::sync::Arc;

use tokio::sync::watch;

pub use access::{NewJoinToken, TokenRecord};
pub use assignments::{AssignmentChange, AssignmentRecord};
pub use audit::AuditEntry;
pub use error::{JoinTokenRefusal, StoreError};
pub use gateways::{Admission, GatewayRecord, InvalidAdmission, LinkRecord, LinkUp, NewGateway, Report};
pub use replicas::ReplicaRecord;
pub use rollouts::{NewRollout, Owner, RolloutRecord};
pub use secrets::TrustedKey;
pub use transitions::{GatewayTransition, TransitionFilter, TransitionRecord};
pub use versions::{Alias, NewVersion, SignatureRecord, Version, VersionSummary};

use connection::{Database, Lock, Tx};

/// The database. A handle: clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    written: Arc<watch::Sender<u64>>,
}

impl Store {
    /// Opens a database and brings its schema up to date. `sqlite:PATH` makes the file if there is none, in a folder that
    /// exists; `postgres://…` is a database that exists.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer program has written it; [`StoreError::Url`]; [`StoreError::File`];
    /// [`StoreError::Migrate`]; [`StoreError::Database`] if it cannot be reached.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let database = Database::connect(url).await?;
        if let Err(error) = migrate::run(&database).await {
            database.close().await;
            return Err(error);
        }
        Ok(Self { database, written: Arc::new(watch::Sender::new(0)) })
    }

    /// Grows with each write through this handle and its clones that others may want to act on; links, reports and
    /// heartbeats do not count, and other replicas' writes do not show.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Waits until every connection is closed. Later calls fail.
    pub async fn close(&self) {
        self.database.close().await;
    }

    async fn commit(&self, tx: Tx) -> Result<(), StoreError> {
        tx.commit().await?;
        self.written.send_modify(|writes| *writes += 1);
        Ok(())
    }

    async fn write(&self, lock: Lock) -> Result<Tx, StoreError> {
        self.database.write(lock).await
    }
}

fn not_found(what: impl Into<String>) -> StoreError {
    StoreError::NotFound { what: what.into() }
}

fn exists(what: impl Into<String>) -> StoreError {
    StoreError::Exists { what: what.into() }
}

fn invalid(what: impl Into<String>) -> StoreError {
    StoreError::Invalid { what: what.into() }
}
