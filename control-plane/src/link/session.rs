//! One link from its connection to its end.
//!
//! There are thousands of sessions, and each lives for weeks. What takes much room for a moment (handshake, introduction,
//! assignment) is boxed, so that the session itself stays small.

use std::{future::pending, net::SocketAddr, time::Duration};

use hyper_util::rt::{TokioIo, TokioTimer};
use rookery_proto::{
    server::{Gate, TaskExecutor, Tasks, chain},
    v1::{GatewayStatus, WatchGatewayRequest, gateway_service_client::GatewayServiceClient},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use super::{Connection, InvalidStatus, LinkChannel, channel, guard::Guard, status};
use crate::{
    config::ValidLinkSection,
    domain::{GatewayId, GatewayState, LinkId},
    fleet::Fleet,
    inventory::{Inventory, Ticket},
    trust::Refusals,
};

/// Largest status that a gateway may send.
const MOST_STATUS_BYTES: usize = 1 << 20;

/// Bytes of one call's answer that wait here for their reader.
const STREAM_WINDOW: u32 = 64 << 10;

/// Bytes of all answers of a link: the most that HTTP/2 knows, so that only the streams' own windows count and a
/// client that does not read holds up nobody else, least of all the heartbeats.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How many heartbeats a gateway may miss.
const MISSED_HEARTBEATS: u32 = 3;

/// Time for a gateway's answer to an assignment, which it has to keep before.
const ASSIGN_LIMIT: Duration = Duration::from_secs(30);

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the peer did not introduce itself as a gateway within {0:?}")]
    Handshake(Duration),
    #[error("the connection failed")]
    Connection(#[source] hyper::Error),
    #[error("the gateway closed the connection")]
    Closed,
    #[error("the gateway does not answer WatchGateway")]
    Watch(#[source] Box<Status>),
    #[error("the gateway sent an unusable status")]
    Status(#[from] InvalidStatus),
    #[error("the gateway calls itself {now:?} after {before}")]
    Renamed { before: GatewayId, now: String },
    #[error("it calls itself {claimed}, and its certificate is that of {holder}")]
    Impostor { claimed: GatewayId, holder: GatewayId },
    #[error("nothing came from the gateway for {0:?}")]
    Silent(Duration),
    #[error("a newer link of the same gateway replaced this one")]
    Replaced,
    #[error("the gateway was removed from the fleet, or never joined it")]
    Removed,
    #[error("{0}")]
    Certificate(&'static str),
    #[error("the control plane shuts down")]
    Shutdown,
}

/// Everything a session needs besides its connection.
#[derive(Clone)]
pub(crate) struct Links {
    pub(crate) config: ValidLinkSection,
    pub(crate) fleet: Fleet,
    pub(crate) inventory: Inventory,
    pub(crate) refusals: Refusals,
    pub(crate) tasks: Tasks,
    pub(crate) gate: Gate,
}

impl Links {
    /// Runs one link to its end. `guard` tells whose certificate was shown, and when it is no longer good.
    pub(super) async fn session<S>(self, stream: S, peer: SocketAddr, guard: Guard)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut gateway = None;
        let end = self.run(stream, peer, &guard, &mut gateway).await;
        let reason = chain(&end);
        match (gateway, end) {
            (Some(gateway), _) => info!(%gateway, %peer, reason, "a gateway is no longer linked"),
            (None, LinkError::Impostor { holder, .. }) => {
                self.refusals.note(peer, "gateway id", holder.as_str(), &reason);
            }
            (None, LinkError::Shutdown) => {}
            (None, _) => {
                let holder = guard.holder().map(GatewayId::as_str).unwrap_or_default();
                self.refusals.note(peer, "link", holder, &reason);
            }
        }
    }

    async fn run<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        guard: &Guard,
        gateway: &mut Option<GatewayId>,
    ) -> LinkError
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = hyper::client::conn::http2::Builder::new(TaskExecutor(self.tasks.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout)
            .keep_alive_while_idle(true);
        let limit = self.config.handshake_timeout;
        let (sender, connection) =
            match Box::pin(timeout(limit, builder.handshake(TokioIo::new(stream)))).await {
                Ok(Ok(ends)) => ends,
                Ok(Err(error)) => return LinkError::Connection(error),
                Err(_) => return LinkError::Handshake(limit),
            };
        let close = CancellationToken::new();
        let link = Connection { channel: LinkChannel::new(sender), close: close.clone(), peer };
        // All arms end the link, and with it the connection, so none needs to be cancel safe.
        tokio::select! {
            biased;
            () = self.gate.closed() => LinkError::Shutdown,
            () = close.cancelled() => LinkError::Replaced,
            why = guard.broken() => LinkError::Certificate(why),
            result = connection => match result {
                Ok(()) => LinkError::Closed,
                Err(error) => LinkError::Connection(error),
            },
            error = self.watch(link, guard.holder(), gateway) => error,
        }
    }

    /// Follows the gateway's statuses until something is wrong.
    async fn watch(
        &self,
        link: Connection,
        holder: Option<&GatewayId>,
        gateway: &mut Option<GatewayId>,
    ) -> LinkError {
        let limit = self.config.handshake_timeout;
        let (statuses, first) = match Box::pin(timeout(limit, self.introduce(&link))).await {
            Ok(Ok(introduced)) => introduced,
            Ok(Err(error)) => return error,
            Err(_) => return LinkError::Handshake(limit),
        };
        let (id, state) = match status::from_wire(&first) {
            Ok(read) => read,
            Err(error) => return error.into(),
        };
        if let Some(holder) = holder.filter(|holder| **holder != id) {
            return LinkError::Impostor { claimed: id, holder: holder.clone() };
        }
        *gateway = Some(id.clone());
        let mut degraded = Degraded::default();
        degraded.note(&id, &state);
        let place = self.place(id, link.clone(), &first, state);
        // All arms end the link but the assignments, which never do.
        tokio::select! {
            biased;
            error = self.follow(statuses, &place, degraded) => error,
            () = self.inventory.removed(&place.id, place.ticket) => LinkError::Removed,
            never = self.assign(&link, &place) => match never {},
        }
    }

    fn place(&self, id: GatewayId, link: Connection, first: &GatewayStatus, state: GatewayState) -> Place {
        let (peer, channel) = (link.peer, link.channel.clone());
        let (link_id, replaced) = self.fleet.link(id.clone(), link, state);
        let ticket = self.inventory.linked(&id, first, Some(channel));
        if let Some(old) = replaced {
            warn!(gateway = %id, %peer, old_peer = %old.peer, "a second link of the same gateway replaces the first");
            old.close.cancel();
        }
        info!(gateway = %id, %peer, "a gateway is linked");
        let (fleet, inventory) = (self.fleet.clone(), self.inventory.clone());
        Place { fleet, inventory, id, link_id, ticket }
    }

    async fn introduce(
        &self,
        link: &Connection,
    ) -> Result<(Streaming<GatewayStatus>, GatewayStatus), LinkError> {
        let mut client = gateway_client(link);
        let watch_error = |status| LinkError::Watch(Box::new(status));
        let heartbeat_interval_ms = self.config.heartbeat_ms;
        let response = client.watch_gateway(WatchGatewayRequest { heartbeat_interval_ms }).await;
        let mut statuses = response.map_err(watch_error)?.into_inner();
        let first = statuses.message().await.map_err(watch_error)?.ok_or(LinkError::Closed)?;
        Ok((statuses, first))
    }

    async fn follow(
        &self,
        mut statuses: Streaming<GatewayStatus>,
        place: &Place,
        mut degraded: Degraded,
    ) -> LinkError {
        let silence = Duration::from_millis(self.config.heartbeat_ms.into()) * MISSED_HEARTBEATS;
        loop {
            let status = match timeout(silence, statuses.message()).await {
                Ok(Ok(Some(status))) => status,
                Ok(Ok(None)) => return LinkError::Closed,
                Ok(Err(status)) => return LinkError::Watch(Box::new(status)),
                Err(_) => return LinkError::Silent(silence),
            };
            if status.gateway_id != place.id.as_str() {
                let now = status.gateway_id.chars().take(128).collect();
                return LinkError::Renamed { before: place.id.clone(), now };
            }
            let state = match status::from_wire(&status) {
                Ok((_, state)) => state,
                Err(error) => return error.into(),
            };
            degraded.note(&place.id, &state);
            if !place.fleet.update(&place.id, place.link_id, state) {
                return LinkError::Replaced;
            }
            place.inventory.status(&place.id, &status);
        }
    }

    /// Sends what the gateway is to serve, whenever it does not know it yet.
    async fn assign(&self, link: &Connection, place: &Place) -> std::convert::Infallible {
        let mut client = gateway_client(link);
        loop {
            let assignment = self.inventory.next_assignment(&place.id, place.ticket).await;
            let generation = assignment.generation;
            let answer = Box::pin(timeout(ASSIGN_LIMIT, client.assign(assignment))).await;
            let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
            let refused = answer.as_ref().err();
            self.inventory.assigned(&place.id, generation, refused.map_or(Ok(()), Err));
            if refused.is_some_and(rookery_proto::status::is_transport_failure) {
                // The connection's own arm says why.
                pending::<()>().await;
            }
        }
    }
}

fn gateway_client(link: &Connection) -> GatewayServiceClient<LinkChannel> {
    GatewayServiceClient::with_origin(link.channel.clone(), channel::origin())
        .max_decoding_message_size(MOST_STATUS_BYTES)
}

/// What was last said of a gateway that computes slower than it should, so that it is said once.
#[derive(Default)]
struct Degraded(Option<String>);

impl Degraded {
    fn note(&mut self, gateway: &GatewayId, state: &GatewayState) {
        let now = state.degraded().map(|(model, reason)| format!("{model}: {reason}"));
        if now == self.0 {
            return;
        }
        match &now {
            Some(reason) => {
                warn!(%gateway, reason, "a gateway is degraded: it serves, slower than it should")
            }
            None => info!(%gateway, "a gateway is no longer degraded"),
        }
        self.0 = now;
    }
}

/// A gateway's entries in registry and inventory, gone when the session ends in whatever way.
struct Place {
    fleet: Fleet,
    inventory: Inventory,
    id: GatewayId,
    link_id: LinkId,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.fleet.unlink(&self.id, self.link_id);
        self.inventory.unlinked(&self.id, self.ticket);
    }
}
