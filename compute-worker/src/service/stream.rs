//! A running generation as the stream of one response.

use std::{future::pending, sync::Arc, time::Instant};

use futures_util::{Stream, stream};
use rookery_model::tokenizer::Tokenizer;
use rookery_proto::{
    semconv::attribute,
    server::{Admission, Gate},
    status, v1,
};
use tokio::time::sleep_until;
use tonic::Status;
use tracing::{Span, debug, error};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Metrics, convert, errors, record_failure};
use crate::engine::{Event, Finished, Generation};

/// What a stream needs of its call.
pub(super) struct Call {
    pub(super) span: Span,
    pub(super) arrival: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) gate: Gate,
    pub(super) metrics: Metrics,
    pub(super) tokenizer: Arc<Tokenizer>,
}

struct Running {
    generation: Generation,
    started: v1::Started,
    call: Call,
    /// How the stream ended; `None` while it runs and if the client went away first.
    outcome: Option<String>,
    _admission: Admission,
}

/// The events of `generation`. Dropping the stream cancels it. `started` lacks only the token counts.
pub(super) fn events(
    generation: Generation,
    started: v1::Started,
    call: Call,
    admission: Admission,
) -> impl Stream<Item = Result<v1::GenerateResponse, Status>> + Send {
    let running = Running { generation, started, call, outcome: None, _admission: admission };
    // The state is given up with the last event, which frees everything even if the client does not read on.
    stream::unfold(Some(running), |running| async {
        let mut running = running?;
        let item = running.next().await;
        let last = running.outcome.is_some();
        Some((item, (!last).then_some(running)))
    })
}

impl Running {
    async fn next(&mut self) -> Result<v1::GenerateResponse, Status> {
        let deadline = self.call.deadline;
        let passed = async {
            match deadline {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        // Every arm is cancel safe: an event is taken only when it is returned, the others are only times.
        let event = tokio::select! {
            biased;
            event = self.generation.next() => event,
            () = self.call.gate.cut() => return Err(self.failed(Gate::draining_status())),
            // The engine honours the deadline too, but only between steps.
            () = passed => return Err(self.failed(errors::deadline())),
        };
        let event = match event {
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
