//! The certificate authority: one key for all replicas, kept in the store.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber, date_time_ymd,
};
use rookery_proto::{
    join_token::JoinToken,
    tls::{self, BACKDATED, Credentials, LINK_NAME, fingerprint},
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::{
    certificate::{gateway_uri, replica_uri},
    token::{NoRandomness, Secret, hash_of, hex, random_bytes},
};
use crate::{
    domain::{GatewayId, Millis},
    store::{Store, StoreError},
};

/// Name of the secret: key and certificate in one text, so that there is never one without the other.
const SECRET: &str = "authority";

/// Life of the authority's own certificate.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Life of the certificates that a control plane makes for itself; renewed after two thirds.
pub(crate) const SERVER_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Bytes of a certificate request.
const MOST_REQUEST_BYTES: usize = 16 << 10;

/// The certificate authority. Clones are the same one.
#[derive(Clone)]
pub struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    fingerprint: String,
}

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The store cannot be used.
    #[error("the authority's key cannot be read or kept")]
    Store(#[from] StoreError),
    /// What the store holds is not what a control plane keeps there.
    #[error("the authority's key in the store is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request for a certificate is no PKCS #10, or not signed with its own key.
    #[error("the certificate request is not usable")]
    Request(#[source] rcgen::Error),
    /// The request is far too long.
    #[error("the certificate request has {0} bytes, more than {MOST_REQUEST_BYTES}")]
    LongRequest(usize),
    /// Signing failed.
    #[error("the certificate cannot be made")]
    Signing(#[source] rcgen::Error),
    /// A name cannot be in a certificate.
    #[error("{0:?} cannot be in a certificate")]
    Name(String),
    /// The system gives no random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// A certificate that was made for somebody else's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub pem: String,
    /// Its serial number, lower-case hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Millis,
}

/// A certificate with its key, for this process.
#[derive(Debug)]
pub struct Own {
    /// What to show.
    pub credentials: Credentials,
    /// When it ends.
    pub not_after: Millis,
}

impl Authority {
    /// The authority of this store. The first replica makes it, all others find it.
    ///
    /// # Errors
    /// If the store fails, or holds something else.
    pub async fn open(store: &Store) -> Result<Self, AuthorityError> {
        let text = match store.secret(SECRET).await? {
            Some(text) => text,
            None => store.put_once(SECRET, &Self::new_secret()?).await?,
        };
        Self::from_secret(&text)
    }

    /// An authority that is kept nowhere, for tests of what others sign.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn ephemeral() -> Result<Self, AuthorityError> {
        Self::from_secret(&Self::new_secret()?)
    }

    fn new_secret() -> Result<String, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Signing)?;
        let mut params = params("Rookery control plane", AUTHORITY_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(serial(&key)?);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Signing)?;
        Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
    }

    fn from_secret(text: &str) -> Result<Self, AuthorityError> {
        let damaged = |error: rcgen::Error| AuthorityError::Damaged(Box::new(error));
        let certificates =
            tls::certificates(text).map_err(|error| AuthorityError::Damaged(Box::new(error)))?;
        let key = tls::private_key(text).map_err(|error| AuthorityError::Damaged(Box::new(error)))?;
        let key = KeyPair::try_from(&key).map_err(damaged)?;
        let certificate = certificates[0].clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(damaged)?;
        let start = text.find("-----BEGIN CERTIFICATE-----").unwrap_or_default();
        let pem = text[start..].to_owned();
        let fingerprint = fingerprint(&certificate);
        Ok(Self { inner: Arc::new(Inner { issuer, certificate, pem, fingerprint }) })
    }

    /// Its certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.inner.pem
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.inner.certificate
    }

    /// SHA-256 of its certificate, lower-case hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.inner.fingerprint
    }

    /// A new join token and the hash that the store keeps of it.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn join_token(&self) -> Result<(JoinToken, String), NoRandomness> {
        let mut id = [0; 6];
        random_bytes(&mut id)?;
        let token = JoinToken::new(&hex(&id), Secret::random()?.expose(), self.fingerprint());
        let token = token.map_err(|_| NoRandomness)?;
        let hash = join_token_hash(&token);
        Ok((token, hash))
    }

    /// A certificate for the gateway `id`, for the key of a PKCS #10 request in PEM, of which nothing else is used.
    ///
    /// # Errors
    /// If the request is not usable.
    pub fn issue_gateway(
        &self,
        request: &str,
        id: &GatewayId,
        life: Duration,
    ) -> Result<Issued, AuthorityError> {
        if request.len() > MOST_REQUEST_BYTES {
            return Err(AuthorityError::LongRequest(request.len()));
        }
        let request = CertificateSigningRequestParams::from_pem(request).map_err(AuthorityError::Request)?;
        let mut params = params(id.as_str(), life);
        params.subject_alt_names = vec![uri(&gateway_uri(id))?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = serial(&request.public_key)?;
        let text = hex(serial.as_ref());
        params.serial_number = Some(serial);
        let not_after = Millis(params.not_after.unix_timestamp().saturating_mul(1000));
        let certificate =
            params.signed_by(&request.public_key, &self.inner.issuer).map_err(AuthorityError::Signing)?;
        Ok(Issued { pem: certificate.pem(), serial: text, not_after })
    }

    /// Whether the certificate with this serial number was made for the key of a request: so who asks twice with one
    /// key, because the first answer was lost, is known as the same.
    pub fn is_for_key_of(serial_text: &str, request: &str) -> bool {
        if request.len() > MOST_REQUEST_BYTES {
            return false;
        }
        let Ok(request) = CertificateSigningRequestParams::from_pem(request) else { return false };
        let begin = hex(&key_part(&request.public_key));
        serial_text.len() > begin.len() && serial_text.starts_with(&begin)
    }

    /// Key and certificate of the replica `id`, to be shown on the link port and to other replicas.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn issue_replica(&self, id: &str) -> Result<Own, AuthorityError> {
        let mut params = params(id, SERVER_LIFE);
        params.subject_alt_names = vec![dns(LINK_NAME)?, uri(&replica_uri(id))?];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.own(params)
    }

    /// Key and certificate of the clients' port, for these names and addresses.
    ///
    /// # Errors
    /// If a name cannot be in a certificate.
    pub fn server_certificate(&self, names: &[String]) -> Result<Own, AuthorityError> {
        let mut params = params("Rookery", SERVER_LIFE);
        let name = |name: &String| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => dns(name),
        };
        params.subject_alt_names = names.iter().map(name).collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.own(params)
    }

    fn own(&self, mut params: CertificateParams) -> Result<Own, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Signing)?;
        params.serial_number = Some(serial(&key)?);
        let not_after = Millis(params.not_after.unix_timestamp().saturating_mul(1000));
        let certificate =
            params.signed_by(&key, &self.inner.issuer).map_err(AuthorityError::Signing)?.der().clone();
        // The authority's goes along, for gateways that know only its fingerprint yet.
        let chain = vec![certificate, self.inner.certificate.clone()];
        let key = tls::private_key(&key.serialize_pem())
            .map_err(|error| AuthorityError::Damaged(Box::new(error)))?;
        Ok(Own { credentials: Credentials { chain, key }, not_after })
    }
}

/// What the store keeps of a join token: SHA-256 of its id and secret.
pub fn join_token_hash(token: &JoinToken) -> String {
    hash_of(&format!("{}.{}", token.id(), token.secret()))
}

fn params(name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = Millis::now().0.max(0) / 1000;
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now.unsigned_abs());
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params.distinguished_name = DistinguishedName::new();
    // A common name has at most 64 characters; who it is stands in the alternative name.
    let short: String = name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, short);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Bytes of a serial number that tell the key, of 20 in all.
const KEY_BYTES: usize = 12;

fn key_part(key: &impl PublicKeyData) -> [u8; KEY_BYTES] {
    let hash = Sha256::digest(key.subject_public_key_info());
    let mut part = [0; KEY_BYTES];
    part.copy_from_slice(&hash[..KEY_BYTES]);
    // Positive, and without leading zeros, so that it reads the same everywhere.
    part[0] = (part[0] & 0x3f) | 0x40;
    part
}

fn serial(key: &impl PublicKeyData) -> Result<SerialNumber, NoRandomness> {
    let mut bytes = [0; 20];
    random_bytes(&mut bytes)?;
    bytes[..KEY_BYTES].copy_from_slice(&key_part(key));
    Ok(SerialNumber::from_slice(&bytes))
}

fn dns(name: &str) -> Result<SanType, AuthorityError> {
    let text = name.try_into().map_err(|_| AuthorityError::Name(name.to_owned()))?;
    Ok(SanType::DnsName(text))
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into().map_err(|_| AuthorityError::Name(text.to_owned()))?))
}

#[cfg(test)]
mod tests {
    use rookery_proto::tls::Pin;

    use super::*;
    use crate::trust::{Identity, PeerCertificate};

    fn request(key: &KeyPair) -> String {
        // What it asks for is of no interest.
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_gateway_gets_its_own_name_and_nothing_it_asks_for() {
        let authority = Authority::ephemeral().unwrap();
        let key = KeyPair::generate().unwrap();
        let id: GatewayId = "gw-1".parse().unwrap();
        let life = Duration::from_secs(60);
        let issued = authority.issue_gateway(&request(&key), &id, life).unwrap();
        let der = tls::certificates(&issued.pem).unwrap().remove(0);
        let peer = PeerCertificate::read(&der).unwrap();
        assert_eq!(peer.identity, Identity::Gateway { id, serial: issued.serial.clone() });
        let left = peer.not_after.since(Millis::now());
        assert!(left <= life && left >= life - Duration::from_secs(5), "{left:?}");
        assert!(!issued.pem.is_empty() && !String::from_utf8_lossy(&der).contains("evil"));
        assert!(Authority::is_for_key_of(&issued.serial, &request(&key)));
        assert!(!Authority::is_for_key_of(&issued.serial, &request(&KeyPair::generate().unwrap())));
        assert!(!Authority::is_for_key_of("", &request(&key)));
        for bad in ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"] {
            let id: GatewayId = "gw-1".parse().unwrap();
            assert!(matches!(authority.issue_gateway(bad, &id, life), Err(AuthorityError::Request(_))));
        }
    }

    #[test]
    fn a_damaged_request_is_refused() {
        let authority = Authority::ephemeral().unwrap();
        let id: GatewayId = "gw".parse().unwrap();
        let good = request(&KeyPair::generate().unwrap());
        let mut changed = 0;
        for index in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let Ok(text) = String::from_utf8(bytes) else { continue };
            changed += u32::from(authority.issue_gateway(&text, &id, Duration::from_secs(1)).is_err());
        }
        assert!(changed as usize > good.len() / 2, "{changed} of {}", good.len());
        let long = "x".repeat(MOST_REQUEST_BYTES + 1);
        assert!(matches!(
            authority.issue_gateway(&long, &id, Duration::from_secs(1)),
            Err(AuthorityError::LongRequest(_))
        ));
    }

    #[test]
    fn secrets_and_tokens_lead_back_to_the_authority() {
        let secret = Authority::new_secret().unwrap();
        let (a, b) = (Authority::from_secret(&secret).unwrap(), Authority::from_secret(&secret).unwrap());
        assert_eq!(a.fingerprint(), b.fingerprint());
        assert!(!a.certificate_pem().contains("PRIVATE"));
        let (token, hash) = a.join_token().unwrap();
        assert_eq!(hash, join_token_hash(&token.expose().parse().unwrap()));
        assert!(token.authority().parse::<Pin>().unwrap().matches(b.certificate()));
        assert!(Authority::from_secret("nonsense").is_err());
    }

    #[test]
    fn a_replica_shows_who_it_is() {
        let own = Authority::ephemeral().unwrap().issue_replica("r1").unwrap();
        let peer = PeerCertificate::read(&own.credentials.chain[0]).unwrap();
        assert_eq!(peer.identity, Identity::Replica("r1".into()));
    }
}
