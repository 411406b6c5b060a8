//! `InferenceService` for clients: checks a request, finds it a gateway, passes the answer on, from another gateway if
//! the first is lost half-way.
//!
//! A client that goes away drops the handler or the stream, which drops the call to the worker, which cancels it
//! there. Metadata of clients is not passed on to gateways, except for trace context and the deadline.

mod artifacts;
mod ending;
mod enrolment;
mod errors;
mod fleet;
mod metrics;
mod models;
mod proxy;
mod rollouts;
mod route;
pub(crate) mod stored;

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
    domain::{Labels, Prompt},
    fleet::{Fleet, to_wire},
};
pub use artifacts::Blobs;
use ending::CallEnding;
pub use enrolment::Enrolment;
pub use fleet::FleetAdmin;
pub(crate) use metrics::Metrics;
pub use models::Models;
use proxy::{Proxied, Route};
pub use rollouts::Rollouts;
use route::{Before, Begun, Call, Routed, Router};

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
            Ok(Generation { routed, route, admission }) => {
                self.shared.metrics.first_event(arrival.elapsed());
                let deadline = route.call.deadline;
                let proxied = Proxied::new(routed, route, arrival, ending, admission);
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
    route: Route,
    admission: Admission,
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
        if raw.continuation.is_some() {
            return Err(status::invalid_field("continuation", "is for the control plane itself to set"));
        }
        let checked = validate::Generate::try_from(raw.clone())?;
        describe_request(span, &checked);
        let admission = self.gate.admit()?;
        let call = Call {
            prompt: prompt(&checked.input),
            model: checked.model,
            labels: checked.labels,
            session: Some(checked.session_id).filter(|session| !session.is_empty()),
            deadline,
            gate: self.gate.clone(),
            span: span.clone(),
            incoming,
        };
        let routed = self.router.route(&call, &raw, Before::default()).await?;
        let route = Route { router: self.router.clone(), call, request: raw };
        Ok(Generation { routed, route, admission })
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
            model: checked.model,
            labels: Labels::new(),
            session: None,
            prompt: Prompt::default(),
            deadline,
            gate: self.gate.clone(),
            span: span.clone(),
            incoming,
        };
        let mut routed = self.router.route(&call, &raw, Before::default()).await?;
        routed.ending.ok();
        Ok(routed.value)
    }
}

/// The prompt as routing sees it.
fn prompt(input: &Input) -> Prompt {
    match input {
        Input::Text(text) => Prompt::of_text(text),
        Input::TokenIds(ids) => Prompt::of_ids(ids),
        Input::Chat(messages) => {
            Prompt::of_messages(messages.iter().map(|message| (&*message.role, &*message.content)))
        }
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
