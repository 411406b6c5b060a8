//! The link to the control plane: the worker dials, then serves gRPC on the dialled socket.
//!
//! ```text
//!          ┌──────────── connection ends ────────────┐
//!          ▼                                         │
//!  dial ─► wait (capped, jittered back-off) ─► dial ─► serve
//! ```
//!
//! HTTP/2 needs nothing in front of it: the control plane, as the client of the reversed connection, speaks first.
//! Losing the link never touches running work of other clients; keep-alive pings notice a peer that is gone.

mod backoff;
mod gateway;

use std::{io, time::Duration};

use rookery_proto::server::{Gate, Tasks, serve};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tonic::service::Routes;
use tracing::{debug, info, warn};

use crate::{config::ValidLink, one_line::one_line};
use backoff::Backoff;
pub(crate) use gateway::Gateway;

/// A link that lived this long was a working one, and the next pause starts small again.
const WORKING: Duration = Duration::from_secs(5);

/// Dials the control plane and serves `routes` on the connection, again and again until the drain begins and the
/// last connection has ended.
pub(crate) async fn run(link: ValidLink, routes: Routes, tasks: Tasks, gate: Gate) {
    let mut backoff = Backoff::new(link.backoff_min, link.backoff_max);
    loop {
        let dialled = tokio::select! {
            biased;
            () = gate.draining() => return,
            dialled = dial(&link) => dialled,
        };
        match dialled {
            Ok(socket) => {
                let since = Instant::now();
                info!(control_plane = link.address, "linked to the control plane");
                match serve(socket, routes.clone(), &link.connection, &tasks, &gate).await {
                    Ok(()) => info!(control_plane = link.address, "the control plane closed the link"),
                    Err(error) => {
                        warn!(control_plane = link.address, error = one_line(&error), "the link broke")
                    }
                }
                if since.elapsed() >= WORKING {
                    backoff.reset();
                }
            }
            Err(error) if backoff.is_first() => {
                warn!(control_plane = link.address, %error, "cannot reach the control plane, trying on");
            }
            Err(error) => debug!(control_plane = link.address, %error, "cannot reach the control plane"),
        }
        tokio::select! {
            biased;
            () = gate.draining() => return,
            () = sleep(backoff.next(rand_unit())) => {}
        }
    }
}

async fn dial(link: &ValidLink) -> io::Result<TcpStream> {
    let socket = timeout(link.connect_timeout, TcpStream::connect(&link.address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Evenly spread over [0, 1), without a generator to carry around: pauses are rare.
fn rand_unit() -> f64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 32) as f64 / f64::from(u32::MAX)
}
