//! Who is on the other side, and what they may do.
//!
//! ```text
//!  clients' port   TLS (own certificate, or the operator's) ─► bearer token ─► Caller { name, role }
//!  link port       TLS 1.3, certificate of this authority  ─► Identity: Gateway | Replica | Nobody
//!                    ALPN rookery-link/1 ─► link::Links (the gateway's id is the certificate's)
//!                    ALPN h2             ─► Enrolment, Artifact and Peer services
//! ```
//!
//! The control plane is its own certificate authority. Its key and certificate are secrets of the store, made once by
//! whichever replica starts first. Nothing here trusts a name that the other side merely says.

mod access;
mod authority;
mod certificate;
mod pending;
mod refusals;
mod server;
mod token;

pub use access::{Access, AccessLayer, Guarded};
pub use authority::{Authority, AuthorityError, Issued, Own, join_token_hash};
pub use certificate::{CertificateError, PeerCertificate};
pub(crate) use pending::Pending;
pub use refusals::Refusals;
pub(crate) use server::HandshakeError;
pub use server::{ServerTls, TlsError};
pub use token::{BearerToken, NoRandomness, Secret, hash_of};

use std::{fmt, str::FromStr};

use rookery_proto::status::{Reason, refuse, refuse_with};
use tonic::{Request, Status};

use crate::domain::GatewayId;

/// What a caller may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Generate, tokenize, list models.
    Inference,
    /// Push versions, roll them out, look at the fleet.
    Deployer,
    /// Everything: tokens, removal of gateways.
    Admin,
}

impl Role {
    /// Every role, the lowest first.
    pub const ALL: [Role; 3] = [Role::Inference, Role::Deployer, Role::Admin];

    /// Its name in the store, on the command line and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Inference => "inference",
            Role::Deployer => "deployer",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no [`Role`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} must be inference, deployer or admin")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Role::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| UnknownRole(text.chars().take(64).collect()))
    }
}

/// Who calls on the clients' port. An extension of every request there that carries a good token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the bearer token; [`Caller::LOCAL`] on a loopback port without TLS.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Caller {
    /// Name of whoever calls on a loopback port without TLS.
    pub const LOCAL: &str = "local";

    /// Whoever calls on a loopback port without TLS.
    pub fn local() -> Self {
        Self { name: Self::LOCAL.to_owned(), role: Role::Admin }
    }
}

/// Who has dialled the link port. An extension of every request to the services there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A gateway that has joined, with a certificate that was good at the handshake.
    Gateway {
        /// Its id, from the certificate.
        id: GatewayId,
        /// The certificate's serial number, lower-case hexadecimal.
        serial: String,
    },
    /// Another replica of the control plane, by its id.
    Replica(String),
    /// Somebody without a certificate.
    Nobody,
}

/// The caller, if its role is at least `role`.
///
/// # Errors
/// UNAUTHENTICATED without a caller, PERMISSION_DENIED with too low a role.
pub fn require<T>(request: &Request<T>, role: Role) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().ok_or_else(unauthenticated)?;
    if caller.role >= role {
        return Ok(caller.clone());
    }
    let message = format!("the call needs role {role}, the token of {} has {}", caller.name, caller.role);
    let metadata = [("role", caller.role.to_string()), ("required", role.to_string())];
    Err(refuse_with(Reason::RoleTooLow, message, &metadata, None))
}

/// The gateway that calls on the link port.
///
/// # Errors
/// UNAUTHENTICATED if it is none.
pub fn require_gateway<T>(request: &Request<T>) -> Result<GatewayId, Status> {
    match request.extensions().get::<Identity>() {
        Some(Identity::Gateway { id, .. }) => Ok(id.clone()),
        Some(Identity::Replica(_) | Identity::Nobody) | None => {
            Err(refuse(Reason::Unauthenticated, "the call needs the certificate of a gateway"))
        }
    }
}

/// The replica that calls on the link port.
///
/// # Errors
/// UNAUTHENTICATED if it is none.
pub fn require_replica<T>(request: &Request<T>) -> Result<String, Status> {
    match request.extensions().get::<Identity>() {
        Some(Identity::Replica(id)) => Ok(id.clone()),
        Some(Identity::Gateway { .. } | Identity::Nobody) | None => {
            Err(refuse(Reason::Unauthenticated, "the call needs the certificate of a replica"))
        }
    }
}

fn unauthenticated() -> Status {
    refuse(Reason::Unauthenticated, "the call needs a bearer token: metadata `authorization: Bearer TOKEN`")
}

#[cfg(test)]
mod tests {
    use rookery_proto::status::reason_of;

    use super::*;

    #[test]
    fn a_role_may_do_what_lower_ones_may() {
        for (has, needs) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 2)] {
            let mut request = Request::new(());
            let caller = Caller { name: "n".into(), role: Role::ALL[has] };
            request.extensions_mut().insert(caller.clone());
            match require(&request, Role::ALL[needs]) {
                Ok(found) => assert!(found == caller && has >= needs),
                Err(status) => assert!(reason_of(&status) == Some(Reason::RoleTooLow) && has < needs),
            }
        }
        let status = require(&Request::new(()), Role::Inference).unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::Unauthenticated));
        assert!("root".parse::<Role>().is_err());
        assert!(Role::ALL.iter().all(|role| role.as_str().parse() == Ok(*role)));
    }

    #[test]
    fn who_dialled_the_link_port_is_who_the_certificate_says() {
        let mut request = Request::new(());
        assert!(require_gateway(&request).is_err() && require_replica(&request).is_err());
        request.extensions_mut().insert(Identity::Replica("a".into()));
        assert!(require_gateway(&request).is_err() && require_replica(&request).is_ok());
        let id: GatewayId = "gw".parse().unwrap();
        request.extensions_mut().insert(Identity::Gateway { id: id.clone(), serial: "01".into() });
        assert!(require_replica(&request).is_err() && require_gateway(&request).unwrap() == id);
    }
}
