//! Who this gateway is in the fleet: a key, its certificate, and the authority that it trusts.
//!
//! They are one file, exchanged by rename, so that a power cut leaves the old identity or the new one and never half of
//! each. The key of a gateway that is joining is kept before it is shown: if the answer is lost, the same key asks again.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use rookery_proto::tls::{self, ALPN_H2, ALPN_LINK, AtLeast, BACKDATED, ConnectError, Credentials, Trust};
use rustls::{ClientConfig, pki_types::CertificateDer};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// What the name in a gateway's certificate begins with.
const NAME: &str = "rookery:gateway:";

const FOLDER: &str = "identity";
const FILE: &str = "gateway.pem";
const JOINING: &str = "joining.pem";

/// Where the identity is kept, and whose it has to be.
#[derive(Clone, Debug)]
pub struct Identity {
    folder: PathBuf,
    gateway: String,
}

/// The identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("the worker has not joined a fleet; start it with --join TOKEN once")]
    NotJoined,
    /// A file cannot be read or written.
    #[error("cannot {what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written there.
    #[error("{path:?} is damaged; remove it and join anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is another gateway's.
    #[error(
        "{path:?} is the certificate of gateway {holder:?}, and this worker is configured as {gateway:?}"
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        holder: String,
        /// Who this is.
        gateway: String,
    },
    /// No key can be made.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// The answer of the control plane is not usable.
    #[error("the control plane's answer is not usable: {0}")]
    Answer(&'static str),
}

/// An identity that was read.
#[derive(Debug)]
pub(super) struct Loaded {
    credentials: Credentials,
    authority: CertificateDer<'static>,
    /// Seconds since 1970.
    pub(super) issued: u64,
    /// Seconds since 1970.
    pub(super) ends: u64,
}

impl Identity {
    /// The identity of `gateway` in the worker's state folder.
    pub fn new(state: &Path, gateway: &str) -> Self {
        Self { folder: state.join(FOLDER), gateway: gateway.to_owned() }
    }

    /// The gateway whose identity is in this state folder, if there is one that can be read.
    pub(crate) fn holder(state: &Path) -> Option<String> {
        let text = fs::read_to_string(state.join(FOLDER).join(FILE)).ok()?;
        let certificate = tls::certificates(&text).ok()?.into_iter().next()?;
        read_certificate(&certificate).ok().map(|(holder, ..)| holder)
    }

    /// Whether there is one.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Whether it can be used, if there is one.
    ///
    /// # Errors
    /// If it is damaged, or another gateway's.
    pub fn check(&self) -> Result<(), IdentityError> {
        if self.exists() { self.load().map(drop) } else { Ok(()) }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    pub(super) fn load(&self) -> Result<Loaded, IdentityError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(IdentityError::NotJoined),
            Err(source) => return Err(IdentityError::File { what: "read", path, source }),
        };
        let damaged = |source| IdentityError::Damaged { path: path.clone(), source };
        let mut chain = tls::certificates(&text).map_err(|error| damaged(error.into()))?;
        let key = tls::private_key(&text).map_err(|error| damaged(error.into()))?;
        let authority = chain.pop().filter(|_| !chain.is_empty());
        let authority = authority.ok_or_else(|| damaged("the authority's certificate is missing".into()))?;
        let (holder, begins, ends) = read_certificate(&chain[0]).map_err(|error| damaged(error.into()))?;
        if holder != self.gateway {
            return Err(IdentityError::Other { path, holder, gateway: self.gateway.clone() });
        }
        let issued = begins.saturating_add(BACKDATED.as_secs());
        Ok(Loaded { credentials: Credentials { chain, key }, authority, issued, ends })
    }

    /// The key that asks to join: the one that asked before, if the answer was lost.
    pub(super) fn joining_key(&self) -> Result<KeyPair, IdentityError> {
        let path = self.folder.join(JOINING);
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(key) = KeyPair::from_pem(&text)
        {
            return Ok(key);
        }
        let key = KeyPair::generate().map_err(IdentityError::Key)?;
        self.write(JOINING, &key.serialize_pem())?;
        Ok(key)
    }

    /// Keeps a certificate for `key`, after a look at whether it is one of this gateway by this authority.
    pub(super) fn save(
        &self,
        key: &KeyPair,
        certificate: &str,
        authority: &str,
    ) -> Result<(), IdentityError> {
        let answer = IdentityError::Answer;
        let certificates = |text| tls::certificates(text).map_err(|_| answer("no PEM certificate"));
        let (certificate_der, _) = (certificates(certificate)?.remove(0), certificates(authority)?);
        let (holder, ..) = read_certificate(&certificate_der)
            .map_err(|_| answer("the certificate cannot be read, or names no gateway"))?;
        if holder != self.gateway {
            return Err(answer("the certificate is another gateway's"));
        }
        let shown = Credentials::from_pem(certificate, &key.serialize_pem())
            .map_err(|_| answer("the certificate cannot be used"))?;
        let trust = Trust::Authorities(certificates(authority)?);
        // Fails if key and certificate are not of each other.
        tls::client_config(trust, Some(shown), ALPN_LINK, None)
            .map_err(|_| answer("the certificate is for another key"))?;
        self.write(FILE, &format!("{}{certificate}\n{authority}", key.serialize_pem()))?;
        // Only of use until now. If it stays, it is merely used again.
        let _ = fs::remove_file(self.folder.join(JOINING));
        Ok(())
    }

    /// Writes beside, then renames, and does not return before both are on disk.
    fn write(&self, name: &str, text: &str) -> Result<(), IdentityError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::File { what, path, source }
        };
        fs::create_dir_all(&self.folder).map_err(failed("make", &self.folder))?;
        let (new, path) = (self.folder.join(format!("{name}.new")), self.folder.join(name));
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed("write", &new))?;
        io::Write::write_all(&mut file, text.as_bytes()).map_err(failed("write", &new))?;
        file.sync_all().map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("write", &path))?;
        let folder = fs::File::open(&self.folder).map_err(failed("open", &self.folder))?;
        folder.sync_all().map_err(failed("write", &self.folder))
    }

    fn config(&self, alpn: &[u8]) -> Result<ClientConfig, ConnectError> {
        let loaded = self.load().map_err(|error| ConnectError::Credentials(Box::new(error)))?;
        let clock = Arc::new(AtLeast { seconds: loaded.issued });
        let trust = Trust::Authorities(vec![loaded.authority]);
        Ok(tls::client_config(trust, Some(loaded.credentials), alpn, Some(clock))?)
    }

    /// Settings for dialling a link with the newest certificate.
    pub(super) fn link_config(&self) -> Result<ClientConfig, ConnectError> {
        self.config(ALPN_LINK)
    }

    /// Settings for calling the control plane with the newest certificate.
    pub(super) fn upstream_config(&self) -> Result<ClientConfig, ConnectError> {
        self.config(ALPN_H2)
    }
}

impl Loaded {
    /// How long the certificate lasts from its making on.
    pub(super) fn life(&self) -> Duration {
        Duration::from_secs(self.ends.saturating_sub(self.issued))
    }
}

/// PKCS #10 for a key, PEM. It says nothing else: the control plane takes the name from token or certificate.
pub(super) fn request(key: &KeyPair) -> Result<String, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(key).and_then(|request| request.pem()).map_err(IdentityError::Key)
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the certificate cannot be read")]
    Damaged,
    #[error("the certificate names no gateway")]
    Nobody,
}

/// The gateway's id, and begin and end in seconds since 1970.
fn read_certificate(der: &CertificateDer<'_>) -> Result<(String, u64, u64), ReadError> {
    let (_, certificate) = parse_x509_certificate(der).map_err(|_| ReadError::Damaged)?;
    let names = certificate.subject_alternative_name().map_err(|_| ReadError::Damaged)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let holder = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NAME),
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
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = certificate.validity();
    let (begins, ends) = (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
    Ok((holder.ok_or(ReadError::Nobody)?.to_owned(), begins, ends))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{BasicConstraints, CertifiedIssuer, IsCa, SanType};

    use super::*;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn certificate(authority: &CertifiedIssuer<'_, KeyPair>, key: &KeyPair, id: &str) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(format!("{NAME}{id}").try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 31);
        params.signed_by(key, authority).unwrap().pem()
    }

    #[test]
    fn what_is_saved_is_read_and_nobody_else_can_read_it() {
        let state = tempfile::tempdir().unwrap();
        let identity = Identity::new(state.path(), "gw");
        assert!(matches!(identity.load(), Err(IdentityError::NotJoined)));
        assert!(identity.check().is_ok() && !identity.exists());
        let key = identity.joining_key().unwrap();
        assert_eq!(identity.joining_key().unwrap().serialize_der(), key.serialize_der());
        let ca = authority();
        identity.save(&key, &certificate(&ca, &key, "gw"), &ca.pem()).unwrap();
        let loaded = identity.load().unwrap();
        assert_eq!(loaded.life(), Duration::from_secs(30 * 24 * 3600) - BACKDATED);
        assert_eq!(loaded.authority, *ca.der());
        assert_eq!(Identity::holder(state.path()).as_deref(), Some("gw"));
        let path = identity.path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!identity.folder.join(JOINING).exists());
        let other = Identity::new(state.path(), "gw-2").load().unwrap_err().to_string();
        assert!(other.contains("\"gw\"") && other.contains("\"gw-2\""), "{other}");
        for damage in ["", "nonsense", &key.serialize_pem(), &fs::read_to_string(&path).unwrap()[..600]] {
            fs::write(&path, damage).unwrap();
            assert!(matches!(identity.load(), Err(IdentityError::Damaged { .. })), "{damage}");
        }
    }

    #[test]
    fn an_answer_that_is_not_ours_is_not_kept() {
        let state = tempfile::tempdir().unwrap();
        let identity = Identity::new(state.path(), "gw");
        let (ca, key, other) = (authority(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let good = certificate(&ca, &key, "gw");
        for (certificate, authority) in [
            ("", ca.pem().as_str()),
            (&good, ""),
            (&certificate(&ca, &other, "gw"), ca.pem().as_str()),
            (&certificate(&ca, &key, "gw-2"), ca.pem().as_str()),
        ]
        .map(|(certificate, authority): (&str, &str)| (certificate, authority))
        {
            assert!(matches!(identity.save(&key, certificate, authority), Err(IdentityError::Answer(_))));
        }
        assert!(!identity.exists());
    }
}
