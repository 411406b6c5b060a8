//! A running generation as the stream of one response.

use std::{sync::Arc, time::Instant};

use rookery_model::tokenizer::Tokenizer;
use rookery_proto::{
    semconv::attribute,
    server::{Admission, Answer},
    status, v1,
};
use tonic::Status;
use tracing::{Span, debug, error};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Metrics, convert, errors, record_failure};
use crate::engine::{Event, Finished, Generation};

/// What a stream needs of its call.
pub(super) struct Call {
    pub(super) span: Span,
    pub(super) arrival: Instant,
    pub(super) metrics: Metrics,
    pub(super) tokenizer: Arc<Tokenizer>,
}

/// A generation as the answer to its call. Dropping it cancels the generation.
pub(super) struct Running {
    generation: Generation,
    started: v1::Started,
    call: Call,
    /// How the stream ended; `None` while it runs and if the client went away first.
    outcome: Option<String>,
    _admission: Admission,
}

impl Running {
    /// `started` lacks only the token counts.
    pub(super) fn new(
        generation: Generation,
        started: v1::Started,
        call: Call,
        admission: Admission,
    ) -> Self {
        Self { generation, started, call, outcome: None, _admission: admission }
    }
}

impl Answer for Running {
    type Event = v1::GenerateResponse;

    async fn next(&mut self) -> Result<v1::GenerateResponse, Status> {
        // Cancel safe: an event is taken only when it is returned.
        let event = match self.generation.next().await {
            Some(Event::Started { prompt_tokens, cached_tokens }) => {
                self.started(prompt_tokens, cached_tokens)
            }
            Some(Event::Delta(delta)) => {
                v1::generate_response::Event::Delta(convert::delta(delta, &self.call.tokenizer))
            }
            Some(Event::Finished(finished)) => self.finished(finished),
            Some(Event::Failed(error)) => return Err(self.failed(errors::generation(&error))),
            None => return Err(self.failed(errors::generation(&crate::engine::GenerationError::Stopped))),
        };
        Ok(v1::GenerateResponse { event: Some(event) })
    }

    fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    fn broken_off(&mut self, status: &Status) {
        self.failed(status.clone());
    }
}

impl Running {
    fn started(&self, prompt_tokens: u32, cached_tokens: u32) -> v1::generate_response::Event {
        let started = v1::Started { prompt_tokens, cached_tokens, ..self.started.clone() };
        v1::generate_response::Event::Started(started)
    }

    fn finished(&mut self, finished: Finished) -> v1::generate_response::Event {
        let (usage, span) = (finished.usage, &self.call.span);
        let reason = convert::reason(finished.reason).as_str_name();
        let short = reason.trim_start_matches("FINISH_REASON_").to_ascii_lowercase();
        span.set_attribute(attribute::USAGE_INPUT_TOKENS, i64::from(usage.prompt_tokens));
        span.set_attribute(attribute::USAGE_OUTPUT_TOKENS, i64::from(usage.generated_tokens));
        span.set_attribute(attribute::USAGE_CACHED_TOKENS, i64::from(usage.cached_tokens));
        span.set_attribute(attribute::PREEMPTIONS, i64::from(usage.preemptions));
        let reasons = vec![opentelemetry::StringValue::from(short.clone())];
        span.set_attribute(attribute::RESPONSE_FINISH_REASONS, opentelemetry::Value::Array(reasons.into()));
        span.set_attribute(attribute::RPC_GRPC_STATUS_CODE, 0);
        self.outcome = Some(short);
        v1::generate_response::Event::Finished(convert::finished(finished))
    }

    fn failed(&mut self, status: Status) -> Status {
        record_failure(&self.call.span, &status);
        let reason = status::error_type(&status);
        if status::reason_of(&status) == Some(status::Reason::EngineFailed) {
            error!(request_id = self.started.request_id, message = status.message(), "the engine failed");
        } else {
            debug!(request_id = self.started.request_id, reason, "a generation was ended");
        }
        self.outcome = Some(reason);
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let outcome = self.outcome.as_deref().unwrap_or("cancelled");
        if self.outcome.is_none() {
            self.call.span.set_attribute(attribute::ERROR_TYPE, "cancelled");
        }
        self.call.metrics.ended(&self.started.model, outcome, self.call.arrival.elapsed());
    }
}
