//! Whose certificate a connection has shown, and whether it is still good.

use std::{future::pending, time::Duration};

use rookery_proto::server::chain;
use tokio::time::sleep;
use tracing::debug;

use crate::{
    domain::{GatewayId, Millis},
    store::{Store, StoreError},
    trust::{Identity, PeerCertificate},
};

/// How often a live connection's certificate is looked up among the revoked. A gateway that is removed is cut off at
/// once, by the inventory; this is for a certificate that is revoked by itself.
const LOOK: Duration = Duration::from_secs(20);

/// What is known of the peer. Without TLS: nothing.
#[derive(Clone)]
pub(super) struct Guard {
    certificate: Option<PeerCertificate>,
    store: Store,
}

/// The certificate is of the authority, and is not to be accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAccepted {
    #[error("its certificate has been revoked")]
    Revoked,
    #[error("the gateway was removed from the fleet, or never joined it")]
    Unknown,
    #[error("the store cannot tell whether its certificate is good")]
    Store(#[source] StoreError),
}

impl Guard {
    pub(super) fn new(certificate: Option<PeerCertificate>, store: Store) -> Self {
        Self { certificate, store }
    }

    /// The gateway that the certificate names.
    pub(super) fn holder(&self) -> Option<&GatewayId> {
        match self.certificate.as_ref().map(|certificate| &certificate.identity) {
            Some(Identity::Gateway { id, .. }) => Some(id),
            Some(Identity::Replica(_) | Identity::Nobody) | None => None,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        self.certificate.as_ref().map_or(Identity::Nobody, |certificate| certificate.identity.clone())
    }

    fn gateway(&self) -> Option<(&GatewayId, &str)> {
        match self.certificate.as_ref().map(|certificate| &certificate.identity) {
            Some(Identity::Gateway { id, serial }) => Some((id, serial)),
            Some(Identity::Replica(_) | Identity::Nobody) | None => None,
        }
    }

    /// Whether the certificate is one of a gateway of the fleet, or of nobody or a replica, who need no row.
    pub(super) async fn check(&self) -> Result<(), NotAccepted> {
        let Some((id, serial)) = self.gateway() else { return Ok(()) };
        if self.store.is_revoked(serial).await.map_err(NotAccepted::Store)? {
            return Err(NotAccepted::Revoked);
        }
        match self.store.gateway(id).await {
            Ok(_) => Ok(()),
            Err(StoreError::NotFound { .. }) => Err(NotAccepted::Unknown),
            Err(error) => Err(NotAccepted::Store(error)),
        }
    }

    /// Resolves once the certificate has ended or was revoked, and says which.
    pub(super) async fn broken(&self) -> &'static str {
        let Some(certificate) = &self.certificate else { return pending().await };
        loop {
            let left = certificate.not_after.since(Millis::now());
            if left.is_zero() {
                return "the certificate has ended; a gateway that has renewed it dials again";
            }
            sleep(left.min(LOOK)).await;
            let Some((_, serial)) = self.gateway() else { continue };
            // Boxed, because every link waits here for as long as it lives.
            match Box::pin(self.store.is_revoked(serial)).await {
                Ok(true) => return "the certificate was revoked",
                Ok(false) => {}
                // A store that fails ends no links: that would take the fleet down with it.
                Err(error) => debug!(error = chain(&error), "revocation cannot be looked up"),
            }
        }
    }
}
