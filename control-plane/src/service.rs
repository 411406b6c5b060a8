//! `InferenceService` for clients: checks a request, finds it a gateway, passes the answer on.
//!
//! A client that goes away drops the handler or the stream, which drops the call to the worker, which cancels it
//! there. Metadata of clients is not passed on to gateways, except for trace context and the deadline.

mod errors;
mod metrics;
mod proxy;
mod route;

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::Stream;
use rookery_proto::{
    deadline, semconv, server::Gate, status, status::Reason, trace_context, v1, validate, validate::Input,
};
use tonic::{Request, Response, Status};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    config::RoutingSection,
    fleet::{Fleet, to_wire},
};
pub(crate) use metrics::Metrics;
use proxy::Proxied;
use route::{Call, Router};

/// The inference service of the control plane. Clones share everything.
#[derive(Clone)]
pub struct Inference {
    shared: Arc<Shared>,
}

struct Shared {
    fleet: Fleet,
    gate: Gate,
    router: Router,
    metrics: Metrics,
}

impl Inference {
    pub(crate) fn new(fleet: Fleet, gate: Gate, routing: RoutingSection, metrics: Metrics) -> Self {
        let router = Router::new(fleet.clone(), routing, metrics.clone());
        Self { shared: Arc::new(Shared { fleet, gate, router, metrics }) }
    }
}

type ResponseStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl v1::inference_service_server::InferenceService for Inference {
    type GenerateStream = ResponseStream;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<ResponseStream>, Status> {
        let span = route_span(&request, "Generate");
        let result = self.shared.generate(request, &span).await;
        match result {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => {
                record_failure(&span, &status);
                self.shared.metrics.refused(&status);
                Err(status)
            }
        }
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let span = route_span(&request, "Tokenize");
        let result = self.shared.tokenize(request, &span).await;
        result.map(Response::new).inspect_err(|status| record_failure(&span, status))
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.shared.fleet.models().into_iter().map(to_wire).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }
}

impl Shared {
    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
        span: &Span,
    ) -> Result<ResponseStream, Status> {
        let arrival = Instant::now();
        let deadline = deadline::from_metadata(request.metadata(), arrival)?;
        let raw = request.into_inner();
        let checked = validate::Generate::try_from(raw.clone())?;
        describe_request(span, &checked);
        let admission = self.gate.admit()?;
        let session = Some(checked.session_id.as_str()).filter(|session| !session.is_empty());
        let call = Call { model: &checked.model, session, deadline, gate: &self.gate, span };
        let routed = self.router.route(&call, raw).await?;
        self.metrics.first_event(arrival.elapsed());
        let proxied = Proxied { routed, span: span.clone(), deadline, gate: self.gate.clone(), admission };
        Ok(Box::pin(proxied.events()))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
        span: &Span,
    ) -> Result<v1::TokenizeResponse, Status> {
        let deadline = deadline::from_metadata(request.metadata(), Instant::now())?;
        let raw = request.into_inner();
        let checked = validate::Tokenize::try_from(raw.clone())?;
        let _admission = self.gate.admit()?;
        let call = Call { model: &checked.model, session: None, deadline, gate: &self.gate, span };
        let routed = self.router.route(&call, raw).await?;
        Ok(routed.value)
    }
}

fn route_span<T>(request: &Request<T>, method: &'static str) -> Span {
    use semconv::attribute as name;
    let span = info_span!(semconv::span::ROUTE, otel.kind = "server");
    trace_context::set_parent(&span, request.metadata());
    span.set_attribute(name::PROVIDER_NAME, semconv::PROVIDER);
    span.set_attribute(name::RPC_SYSTEM, "grpc");
    span.set_attribute(name::RPC_SERVICE, v1::inference_service_server::SERVICE_NAME);
    span.set_attribute(name::RPC_METHOD, method);
    span
}

fn describe_request(span: &Span, request: &validate::Generate) {
    use semconv::attribute as name;
    let operation = match request.input {
        Input::Chat(_) => "chat",
        Input::Text(_) | Input::TokenIds(_) => "text_completion",
    };
    span.set_attribute(name::OPERATION_NAME, operation);
    span.set_attribute(name::REQUEST_MODEL, request.model.clone());
}

/// Notes code and reason of a failure; the span counts as failed where the fleet and not the client is to blame.
fn record_failure(span: &Span, status: &Status) {
    use semconv::attribute as name;
    span.set_attribute(name::RPC_GRPC_STATUS_CODE, i64::from(status.code() as i32));
    span.set_attribute(name::ERROR_TYPE, status::error_type(status));
    let ours = [Reason::EngineFailed, Reason::Internal, Reason::GatewayLost, Reason::NoGateway];
    if status::reason_of(status).is_some_and(|reason| ours.contains(&reason)) {
        span.set_status(opentelemetry::trace::Status::error(status.message().to_owned()));
    }
}
