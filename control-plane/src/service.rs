//! `InferenceService` for clients: checks a request, finds it a gateway, passes the answer on.
//!
//! A client that goes away drops the handler or the stream, which drops the call to the worker, which cancels it
//! there. Metadata of clients is not passed on to gateways, except for trace context and the deadline.

mod ending;
mod errors;
mod metrics;
mod proxy;
mod route;

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::Stream;
use rookery_proto::{
    deadline, semconv,
    server::{Admission, Gate, Tasks, answer},
    status,
    status::Reason,
    trace_context, v1, validate,
    validate::Input,
};
use tonic::{Request, Response, Status};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    config::RoutingSection,
    fleet::{Fleet, to_wire},
};
use ending::CallEnding;
pub(crate) use metrics::Metrics;
use proxy::Proxied;
use route::{Begun, Call, Routed, Router};

/// The inference service of the control plane. Clones share everything.
#[derive(Clone)]
pub struct Inference {
    shared: Arc<Shared>,
}

struct Shared {
    fleet: Fleet,
    gate: Gate,
    tasks: Tasks,
    router: Router,
    metrics: Metrics,
}

impl Inference {
    pub(crate) fn new(
        fleet: Fleet,
        gate: Gate,
        tasks: Tasks,
        routing: RoutingSection,
        metrics: Metrics,
    ) -> Self {
        let router = Router::new(fleet.clone(), routing, metrics.clone());
        Self { shared: Arc::new(Shared { fleet, gate, tasks, router, metrics }) }
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
        let mut ending = CallEnding::new(route_span(&request, "Generate"));
        let arrival = Instant::now();
        match self.shared.generate(request, ending.span(), arrival).await {
            Ok(Generation { routed, admission, deadline }) => {
                self.shared.metrics.first_event(arrival.elapsed());
                let proxied = Proxied::new(routed, ending, admission);
                let events = answer(proxied, deadline, &self.shared.gate, &self.shared.tasks);
                Ok(Response::new(Box::pin(events)))
            }
            Err(status) => {
                ending.failed(&status);
                self.shared.metrics.refused(&status);
                Err(status)
            }
        }
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let mut ending = CallEnding::new(route_span(&request, "Tokenize"));
        match self.shared.tokenize(request, ending.span()).await {
            Ok(response) => {
                ending.ok();
                Ok(Response::new(response))
            }
            Err(status) => {
                ending.failed(&status);
                Err(status)
            }
        }
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.shared.fleet.models().into_iter().map(to_wire).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }
}

/// A generation that a gateway has begun to answer.
struct Generation {
    routed: Routed<Begun>,
    admission: Admission,
    deadline: Option<Instant>,
}

impl Shared {
    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
        span: &Span,
        arrival: Instant,
    ) -> Result<Generation, Status> {
        let incoming = trace_context::extract(request.metadata());
        let deadline = deadline::from_metadata(request.metadata(), arrival)?;
        let raw = request.into_inner();
        let checked = validate::Generate::try_from(raw.clone())?;
        describe_request(span, &checked);
        let admission = self.gate.admit()?;
        let session = Some(checked.session_id.as_str()).filter(|session| !session.is_empty());
        let call =
            Call { model: &checked.model, session, deadline, gate: &self.gate, span, incoming: &incoming };
        let routed = self.router.route(&call, raw).await?;
        Ok(Generation { routed, admission, deadline })
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
        span: &Span,
    ) -> Result<v1::TokenizeResponse, Status> {
        let incoming = trace_context::extract(request.metadata());
        let deadline = deadline::from_metadata(request.metadata(), Instant::now())?;
        let raw = request.into_inner();
        let checked = validate::Tokenize::try_from(raw.clone())?;
        let _admission = self.gate.admit()?;
        let call = Call {
            model: &checked.model,
            session: None,
            deadline,
            gate: &self.gate,
            span,
            incoming: &incoming,
        };
        let mut routed = self.router.route(&call, raw).await?;
        routed.ending.ok();
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
