//! A control plane with TLS on both ports, and a gateway that has joined and serves.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rookery_control_plane::{
    config::TlsMode,
    control_plane::RunningControlPlane,
    domain::Millis,
    store::TokenRecord,
    trust::{BearerToken, Role},
};
use rookery_proto::{
    tls::{self, ALPN_H2, Connector, Credentials, LINK_NAME, Trust},
    v1::{self, enrolment_service_client::EnrolmentServiceClient},
};
use rookery_tests::{
    client::{self, Answer, Client},
    fleet::{TestWorker, control_plane},
    within,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Request, Status, transport::Channel};

/// Time for handshakes in these tests.
pub(super) const LIMIT: Duration = Duration::from_millis(1500);

pub(super) struct World {
    plane: RunningControlPlane,
    healthy: TestWorker,
    admin: String,
    _state: TempDir,
}

/// A new key.
pub(super) fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// PKCS #10 for a key.
pub(super) fn request_of(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().pem().unwrap()
}

impl World {
    pub(super) async fn start() -> Self {
        let plane = control_plane(|config| {
            config.tls.mode = TlsMode::On;
            config.link.tls = TlsMode::On;
            config.link.handshake_timeout = LIMIT;
            config.link.max_pending = 8.try_into().unwrap();
            config.server.handshake_timeout = LIMIT;
        })
        .await
        .unwrap();
        let state = tempfile::tempdir().unwrap();
        let token = plane.join_token(1, Duration::from_secs(60)).await.unwrap();
        let healthy = TestWorker::start("healthy", Some(plane.link_address()), |settings| {
            settings.config.state = Some(state.path().to_owned());
            settings.config.link.join = Some(token.expose());
        })
        .await
        .unwrap();
        let admin = bearer(&plane, "root", Role::Admin, None).await;
        let world = Self { plane, healthy, admin, _state: state };
        world.until_linked(&["healthy"]).await;
        assert_eq!(world.generate().await.gateway(), "healthy");
        world
    }

    pub(super) fn plane(&self) -> &RunningControlPlane {
        &self.plane
    }

    /// A token that may do everything.
    pub(super) fn admin(&self) -> &str {
        &self.admin
    }

    /// How many lines of this kind were logged, once there is one: who is refused sees it before that.
    pub(super) async fn told(&self, kind: &str) -> usize {
        within(&format!("{kind:?} is logged"), async {
            while self.plane.refusals().told(kind) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.plane.refusals().told(kind)
    }

    /// The healthy gateway was not touched by whatever happened: it is linked, and serves.
    pub(super) async fn stop(self) {
        assert_eq!(self.generate().await.gateway(), "healthy");
        self.healthy.stop().await;
        within("the control plane drains", self.plane.drain()).await;
    }

    pub(super) async fn until_linked(&self, ids: &[&str]) {
        let mut changes = self.plane.fleet().changes();
        let waiting = async {
            loop {
                let gateways = self.plane.fleet().gateways();
                if gateways.iter().map(|(id, ..)| id.as_str()).eq(ids.iter().copied()) {
                    return;
                }
                let _ = changes.changed().await;
            }
        };
        within(&format!("{ids:?} are linked"), waiting).await;
    }

    /// A bearer token of this role.
    pub(super) async fn bearer(&self, name: &str, role: Role, ends: Option<Millis>) -> String {
        bearer(&self.plane, name, role, ends).await
    }

    /// A channel to the clients' port.
    pub(super) fn clients(&self) -> Channel {
        let trust = Trust::Authorities(vec![self.plane.authority().certificate().clone()]);
        let configure = move || Ok(tls::client_config(trust.clone(), None, ALPN_H2, None)?);
        Connector::new(self.plane.address().to_string(), "localhost", LIMIT, configure).channel()
    }

    /// A generation with this token.
    pub(super) async fn try_generate(&self, text: &str, token: Option<&str>) -> Result<Answer, Status> {
        let mut request = Request::new(client::text(text, 3));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let stream = Client::new(self.clients()).generate(request).await?.into_inner();
        client::collect(stream).await.1
    }

    pub(super) async fn generate(&self) -> Answer {
        within("the healthy gateway serves", self.try_generate("a", Some(&self.admin))).await.unwrap()
    }

    /// A join token.
    pub(super) async fn token(&self, uses: u32, valid: Duration) -> String {
        self.plane.join_token(uses, valid).await.unwrap().expose()
    }

    /// A channel to the services of the link port.
    pub(super) fn channel(&self, credentials: Option<Credentials>) -> Channel {
        let trust = Trust::Authorities(vec![self.plane.authority().certificate().clone()]);
        let configure = move || Ok(tls::client_config(trust.clone(), credentials.clone(), ALPN_H2, None)?);
        Connector::new(self.plane.link_address().to_string(), LINK_NAME, LIMIT, configure).channel()
    }

    /// A connection to the link port.
    pub(super) async fn dial(
        &self,
        alpn: &[u8],
        credentials: Option<Credentials>,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, tls::ConnectError> {
        let trust = Trust::Authorities(vec![self.plane.authority().certificate().clone()]);
        let config = tls::client_config(trust, credentials, alpn, None)?;
        tls::connect(&self.plane.link_address().to_string(), LINK_NAME, config.into(), LIMIT).await
    }

    pub(super) async fn enrol_with(
        &self,
        token: &str,
        id: &str,
        request: &str,
    ) -> Result<v1::CertificateResponse, Status> {
        let message = v1::EnrolRequest {
            join_token: token.to_owned(),
            gateway_id: id.to_owned(),
            certificate_request: request.to_owned(),
        };
        EnrolmentServiceClient::new(self.channel(None)).enrol(message).await.map(|answer| answer.into_inner())
    }

    pub(super) async fn enrol(
        &self,
        token: &str,
        id: &str,
        key: &KeyPair,
    ) -> Result<v1::CertificateResponse, Status> {
        self.enrol_with(token, id, &request_of(key)).await
    }

    /// Lets a gateway join.
    pub(super) async fn join(&self, id: &str) -> (KeyPair, Credentials) {
        let (token, key) = (self.token(1, Duration::from_secs(60)).await, key());
        let answer = self.enrol(&token, id, &key).await.unwrap();
        let credentials = Credentials::from_pem(&answer.certificate, &key.serialize_pem()).unwrap();
        (key, credentials)
    }
}

async fn bearer(plane: &RunningControlPlane, name: &str, role: Role, ends: Option<Millis>) -> String {
    let token = BearerToken::random().unwrap();
    let record = TokenRecord {
        name: name.to_owned(),
        role: role.to_string(),
        hash: token.hash(),
        created: Millis::now(),
        ends,
    };
    plane.store().put_token(&record, "test").await.unwrap();
    token.expose().to_owned()
}
