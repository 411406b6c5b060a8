//! gRPC on one connection. hyper's HTTP/2 is used directly rather than tonic's server, because the socket may have
//! been accepted or dialled, and because shutdown has to end connections by a deadline.

use std::{pin::pin, time::Duration};

use hyper::{
    body::Incoming,
    http::{Extensions, Request},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::service::Routes;

use super::{Gate, TaskExecutor, Tasks, preface};

/// What one connection may use.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Time for the peer's HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Time between keep-alive pings.
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, after which the connection is closed.
    pub keepalive_timeout: Duration,
    /// Calls at the same time.
    pub max_streams: u32,
}

/// Bytes of a request's headers; gRPC needs few, and trace context adds some.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConnectionError(ConnectionErrorKind);

#[derive(Debug, thiserror::Error)]
enum ConnectionErrorKind {
    #[error(transparent)]
    Preface(#[from] preface::PrefaceError),
    #[error("the connection failed")]
    Http2(#[source] hyper::Error),
    #[error("the connection was closed by the shutdown")]
    Closed,
}

/// Serves `routes` on `stream` until the peer closes it, it fails, or the gate closes.
///
/// # Errors
/// Tells why the connection ended if the peer did not close it properly.
pub async fn serve<S>(
    stream: S,
    routes: Routes,
    limits: &ConnectionLimits,
    tasks: &Tasks,
    gate: &Gate,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_as(stream, routes, Extensions::new(), limits, tasks, gate).await
}

/// The same with `about`, what is known of the connection, as extensions of every request on it.
///
/// # Errors
/// As [`serve`].
pub async fn serve_as<S>(
    stream: S,
    routes: Routes,
    about: Extensions,
    limits: &ConnectionLimits,
    tasks: &Tasks,
    gate: &Gate,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let checked = tokio::select! {
        checked = preface::check(stream, limits.handshake_timeout) => checked.map_err(|e| ConnectionError(e.into()))?,
        () = gate.closed() => return Err(ConnectionError(ConnectionErrorKind::Closed)),
    };
    let mut builder = hyper::server::conn::http2::Builder::new(TaskExecutor(tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(MAX_HEADER_BYTES);
    let service = TowerToHyperService::new(routes.prepare());
    let service = service_fn(move |mut request: Request<Incoming>| {
        if !about.is_empty() {
            request.extensions_mut().extend(about.clone());
        }
        service.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(checked), service);
    let mut connection = pin!(connection);
    // Both arms may be dropped and polled again: the connection is pinned outside.
    tokio::select! {
        result = connection.as_mut() => return result.map_err(|e| ConnectionError(ConnectionErrorKind::Http2(e))),
        () = gate.closed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GOODBYE, connection).await;
    Ok(())
}

/// Time for the last frames of a connection once the gate is closed.
const GOODBYE: Duration = Duration::from_millis(200);
