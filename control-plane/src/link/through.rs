//! Gateways that are linked to another replica, as this one reaches them.

use std::net::{Ipv6Addr, SocketAddr};

use rookery_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Connection, InvalidStatus, LinkChannel, status};
use crate::domain::{GatewayId, GatewayState};

impl Connection {
    /// A connection to `gateway` through the replica at the other end of `channel`.
    pub(crate) fn through(channel: Channel, gateway: &GatewayId) -> Self {
        let peer = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        Self { channel: LinkChannel::through(channel, gateway), close: CancellationToken::new(), peer }
    }
}

/// What a gateway reports, whichever way it came.
///
/// # Errors
/// If it cannot be used.
pub(crate) fn state_of(status: &v1::GatewayStatus) -> Result<(GatewayId, GatewayState), InvalidStatus> {
    status::from_wire(status)
}
