//! Dialling with TLS, by hand or for a gRPC channel.

use std::{
    future::Future,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};
use tower::Service;

use super::TlsError;

/// No connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("cannot connect to {address}")]
    Tcp {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// One side did not like the other's certificate, or it is no TLS server.
    #[error("the TLS handshake with {address} failed")]
    Handshake {
        /// With whom.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("no connection to {address} within {limit:?}")]
    TimedOut {
        /// To whom.
        address: String,
        /// The limit.
        limit: Duration,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The name cannot be in a certificate.
    #[error("{0:?} is neither a host's name nor an address")]
    Name(String),
    /// The server speaks something else.
    #[error("{address} does not speak {protocol}")]
    Protocol {
        /// Who.
        address: String,
        /// What was asked for.
        protocol: String,
    },
    /// Credentials are not there, or not usable.
    #[error("there is no certificate to show")]
    Credentials(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Dials `address` (`host:port`) and does the handshake with the server called `name`, within `limit`.
///
/// # Errors
/// Tells how far it came.
pub async fn connect(
    address: &str,
    name: &str,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let owned = || address.to_owned();
    let server = ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Name(name.to_owned()))?;
    let wanted = config.alpn_protocols.first().cloned();
    let work = async {
        let socket = TcpStream::connect(address)
            .await
            .map_err(|source| ConnectError::Tcp { address: owned(), source })?;
        // A socket that refuses this still works.
        let _ = socket.set_nodelay(true);
        TlsConnector::from(config)
            .connect(server, socket)
            .await
            .map_err(|source| ConnectError::Handshake { address: owned(), source })
    };
    let stream =
        timeout(limit, work).await.map_err(|_| ConnectError::TimedOut { address: owned(), limit })??;
    match wanted {
        Some(protocol) if stream.get_ref().1.alpn_protocol() != Some(&protocol) => {
            let protocol = String::from_utf8_lossy(&protocol).into_owned();
            Err(ConnectError::Protocol { address: owned(), protocol })
        }
        Some(_) | None => Ok(stream),
    }
}

type Configure = dyn Fn() -> Result<ClientConfig, ConnectError> + Send + Sync;

/// Dials for a gRPC channel. Settings are asked for with each connection, so that a renewed certificate is used.
#[derive(Clone)]
pub struct Connector {
    address: String,
    name: String,
    limit: Duration,
    configure: Arc<Configure>,
}

impl Connector {
    /// Dials `address` (`host:port`) for the server called `name`, each attempt within `limit`.
    pub fn new(
        address: impl Into<String>,
        name: impl Into<String>,
        limit: Duration,
        configure: impl Fn() -> Result<ClientConfig, ConnectError> + Send + Sync + 'static,
    ) -> Self {
        Self { address: address.into(), name: name.into(), limit, configure: Arc::new(configure) }
    }

    /// A channel that connects when it is first used, and again when the connection is lost.
    pub fn channel(self) -> Channel {
        self.endpoint().connect_with_connector_lazy(self)
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn connected(self) -> Result<Channel, tonic::transport::Error> {
        self.endpoint().connect_with_connector(self).await
    }

    /// TLS is the connector's business, hence the scheme; nobody resolves the name.
    fn endpoint(&self) -> Endpoint {
        Endpoint::from_static("http://rookery.internal")
            .connect_timeout(self.limit)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
    }

    async fn connect(self) -> Result<TokioIo<TlsStream<TcpStream>>, ConnectError> {
        let config = Arc::new((self.configure)()?);
        connect(&self.address, &self.name, config, self.limit).await.map(TokioIo::new)
    }
}

/// Time between pings of a channel, and for their answers.
const KEEPALIVE: Duration = Duration::from_secs(20);

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
