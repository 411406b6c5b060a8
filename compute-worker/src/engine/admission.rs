//! The door of the engine: validates requests and bounds what waits, in requests and in prompt tokens.
//!
//! Counting happens where requests are submitted, so that a refusal costs neither a message nor a wait. A
//! [`QueuePlace`] is what a waiting request holds of these bounds; it gives the place back when it runs or ends, and
//! takes it again when it is preempted. Then more may wait than the bounds allow, and nothing is let in until less do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::generation::{self, EventSender, Generation};
use super::request::Request;
use super::telemetry::Instruments;
use super::transcript::Replay;
use super::{EngineConfig, Load, SubmitError};

/// Shortest and longest retry hint.
const RETRY_HINT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Pace that is assumed before any prompt was read, in tokens per second.
const ASSUMED_PACE: f64 = 50.0;

/// Shared by every handle and the engine thread.
pub(crate) struct Admission {
    vocabulary: usize,
    context_tokens: usize,
    max_requests: usize,
    max_tokens: usize,
    queued: Mutex<Queued>,
    /// Prompt tokens per second lately, as the bits of an f64.
    pace: AtomicU64,
    stopped: AtomicBool,
    instruments: Arc<Instruments>,
}

/// What waits at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) requests: usize,
    pub(crate) tokens: usize,
}

/// A request that was let in.
pub(crate) struct Submission {
    pub(crate) request: Request,
    pub(crate) events: EventSender,
    pub(crate) place: QueuePlace,
    pub(crate) arrived: Instant,
    /// Of the request's continuation.
    pub(crate) replay: Option<Replay>,
}

impl Admission {
    pub(crate) fn new(
        config: &EngineConfig,
        vocabulary: usize,
        context_tokens: usize,
        instruments: Arc<Instruments>,
    ) -> Arc<Self> {
        Arc::new(Self {
            vocabulary,
            context_tokens,
            max_requests: config.max_queued_requests,
            max_tokens: config.max_queued_tokens,
            queued: Mutex::default(),
            pace: AtomicU64::new(ASSUMED_PACE.to_bits()),
            stopped: AtomicBool::new(false),
            instruments,
        })
    }

    /// Validates a request and takes its place in the queue. `replay` makes that of its continuation, once the request
    /// is known to fit.
    pub(crate) fn admit(
        self: &Arc<Self>,
        request: Request,
        replay: impl FnOnce(&Request) -> Result<Option<Replay>, SubmitError>,
    ) -> Result<(Submission, Generation), SubmitError> {
        let checked = self.check(&request).and_then(|place| Ok((place, replay(&request)?)));
        let (place, replay) = checked.inspect_err(|error| self.instruments.refused(error))?;
        let (events, generation) = generation::channel();
        Ok((Submission { request, events, place, arrived: Instant::now(), replay }, generation))
    }

    fn check(self: &Arc<Self>, request: &Request) -> Result<QueuePlace, SubmitError> {
        let prompt = request.prompt.len();
        let answer = request.continuation.as_ref().map_or(&[][..], |begun| &begun.token_ids);
        if self.stopped.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt >= self.context_tokens {
            return Err(SubmitError::PromptTooLong { prompt, context: self.context_tokens });
        }
        if prompt + answer.len() > self.context_tokens {
            let what = format!(
                "with the prompt, {} tokens are more than the context of {}",
                prompt + answer.len(),
                self.context_tokens
            );
            return Err(SubmitError::Continuation { field: "token_ids", what });
        }
        let biased = request.sampling.logit_bias.iter().map(|(id, _)| id);
        let mut named = request.prompt.iter().chain(biased).chain(&request.stop.token_ids).chain(answer);
        if let Some(&token_id) = named.find(|id| **id as usize >= self.vocabulary) {
            return Err(SubmitError::InvalidToken { token_id, vocabulary: self.vocabulary });
        }
        self.take_place(prompt + answer.len())
    }

    fn take_place(self: &Arc<Self>, tokens: usize) -> Result<QueuePlace, SubmitError> {
        let mut queued = self.lock();
        let over_tokens = queued.requests > 0 && queued.tokens + tokens > self.max_tokens;
        if queued.requests >= self.max_requests || over_tokens {
            return Err(SubmitError::QueueFull {
                queued_requests: queued.requests,
                queued_tokens: queued.tokens,
                retry_after: self.retry_after(queued.tokens),
            });
        }
        queued.requests += 1;
        queued.tokens += tokens;
        Ok(QueuePlace { admission: Arc::clone(self), held: Some(tokens) })
    }

    /// What waits now.
    pub(crate) fn queued(&self) -> Queued {
        *self.lock()
    }

    /// `load` with what waits now.
    pub(crate) fn current(&self, load: Load) -> Load {
        let queued = self.queued();
        Load { queued: queued.requests as u32, queued_tokens: queued.tokens as u64, ..load }
    }

    /// Nothing is let in from now on.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether [`Admission::stop`] was called.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Learns from a step that read `tokens` of prompts in `elapsed`. Only the engine thread calls this.
    pub(crate) fn observe_pace(&self, tokens: usize, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if tokens == 0 || seconds <= 0.0 {
            return;
        }
        let old = f64::from_bits(self.pace.load(Ordering::Relaxed));
        let new = 0.8 * old + 0.2 * (tokens as f64 / seconds);
        self.pace.store(new.to_bits(), Ordering::Relaxed);
    }

    fn retry_after(&self, queued_tokens: usize) -> Duration {
        let pace = f64::from_bits(self.pace.load(Ordering::Relaxed)).max(1.0);
        Duration::from_secs_f64((queued_tokens as f64 / pace).min(RETRY_HINT.1.as_secs_f64()))
            .max(RETRY_HINT.0)
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        // Two counters; a panic between them is impossible, so a poisoned lock guards whole data.
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's share of the queue's bounds while it waits.
pub(crate) struct QueuePlace {
    admission: Arc<Admission>,
    /// Tokens that wait to be read, while it waits.
    held: Option<usize>,
}

impl QueuePlace {
    /// Whether the request waits.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// The request runs.
    pub(crate) fn leave(&mut self) {
        if let Some(tokens) = self.held.take() {
            let mut queued = self.admission.lock();
            queued.requests -= 1;
            queued.tokens -= tokens;
        }
    }

    /// The request waits again, with `tokens` to be read, whatever the bounds say: it was let in already.
    pub(crate) fn retake(&mut self, tokens: usize) {
        self.leave();
        self.held = Some(tokens);
        let mut queued = self.admission.lock();
        queued.requests += 1;
        queued.tokens += tokens;
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::request::{Continuation, Sampling, Stop};

    fn admission(max_queued_requests: usize, max_queued_tokens: usize) -> Arc<Admission> {
        let config = EngineConfig { max_queued_requests, max_queued_tokens, ..EngineConfig::default() };
        Admission::new(&config, 100, 64, Instruments::new("test"))
    }

    fn request(prompt: usize) -> Request {
        Request {
            id: String::new(),
            prompt: vec![1; prompt],
            sampling: Sampling::default(),
            stop: Stop::default(),
            continuation: None,
            logprobs: None,
            priority: 0,
            deadline: None,
            span: tracing::Span::none(),
        }
    }

    fn admit(door: &Arc<Admission>, request: Request) -> Result<(Submission, Generation), SubmitError> {
        door.admit(request, |_| Ok(None))
    }

    #[test]
    fn the_queue_is_bounded_in_requests_and_places_come_back() {
        let door = admission(2, 1000);
        let (first, _a) = admit(&door, request(3)).unwrap();
        let (_second, _b) = admit(&door, request(4)).unwrap();
        assert_eq!(door.queued(), Queued { requests: 2, tokens: 7 });
        assert!(matches!(
            admit(&door, request(1)).map(|_| ()),
            Err(SubmitError::QueueFull { queued_requests: 2, queued_tokens: 7, .. })
        ));
        drop(first);
        assert!(admit(&door, request(1)).is_ok());
    }

    #[test]
    fn a_place_taken_again_counts_beyond_the_bounds() {
        let door = admission(1, 1000);
        let (mut running, _a) = admit(&door, request(3)).unwrap();
        running.place.leave();
        let (_waiting, _b) = admit(&door, request(4)).unwrap();
        running.place.retake(5);
        assert_eq!(door.queued(), Queued { requests: 2, tokens: 9 });
        drop(running);
        assert_eq!(door.queued(), Queued { requests: 1, tokens: 4 });
    }

    #[test]
    fn the_queue_is_bounded_in_tokens_but_lets_a_lone_request_in() {
        let door = admission(10, 20);
        let (_lone, _a) = admit(&door, request(50)).unwrap();
        let refused = admit(&door, request(1)).map(|_| ()).unwrap_err();
        let SubmitError::QueueFull { retry_after, .. } = refused else { panic!("{refused:?}") };
        assert_eq!(retry_after, Duration::from_secs(1), "50 tokens at the assumed 50 per second");
    }

    #[test]
    fn bad_requests_are_refused_by_name() {
        let door = admission(1, 1);
        assert_eq!(admit(&door, request(0)).map(|_| ()), Err(SubmitError::EmptyPrompt));
        let long = admit(&door, request(64)).map(|_| ());
        assert_eq!(long, Err(SubmitError::PromptTooLong { prompt: 64, context: 64 }));
        let mut bad = request(1);
        bad.stop.token_ids.push(100);
        let refused = admit(&door, bad).map(|_| ());
        assert_eq!(refused, Err(SubmitError::InvalidToken { token_id: 100, vocabulary: 100 }));
        let mut begun = request(60);
        begun.continuation = Some(Continuation { token_ids: vec![1; 5], text_bytes: 0 });
        let refused = admit(&door, begun).map(|_| ());
        assert!(matches!(refused, Err(SubmitError::Continuation { field: "token_ids", .. })), "{refused:?}");
        assert_eq!(door.queued(), Queued::default());
        door.stop();
        assert_eq!(admit(&door, request(1)).map(|_| ()), Err(SubmitError::Stopped));
    }
}
