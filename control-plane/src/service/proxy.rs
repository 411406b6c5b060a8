//! Passes the events of a gateway on to the client, and goes on with another gateway when the first is lost.
//!
//! ```text
//!            ┌──────────── gateway lost, leaving, or its engine failed (once) ────────────┐
//!            ▼                                                                            │
//!  place on a gateway of the same digest ─► prompt + tokens passed on + seed ─► Started (kept back) ─► Delta … Finished
//! ```
//!
//! Answers depend on version, request and seed alone, so the client sees one stream, with the text of an undisturbed one.
//! It costs the tokens of each stream, four bytes each and at most [`MOST_KEPT_TOKENS`], and the request.

use std::time::Instant;

use rookery_proto::{
    server::{Admission, Answer},
    status::{self, Reason},
    v1::{self, GenerateResponse, generate_response::Event},
};
use tonic::Status;
use tracing::info;

use super::{
    ending::CallEnding,
    errors::{self, Retry},
    route::{Before, Begun, Call, Routed, Router},
};
use crate::domain::{GatewayId, LinkId};

/// Tokens of an answer that are kept to go on elsewhere; a longer one ends with its gateway.
const MOST_KEPT_TOKENS: usize = 64 << 10;

/// What it takes to send a request again.
pub(super) struct Route {
    pub(super) router: Router,
    pub(super) call: Call,
    pub(super) request: v1::GenerateRequest,
}

/// A generation that a gateway has begun to answer. Dropping it cancels the call there.
pub(super) struct Proxied {
    /// `None` while no gateway works on it.
    routed: Option<Routed<Begun>>,
    route: Route,
    passed_on: PassedOn,
    /// How often it has gone on with another gateway, and whether an engine's failure was the reason.
    continuations: u32,
    engine_failed: bool,
    arrival: Instant,
    ending: CallEnding,
    over: bool,
    _admission: Admission,
}

/// What the client has.
#[derive(Default)]
struct PassedOn {
    started: Option<v1::Started>,
    token_ids: Vec<u32>,
    text_bytes: u64,
    /// The answer is too long to be kept.
    incomplete: bool,
    /// When its first and its last token came.
    times: Option<(Instant, Instant)>,
}

impl PassedOn {
    fn delta(&mut self, delta: &v1::Delta) {
        let now = Instant::now();
        self.times = Some((self.times.map_or(now, |(first, _)| first), now));
        self.text_bytes += delta.text.len() as u64;
        self.incomplete |= self.token_ids.len() + delta.token_ids.len() > MOST_KEPT_TOKENS;
        if self.incomplete {
            self.token_ids = Vec::new();
        } else {
            self.token_ids.extend_from_slice(&delta.token_ids);
        }
    }
}

impl Proxied {
    pub(super) fn new(
        routed: Routed<Begun>,
        route: Route,
        arrival: Instant,
        ending: CallEnding,
        admission: Admission,
    ) -> Self {
        Self {
            routed: Some(routed),
            route,
            passed_on: PassedOn::default(),
            continuations: 0,
            engine_failed: false,
            arrival,
            ending,
            over: false,
            _admission: admission,
        }
    }

    /// The next event of the gateway that works on it now, or how that gateway failed.
    async fn message(&mut self) -> Result<GenerateResponse, Status> {
        let Some(routed) = &mut self.routed else {
            return Err(status::refuse(Reason::Internal, "no gateway works on the answer"));
        };
        if let Some(first) = routed.value.first.take() {
            return Ok(first);
        }
        let message = routed.value.rest.message().await?;
        message.ok_or_else(|| errors::gateway_lost(routed.gateway()))
    }

    /// Has another gateway go on after the current one failed with `status`.
    async fn go_on(&mut self, status: &Status) -> Result<(), Status> {
        let Some(mut failed) = self.routed.take() else { return Err(status.clone()) };
        let again = self.may_go_on(status);
        failed.failed(status, again.is_ok());
        let (gateway, link, attempts) =
            (failed.gateway().clone(), failed.place.reservation.link, failed.attempts);
        let digest = failed.place.reservation.digest.clone();
        // The place on the gateway that failed is given back before another one is waited for.
        drop(failed);
        info!(%gateway, code = ?status.code(), message = status.message(), "a generation broke off");
        let tokens = self.passed_on.token_ids.len();
        match again {
            Err(Refusal::Final) => return Err(errors::pass_on(&gateway, status)),
            Err(Refusal::Spent(why)) => return Err(errors::not_continued(&gateway, status, tokens, why)),
            Ok(()) => {}
        }
        self.continuations += 1;
        self.engine_failed |= status::reason_of(status) == Some(Reason::EngineFailed);
        let before = self.before(digest, attempts, link);
        let Route { router, call, .. } = &self.route;
        let routed = router.route(call, &self.rest(), before).await;
        self.routed = Some(routed.map_err(|error| self.give_up(&gateway, status, error))?);
        Ok(())
    }

    fn may_go_on(&self, status: &Status) -> Result<(), Refusal> {
        match errors::retry(status) {
            Retry::Yes => {}
            Retry::Once if !self.engine_failed => {}
            Retry::Once | Retry::Never => return Err(Refusal::Final),
        }
        if self.passed_on.incomplete {
            return Err(Refusal::Spent("it is too long to be continued elsewhere"));
        }
        if self.continuations >= self.route.router.max_continuations() {
            return Err(Refusal::Spent("it was continued elsewhere too often already"));
        }
        Ok(())
    }

    fn before(&self, digest: String, attempts: u32, failed: LinkId) -> Before {
        let started = self.passed_on.started.as_ref().map(|started| &started.model_digest);
        let digest = started.filter(|digest| !digest.is_empty()).cloned().unwrap_or(digest);
        Before { digest: Some(digest), attempts, tried: vec![failed], engine_failed: self.engine_failed }
    }

    /// The request for what is left of the answer.
    fn rest(&self) -> v1::GenerateRequest {
        let mut request = self.route.request.clone();
        if let Some(started) = &self.passed_on.started {
            request.sampling.get_or_insert_default().seed = Some(started.seed);
        }
        if !self.passed_on.token_ids.is_empty() {
            request.continuation = Some(v1::Continuation {
                token_ids: self.passed_on.token_ids.clone(),
                text_bytes: self.passed_on.text_bytes,
            });
        }
        request
    }

    /// What the client is told when no other gateway can go on: `error` only if that is about itself.
    fn give_up(&self, gateway: &GatewayId, status: &Status, error: Status) -> Status {
        let deadline = status::reason_of(&error) == Some(Reason::DeadlineExceeded);
        if deadline || self.route.call.gate.is_draining() {
            return error;
        }
        let tokens = self.passed_on.token_ids.len();
        errors::not_continued(gateway, status, tokens, "no other gateway could go on with it")
    }

    /// Takes note of an event; `None` if the client has it already.
    fn take(&mut self, response: GenerateResponse) -> Option<GenerateResponse> {
        let event = match response.event? {
            Event::Started(_) if self.passed_on.started.is_some() => return None,
            Event::Started(started) => {
                self.passed_on.started = Some(started.clone());
                Event::Started(started)
            }
            Event::Delta(delta) => {
                self.passed_on.delta(&delta);
                Event::Delta(delta)
            }
            Event::Finished(finished) => {
                self.over = true;
                self.ending.ok();
                if let Some(routed) = &mut self.routed {
                    routed.ok();
                }
                Event::Finished(self.whole(finished))
            }
        };
        Some(GenerateResponse { event: Some(event) })
    }

    /// What the end says about the whole of an answer that several gateways made.
    fn whole(&self, mut finished: v1::Finished) -> v1::Finished {
        if self.continuations == 0 {
            return finished;
        }
        if let (Some(usage), Some(started)) = (&mut finished.usage, &self.passed_on.started) {
            usage.cached_tokens = started.cached_tokens;
        }
        if let Some((first, last)) = self.passed_on.times {
            let micros = |from: Instant, to: Instant| {
                u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
            };
            finished.timings = Some(v1::Timings {
                queue_us: 0,
                prefill_us: micros(self.arrival, first),
                decode_us: micros(first, last),
            });
        }
        finished
    }
}

/// Why a generation does not go on elsewhere.
enum Refusal {
    /// It would fail there too.
    Final,
    /// It may not any more.
    Spent(&'static str),
}

impl Answer for Proxied {
    type Event = GenerateResponse;

    // Cancel safe as far as it has to be: who cancels it never calls it again.
    async fn next(&mut self) -> Result<GenerateResponse, Status> {
        loop {
            match self.message().await {
                Ok(response) => {
                    if let Some(response) = self.take(response) {
                        return Ok(response);
                    }
                }
                Err(status) => self.go_on(&status).await.inspect_err(|status| self.broken_off(status))?,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn broken_off(&mut self, status: &Status) {
        self.over = true;
        if let Some(routed) = &mut self.routed {
            routed.failed(status, false);
        }
        self.ending.failed(status);
    }
}
