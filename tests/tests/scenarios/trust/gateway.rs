//! Gateways that dial with TLS and then do as they are told.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use rookery_proto::{
    server::{ConnectionLimits, Gate, Tasks, serve},
    tls::{ALPN_LINK, Credentials},
    v1::{self, gateway_service_server},
};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, service::RoutesBuilder};

use super::world::World;

/// What it does once it is asked for its status.
#[derive(Clone, Copy)]
pub(super) enum Behaviour {
    /// Beats as it should.
    Fine,
    /// Says nothing.
    Silent,
    /// Sends one of two mebibytes.
    Huge,
    /// Says its name, then another.
    Rename(&'static str),
}

/// A dialled link.
pub(super) struct Dialled(JoinSet<()>);

#[derive(Clone)]
struct Service {
    id: String,
    behaviour: Behaviour,
}

impl Dialled {
    /// Dials with these credentials and calls itself `id`.
    pub(super) async fn link(
        world: &World,
        credentials: Credentials,
        id: &str,
        behaviour: Behaviour,
    ) -> Self {
        let stream = world.dial(ALPN_LINK, Some(credentials)).await.unwrap();
        let mut routes = RoutesBuilder::default();
        let service = Service { id: id.to_owned(), behaviour };
        routes.add_service(gateway_service_server::GatewayServiceServer::new(service));
        let limits = ConnectionLimits {
            handshake_timeout: Duration::from_secs(20),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            max_streams: 100,
        };
        let (routes, mut task) = (routes.routes(), JoinSet::new());
        task.spawn(async move {
            let _ = serve(stream, routes, &limits, &Tasks::new(), &Gate::new(100)).await;
        });
        Self(task)
    }

    /// Resolves when the connection is over.
    pub(super) async fn ended(mut self) {
        self.0.join_next().await.unwrap().unwrap();
    }
}

type Statuses = stream::BoxStream<'static, Result<v1::GatewayStatus, Status>>;

#[tonic::async_trait]
impl gateway_service_server::GatewayService for Service {
    type WatchGatewayStream = Statuses;

    async fn watch_gateway(
        &self,
        _request: Request<v1::WatchGatewayRequest>,
    ) -> Result<Response<Statuses>, Status> {
        let named = |id: &str| v1::GatewayStatus { gateway_id: id.to_owned(), ..Default::default() };
        let first = named(&self.id);
        let statuses = match self.behaviour {
            Behaviour::Fine => {
                let beats = stream::unfold(Some(first.clone()), |first| async move {
                    let first = first?;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Some((Ok(first.clone()), Some(first)))
                });
                stream::iter([Ok(first)]).chain(beats).boxed()
            }
            Behaviour::Silent => stream::pending().boxed(),
            Behaviour::Huge => {
                let huge = v1::GatewayStatus { worker_version: "x".repeat(2 << 20), ..first };
                stream::iter([Ok(huge)]).chain(stream::pending()).boxed()
            }
            Behaviour::Rename(other) => {
                stream::iter([Ok(first), Ok(named(other))]).chain(stream::pending()).boxed()
            }
        };
        Ok(Response::new(statuses))
    }

    async fn assign(&self, _: Request<v1::Assignment>) -> Result<Response<v1::AssignResponse>, Status> {
        Err(Status::unimplemented("it serves nothing"))
    }
}
