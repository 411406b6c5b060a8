//! The port that gateways and replicas dial: who they are, and what they want.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::http::Extensions;
use rookery_proto::{
    server::{ConnectionLimits, OnPanic, Peer, chain, serve_as},
    tls::{ALPN_H2, ALPN_LINK},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{timeout, timeout_at},
};
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;
use tracing::debug;

use super::{Links, guard::Guard};
use crate::{
    domain::GatewayId,
    store::Store,
    trust::{CertificateError, HandshakeError, Identity, PeerCertificate, Pending, ServerTls},
};

/// Calls at the same time on a connection of a gateway or a replica.
const STREAMS: u32 = 1024;

/// Calls at the same time for somebody without a certificate: one call is all that they may make.
const STREAMS_OF_NOBODY: u32 = 4;

/// How long somebody without a certificate may stay.
const LIFE_OF_NOBODY: Duration = Duration::from_secs(30);

/// The link port. Clones are the same one.
#[derive(Clone)]
pub(crate) struct LinkPort {
    pub(crate) links: Links,
    /// `None`: plain text, every connection is a link, and everybody is who they say.
    pub(crate) tls: Option<ServerTls>,
    /// What is served to those who ask for HTTP/2.
    pub(crate) routes: Routes,
    pub(crate) store: Store,
    /// Connections that are at the handshake.
    pub(crate) pending: Pending,
    /// Connections that have got past it.
    pub(crate) places: Arc<Semaphore>,
}

/// Why a connection got no further.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the socket cannot be used")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    NotAccepted(#[from] super::guard::NotAccepted),
    #[error("a link needs the certificate of a gateway")]
    NoGateway,
    #[error("it asks neither for a link nor for HTTP/2 by ALPN")]
    Protocol,
    #[error("all places were taken for {0:?}")]
    Full(Duration),
    #[error("newer connections needed the place of this one, which had not shown who it is")]
    Crowded,
}

impl Refused {
    /// Groups them for the log.
    fn kind(&self) -> &'static str {
        match self {
            Refused::Socket(_) => "socket",
            Refused::Handshake(_) => "handshake",
            Refused::Certificate(_) | Refused::NotAccepted(_) => "certificate",
            Refused::NoGateway | Refused::Protocol => "protocol",
            Refused::Full(_) => "full",
            Refused::Crowded => "crowded",
        }
    }
}

impl LinkPort {
    /// Finds out who dialled, within the handshake time-out, and hands the connection on to a task of its own.
    pub(crate) async fn accepted(self, socket: TcpStream, peer: SocketAddr) {
        let mut holder = None;
        let pending = self.pending.enter();
        // Either arm ends the attempt, so neither needs to be cancel safe.
        let admitted = tokio::select! {
            biased;
            admitted = self.admit(socket, peer, &mut holder) => admitted,
            () = pending.lost() => Err(Refused::Crowded),
        };
        if let Err(refused) = admitted {
            let holder = holder.as_ref().map(GatewayId::as_str).unwrap_or_default();
            self.links.refusals.note(peer, refused.kind(), holder, &chain(&refused));
        }
    }

    async fn admit(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        holder: &mut Option<GatewayId>,
    ) -> Result<(), Refused> {
        let limit = self.links.config.handshake_timeout;
        let end = tokio::time::Instant::now() + limit;
        let (socket, severed) = SeverOnDrop::new(socket)?;
        let Some(tls) = &self.tls else {
            let guard = Guard::new(None, self.store.clone());
            let place = self.place(end, limit).await?;
            self.spawn_link(socket, peer, guard, (place, severed));
            return Ok(());
        };
        let stream = tls.accept(socket, limit).await?;
        let certificate = certificate(&stream)?;
        let guard = Guard::new(certificate, self.store.clone());
        *holder = guard.holder().cloned();
        timeout_at(end, guard.check()).await.map_err(|_| HandshakeError::TimedOut(limit))??;
        let place = self.place(end, limit).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN_LINK) if holder.is_none() => Err(Refused::NoGateway),
            Some(ALPN_LINK) => {
                // The futures that it goes through would each have room for it, for as long as the link lives.
                self.spawn_link(Box::new(stream), peer, guard, (place, severed));
                Ok(())
            }
            Some(ALPN_H2) => {
                self.spawn_services(stream, peer, guard, (place, severed));
                Ok(())
            }
            Some(_) | None => Err(Refused::Protocol),
        }
    }

    async fn place(
        &self,
        end: tokio::time::Instant,
        limit: Duration,
    ) -> Result<OwnedSemaphorePermit, Refused> {
        match timeout_at(end, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Refused::Full(limit)),
        }
    }

    fn spawn_link<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        guard: Guard,
        held: (OwnedSemaphorePermit, SeverOnDrop),
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let links = self.links.clone();
        self.links.tasks.spawn("link", OnPanic::Log, async move {
            let _held = held;
            links.session(stream, peer, guard).await;
        });
    }

    fn spawn_services(
        &self,
        stream: TlsStream<TcpStream>,
        peer: SocketAddr,
        guard: Guard,
        held: (OwnedSemaphorePermit, SeverOnDrop),
    ) {
        let port = self.clone();
        self.links.tasks.spawn("services for gateways", OnPanic::Log, async move {
            let _held = held;
            port.serve(stream, peer, &guard).await;
        });
    }

    async fn serve(self, stream: TlsStream<TcpStream>, peer: SocketAddr, guard: &Guard) {
        let identity = guard.identity();
        let nobody = identity == Identity::Nobody;
        let config = &self.links.config;
        let limits = ConnectionLimits {
            handshake_timeout: config.handshake_timeout,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            max_streams: if nobody { STREAMS_OF_NOBODY } else { STREAMS },
        };
        let mut about = Extensions::new();
        about.insert(Peer(peer));
        about.insert(identity);
        let serving = serve_as(stream, self.routes, about, &limits, &self.links.tasks, &self.links.gate);
        let serving = async {
            if !nobody {
                return serving.await;
            }
            // Ends without a word: who joins is done long before.
            timeout(LIFE_OF_NOBODY, serving).await.unwrap_or(Ok(()))
        };
        // Both arms end the connection, so neither needs to be cancel safe.
        tokio::select! {
            biased;
            why = guard.broken() => {
                let holder = guard.holder().map(GatewayId::as_str).unwrap_or_default();
                self.links.refusals.note(peer, "certificate", holder, why);
            }
            result = serving => match result {
                Ok(()) => {}
                Err(error) if nobody => {
                    self.links.refusals.note(peer, "services", "", &chain(&error));
                }
                Err(error) => debug!(%peer, error = chain(&error), "a connection for services ended early"),
            },
        }
    }
}

fn certificate(stream: &TlsStream<TcpStream>) -> Result<Option<PeerCertificate>, CertificateError> {
    let first = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    first.map(PeerCertificate::read).transpose()
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
