//! The link to the control plane: the worker dials, then serves gRPC on the dialled socket.
//!
//! ```text
//!  join ─► identity ─┐   ┌──────────── connection ends ────────────┐
//!  (once)            ▼   ▼                                         │
//!                   dial ─► wait (capped, jittered back-off) ─► dial ─► serve
//! ```
//!
//! HTTP/2 needs nothing in front of it: the control plane, as the client of the reversed connection, speaks first. Under
//! TLS the worker is the client, shows its certificate, and says by ALPN that it wants to be served like this.
//! Losing the link never touches running work of other clients; keep-alive pings notice a peer that is gone.
//!
//! A fleet that loses its control plane comes back spread: after a link that worked, the first attempt waits a random
//! part of `reconnect-spread` (5 s), later ones a random half to whole of a pause that doubles from 0.1 s to 10 s. So
//! 2,000 gateways dial at about 400 a second, and all are back within 15 s of a restart that takes less than 5 s.

mod backoff;
mod gateway;
mod identity;
mod upstream;

use std::{io, time::Duration};

use rookery_proto::{
    server::{ConnectionError, Gate, OnPanic, Tasks, serve},
    tls::{self, ConnectError, LINK_NAME},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tonic::service::Routes;
use tracing::{debug, error, info, warn};

use crate::{
    config::{ValidLink, ValidWorkerConfig},
    one_line::one_line,
};
use backoff::Backoff;
pub(crate) use gateway::Gateway;
pub use identity::{Identity, IdentityError};
pub use rookery_proto::join_token::JoinToken;
pub use upstream::{JoinError, NoUpstream, Upstream, join};

/// A link that lived this long was a working one, and the next pause starts small again.
const WORKING: Duration = Duration::from_secs(5);

/// Keeps the link of the gateway that `config` describes, if it has a control plane, and renews its certificate, until
/// the drain begins: for gateways that serve something else than this crate's engines.
pub async fn keep_link(config: ValidWorkerConfig, routes: Routes, tasks: Tasks, gate: Gate) {
    if let Some(link) = config.link {
        run(link, routes, tasks, gate).await;
    }
}

/// How to call the control plane as the gateway that `config` describes; inside the runtime.
pub fn upstream(config: &ValidWorkerConfig) -> Option<Upstream> {
    config.link.as_ref().map(Upstream::new)
}

/// Dials the control plane and serves `routes` on the connection, again and again until the drain begins and the
/// last connection has ended.
pub(crate) async fn run(link: ValidLink, routes: Routes, tasks: Tasks, gate: Gate) {
    let joined = tokio::select! {
        biased;
        () = gate.draining() => return,
        joined = upstream::join_link(&link) => joined,
    };
    if let Err(error) = joined {
        // It serves on: what it has needs no control plane.
        error!(
            control_plane = link.address,
            error = upstream::say(&error),
            "the worker cannot join the fleet"
        );
        return;
    }
    if let Some(tls) = &link.tls {
        let renewing = upstream::renew(Upstream::new(&link), tls.identity.clone(), gate.clone());
        tasks.spawn("renew certificate", OnPanic::StopNode, renewing);
    }
    keep(&link, &routes, &tasks, &gate).await;
}

async fn keep(link: &ValidLink, routes: &Routes, tasks: &Tasks, gate: &Gate) {
    let mut backoff = Backoff::new(link.backoff_min, link.backoff_max);
    loop {
        let dialled = tokio::select! {
            biased;
            () = gate.draining() => return,
            dialled = dial(link) => dialled,
        };
        let mut pause = None;
        match dialled {
            Ok(socket) => {
                let since = Instant::now();
                info!(control_plane = link.address, "linked to the control plane");
                match socket.serve(routes.clone(), link, tasks, gate).await {
                    Ok(()) => info!(control_plane = link.address, "the control plane closed the link"),
                    Err(error) if link.tls.is_some() && since.elapsed() < WORKING && backoff.is_first() => {
                        warn!(
                            control_plane = link.address,
                            error = one_line(&error),
                            "the link broke at once: if it stays like this, the control plane's log says why it \
                             refuses this gateway"
                        )
                    }
                    Err(error) => {
                        warn!(control_plane = link.address, error = one_line(&error), "the link broke")
                    }
                }
                if since.elapsed() >= WORKING {
                    backoff.reset();
                    pause = Some(link.reconnect_spread.mul_f64(rand_unit()));
                }
            }
            Err(error) if backoff.is_first() => {
                let error = one_line(&error);
                warn!(control_plane = link.address, error, "cannot reach the control plane, trying on");
            }
            Err(error) => {
                debug!(
                    control_plane = link.address,
                    error = one_line(&error),
                    "cannot reach the control plane"
                );
            }
        }
        tokio::select! {
            biased;
            () = gate.draining() => return,
            () = sleep(pause.unwrap_or_else(|| backoff.next(rand_unit()))) => {}
        }
    }
}

/// A dialled connection, on which the control plane is to speak first.
enum Dialled {
    Plain(TcpStream),
    Tls(Box<dyn Stream>),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Dialled {
    async fn serve(
        self,
        routes: Routes,
        link: &ValidLink,
        tasks: &Tasks,
        gate: &Gate,
    ) -> Result<(), ConnectionError> {
        match self {
            Dialled::Plain(socket) => serve(socket, routes, &link.connection, tasks, gate).await,
            Dialled::Tls(stream) => serve(stream, routes, &link.connection, tasks, gate).await,
        }
    }
}

async fn dial(link: &ValidLink) -> Result<Dialled, ConnectError> {
    if let Some(tls) = &link.tls {
        let config = std::sync::Arc::new(tls.identity.link_config()?);
        let stream = tls::connect(&link.address, LINK_NAME, config, link.connect_timeout).await?;
        return Ok(Dialled::Tls(Box::new(stream)));
    }
    let failed = |source: io::Error| ConnectError::Tcp { address: link.address.clone(), source };
    let socket = timeout(link.connect_timeout, TcpStream::connect(&link.address))
        .await
        .map_err(|_| ConnectError::TimedOut { address: link.address.clone(), limit: link.connect_timeout })?;
    let socket = socket.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    Ok(Dialled::Plain(socket))
}

/// Evenly spread over [0, 1), without a generator to carry around: pauses are rare.
fn rand_unit() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 32) as f64 / f64::from(u32::MAX)
}
