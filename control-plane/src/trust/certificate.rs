//! What a peer's certificate says. The handshake has checked its signature, its time and that it is of the authority.

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::{Identity, token::hex};
use crate::domain::{GatewayId, Millis};

const GATEWAY: &str = "rookery:gateway:";
const REPLICA: &str = "rookery:replica:";

/// The name of a gateway in its certificate.
pub(super) fn gateway_uri(id: &GatewayId) -> String {
    format!("{GATEWAY}{id}")
}

/// The name of a replica in its certificate.
pub(super) fn replica_uri(id: &str) -> String {
    format!("{REPLICA}{id}")
}

/// A peer's certificate, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whose it is.
    pub identity: Identity,
    /// When it ends.
    pub not_after: Millis,
}

/// A certificate of the authority that is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509.
    #[error("the certificate cannot be read")]
    Damaged,
    /// It has no name of ours, or more than one.
    #[error("the certificate names neither a gateway nor a replica")]
    Nobody,
}

impl PeerCertificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// If it names nobody.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (_, certificate) = parse_x509_certificate(der).map_err(|_| CertificateError::Damaged)?;
        let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Damaged)?;
        let names = names.ok_or(CertificateError::Nobody)?;
        let mut ours = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.starts_with("rookery:").then_some(*uri),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => None,
        });
        let (Some(name), None) = (ours.next(), ours.next()) else { return Err(CertificateError::Nobody) };
        let identity = if let Some(id) = name.strip_prefix(GATEWAY) {
            let id = id.parse().map_err(|_| CertificateError::Nobody)?;
            Identity::Gateway { id, serial: hex(certificate.raw_serial()) }
        } else if let Some(id) = name.strip_prefix(REPLICA).filter(|id| !id.is_empty()) {
            Identity::Replica(id.to_owned())
        } else {
            return Err(CertificateError::Nobody);
        };
        let not_after = Millis(certificate.validity().not_after.timestamp().saturating_mul(1000));
        Ok(Self { identity, not_after })
    }
}
