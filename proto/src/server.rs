//! What both servers, worker and control plane, need to put the contract on a socket.
//!
//! ```text
//!  listener ─ accept() ─► serve() one task per connection ─► Routes ─► handler ─► Gate::admit() ─► stream
//!                             ▲                                            │
//!                             └──────────── Gate: draining, cut, closed ◄──┘
//! ```
//!
//! [`Tasks`] owns every task and [`Gate`] says what they may still do. Shutdown is one sequence, [`Gate::drain`]:
//! refuse new calls, let running streams end, cut the rest, close connections, all inside one deadline.

mod answer;
mod gate;
mod http2;
mod limits;
mod listener;
mod preface;
mod tasks;
mod traffic;

pub use answer::{Answer, STALL_LIMIT, answer};
pub use gate::{Admission, Gate};
pub use http2::{ConnectionError, ConnectionLimits, serve, serve_as};
pub use limits::{LimitError, ServerLimits};
pub use listener::{accept, accept_and_serve};
pub use tasks::{OnPanic, TaskExecutor, Tasks};
pub use traffic::TrafficThread;

use std::net::SocketAddr;

use tonic::service::RoutesBuilder;
use tonic_health::{pb::health_server, server::HealthReporter};

/// The descriptors that are wrong in this build cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot build the reflection service")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

/// Where a request comes from: an extension of every request on a connection that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// An error with all its causes on one line, for a log.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Adds `grpc.health.v1.Health` to a server and returns the handle that sets what it answers.
pub fn add_health(routes: &mut RoutesBuilder) -> HealthReporter {
    let (reporter, service) = tonic_health::server::health_reporter();
    routes.add_service(service);
    reporter
}

/// Adds another server's health, for a second socket of the same process.
pub fn add_shared_health(routes: &mut RoutesBuilder, reporter: &HealthReporter) {
    let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    routes.add_service(health_server::HealthServer::new(service));
}

/// Adds gRPC server reflection, in version 1 and in version 1 alpha, which many tools still ask first.
///
/// # Errors
/// Fails only if the compiled-in descriptors are broken.
pub fn add_reflection(routes: &mut RoutesBuilder) -> Result<(), ReflectionError> {
    let configure = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(configure().build_v1()?);
    routes.add_service(configure().build_v1alpha()?);
    Ok(())
}
