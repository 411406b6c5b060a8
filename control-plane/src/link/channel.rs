//! A gRPC channel to a gateway: over the connection that it dialled, or through the replica that holds this. The former
//! never reconnects: a link that is lost is lost.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{
    client::conn::http2::SendRequest,
    http::{HeaderName, HeaderValue, Request, Response, Uri},
};
use tonic::{body::Body, transport::Channel};
use tower::Service;

use crate::domain::GatewayId;

/// Names the gateway in calls that another replica is to pass on to it.
pub(crate) const GATEWAY_HEADER: HeaderName = HeaderName::from_static("rookery-gateway");

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How calls reach a gateway.
#[derive(Clone)]
pub struct LinkChannel(Way);

#[derive(Clone)]
enum Way {
    /// The sending half of the link's HTTP/2 connection.
    Link(SendRequest<Body>),
    /// Another replica's link port.
    Replica { channel: Channel, gateway: HeaderValue },
}

impl LinkChannel {
    pub(super) fn new(sender: SendRequest<Body>) -> Self {
        Self(Way::Link(sender))
    }

    /// To a gateway that is linked to the replica at the other end of `channel`.
    pub(crate) fn through(channel: Channel, gateway: &GatewayId) -> Self {
        // An id has only characters that a header may have; an empty one would be refused there.
        let gateway = HeaderValue::from_str(gateway.as_str()).unwrap_or(HeaderValue::from_static(""));
        Self(Way::Replica { channel, gateway })
    }
}

/// HTTP/2 requests need scheme and authority; nobody resolves this one.
pub(crate) fn origin() -> Uri {
    Uri::from_static("http://gateway.rookery.internal")
}

impl Service<Request<Body>> for LinkChannel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let result = match &mut self.0 {
            Way::Link(sender) => ready!(sender.poll_ready(cx)).map_err(BoxError::from),
            Way::Replica { channel, .. } => ready!(channel.poll_ready(cx)).map_err(BoxError::from),
        };
        Poll::Ready(result)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match &mut self.0 {
            Way::Link(sender) => {
                let response = sender.send_request(request);
                Box::pin(async move { Ok(response.await?.map(Body::new)) })
            }
            Way::Replica { channel, gateway } => {
                request.headers_mut().insert(GATEWAY_HEADER, gateway.clone());
                let response = channel.call(request);
                Box::pin(async move { Ok(response.await?) })
            }
        }
    }
}
