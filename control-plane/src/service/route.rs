//! Finds a gateway for a request, and another one while nothing of the answer has reached the client.
//!
//! ```text
//!  place ─► attempt ─► answer begins ─► done
//!    ▲         │ gateway lost, draining or full (or its engine failed: once), and attempts are left
//!    └─────────┘
//! ```
//!
//! A request waits for a gateway only when none that serves its model is linked, at most for the configured time.
//! When gateways are there but full, the client is told at once: it knows better than we how long to wait.

use std::time::{Duration, Instant};

use rookery_proto::{
    semconv::{self, attribute},
    server::Gate,
    status::{self, Reason},
    trace_context, v1,
};
use tokio::time::timeout_at;
use tonic::{Request, Status, Streaming};
use tracing::{Span, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    Metrics,
    ending::AttemptEnding,
    errors::{self, Retry},
};
use crate::{
    config::RoutingSection,
    domain::{LinkId, NoRoute},
    fleet::{Fleet, Place},
};

/// What routing needs to know of a call.
pub(super) struct Call<'a> {
    pub(super) model: &'a str,
    pub(super) session: Option<&'a str>,
    pub(super) deadline: Option<Instant>,
    pub(super) gate: &'a Gate,
    pub(super) span: &'a Span,
    /// The client's trace context.
    pub(super) incoming: &'a opentelemetry::Context,
}

/// A call that a gateway has begun to answer.
pub(super) struct Routed<T> {
    pub(super) value: T,
    pub(super) place: Place,
    pub(super) ending: AttemptEnding,
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
    /// Until it is passed on.
    pub(super) first: Option<v1::GenerateResponse>,
    pub(super) rest: Streaming<v1::GenerateResponse>,
}

/// One try on one gateway.
pub(super) struct Attempt {
    place: Place,
    ending: AttemptEnding,
    deadline: Option<Instant>,
    incoming: opentelemetry::Context,
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
        let mut failures = Failures::default();
        for number in 1..=self.config.max_attempts.get() {
            let place = match self.place(call, &tried, &failures).await {
                Ok(place) => place,
                Err(error) => return Err(failures.answer(call, &error)),
            };
            let span = attempt_span(call.span, &place, number);
            let mut attempt = Attempt {
                ending: AttemptEnding::new(span, self.metrics.clone()),
                deadline: call.deadline,
                incoming: call.incoming.clone(),
                place,
            };
            let result = tokio::select! {
                biased;
                () = call.gate.cut() => Err(Gate::draining_status()),
                result = attempt.within_deadline(message.clone().call(&attempt)) => result,
            };
            let gateway = &attempt.place.reservation.gateway;
            let status = match result {
                Ok(value) => return Ok(Routed { value, place: attempt.place, ending: attempt.ending }),
                Err(status) => status,
            };
            let retry = failures.allow_another(&status)
                && number < self.config.max_attempts.get()
                && !call.gate.is_draining();
            attempt.ending.failed(gateway, &status, retry);
            let passed_on = errors::pass_on(gateway, &status);
            if !retry {
                return Err(failures
                    .full
                    .filter(|_| errors::retry(&status) == Retry::Yes)
                    .unwrap_or(passed_on));
            }
            info!(%gateway, code = ?status.code(), message = status.message(), "trying another gateway");
            tried.push(attempt.place.reservation.link);
            failures.add(passed_on);
        }
        // Not reached: there is at least one attempt, and the last one returns.
        Err(failures.answer(call, &NoPlace::Route(NoRoute::NoneLive)))
    }

    /// A place on a gateway that was not tried yet. Waits for one only while that is the best there is to say.
    async fn place(&self, call: &Call<'_>, tried: &[LinkId], failures: &Failures) -> Result<Place, NoPlace> {
        let now = Instant::now();
        let wait = if failures.tell_enough() { Duration::ZERO } else { self.config.wait_for_gateway };
        let end = (now + wait).min(call.deadline.unwrap_or(now + wait));
        let place = self.fleet.place(call.model, call.session, tried, end.into());
        let result = tokio::select! {
            biased;
            () = call.gate.cut() => return Err(NoPlace::Draining),
            result = place => result,
        };
        result.map_err(|error| match call.deadline {
            Some(deadline) if deadline <= Instant::now() => NoPlace::Deadline,
            _ => NoPlace::Route(error),
        })
    }
}

/// Why no further gateway is tried.
enum NoPlace {
    Draining,
    Deadline,
    Route(NoRoute),
}

/// What the gateways tried so far failed with.
#[derive(Default)]
struct Failures {
    /// The last that was merely full: it tells when to try again.
    full: Option<Status>,
    engine_failed: bool,
    last: Option<Status>,
}

impl Failures {
    /// Whether another gateway may be tried after this failure.
    fn allow_another(&self, status: &Status) -> bool {
        match errors::retry(status) {
            Retry::Yes => true,
            Retry::Once => !self.engine_failed,
            Retry::Never => false,
        }
    }

    fn add(&mut self, status: Status) {
        match status::reason_of(&status) {
            Some(Reason::QueueFull) => self.full = Some(status.clone()),
            Some(Reason::EngineFailed) => self.engine_failed = true,
            _ => {}
        }
        self.last = Some(status);
    }

    /// Whether the client is better told now than made to wait for a gateway that may come.
    fn tell_enough(&self) -> bool {
        self.full.is_some() || self.engine_failed
    }

    /// The status for the client when no gateway is left to try: what a gateway said itself, if one still could.
    fn answer(self, call: &Call<'_>, error: &NoPlace) -> Status {
        if let Some(full) = self.full {
            return full;
        }
        match (error, self.last) {
            (NoPlace::Draining, _) => Gate::draining_status(),
            (NoPlace::Deadline, _) => errors::deadline(),
            (NoPlace::Route(NoRoute::AllTried), Some(last)) => last,
            (NoPlace::Route(_), Some(last)) if self.engine_failed => last,
            (NoPlace::Route(error), _) => errors::no_route(call.model, error),
        }
    }
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
        let first = first.ok_or_else(|| errors::gateway_lost(&attempt.place.reservation.gateway))?;
        Ok(Begun { first: Some(first), rest })
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
        trace_context::inject_or(self.ending.span(), &self.incoming, request.metadata_mut());
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
    use super::*;

    fn answer(failed: &[Reason], error: NoPlace) -> Option<Reason> {
        let mut failures = Failures::default();
        failed.iter().for_each(|&reason| failures.add(status::refuse(reason, "")));
        let (gate, span, incoming) = (Gate::new(1), Span::none(), opentelemetry::Context::new());
        let call =
            Call { model: "m", session: None, deadline: None, gate: &gate, span: &span, incoming: &incoming };
        status::reason_of(&failures.answer(&call, &error))
    }

    #[test]
    fn a_gateways_own_failure_tells_more_than_that_none_is_left() {
        let (none, all) = (|| NoPlace::Route(NoRoute::NoneLive), || NoPlace::Route(NoRoute::AllTried));
        assert_eq!(answer(&[], none()), Some(Reason::NoGateway));
        assert_eq!(answer(&[Reason::QueueFull, Reason::GatewayLost], none()), Some(Reason::QueueFull));
        assert_eq!(answer(&[Reason::GatewayLost], all()), Some(Reason::GatewayLost));
        assert_eq!(answer(&[Reason::GatewayLost], none()), Some(Reason::NoGateway));
        assert_eq!(answer(&[Reason::EngineFailed], none()), Some(Reason::EngineFailed));
        assert_eq!(answer(&[Reason::Draining], NoPlace::Deadline), Some(Reason::DeadlineExceeded));
    }

    #[test]
    fn an_engine_that_fails_is_followed_by_one_other() {
        let mut failures = Failures::default();
        let failed = status::refuse(Reason::EngineFailed, "");
        assert!(failures.allow_another(&failed) && !failures.tell_enough());
        failures.add(failed.clone());
        assert!(!failures.allow_another(&failed) && failures.tell_enough());
        assert!(failures.allow_another(&status::refuse(Reason::QueueFull, "")));
    }
}
