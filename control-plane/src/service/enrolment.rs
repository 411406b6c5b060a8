//! `EnrolmentService`: gateways come by certificates. Served on the link port, with TLS only.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rookery_proto::{
    join_token::JoinToken,
    server::{Peer, chain},
    status::{Reason, invalid_field, refuse, refuse_with},
    v1::{self, enrolment_service_server::EnrolmentServiceServer},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::stored;
use crate::{
    domain::{GatewayId, Labels, Millis},
    store::{JoinTokenRefusal, NewGateway, Store, StoreError},
    trust::{Authority, AuthorityError, Identity, Issued, Refusals, join_token_hash},
};

/// Certificates made at the same time; each is a signature and a transaction.
const AT_ONCE: usize = 16;

/// Bytes of a request.
const MOST_BYTES: usize = 32 << 10;

/// How long who comes too early is asked to wait.
const LATER: Duration = Duration::from_secs(1);

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Enrolment {
    store: Store,
    authority: Authority,
    refusals: Refusals,
    life: Duration,
    places: Arc<Semaphore>,
}

/// A gateway asks to be let in.
struct Applicant {
    id: GatewayId,
    token: JoinToken,
    request: String,
    peer: Option<SocketAddr>,
}

impl Enrolment {
    /// Gives certificates that last for `life`.
    pub fn new(store: Store, authority: Authority, refusals: Refusals, life: Duration) -> Self {
        Self { store, authority, refusals, life, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// For a server of gRPC, with the limits that the service keeps to.
    pub fn server(self) -> EnrolmentServiceServer<Self> {
        EnrolmentServiceServer::new(self).max_decoding_message_size(MOST_BYTES)
    }

    fn answer(&self, issued: Issued) -> Response<v1::CertificateResponse> {
        let authority = self.authority.certificate_pem().to_owned();
        Response::new(v1::CertificateResponse { certificate: issued.pem, authority })
    }

    fn applicant(&self, request: Request<v1::EnrolRequest>) -> Result<Applicant, Status> {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let v1::EnrolRequest { join_token, gateway_id, certificate_request } = request.into_inner();
        let id = gateway_id
            .parse::<GatewayId>()
            .map_err(|error| invalid_field("gateway_id", &error.to_string()))?;
        let token = join_token.parse::<JoinToken>().map_err(|_| {
            self.note(peer, "not a join token at all");
            refuse(Reason::Unauthenticated, "the join token is unknown")
        })?;
        Ok(Applicant { id, token, request: certificate_request, peer })
    }

    fn note(&self, peer: Option<SocketAddr>, detail: &str) {
        if let Some(peer) = peer {
            self.refusals.note(peer, "join token", "", detail);
        }
    }

    fn issue(&self, id: &GatewayId, request: &str) -> Result<Issued, Status> {
        self.authority.issue_gateway(request, id, self.life).map_err(|error| match error {
            AuthorityError::Request(_) | AuthorityError::LongRequest(_) => {
                invalid_field("certificate_request", &chain(&error))
            }
            AuthorityError::Store(_)
            | AuthorityError::Damaged(_)
            | AuthorityError::Signing(_)
            | AuthorityError::Name(_)
            | AuthorityError::Randomness(_) => {
                error!(error = chain(&error), "a gateway's certificate cannot be made");
                refuse(Reason::Internal, "the certificate cannot be made; the control plane's log says why")
            }
        })
    }

    async fn enrol(&self, applicant: &Applicant) -> Result<Issued, Status> {
        let Applicant { id, token, request, .. } = applicant;
        let issued = self.issue(id, request)?;
        let gateway = NewGateway {
            id: id.clone(),
            labels: Labels::new(),
            joined: Millis::now(),
            serial: issued.serial.clone(),
            not_after: issued.not_after,
        };
        let refused = match self.store.enrol(&join_token_hash(token), &gateway).await {
            Ok(()) => {
                info!(gateway = %id, token = token.id(), "a gateway has joined");
                return Ok(issued);
            }
            Err(error) => error,
        };
        let may_be_again = matches!(
            refused,
            StoreError::Exists { .. }
                | StoreError::JoinToken(JoinTokenRefusal::Replayed | JoinTokenRefusal::UsedUp)
        );
        if may_be_again {
            self.again(applicant, issued, &refused).await
        } else {
            Err(self.refuse(applicant, &refused))
        }
    }

    /// The gateway has joined before: its answer was lost, its certificate has ended, or it is another one.
    async fn again(
        &self,
        applicant: &Applicant,
        issued: Issued,
        refused: &StoreError,
    ) -> Result<Issued, Status> {
        let Applicant { id, token, request, .. } = applicant;
        let known = match self.store.gateway(id).await {
            Ok(known) => known,
            Err(StoreError::NotFound { .. }) => return Err(self.refuse(applicant, refused)),
            Err(error) => return Err(stored::status(&error)),
        };
        let revoked = self.store.is_revoked(&known.serial).await.map_err(|error| stored::status(&error))?;
        let same = !revoked && Authority::is_for_key_of(&known.serial, request);
        let ended = known.not_after <= Millis::now();
        if !same {
            if !(ended && matches!(refused, StoreError::Exists { .. })) {
                return Err(self.refuse(applicant, refused));
            }
            let taken = self.store.take_join_token(&join_token_hash(token), id, Millis::now()).await;
            taken.map_err(|error| self.refuse(applicant, &error))?;
        }
        let renewed = self.store.renew(id, &issued.serial, issued.not_after).await;
        renewed.map_err(|error| stored::status(&error))?;
        info!(gateway = %id, token = token.id(), same, "a gateway has joined again");
        Ok(issued)
    }

    fn refuse(&self, applicant: &Applicant, error: &StoreError) -> Status {
        if let StoreError::Exists { .. } = error {
            let id = &applicant.id;
            self.note(applicant.peer, &format!("{id} has joined already, with another key"));
            let message = format!(
                "a gateway {id} has joined already; choose another id, or remove it first: \
                 `rookery fleet remove {id}`"
            );
            return refuse(Reason::VersionExists, message);
        }
        if let StoreError::JoinToken(why) = error {
            let token = applicant.token.id();
            self.note(applicant.peer, &format!("{why} (gateway {}, token {token})", applicant.id));
            return refuse(Reason::Unauthenticated, why.to_string());
        }
        stored::status(error)
    }
}

#[tonic::async_trait]
impl v1::enrolment_service_server::EnrolmentService for Enrolment {
    async fn enrol(
        &self,
        request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let _place = self.places.try_acquire().map_err(|_| busy())?;
        let applicant = self.applicant(request)?;
        Ok(self.answer(Enrolment::enrol(self, &applicant).await?))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let _place = self.places.try_acquire().map_err(|_| busy())?;
        let Some(Identity::Gateway { id, serial }) = request.extensions().get::<Identity>().cloned() else {
            return Err(refuse(Reason::Unauthenticated, "only a gateway with a certificate can renew it"));
        };
        // The connection may be older than the revocation.
        if self.store.is_revoked(&serial).await.map_err(|error| stored::status(&error))? {
            return Err(refuse(Reason::Unauthenticated, "the certificate has been revoked"));
        }
        let issued = self.issue(&id, &request.into_inner().certificate_request)?;
        match self.store.renew(&id, &issued.serial, issued.not_after).await {
            Ok(()) => Ok(self.answer(issued)),
            Err(StoreError::NotFound { .. }) => {
                Err(refuse(Reason::Unauthenticated, "the gateway was removed from the fleet"))
            }
            Err(error) => Err(stored::status(&error)),
        }
    }
}

fn busy() -> Status {
    refuse_with(Reason::QueueFull, "too many gateways join at this moment", &[], Some(LATER))
}
