//! A gRPC channel over one connection that somebody else dialled. It never reconnects: a link that is lost is lost.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{
    body::Incoming,
    client::conn::http2::SendRequest,
    http::{Request, Response, Uri},
};
use tonic::body::Body;
use tower::Service;

/// The sending half of a link's HTTP/2 connection.
#[derive(Clone)]
pub struct LinkChannel {
    sender: SendRequest<Body>,
}

impl LinkChannel {
    pub(super) fn new(sender: SendRequest<Body>) -> Self {
        Self { sender }
    }
}

/// HTTP/2 requests need scheme and authority; nobody resolves this one.
pub(super) fn origin() -> Uri {
    Uri::from_static("http://gateway.rookery.internal")
}

impl Service<Request<Body>> for LinkChannel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
