//! Finds a gateway for a request, and another one while nothing of the answer has reached the client.
//!
//! ```text
//!  place ─► attempt ─► answer begins ─► done
//!    ▲         │ gateway lost, draining or full, and attempts are left
//!    └─────────┘
//! ```
//!
//! A request waits for a gateway only when none that serves its model is linked, at most for the configured time.
//! When gateways are there but full, the client is told at once: it knows better than we how long to wait.

use std::time::{Duration, Instant};

use rookery_proto::{
    semconv::{self, attribute},
    server::Gate,
    trace_context, v1,
};
use tokio::time::timeout_at;
use tonic::{Code, Request, Status, Streaming};
use tracing::{Span, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Metrics, errors};
use crate::{
    config::RoutingSection,
    domain::{GatewayId, LinkId, NoRoute},
    fleet::{Fleet, Place},
};

/// What routing needs to know of a call.
pub(super) struct Call<'a> {
    pub(super) model: &'a str,
    pub(super) session: Option<&'a str>,
    pub(super) deadline: Option<Instant>,
    pub(super) gate: &'a Gate,
    pub(super) span: &'a Span,
}

/// A call that a gateway has begun to answer.
pub(super) struct Routed<T> {
    pub(super) value: T,
    pub(super) place: Place,
    pub(super) span: Span,
}

/// A request that can be sent to a gateway, again if need be.
pub(super) trait Method: Clone + Send + Sync {
    /// What there is once nothing can be tried again.
    type Answer: Send;

    /// Sends it and waits for the answer to begin.
    fn call(self, attempt: &Attempt) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

/// The first event of a generation, and the rest of them.
pub(super) struct Begun {
    pub(super) first: v1::GenerateResponse,
    pub(super) rest: Streaming<v1::GenerateResponse>,
}

/// One try on one gateway.
pub(super) struct Attempt {
    place: Place,
    span: Span,
    deadline: Option<Instant>,
}

pub(super) struct Router {
    fleet: Fleet,
    config: RoutingSection,
    metrics: Metrics,
}

impl Router {
    pub(super) fn new(fleet: Fleet, config: RoutingSection, metrics: Metrics) -> Self {
        Self { fleet, config, metrics }
    }

    /// Sends `message` to one gateway after the other until one has begun to answer.
    pub(super) async fn route<M: Method>(
        &self,
        call: &Call<'_>,
        message: M,
    ) -> Result<Routed<M::Answer>, Status> {
        let mut tried: Vec<LinkId> = Vec::new();
        let mut failure: Option<Status> = None;
        for number in 1..=self.config.max_attempts.get() {
            let place = match self.place(call, &tried, failure.as_ref()).await {
                Ok(place) => place,
                Err(status) => return Err(failure.filter(is_full).unwrap_or(status)),
            };
            let attempt =
                Attempt { span: attempt_span(call.span, &place, number), deadline: call.deadline, place };
            let (gateway, link) = (attempt.place.reservation.gateway.clone(), attempt.place.reservation.link);
            let result = tokio::select! {
                biased;
                () = call.gate.cut() => Err(Gate::draining_status()),
                result = attempt.within_deadline(message.clone().call(&attempt)) => result,
            };
            match result {
                Ok(value) => {
                    self.metrics.attempt("ok");
                    attempt.span.set_attribute(attribute::ATTEMPT_OUTCOME, "ok");
                    return Ok(Routed { value, place: attempt.place, span: attempt.span });
                }
                Err(status) => {
                    let retry = errors::is_worth_retrying(&status) && !call.gate.is_draining();
                    self.failed(&attempt.span, &gateway, &status, retry);
                    let status = errors::pass_on(&gateway, &status);
                    if !retry {
                        return Err(status);
                    }
                    tried.push(link);
                    failure = Some(status);
                }
            }
        }
        Err(failure.unwrap_or_else(|| errors::no_route(call.model, &NoRoute::NoneLive)))
    }

    /// A place on a gateway that was not tried yet. Waits for one unless those tried are merely full.
    async fn place(
        &self,
        call: &Call<'_>,
        tried: &[LinkId],
        failure: Option<&Status>,
    ) -> Result<Place, Status> {
        let now = Instant::now();
        let wait = if failure.is_some_and(is_full) { Duration::ZERO } else { self.config.wait_for_gateway };
        let end = (now + wait).min(call.deadline.unwrap_or(now + wait));
        let place = self.fleet.place(call.model, call.session, tried, end.into());
        let result = tokio::select! {
            biased;
            () = call.gate.cut() => return Err(Gate::draining_status()),
            result = place => result,
        };
        result.map_err(|error| match call.deadline {
            Some(deadline) if deadline <= Instant::now() => errors::deadline(),
            _ => errors::no_route(call.model, &error),
        })
    }

    fn failed(&self, span: &Span, gateway: &GatewayId, status: &Status, retry: bool) {
        let outcome = if retry { "retry" } else { "error" };
        self.metrics.attempt(outcome);
        span.set_attribute(attribute::ATTEMPT_OUTCOME, outcome);
        super::record_failure(span, &errors::pass_on(gateway, status));
        if retry {
            info!(%gateway, code = ?status.code(), message = status.message(), "trying another gateway");
        }
    }
}

fn is_full(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted
}

fn attempt_span(parent: &Span, place: &Place, number: u32) -> Span {
    let span = info_span!(parent: parent, semconv::span::ATTEMPT, otel.kind = "client");
    span.set_attribute(attribute::GATEWAY_ID, place.reservation.gateway.to_string());
    span.set_attribute(attribute::ATTEMPT_NUMBER, i64::from(number));
    span.set_attribute(attribute::RPC_SYSTEM, "grpc");
    span
}

impl Method for v1::GenerateRequest {
    type Answer = Begun;

    async fn call(self, attempt: &Attempt) -> Result<Begun, Status> {
        let mut client = attempt.place.reservation.connection.inference();
        let mut rest = client.generate(attempt.request(self)).await?.into_inner();
        let first = rest.message().await?;
        // A stream that ends before it began is a broken gateway, like a connection that does.
        let first = first.ok_or_else(|| Status::unavailable("the gateway sent no event"))?;
        Ok(Begun { first, rest })
    }
}

impl Method for v1::TokenizeRequest {
    type Answer = v1::TokenizeResponse;

    async fn call(self, attempt: &Attempt) -> Result<v1::TokenizeResponse, Status> {
        let mut client = attempt.place.reservation.connection.inference();
        Ok(client.tokenize(attempt.request(self)).await?.into_inner())
    }
}

impl Attempt {
    /// The message with trace context and what is left of the deadline.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        trace_context::inject(&self.span, request.metadata_mut());
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        request
    }

    async fn within_deadline<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        match self.deadline {
            Some(deadline) => {
                timeout_at(deadline.into(), work).await.unwrap_or_else(|_| Err(errors::deadline()))
            }
            None => work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use rookery_proto::status;

    use super::*;

    #[test]
    fn full_is_told_apart_from_gone() {
        assert!(is_full(&status::refuse(status::Reason::QueueFull, "")));
        assert!(!is_full(&status::refuse(status::Reason::NoGateway, "")));
    }
}
