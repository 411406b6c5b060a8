//! Calls from the worker to the control plane: joining, renewing, and fetching blobs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rookery_proto::{
    server::{Gate, chain},
    status::{is_transport_failure, reason_of},
    tls::{self, ALPN_H2, ConnectError, Connector, LINK_NAME, Pin, Trust},
    v1::{EnrolRequest, RenewRequest, enrolment_service_client::EnrolmentServiceClient},
};
use tokio::time::{sleep, timeout};
use tonic::{Status, transport::Channel};
use tracing::{info, warn};

use super::{
    JoinToken,
    backoff::Backoff,
    identity::{Identity, IdentityError, request},
    rand_unit,
};
use crate::{
    config::{LinkTls, ValidLink, ValidWorkerConfig},
    one_line::one_line,
};

/// Time for an answer to Enrol or Renew.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Longest time between two looks at when the certificate ends: a clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(600);

/// How to call the control plane as this gateway. Clones share a connection.
#[derive(Clone, Debug)]
pub struct Upstream {
    channel: Option<Channel>,
}

/// The control plane cannot be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane is dialled without TLS, and serves blobs only to gateways with a certificate")]
pub struct NoUpstream;

impl Upstream {
    /// Calls over TLS with the gateway's newest certificate. Must be called inside the runtime; it connects when it is
    /// first used, and again when the connection is lost.
    pub(crate) fn new(link: &ValidLink) -> Self {
        let channel = link.tls.as_ref().map(|tls| {
            let identity = tls.identity.clone();
            let configure = move || identity.upstream_config();
            Connector::new(&link.address, LINK_NAME, link.connect_timeout, configure).channel()
        });
        Self { channel }
    }

    /// A channel for `ArtifactService` and `EnrolmentService`.
    ///
    /// # Errors
    /// If the link is plain text.
    pub fn channel(&self) -> Result<Channel, NoUpstream> {
        self.channel.clone().ok_or(NoUpstream)
    }
}

/// The worker could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The control plane does not want it; trying again does not help.
    #[error("the control plane refuses: {0}")]
    Refused(String),
    /// The machine that answers is not the control plane that the token is from.
    #[error("who answers at {address} is not the control plane that the join token is from")]
    Impostor {
        /// Where.
        address: String,
        /// What is wrong with its certificate.
        #[source]
        source: ConnectError,
    },
    /// It could not be asked; trying again may help.
    #[error("the control plane cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl JoinError {
    fn may_pass(&self) -> bool {
        match self {
            JoinError::Unreachable(_) => true,
            JoinError::Refused(_) | JoinError::Impostor { .. } | JoinError::Identity(_) => false,
        }
    }
}

/// Trades the configured join token for a certificate, unless there is one already. Waits for a control plane that
/// cannot be reached for as long as it takes. Cancel safe: what was asked for and not received is asked for again.
///
/// # Errors
/// If trying on makes no sense.
pub async fn join(config: &ValidWorkerConfig) -> Result<(), JoinError> {
    match &config.link {
        Some(link) => join_link(link).await,
        None => Ok(()),
    }
}

pub(super) async fn join_link(link: &ValidLink) -> Result<(), JoinError> {
    let Some(LinkTls { identity, join: Some(token) }) = &link.tls else { return Ok(()) };
    if identity.load().is_ok_and(|loaded| loaded.ends > now()) {
        return Ok(());
    }
    let mut backoff = Backoff::new(link.backoff_min, link.backoff_max);
    loop {
        let error = match enrol(link, identity, token).await {
            Ok(()) => {
                info!(control_plane = link.address, gateway = link.gateway, "joined the fleet");
                return Ok(());
            }
            Err(error) => error,
        };
        if !error.may_pass() {
            return Err(error);
        }
        if backoff.is_first() {
            let error = chain(&error);
            warn!(control_plane = link.address, error, "cannot join yet, trying on");
        }
        sleep(backoff.next(rand_unit())).await;
    }
}

async fn enrol(link: &ValidLink, identity: &Identity, token: &JoinToken) -> Result<(), JoinError> {
    let pin: Pin =
        token.authority().parse().map_err(|_| JoinError::Refused("the token is damaged".into()))?;
    let trusted = move || Ok(tls::client_config(Trust::Pinned(pin), None, ALPN_H2, None)?);
    // By hand first, because a channel does not tell why it could not connect.
    let config = Arc::new(trusted().map_err(|error| JoinError::Unreachable(Box::new(error)))?);
    if let Err(source) = tls::connect(&link.address, LINK_NAME, config, link.connect_timeout).await {
        if let ConnectError::Handshake { source: cause, .. } = &source
            && is_certificate_error(cause)
        {
            return Err(JoinError::Impostor { address: link.address.clone(), source });
        }
        return Err(JoinError::Unreachable(Box::new(source)));
    }
    let key = identity.joining_key()?;
    let message = EnrolRequest {
        join_token: token.expose(),
        gateway_id: link.gateway.clone(),
        certificate_request: request(&key)?,
    };
    let channel = Connector::new(&link.address, LINK_NAME, link.connect_timeout, trusted).channel();
    let mut client = EnrolmentServiceClient::new(channel);
    let answer = within(client.enrol(message)).await.map_err(refused)?.into_inner();
    let authority = tls::certificates(&answer.authority).ok().and_then(|mut all| all.pop());
    if !authority.is_some_and(|authority| pin.matches(&authority)) {
        return Err(IdentityError::Answer("the authority is not the one of the join token").into());
    }
    Ok(identity.save(&key, &answer.certificate, &answer.authority)?)
}

fn is_certificate_error(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

/// What the control plane says with a reason is its last word; all else may pass.
fn refused(status: Status) -> JoinError {
    use rookery_proto::status::Reason;
    let passing = [Reason::StorageFailed, Reason::Draining, Reason::QueueFull, Reason::Conflict];
    match reason_of(&status) {
        Some(reason) if !is_transport_failure(&status) && !passing.contains(&reason) => {
            JoinError::Refused(status.message().to_owned())
        }
        Some(_) | None => JoinError::Unreachable(Box::new(status)),
    }
}

async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// Renews the certificate after about two thirds of its life, again and again until the drain begins.
pub(super) async fn renew(upstream: Upstream, identity: Identity, gate: Gate) {
    let work = async {
        // Spread over a tenth of the life, so that a fleet that joined in one day does not renew in one minute.
        let jitter = rand_unit();
        let mut failures = 0u32;
        loop {
            let wait = match identity.load() {
                Ok(loaded) => {
                    due(loaded.issued, loaded.life(), jitter).saturating_sub(now().max(loaded.issued))
                }
                Err(_) => u64::MAX,
            };
            if wait > 0 {
                sleep(Duration::from_secs(wait).min(LOOK)).await;
                continue;
            }
            match renew_now(&upstream, &identity).await {
                Ok(()) => {
                    failures = 0;
                    info!("the gateway's certificate was renewed");
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        warn!(
                            failures,
                            error = chain(&*error),
                            "the certificate cannot be renewed, trying on"
                        );
                    }
                    sleep(retry(failures).mul_f64(0.5 + rand_unit() / 2.0)).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = gate.draining() => {}
        () = work => {}
    }
}

/// When to renew, in seconds since 1970: between 60 and 70 percent of the life.
fn due(issued: u64, life: Duration, jitter: f64) -> u64 {
    issued.saturating_add(life.mul_f64(0.6 + 0.1 * jitter.clamp(0.0, 1.0)).as_secs())
}

/// From a second up to ten minutes: in the third of the life that is left there are many tries.
fn retry(failures: u32) -> Duration {
    Duration::from_secs(1u64.checked_shl(failures.min(10)).unwrap_or(1024)).min(LOOK)
}

async fn renew_now(
    upstream: &Upstream,
    identity: &Identity,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let key = rcgen::KeyPair::generate().map_err(IdentityError::Key)?;
    let message = RenewRequest { certificate_request: request(&key)? };
    let mut client = EnrolmentServiceClient::new(upstream.channel()?);
    let answer = within(client.renew(message)).await?.into_inner();
    Ok(identity.save(&key, &answer.certificate, &answer.authority)?)
}

/// Seconds since 1970 by the system's clock.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A failure to join, for the log of a worker that serves on without a link.
pub(super) fn say(error: &JoinError) -> String {
    one_line(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_spread_and_leaves_time_for_failures() {
        let life = Duration::from_secs(30 * 24 * 3600);
        let (early, late) = (due(1000, life, 0.0), due(1000, life, 1.0));
        assert_eq!(early - 1000, life.as_secs() * 6 / 10);
        assert!(late - early > 2 * 24 * 3600 && late < 1000 + life.as_secs() * 71 / 100);
        assert!(retry(0) < retry(3) && retry(u32::MAX) == LOOK);
    }

    #[test]
    fn only_a_reason_is_a_last_word() {
        use rookery_proto::status::{Reason, refuse};
        assert!(!refused(refuse(Reason::Unauthenticated, "no")).may_pass());
        assert!(refused(refuse(Reason::StorageFailed, "later")).may_pass());
        assert!(refused(Status::unavailable("proxy")).may_pass());
    }
}
