//! TLS as every part of Rookery speaks it: rustls with ring, TLS 1.3 on the link port, and who is trusted.
//!
//! Gateways check *who* a control plane is, not *where*: each replica's certificate is for [`LINK_NAME`], from the
//! authority that the gateway's join token named. So addresses may change, and tunnels may stand between.

mod clock;
mod connect;
mod pinned;

pub use clock::AtLeast;
pub use connect::{ConnectError, Connector, connect};
pub use pinned::{Pin, fingerprint};

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, TrustAnchor,
        pem::{self, PemObject},
    },
    time_provider::{DefaultTimeProvider, TimeProvider},
};

/// ALPN by which a gateway dials a link: after the handshake the roles reverse, and the control plane is the HTTP/2
/// client.
pub const ALPN_LINK: &[u8] = b"rookery-link/1";

/// ALPN of gRPC.
pub const ALPN_H2: &[u8] = b"h2";

/// The name in the certificates that replicas of the control plane show on the link port.
pub const LINK_NAME: &str = "control-plane.rookery.internal";

/// The authority's certificates begin this much before they are made: clocks of replicas and gateways differ.
pub const BACKDATED: Duration = Duration::from_secs(3600);

/// What certificates and keys cannot be used for.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not of the kind that is needed.
    #[error("there is no usable {what} in the PEM text")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// Why it was not found.
        #[source]
        source: pem::Error,
    },
    /// The text has none.
    #[error("there is no certificate in the PEM text")]
    NoCertificate,
    /// rustls refuses them.
    #[error("TLS cannot be set up with these certificates")]
    Rustls(#[from] rustls::Error),
}

/// The one implementation of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// The certificates of a PEM text, at least one.
///
/// # Errors
/// If there is none, or one is damaged.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|source| TlsError::Pem { what: "certificate", source })?;
    if all.is_empty() { Err(TlsError::NoCertificate) } else { Ok(all) }
}

/// The private key of a PEM text.
///
/// # Errors
/// If there is none.
pub fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|source| TlsError::Pem { what: "private key", source })
}

/// Who shows a certificate.
#[derive(Debug)]
pub struct Credentials {
    /// The certificate, and those above it but for the authority's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// From PEM texts, which may be the same one.
    ///
    /// # Errors
    /// If certificate or key is missing or damaged.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, TlsError> {
        Ok(Self { chain: certificates(chain)?, key: private_key(key)? })
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Whose servers are believed.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those with a certificate from one of these authorities.
    Authorities(Vec<CertificateDer<'static>>),
    /// Those with a certificate from one of these, of which only name and key are known.
    Roots(Vec<TrustAnchor<'static>>),
    /// Those with a certificate from the authority whose own has this fingerprint, and which they must send along.
    Pinned(Pin),
}

/// Settings for dialling with TLS 1.3.
///
/// # Errors
/// If a certificate cannot be used.
pub fn client_config(
    trust: Trust,
    credentials: Option<Credentials>,
    alpn: &[u8],
    clock: Option<Arc<dyn TimeProvider>>,
) -> Result<ClientConfig, TlsError> {
    let clock = clock.unwrap_or_else(|| Arc::new(DefaultTimeProvider));
    let builder = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match trust {
        Trust::Authorities(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority)?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::Roots(roots) => builder.with_root_certificates(RootCertStore { roots }),
        Trust::Pinned(pin) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned::Verifier::new(pin)))
        }
    };
    let mut config = match credentials {
        Some(Credentials { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would not show the certificate anew.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
