//! Finds a gateway for a request, or for the rest of one, and another one while nothing of the answer has come.
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
    trace_context,
    v1::{self, generate_response::Event},
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
    domain::{GatewayId, Labels, LinkId, NoRoute, Prompt},
    fleet::{Fleet, Place, Wanted},
};

/// What routing needs to know of a call, for as long as it lasts.
pub(super) struct Call {
    pub(super) model: String,
    pub(super) labels: Labels,
    pub(super) session: Option<String>,
    pub(super) prompt: Prompt,
    pub(super) deadline: Option<Instant>,
    pub(super) gate: Gate,
    pub(super) span: Span,
    /// The client's trace context.
    pub(super) incoming: opentelemetry::Context,
}

/// What happened to a call before.
#[derive(Default)]
pub(super) struct Before {
    /// Version that began the answer: nothing else will do.
    pub(super) digest: Option<String>,
    /// Tries so far.
    pub(super) attempts: u32,
    /// Links that failed.
    pub(super) tried: Vec<LinkId>,
    /// One of them because its engine failed.
    pub(super) engine_failed: bool,
}

/// A call that a gateway has begun to answer.
pub(super) struct Routed<T> {
    pub(super) value: T,
    pub(super) place: Place,
    pub(super) ending: AttemptEnding,
    /// Tries until now, this one included.
    pub(super) attempts: u32,
}

impl<T> Routed<T> {
    pub(super) fn gateway(&self) -> &GatewayId {
        &self.place.reservation.gateway
    }

    /// The gateway has answered to the end.
    pub(super) fn ok(&mut self) {
        self.ending.ok();
        self.place.ended(false);
    }

    /// The gateway has failed. `again`: the call goes on elsewhere.
    pub(super) fn failed(&mut self, status: &Status, again: bool) {
        self.ending.failed(&self.place.reservation.gateway, status, again);
        self.place.ended(errors::blames_gateway(status));
    }
}

/// A request that can be sent to a gateway, again if need be.
pub(super) trait Method: Clone + Send + Sync {
    /// What there is once nothing can be tried again.
    type Answer: Send;

    /// Whether its tries tell how well a version serves.
    const COUNTS: bool;

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
    /// The version that must answer, if only one may.
    digest: Option<String>,
}

#[derive(Clone)]
pub(super) struct Router {
    fleet: Fleet,
    config: RoutingSection,
    metrics: Metrics,
}

impl Router {
    pub(super) fn new(fleet: Fleet, config: RoutingSection, metrics: Metrics) -> Self {
        Self { fleet, config, metrics }
    }

    /// How often an answer may go on elsewhere.
    pub(super) fn max_continuations(&self) -> u32 {
        self.config.max_continuations
    }

    /// Sends `message` to one gateway after the other until one has begun to answer.
    pub(super) async fn route<M: Method>(
        &self,
        call: &Call,
        message: &M,
        before: Before,
    ) -> Result<Routed<M::Answer>, Status> {
        let Before { digest, attempts, mut tried, engine_failed } = before;
        let mut failures = Failures { engine_failed, ..Failures::default() };
        for number in 1..=self.config.max_attempts.get() {
            let attempts = attempts.saturating_add(number);
            let place = match self.place(call, digest.as_deref(), &tried, &failures).await {
                Ok(place) => place,
                Err(error) => return Err(failures.answer(&call.model, &error)),
            };
            let span = attempt_span(&call.span, &place, attempts);
            let mut attempt = Attempt {
                ending: AttemptEnding::new(span, self.metrics.clone()),
                deadline: call.deadline,
                incoming: call.incoming.clone(),
                digest: digest.clone(),
                place,
            };
            let result = tokio::select! {
                biased;
                () = call.gate.cut() => Err(Gate::draining_status()),
                result = attempt.within_deadline(message.clone().call(&attempt)) => result,
            };
            let status = match result {
                Ok(value) => {
                    let Attempt { mut place, ending, .. } = attempt;
                    place.begun(M::COUNTS);
                    return Ok(Routed { value, place, ending, attempts });
                }
                Err(status) => status,
            };
            // An answer that has begun goes on while the server drains.
            let leaving = call.gate.is_draining() && digest.is_none();
            let retry =
                failures.allow_another(&status) && number < self.config.max_attempts.get() && !leaving;
            let gateway = &attempt.place.reservation.gateway;
            attempt.ending.failed(gateway, &status, retry);
            let passed_on = errors::pass_on(gateway, &status);
            if retry {
                info!(%gateway, code = ?status.code(), message = status.message(), "trying another gateway");
            }
            if M::COUNTS {
                attempt.place.ended(errors::blames_gateway(&status));
            }
            if !retry {
                return Err(failures
                    .full
                    .filter(|_| errors::retry(&status) == Retry::Yes)
                    .unwrap_or(passed_on));
            }
            tried.push(attempt.place.reservation.link);
            failures.add(passed_on);
        }
        // Not reached: there is at least one attempt, and the last one returns.
        Err(failures.answer(&call.model, &NoPlace::Route(NoRoute::NoneLive)))
    }

    /// A place on a gateway that was not tried yet. Waits for one only while that is the best there is to say.
    async fn place(
        &self,
        call: &Call,
        digest: Option<&str>,
        tried: &[LinkId],
        failures: &Failures,
    ) -> Result<Place, NoPlace> {
        let now = Instant::now();
        let wait = if failures.tell_enough() { Duration::ZERO } else { self.config.wait_for_gateway };
        let end = (now + wait).min(call.deadline.unwrap_or(now + wait));
        let wanted = Wanted {
            model: &call.model,
            digest,
            labels: &call.labels,
            session: call.session.as_deref(),
            prompt: &call.prompt,
        };
        let place = self.fleet.place(&wanted, tried, end.into());
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
        self.full.is_some() || (self.engine_failed && self.last.is_some())
    }

    /// The status for the client when no gateway is left to try: what a gateway said itself, if one still could.
    fn answer(self, model: &str, error: &NoPlace) -> Status {
        if let Some(full) = self.full {
            return full;
        }
        match (error, self.last) {
            (NoPlace::Draining, _) => Gate::draining_status(),
            (NoPlace::Deadline, _) => errors::deadline(),
            (NoPlace::Route(NoRoute::AllTried), Some(last)) => last,
            (NoPlace::Route(_), Some(last)) if self.engine_failed => last,
            (NoPlace::Route(error), _) => errors::no_route(model, error),
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

    const COUNTS: bool = true;

    async fn call(mut self, attempt: &Attempt) -> Result<Begun, Status> {
        self.model.clone_from(&attempt.place.reservation.model);
        let mut client = attempt.place.reservation.connection.inference();
        let mut rest = client.generate(attempt.request(self)).await?.into_inner();
        let first = rest.message().await?;
        // A stream that ends before it began is a broken gateway, like a connection that does.
        let gateway = &attempt.place.reservation.gateway;
        let first = first.ok_or_else(|| errors::gateway_lost(gateway))?;
        if let (Some(wanted), Some(Event::Started(started))) = (&attempt.digest, &first.event)
            && started.model_digest != *wanted
        {
            return Err(errors::other_version(gateway, wanted));
        }
        Ok(Begun { first: Some(first), rest })
    }
}

impl Method for v1::TokenizeRequest {
    type Answer = v1::TokenizeResponse;

    const COUNTS: bool = false;

    async fn call(mut self, attempt: &Attempt) -> Result<v1::TokenizeResponse, Status> {
        self.model.clone_from(&attempt.place.reservation.model);
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
        status::reason_of(&failures.answer("m", &error))
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
