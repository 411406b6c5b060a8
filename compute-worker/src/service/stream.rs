//! A running generation as the stream of one response.

use std::{collections::VecDeque, sync::Arc, time::Instant};

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
    /// Pieces of the last delta that are still to be sent.
    rest: VecDeque<v1::Delta>,
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
        Self { generation, started, call, rest: VecDeque::new(), outcome: None, _admission: admission }
    }
}

impl Answer for Running {
    type Event = v1::GenerateResponse;

    async fn next(&mut self) -> Result<v1::GenerateResponse, Status> {
        if let Some(delta) = self.rest.pop_front() {
            return Ok(response(v1::generate_response::Event::Delta(delta)));
        }
        // Cancel safe: an event is taken only when it is returned.
        let event = match self.generation.next().await {
            Some(Event::Started { prompt_tokens, cached_tokens }) => {
                self.started(prompt_tokens, cached_tokens)
            }
            Some(Event::Delta(delta)) => {
                let (first, rest) = split(convert::delta(delta, &self.call.tokenizer));
                self.rest = rest;
                v1::generate_response::Event::Delta(first)
            }
            Some(Event::Finished(finished)) => self.finished(finished),
            Some(Event::Failed(error)) => return Err(self.failed(errors::generation(&error))),
            None => return Err(self.failed(errors::generation(&crate::engine::GenerationError::Stopped))),
        };
        Ok(response(event))
    }

    fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    fn broken_off(&mut self, status: &Status) {
        self.failed(status.clone());
    }
}

fn response(event: v1::generate_response::Event) -> v1::GenerateResponse {
    v1::GenerateResponse { event: Some(event) }
}

/// Tokens with log-probabilities in one message; far fewer than the 4 MiB of a message hold.
const MOST_LOGPROBS: usize = 512;

/// A delta that a slow reader let grow, in pieces that fit messages. The text comes with the last piece, as text
/// may lag behind tokens anyway.
fn split(mut delta: v1::Delta) -> (v1::Delta, VecDeque<v1::Delta>) {
    let mut pieces = VecDeque::new();
    while delta.logprobs.len() > MOST_LOGPROBS {
        let rest = v1::Delta {
            text: std::mem::take(&mut delta.text),
            token_ids: delta.token_ids.split_off(MOST_LOGPROBS.min(delta.token_ids.len())),
            logprobs: delta.logprobs.split_off(MOST_LOGPROBS),
        };
        pieces.push_back(std::mem::replace(&mut delta, rest));
    }
    pieces.push_back(delta);
    let first = pieces.pop_front().unwrap_or_default();
    (first, pieces)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_delta_is_split_and_nothing_is_lost() {
        for count in [0, 1, 512, 513, 1500] {
            let logprobs = vec![v1::TokenLogprobs::default(); count];
            let delta = v1::Delta { text: "all".into(), token_ids: (0..count as u32).collect(), logprobs };
            let (first, rest) = split(delta);
            let pieces: Vec<_> = std::iter::once(first).chain(rest).collect();
            assert_eq!(pieces.len(), count.div_ceil(MOST_LOGPROBS).max(1));
            let ids: Vec<_> = pieces.iter().flat_map(|piece| piece.token_ids.clone()).collect();
            assert_eq!(ids, (0..count as u32).collect::<Vec<_>>());
            assert!(pieces.iter().all(|piece| piece.token_ids.len() == piece.logprobs.len()));
            assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), "all");
        }
    }
}
