//! The port that gateways and replicas dial, and the links: sockets that workers dialled, on which the control plane is
//! the HTTP/2 client.
//!
//! ```text
//!  accepted ─► TLS ─► certificate good? ─┬─ rookery-link/1 ─► HTTP/2 ─► WatchGateway ─► first status ─► linked … lost
//!      └─── handshake time-out ───┘      │                      └─ handshake time-out ─┘        └ at most 3 heartbeats apart
//!                                        └─ h2 ─► Enrolment (also without a certificate), Artifact, Peer services
//! ```
//!
//! One task, the session, owns a link from its handshake to its end. Losing the link (connection error, silence, replaced
//! by a newer link of the same gateway, its certificate ended or revoked, shutdown) drops the connection, which ends every
//! call on it. A gateway is who its certificate says; a status with another id ends the link.

mod channel;
mod guard;
mod port;
mod session;
mod status;
mod through;

use std::net::SocketAddr;

use rookery_proto::{v1::inference_service_client::InferenceServiceClient, validate::limit};
use tokio_util::sync::CancellationToken;

pub use channel::LinkChannel;
pub(crate) use channel::{GATEWAY_HEADER, origin};
pub(crate) use port::LinkPort;
pub(crate) use session::Links;
pub use status::InvalidStatus;
pub(crate) use through::state_of;

/// How to reach a linked gateway.
#[derive(Clone)]
pub struct Connection {
    channel: LinkChannel,
    close: CancellationToken,
    peer: SocketAddr,
}

impl Connection {
    /// A client of the gateway's inference service.
    pub(crate) fn inference(&self) -> InferenceServiceClient<LinkChannel> {
        InferenceServiceClient::with_origin(self.channel.clone(), channel::origin())
            .max_decoding_message_size(limit::ANSWER_BYTES)
    }
}
