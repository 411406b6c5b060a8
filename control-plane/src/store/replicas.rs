//! Replicas of the control plane.

use crate::domain::Millis;

use super::{Store, StoreError};

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Its id, new with each start.
    pub id: String,
    /// Where others reach it.
    pub address: String,
    /// When it last said so, by its clock.
    pub seen: Millis,
}

impl Store {
    /// Says that a replica lives. Replicas that have been silent for a day are forgotten.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn beat(&self, id: &str, address: &str, now: Millis) -> Result<(), StoreError> {
        let _ = (id, address, now);
        unimplemented!()
    }

    /// Replicas that have said since `since` that they live, by id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn replicas(&self, since: Millis) -> Result<Vec<ReplicaRecord>, StoreError> {
        let _ = since;
        unimplemented!()
    }
}
