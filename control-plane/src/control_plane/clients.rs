//! The clients' port: TLS where it is on, then HTTP/2 with everything that people and programs call.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::http::Extensions;
use rookery_proto::server::{ConnectionLimits, Gate, OnPanic, Peer, Tasks, chain, serve_as};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::service::Routes;
use tracing::debug;

use crate::trust::{Pending, Refusals, ServerTls};

/// The clients' port with TLS. Clones are the same one.
#[derive(Clone)]
pub(super) struct ClientsPort {
    pub(super) tls: ServerTls,
    pub(super) routes: Routes,
    pub(super) limits: ConnectionLimits,
    /// Connections that are at the handshake.
    pub(super) pending: Pending,
    /// Connections that have got past it.
    pub(super) places: Arc<Semaphore>,
    pub(super) refusals: Refusals,
    pub(super) tasks: Tasks,
    pub(super) gate: Gate,
}

impl ClientsPort {
    /// Does the handshake, and hands the connection on to a task of its own.
    pub(super) async fn accepted(self, socket: TcpStream, peer: SocketAddr) {
        let limit = self.limits.handshake_timeout;
        let pending = self.pending.enter();
        // Either arm ends the attempt, so neither needs to be cancel safe.
        let accepted = tokio::select! {
            biased;
            accepted = self.tls.accept(socket, limit) => accepted,
            () = pending.lost() => {
                self.refusals.note(peer, "crowded", "", "newer connections needed its place");
                return;
            }
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                self.refusals.note(peer, "handshake", "", &chain(&error));
                return;
            }
        };
        let Some(place) = self.place(limit).await else {
            self.refusals.note(peer, "full", "", "all places for connections were taken");
            return;
        };
        drop(pending);
        let tasks = self.tasks.clone();
        tasks.spawn("client", OnPanic::Log, async move {
            let _place = place;
            let mut about = Extensions::new();
            about.insert(Peer(peer));
            let serving = serve_as(stream, self.routes, about, &self.limits, &self.tasks, &self.gate);
            if let Err(error) = serving.await {
                debug!(%peer, error = chain(&error), "a connection ended early");
            }
        });
    }

    /// None if all places stay taken for too long.
    async fn place(&self, limit: Duration) -> Option<OwnedSemaphorePermit> {
        timeout(limit, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok()
    }
}
