//! The links: sockets that workers dialled, on which the control plane is the HTTP/2 client.
//!
//! ```text
//!  accepted ─► HTTP/2 ─► WatchGateway ─► first status ─► linked ─► status … status ─► lost
//!      └───── within the handshake time-out ────┘        └── at most 3 heartbeats apart ──┘
//! ```
//!
//! One task, the session, owns a link from accept to end. Losing the link (connection error, silence, replaced by a
//! newer link of the same gateway, shutdown) drops the connection, which ends every call on it.

mod channel;
mod status;

use std::{
    io,
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use hyper_util::rt::{TokioIo, TokioTimer};
use rookery_proto::{
    server::{Gate, TaskExecutor, Tasks},
    v1::{
        GatewayStatus, WatchGatewayRequest, gateway_service_client::GatewayServiceClient,
        inference_service_client::InferenceServiceClient,
    },
    validate::limit,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::{
    config::ValidLinkSection,
    domain::{GatewayId, GatewayState},
    fleet::Fleet,
};
pub use channel::LinkChannel;
pub use status::InvalidStatus;

/// Largest status that a gateway may send.
const MOST_STATUS_BYTES: usize = 1 << 20;

/// Bytes of one call's answer that wait here for their reader.
const STREAM_WINDOW: u32 = 64 << 10;

/// Bytes of all answers of a link: the most that HTTP/2 knows, so that only the streams' own windows count and a
/// client that does not read holds up nobody else, least of all the heartbeats.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How many heartbeats a gateway may miss.
const MISSED_HEARTBEATS: u32 = 3;

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

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the peer did not introduce itself as a gateway within {0:?}")]
    Handshake(Duration),
    #[error("the socket cannot be used")]
    Socket(#[source] io::Error),
    #[error("the connection failed")]
    Connection(#[source] hyper::Error),
    #[error("the gateway closed the connection")]
    Closed,
    #[error("the gateway does not answer WatchGateway")]
    Watch(#[source] Box<Status>),
    #[error("the gateway sent an unusable status")]
    Status(#[from] InvalidStatus),
    #[error("the gateway calls itself {now} after {before}")]
    Renamed { before: GatewayId, now: GatewayId },
    #[error("nothing came from the gateway for {0:?}")]
    Silent(Duration),
    #[error("a newer link of the same gateway replaced this one")]
    Replaced,
    #[error("the control plane shuts down")]
    Shutdown,
}

/// Everything a session needs besides its socket.
#[derive(Clone)]
pub(crate) struct Links {
    pub(crate) config: ValidLinkSection,
    pub(crate) fleet: Fleet,
    pub(crate) tasks: Tasks,
    pub(crate) gate: Gate,
}

impl Links {
    /// Runs one link from accept to end.
    pub(crate) async fn session(self, socket: TcpStream, peer: SocketAddr) {
        let mut gateway = None;
        let end = self.run(socket, peer, &mut gateway).await;
        let reason = chain(&end);
        match gateway {
            Some(gateway) => info!(%gateway, %peer, reason, "a gateway is no longer linked"),
            None => warn!(%peer, reason, "a connection to the link port came to nothing"),
        }
    }

    async fn run(&self, socket: TcpStream, peer: SocketAddr, gateway: &mut Option<GatewayId>) -> LinkError {
        let mut builder = hyper::client::conn::http2::Builder::new(TaskExecutor(self.tasks.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout)
            .keep_alive_while_idle(true);
        let (socket, _severed_at_the_end) = match SeverOnDrop::new(socket) {
            Ok(both) => both,
            Err(error) => return LinkError::Socket(error),
        };
        let limit = self.config.handshake_timeout;
        let (sender, connection) = match timeout(limit, builder.handshake(TokioIo::new(socket))).await {
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
            result = connection => match result {
                Ok(()) => LinkError::Closed,
                Err(error) => LinkError::Connection(error),
            },
            error = self.watch(link, gateway) => error,
        }
    }

    /// Follows the gateway's statuses until something is wrong.
    async fn watch(&self, link: Connection, gateway: &mut Option<GatewayId>) -> LinkError {
        let limit = self.config.handshake_timeout;
        let introduced = timeout(limit, self.introduce(&link)).await;
        let (statuses, id, state) = match introduced {
            Ok(Ok(introduced)) => introduced,
            Ok(Err(error)) => return error,
            Err(_) => return LinkError::Handshake(limit),
        };
        *gateway = Some(id.clone());
        let peer = link.peer;
        let mut degraded = Degraded::default();
        degraded.note(&id, &state);
        let (link_id, replaced) = self.fleet.link(id.clone(), link, state);
        if let Some(old) = replaced {
            warn!(gateway = %id, %peer, old_peer = %old.peer, "a second link of the same gateway replaces the first");
            old.close.cancel();
        }
        info!(gateway = %id, %peer, "a gateway is linked");
        let place = LinkedPlace { fleet: self.fleet.clone(), id, link_id };
        self.follow(statuses, &place, degraded).await
    }

    async fn introduce(
        &self,
        link: &Connection,
    ) -> Result<(Streaming<GatewayStatus>, GatewayId, GatewayState), LinkError> {
        let mut client = GatewayServiceClient::with_origin(link.channel.clone(), channel::origin())
            .max_decoding_message_size(MOST_STATUS_BYTES);
        let watch_error = |status| LinkError::Watch(Box::new(status));
        let heartbeat_interval_ms = self.config.heartbeat_ms;
        let response = client.watch_gateway(WatchGatewayRequest { heartbeat_interval_ms }).await;
        let mut statuses = response.map_err(watch_error)?.into_inner();
        let first = statuses.message().await.map_err(watch_error)?.ok_or(LinkError::Closed)?;
        let (id, state) = status::from_wire(first)?;
        Ok((statuses, id, state))
    }

    async fn follow(
        &self,
        mut statuses: Streaming<GatewayStatus>,
        place: &LinkedPlace,
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
            match status::from_wire(status) {
                Ok((id, _)) if id != place.id => {
                    return LinkError::Renamed { before: place.id.clone(), now: id };
                }
                Ok((id, state)) => {
                    degraded.note(&id, &state);
                    if !place.fleet.update(&id, place.link_id, state) {
                        return LinkError::Replaced;
                    }
                }
                Err(error) => return error.into(),
            }
        }
    }
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

/// Severs a connection at the end of its session. hyper moves the connection into a task of its own that would wait
/// for open calls, and these wait for a gateway that may never answer.
struct SeverOnDrop(std::net::TcpStream);

impl SeverOnDrop {
    fn new(socket: TcpStream) -> io::Result<(TcpStream, Self)> {
        let socket = socket.into_std()?;
        let handle = socket.try_clone()?;
        Ok((TcpStream::from_std(socket)?, Self(handle)))
    }
}

impl Drop for SeverOnDrop {
    fn drop(&mut self) {
        // Fails only where the peer has closed the connection already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A gateway's entry in the registry, gone when the session ends in whatever way.
struct LinkedPlace {
    fleet: Fleet,
    id: GatewayId,
    link_id: crate::domain::LinkId,
}

impl Drop for LinkedPlace {
    fn drop(&mut self) {
        self.fleet.unlink(&self.id, self.link_id);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
