//! `InferenceService` over the engines of this worker. Handlers are thin: check, tokenise, submit, pass events on.
//!
//! ```text
//! request ─► validate ─► Models::find ─► Gate::admit ─► prompt (text → ids) ─► EngineHandle::submit ─► stream
//! ```
//!
//! Raw messages stop here; every error becomes a status in `errors`. A stream holds its place at the gate and its
//! generation, so a client that goes away frees both by dropping it.

mod convert;
mod errors;
mod metrics;
mod models;
mod numbers;
mod prompt;
mod stream;

use std::{pin::Pin, sync::Arc, time::Instant};

use futures_util::Stream;
use rookery_proto::{
    deadline, semconv,
    server::{Admission, Gate, Tasks, answer},
    status::{self, Reason},
    trace_context, v1,
    validate::{self, Input},
};
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

pub(crate) use metrics::Metrics;
pub(crate) use models::{Entry, Models, Served, Set};
use prompt::{Prompt, Prompts};

use crate::engine;

/// The inference service of one worker. Clones share everything.
#[derive(Clone)]
pub struct Inference {
    shared: Arc<Shared>,
}

struct Shared {
    gateway_id: String,
    models: Models,
    gate: Gate,
    tasks: Tasks,
    prompts: Prompts,
    metrics: Metrics,
}

impl Inference {
    pub(crate) fn new(
        gateway_id: String,
        models: Models,
        gate: Gate,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Self {
        let prompts = Prompts::new(tasks.clone());
        Self { shared: Arc::new(Shared { gateway_id, models, gate, tasks, prompts, metrics }) }
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
        let arrival = Instant::now();
        let request_id = Uuid::new_v4().to_string();
        let span = info_span!(semconv::span::GENERATE, otel.kind = "server", request_id = %request_id);
        trace_context::set_parent(&span, request.metadata());
        describe_call(&span, &self.shared.gateway_id, &request_id);
        let result = self.shared.generate(request, request_id, arrival, &span).instrument(span.clone()).await;
        match result {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => {
                record_failure(&span, &status);
                Err(status)
            }
        }
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let deadline = deadline::from_metadata(request.metadata(), Instant::now())?;
        let request = validate::Tokenize::try_from(request.into_inner())?;
        let admission = self.shared.gate.admit()?;
        let engine = self.shared.models.find(&request.model)?;
        let tokenizer = engine.tokenizer();
        let prompt = self.shared.prompts.tokens(tokenizer, request.input, deadline, admission).await?;
        let Prompt { token_ids, admission: _admission } = prompt;
        let bytes = |&id: &u32| tokenizer.token_bytes(id).unwrap_or_default().to_vec();
        let token_bytes = token_ids.iter().map(bytes).collect();
        Ok(Response::new(v1::TokenizeResponse { token_ids, token_bytes }))
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        Ok(Response::new(v1::ListModelsResponse { models: self.shared.models.list() }))
    }
}

/// A request that is ready for its engine.
struct Prepared {
    engine: Served,
    request: engine::Request,
    /// Where the prompt came from.
    field: &'static str,
    admission: Admission,
}

impl Shared {
    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
        request_id: String,
        arrival: Instant,
        span: &Span,
    ) -> Result<ResponseStream, Status> {
        let prepared = self.prepare(request, request_id, arrival, span).await;
        // What the engine itself refuses, it counts itself.
        let Prepared { engine, request, field, admission } =
            prepared.inspect_err(|s| self.metrics.refused(s))?;
        let info = engine.info();
        let started = v1::Started {
            request_id: request.id.clone(),
            gateway: self.gateway_id.clone(),
            model: engine.name().to_owned(),
            model_digest: info.digest.clone(),
            prompt_tokens: 0,
            cached_tokens: 0,
            seed: request.sampling.seed,
        };
        let call = stream::Call {
            span: span.clone(),
            arrival,
            metrics: self.metrics.clone(),
            tokenizer: Arc::clone(engine.tokenizer()),
        };
        let deadline = request.deadline;
        let generation = engine.submit(request).map_err(|error| errors::submit(field, error))?;
        let running = stream::Running::new(generation, started, call, admission);
        let answer = answer(running, deadline, &self.gate, &self.tasks);
        Ok(Box::pin(engine.count(answer, arrival)))
    }

    async fn prepare(
        &self,
        request: Request<v1::GenerateRequest>,
        id: String,
        arrival: Instant,
        span: &Span,
    ) -> Result<Prepared, Status> {
        let deadline = deadline::from_metadata(request.metadata(), arrival)?;
        let request = validate::Generate::try_from(request.into_inner())?;
        describe_request(span, &request);
        let admission = self.gate.admit()?;
        let engine = self.models.find(&request.model)?;
        let info = engine.info();
        request.check_vocabulary(info.vocabulary)?;
        let seed = request.sampling.seed.unwrap_or_else(draw_seed);
        span.set_attribute(semconv::attribute::RESPONSE_MODEL, engine.name().to_owned());
        span.set_attribute(semconv::attribute::MODEL_DIGEST, info.digest.clone());
        // Attributes are integers of 64 bits with a sign; half of all seeds do not fit, so it is text.
        span.set_attribute(semconv::attribute::REQUEST_SEED, seed.to_string());
        let field = request.input.field();
        let prompt = self.prompts.tokens(engine.tokenizer(), request.input, deadline, admission).await?;
        let Prompt { token_ids, admission } = prompt;
        let request = engine::Request {
            id,
            prompt: token_ids,
            sampling: convert::sampling(request.sampling, seed),
            stop: convert::stop(request.stop),
            continuation: request.continuation.map(convert::continuation),
            logprobs: request.logprobs,
            priority: request.priority,
            deadline,
            span: span.clone(),
        };
        Ok(Prepared { engine, request, field, admission })
    }
}

fn describe_call(span: &Span, gateway_id: &str, request_id: &str) {
    use semconv::attribute as name;
    span.set_attribute(name::PROVIDER_NAME, semconv::PROVIDER);
    span.set_attribute(name::RPC_SYSTEM, "grpc");
    span.set_attribute(name::RPC_SERVICE, v1::inference_service_server::SERVICE_NAME);
    span.set_attribute(name::RPC_METHOD, "Generate");
    span.set_attribute(name::GATEWAY_ID, gateway_id.to_owned());
    span.set_attribute(name::RESPONSE_ID, request_id.to_owned());
}

fn describe_request(span: &Span, request: &validate::Generate) {
    use semconv::attribute as name;
    let operation = match request.input {
        Input::Chat(_) => "chat",
        Input::Text(_) | Input::TokenIds(_) => "text_completion",
    };
    let sampling = &request.sampling;
    span.set_attribute(name::OPERATION_NAME, operation);
    span.set_attribute(name::REQUEST_MODEL, request.model.clone());
    span.set_attribute(name::REQUEST_TEMPERATURE, f64::from(sampling.temperature));
    span.set_attribute(name::REQUEST_TOP_P, f64::from(sampling.top_p));
    span.set_attribute(name::REQUEST_TOP_K, i64::from(sampling.top_k));
    if let Some(tokens) = sampling.max_tokens {
        span.set_attribute(name::REQUEST_MAX_TOKENS, i64::from(tokens));
    }
}

/// Marks a server span as failed where the server is to blame, and notes code and reason in any case.
fn record_failure(span: &Span, status: &Status) {
    use semconv::attribute as name;
    span.set_attribute(name::RPC_GRPC_STATUS_CODE, i64::from(status.code() as i32));
    span.set_attribute(name::ERROR_TYPE, status::error_type(status));
    let ours = [Some(Reason::EngineFailed), Some(Reason::Internal)];
    if ours.contains(&status::reason_of(status)) {
        span.set_status(opentelemetry::trace::Status::error(status.message().to_owned()));
    }
}

fn draw_seed() -> u64 {
    // Folding covers the few bits of a random UUID that are fixed.
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}
