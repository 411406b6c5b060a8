//! Gateways that have joined, their certificates and their links.

use std::fmt;

use crate::domain::{GatewayId, Labels, Millis};

use super::{Store, StoreError};

/// Whether a gateway is given work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Admission {
    /// It takes assignments and requests.
    #[default]
    Open,
    /// It keeps serving what it serves and is given no new versions.
    Cordoned,
    /// Neither new versions nor new requests.
    Drained,
}

impl Admission {
    /// As it is stored and written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Drained => "drained",
        }
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A gateway that joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGateway {
    /// Its id.
    pub id: GatewayId,
    /// Labels.
    pub labels: Labels,
    /// When it joins.
    pub joined: Millis,
    /// Serial number of its certificate.
    pub serial: String,
    /// When that ends.
    pub not_after: Millis,
}

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRecord {
    /// Its id.
    pub id: GatewayId,
    /// Labels that people gave it.
    pub labels: Labels,
    /// Whether it is given work.
    pub admission: Admission,
    /// When it joined.
    pub joined: Millis,
    /// When it was last heard of, about to the minute; `None`: never since it joined.
    pub last_seen: Option<Millis>,
    /// What it is, as last saved, JSON.
    pub facts_json: Option<String>,
    /// Its versions, as last saved, JSON.
    pub versions_json: Option<String>,
    /// Serial number of its newest certificate.
    pub serial: String,
    /// When that ends.
    pub not_after: Millis,
    /// Of its assignments: grows with each change, also over removal and joining again.
    pub generation: u64,
    /// Transitions up to this sequence are kept.
    pub acknowledged_sequence: u64,
    /// Which replica holds its connection, if one does. A replica that died cannot take this back: look whether it is seen.
    pub link: Option<LinkRecord>,
}

/// Which replica holds a gateway's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    /// Id of the replica.
    pub replica: String,
    /// Grows with every link of the gateway.
    pub epoch: u64,
    /// Since when.
    pub since: Millis,
}

/// What a gateway reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The gateway.
    pub gateway: GatewayId,
    /// What it is, JSON; `None`: as before.
    pub facts_json: Option<String>,
    /// Its versions, JSON; `None`: as before.
    pub versions_json: Option<String>,
    /// When.
    pub seen: Millis,
}

impl Store {
    /// Keeps a gateway that joins, or joins again after its removal.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if a gateway has that id.
    pub async fn put_gateway(&self, gateway: &NewGateway, actor: &str) -> Result<(), StoreError> {
        let _ = (gateway, actor);
        unimplemented!()
    }

    /// Takes a join token and keeps the gateway, both or neither. The gateway gets the token's labels beside its own.
    ///
    /// # Errors
    /// [`StoreError::JoinToken`]; [`StoreError::Exists`].
    pub async fn enrol(&self, token_hash: &str, gateway: &NewGateway) -> Result<(), StoreError> {
        let _ = (token_hash, gateway);
        unimplemented!()
    }

    /// Keeps a gateway's new certificate. Its older ones stay valid.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn renew(&self, id: &GatewayId, serial: &str, not_after: Millis) -> Result<(), StoreError> {
        let _ = (id, serial, not_after);
        unimplemented!()
    }

    /// A gateway.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it was removed.
    pub async fn gateway(&self, id: &GatewayId) -> Result<GatewayRecord, StoreError> {
        let _ = id;
        unimplemented!()
    }

    /// All gateways, by id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn gateways(&self) -> Result<Vec<GatewayRecord>, StoreError> {
        unimplemented!()
    }

    /// Sets labels and removes others.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_labels(
        &self,
        id: &GatewayId,
        set: &Labels,
        remove: &[String],
        actor: &str,
    ) -> Result<GatewayRecord, StoreError> {
        let _ = (id, set, remove, actor);
        unimplemented!()
    }

    /// Says whether a gateway is given work.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_admission(
        &self,
        id: &GatewayId,
        admission: Admission,
        actor: &str,
    ) -> Result<GatewayRecord, StoreError> {
        let _ = (id, admission, actor);
        unimplemented!()
    }

    /// Forgets a gateway with its assignments, and revokes all its certificates. Its transitions are kept.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn remove_gateway(&self, id: &GatewayId, actor: &str) -> Result<(), StoreError> {
        let _ = (id, actor);
        unimplemented!()
    }

    /// Saves what gateways reported, in one transaction. Those that are unknown are passed over.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn save_reports(&self, reports: &[Report]) -> Result<(), StoreError> {
        let _ = reports;
        unimplemented!()
    }

    /// Says that a replica holds a gateway's connection now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    ///
    /// # Returns
    /// The epoch of the link.
    pub async fn link_up(&self, id: &GatewayId, replica: &str) -> Result<u64, StoreError> {
        let _ = (id, replica);
        unimplemented!()
    }

    /// Says that a link has ended. Does nothing if the gateway has a newer one, or is gone.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn link_down(&self, id: &GatewayId, epoch: u64) -> Result<(), StoreError> {
        let _ = (id, epoch);
        unimplemented!()
    }

    /// Whether a certificate has been revoked.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn is_revoked(&self, serial: &str) -> Result<bool, StoreError> {
        let _ = serial;
        unimplemented!()
    }

    /// Revokes a certificate, also one that is not known. Twice is as once.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn revoke(&self, serial: &str, actor: &str) -> Result<(), StoreError> {
        let _ = (serial, actor);
        unimplemented!()
    }
}
