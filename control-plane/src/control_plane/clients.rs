//! The clients' port: TLS where it is on, then HTTP/2 with everything that people and programs call.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::http::Extensions;
use rookery_proto::server::{ConnectionLimits, Gate, OnPanic, Peer, Tasks, chain, serve_as};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::service::Routes;
use tracing::debug;

use crate::{
    config::ServerIdentity,
    trust::{Authority, Pending, Refusals, ServerTls, TlsError},
};

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

/// The port's certificate: a configured one, or one of its own authority.
pub(super) fn clients_tls(
    authority: &Authority,
    identity: &ServerIdentity,
    address: SocketAddr,
) -> Result<ServerTls, TlsError> {
    match identity {
        ServerIdentity::Own { names } => ServerTls::clients(authority, usual_names(names, address.ip())),
        ServerIdentity::Files { certificate, key } => {
            ServerTls::clients_with_files(authority, certificate, key)
        }
    }
}

/// The configured names, and those that always lead here.
fn usual_names(configured: &[String], address: IpAddr) -> Vec<String> {
    let mut names = configured.to_vec();
    let mut add = |name: String| {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    };
    add("localhost".to_owned());
    add(Ipv4Addr::LOCALHOST.to_string());
    add(Ipv6Addr::LOCALHOST.to_string());
    if !address.is_unspecified() {
        add(address.to_string());
    }
    // A machine without a usable name is called by its address.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    add(host
        .trim()
        .to_owned()
        .into_bytes()
        .into_iter()
        .filter(|byte| plain(*byte))
        .map(char::from)
        .collect());
    names
}
