//! The Prometheus page: `GET /metrics` on an address of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Scrapers served at a time; more wait. A page has one or two readers.
const CONNECTIONS: usize = 16;

/// Starts serving on the current runtime and returns the address with the port filled in. The page goes
/// down with the runtime; a connection that fails concerns only its reader.
pub(super) fn serve(address: SocketAddr, registry: Registry) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let bound = listener.local_addr()?;
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        let slots = Semaphore::new(CONNECTIONS);
        let slots = std::sync::Arc::new(slots);
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else { continue };
            let registry = registry.clone();
            tasks.spawn(async move {
                let service = service_fn(move |request| answer(request, registry.clone()));
                let mut server = hyper::server::conn::http1::Builder::new();
                // The timer bounds how long a reader may take over its request line and headers.
                let _ = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
                drop(slot);
            });
        }
    });
    Ok(bound)
}

async fn answer(request: Request<Incoming>, registry: Registry) -> Result<Response<Full<Bytes>>, Infallible> {
    let with_status = |status, body: Vec<u8>| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(with_status(StatusCode::NOT_FOUND, b"the metrics are at /metrics\n".to_vec()));
    }
    if request.method() != Method::GET {
        return Ok(with_status(StatusCode::METHOD_NOT_ALLOWED, Vec::new()));
    }
    let mut text = Vec::new();
    let encoder = TextEncoder::new();
    if let Err(error) = encoder.encode(&registry.gather(), &mut text) {
        tracing::warn!(%error, "metrics could not be written as text");
        return Ok(with_status(StatusCode::INTERNAL_SERVER_ERROR, Vec::new()));
    }
    let mut response = with_status(StatusCode::OK, text);
    if let Ok(kind) = header::HeaderValue::from_str(encoder.format_type()) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}
