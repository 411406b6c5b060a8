//! Passes calls of another replica on to a gateway that is linked here, as they are: nothing is decoded.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::http::{Request, Response};
use rookery_proto::{
    server::chain,
    status::{Reason, refuse},
    v1::inference_service_server::SERVICE_NAME,
};
use tonic::{Status, body::Body, server::NamedService};
use tower::{Service, ServiceExt};
use tracing::debug;

use crate::{
    domain::GatewayId,
    inventory::Inventory,
    link::{GATEWAY_HEADER, LinkChannel},
    trust::Identity,
};

/// `InferenceService` on the link port: only for replicas, only with a gateway named, only to this replica's own links.
#[derive(Clone)]
pub struct Forward {
    inventory: Inventory,
}

impl Forward {
    pub(super) fn new(inventory: Inventory) -> Self {
        Self { inventory }
    }

    fn channel<T>(&self, request: &Request<T>) -> Result<(GatewayId, LinkChannel), Status> {
        match request.extensions().get::<Identity>() {
            Some(Identity::Replica(_)) => {}
            Some(Identity::Gateway { .. } | Identity::Nobody) | None => {
                return Err(refuse(Reason::Unauthenticated, "the call needs the certificate of a replica"));
            }
        }
        let named = request.headers().get(GATEWAY_HEADER).and_then(|value| value.to_str().ok());
        let gateway: GatewayId = named
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| refuse(Reason::InvalidField, "metadata rookery-gateway must name a gateway"))?;
        let channel = self.inventory.channel(&gateway).ok_or_else(|| lost(&gateway))?;
        Ok((gateway, channel))
    }
}

/// Another try may find it where it has gone.
fn lost(gateway: &GatewayId) -> Status {
    refuse(Reason::GatewayLost, format!("gateway {gateway} is not linked to this replica"))
}

impl NamedService for Forward {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for Forward {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (gateway, channel) = match self.channel(&request) {
            Ok(found) => found,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        request.headers_mut().remove(GATEWAY_HEADER);
        // What is known of this connection is nothing that the gateway's should know.
        request.extensions_mut().clear();
        Box::pin(async move {
            let response = channel.oneshot(absolute(request)).await;
            Ok(response.unwrap_or_else(|error| {
                debug!(%gateway, error = chain(&*error), "a call of another replica could not be passed on");
                lost(&gateway).into_http()
            }))
        })
    }
}

/// On a link, requests need scheme and authority.
fn absolute(request: Request<Body>) -> Request<Body> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().cloned();
    let mut parts = crate::link::origin().into_parts();
    parts.path_and_query = path.or(parts.path_and_query);
    if let Ok(uri) = hyper::http::Uri::from_parts(parts) {
        head.uri = uri;
    }
    Request::from_parts(head, body)
}
