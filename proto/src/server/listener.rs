//! Accepts connections, never more than a limit at a time.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use hyper::http::Extensions;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tonic::service::Routes;
use tracing::{debug, warn};

use super::{ConnectionLimits, Gate, OnPanic, Peer, Tasks, serve_as};

/// Pause after a failed accept; the usual cause, too many open files, does not pass faster by spinning.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the gate closes, at most `most` at a time, and serves `routes` on each.
pub async fn accept_and_serve(
    listener: TcpListener,
    most: usize,
    routes: Routes,
    limits: ConnectionLimits,
    tasks: Tasks,
    gate: Gate,
) {
    let (serving, open) = (tasks.clone(), gate.clone());
    accept(listener, most, tasks, gate, move |socket, peer| {
        let (tasks, gate, limits, routes) = (serving.clone(), open.clone(), limits.clone(), routes.clone());
        async move {
            let mut about = Extensions::new();
            about.insert(Peer(peer));
            if let Err(error) = serve_as(socket, routes, about, &limits, &tasks, &gate).await {
                debug!(%peer, %error, "a connection ended early");
            }
        }
    })
    .await;
}

/// Accepts connections until the gate closes and runs `handle` on each as a task of its own. Connections beyond
/// `most` wait in the kernel's queue.
pub async fn accept<H, F>(listener: TcpListener, most: usize, tasks: Tasks, gate: Gate, handle: H)
where
    H: Fn(TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(most));
    loop {
        // Cancel safe: an aborted acquire loses only its place, an aborted accept loses no connection.
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = gate.closed() => return,
            next = next => next,
        };
        match accepted {
            Ok((socket, peer)) => {
                // Small frames must not wait for each other; a socket that refuses this still works.
                let _ = socket.set_nodelay(true);
                let work = handle(socket, peer);
                tasks.spawn("connection", OnPanic::Log, async move {
                    let _permit = permit;
                    work.await;
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
