//! TLS on the two ports, with certificates that are exchanged while the ports stay open.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rookery_proto::{
    server::Gate,
    tls::{self, ALPN_H2, ALPN_LINK, Connector, Credentials, LINK_NAME, Trust},
};
use rustls::{
    RootCertStore, ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::Channel;
use tracing::{error, info};

use super::{
    Authority, AuthorityError,
    authority::{Own, SERVER_LIFE},
};
use crate::domain::Millis;

pub(crate) use rookery_proto::tls::provider;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path:?}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("certificate and key cannot be used")]
    Certificate(#[source] tls::TlsError),
    /// The control plane cannot make its own.
    #[error("the control plane's own certificate cannot be made")]
    Authority(#[from] AuthorityError),
    /// rustls refuses the settings.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
    /// The authority's certificate cannot be trusted by rustls.
    #[error("the authority cannot be used to check gateways")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Why a peer got no further than the handshake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("no TLS handshake within {0:?}")]
    TimedOut(Duration),
    #[error("the TLS handshake failed")]
    Failed(#[source] io::Error),
}

/// How often certificates are looked at.
const CHECK: Duration = Duration::from_secs(60);

/// Where a port's certificate comes from.
#[derive(Clone, Debug)]
enum Source {
    Replica(String),
    Names(Vec<String>),
    Files { certificate: PathBuf, key: PathBuf },
}

/// TLS of one port. Clones share its certificate.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    authority: Authority,
    source: Source,
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Current {
    shown: RwLock<Shown>,
}

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    credentials: Credentials,
    /// When to exchange it; for files, their time.
    renew: Renew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renew {
    At(Millis),
    WhenChanged(Option<SystemTime>),
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

impl ServerTls {
    /// The link port of the replica `id`: TLS 1.3, certificates of `authority` are checked, and their absence is left
    /// to the services.
    ///
    /// # Errors
    /// If no certificate can be made.
    pub fn link(authority: &Authority, id: &str) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::Verifier)?;
        let source = Source::Replica(id.to_owned());
        let current = Arc::new(Current { shown: RwLock::new(source.show(authority)?) });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<Current>::clone(&current));
        config.alpn_protocols = vec![ALPN_LINK.to_vec(), ALPN_H2.to_vec()];
        // A resumed session would let a certificate in that has ended since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self::new(config, current, authority, source))
    }

    /// The clients' port with a certificate of `authority` for these names.
    ///
    /// # Errors
    /// If no certificate can be made.
    pub fn clients(authority: &Authority, names: Vec<String>) -> Result<Self, TlsError> {
        Self::clients_of(authority, Source::Names(names))
    }

    /// The clients' port with the operator's certificate. Files that change are read again.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn clients_with_files(
        authority: &Authority,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, TlsError> {
        let source = Source::Files { certificate: certificate.to_owned(), key: key.to_owned() };
        Self::clients_of(authority, source)
    }

    fn clients_of(authority: &Authority, source: Source) -> Result<Self, TlsError> {
        let current = Arc::new(Current { shown: RwLock::new(source.show(authority)?) });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Current>::clone(&current));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(Self::new(config, current, authority, source))
    }

    fn new(config: ServerConfig, current: Arc<Current>, authority: &Authority, source: Source) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self { acceptor, current, authority: authority.clone(), source }
    }

    /// Does the handshake on an accepted socket.
    pub(crate) async fn accept(
        &self,
        socket: TcpStream,
        limit: Duration,
    ) -> Result<TlsStream<TcpStream>, HandshakeError> {
        match timeout(limit, self.acceptor.accept(socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(HandshakeError::Failed(error)),
            Err(_) => Err(HandshakeError::TimedOut(limit)),
        }
    }

    /// Exchanges the certificate before it ends, or when the operator's files have changed, until the gate closes.
    pub async fn renew(self, gate: Gate) {
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                biased;
                () = gate.closed() => return,
                () = sleep(CHECK) => {}
            }
            match self.renew_if_due(Millis::now()) {
                Ok(true) => info!(source = ?self.source, "a certificate of this control plane was exchanged"),
                Ok(false) => {}
                // The old one serves on; whoever reads this has a third of its life to act.
                Err(error) => error!(
                    source = ?self.source,
                    error = rookery_proto::server::chain(&error),
                    "a certificate of this control plane cannot be exchanged"
                ),
            }
        }
    }

    fn renew_if_due(&self, now: Millis) -> Result<bool, TlsError> {
        let renew = self.current.shown.read().unwrap_or_else(PoisonError::into_inner).renew;
        let due = match (renew, &self.source) {
            (Renew::At(at), _) => now >= at,
            (Renew::WhenChanged(seen), Source::Files { certificate, .. }) => modified(certificate) != seen,
            (Renew::WhenChanged(_), Source::Replica(_) | Source::Names(_)) => false,
        };
        if due {
            let new = self.source.show(&self.authority)?;
            *self.current.shown.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
        Ok(due)
    }

    /// A channel to another replica's link port (`host:port`), on which this one shows its certificate. It connects when
    /// it is first used, and again when the connection is lost. Only for the TLS of a link port.
    pub fn peer(&self, address: &str, limit: Duration) -> Channel {
        let (current, authority) = (Arc::clone(&self.current), self.authority.certificate().clone());
        let configure = move || {
            let credentials =
                current.shown.read().unwrap_or_else(PoisonError::into_inner).credentials.clone();
            let trust = Trust::Authorities(vec![authority.clone()]);
            Ok(tls::client_config(trust, Some(credentials), ALPN_H2, None)?)
        };
        Connector::new(address, LINK_NAME, limit, configure).channel()
    }
}

impl Source {
    fn show(&self, authority: &Authority) -> Result<Shown, TlsError> {
        let (credentials, renew) = match self {
            Source::Replica(id) => own(authority.issue_replica(id)?),
            Source::Names(names) => own(authority.server_certificate(names)?),
            Source::Files { certificate, key } => {
                // Before reading, so that a change meanwhile is seen the next time.
                let seen = modified(certificate);
                let read = |path: &Path| {
                    std::fs::read_to_string(path)
                        .map_err(|source| TlsError::File { path: path.to_owned(), source })
                };
                let credentials = Credentials::from_pem(&read(certificate)?, &read(key)?);
                (credentials.map_err(TlsError::Certificate)?, Renew::WhenChanged(seen))
            }
        };
        let Credentials { chain, key } = credentials.clone();
        let key = CertifiedKey::from_der(chain, key, &provider())?;
        Ok(Shown { key: Arc::new(key), credentials, renew })
    }
}

/// After two thirds of its life.
fn own(own: Own) -> (Credentials, Renew) {
    let third = i64::try_from((SERVER_LIFE / 3).as_millis()).unwrap_or(i64::MAX);
    (own.credentials, Renew::At(Millis(own.not_after.0.saturating_sub(third))))
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|it| it.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(tls: &ServerTls) -> Vec<u8> {
        tls.current.shown.read().unwrap().key.cert[0].to_vec()
    }

    #[test]
    fn own_certificates_are_exchanged_after_two_thirds_of_their_life() {
        let authority = Authority::ephemeral().unwrap();
        let tls = ServerTls::link(&authority, "r1").unwrap();
        let (before, now) = (first(&tls), Millis::now());
        let third = SERVER_LIFE / 3;
        assert!(!tls.renew_if_due(now.after(third)).unwrap());
        assert_eq!(first(&tls), before);
        assert!(tls.renew_if_due(now.after(third * 2)).unwrap());
        assert_ne!(first(&tls), before);
        assert!(!tls.renew_if_due(now.after(third)).unwrap());
    }

    #[test]
    fn files_are_read_again_when_they_change_and_damage_keeps_the_old() {
        let authority = Authority::ephemeral().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let pair = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let write = |made: &rcgen::CertifiedKey<rcgen::KeyPair>, seconds: u64| {
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            std::fs::write(&certificate, made.cert.pem()).unwrap();
            let file = std::fs::File::open(&certificate).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        assert!(matches!(
            ServerTls::clients_with_files(&authority, &certificate, &key),
            Err(TlsError::File { .. })
        ));
        let (a, b) = (pair("a.example"), pair("b.example"));
        write(&a, 1);
        let tls = ServerTls::clients_with_files(&authority, &certificate, &key).unwrap();
        assert_eq!(first(&tls), a.cert.der().to_vec());
        assert!(!tls.renew_if_due(Millis::now()).unwrap());
        std::fs::write(&certificate, "half a file").unwrap();
        assert!(matches!(tls.renew_if_due(Millis::now()), Err(TlsError::Certificate(_))));
        assert_eq!(first(&tls), a.cert.der().to_vec());
        write(&b, 3);
        assert!(tls.renew_if_due(Millis::now()).unwrap());
        assert_eq!(first(&tls), b.cert.der().to_vec());
    }
}
