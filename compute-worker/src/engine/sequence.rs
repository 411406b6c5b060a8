//! One generation inside the engine: from tokens to text, events, and the end.
//!
//! The scheduler owns a sequence's tokens and blocks, its transcript what they come to; this is everything else. Its phases are spans of the request's
//! trace: `queue` from arrival, `prefill` from the first step that works on it, `decode` from the first token.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rookery_model::tokenizer::Tokenizer;
use rookery_proto::semconv::span;
use tracing::{Span, info_span};

use super::GenerationError;
use super::admission::{QueuePlace, Submission};
use super::generation::EventSender;
use super::request::{Delta, Finished, Timings, Usage};
use super::sampler::{Sampled, Sampler};
pub use super::transcript::Ending;
use super::transcript::{Replay, Transcript};

#[cfg(test)]
mod tests;

/// A generation that waits or runs.
pub struct Sequence {
    id: String,
    sampler: Sampler,
    transcript: Transcript,
    /// Text of tokens that another gateway generated, to be sent with the first that is generated here.
    unsent: String,
    /// How many tokens that gateway generated.
    replayed_tokens: u32,
    events: EventSender,
    /// Held while the sequence waits.
    place: QueuePlace,
    usage: Usage,
    reading: Reading,
    clock: Clock,
    deadline: Option<Instant>,
    parent: Span,
    phase: Span,
}

/// When things happened.
struct Clock {
    arrived: Instant,
    began: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// A sequence that waits, and its tokens: the prompt, and what another gateway generated.
    pub(crate) fn new(
        submission: Submission,
        tokenizer: &Arc<Tokenizer>,
        context: usize,
    ) -> (Self, Vec<u32>) {
        let Submission { request, events, place, arrived, replay } = submission;
        let mut ending = request.stop.token_ids.clone();
        if !request.stop.ignore_eos {
            ending.extend(tokenizer.config().eos.iter().copied());
        }
        let phase = info_span!(parent: &request.span, span::QUEUE, request_id = %request.id);
        let (transcript, unsent) = match replay {
            Some(Replay { transcript, unsent, .. }) => (transcript, unsent),
            None => (Transcript::new(&request, tokenizer, context), String::new()),
        };
        let mut sampler = Sampler::new(request.sampling, request.logprobs, &request.prompt, ending);
        let prompt_tokens = request.prompt.len() as u32;
        let (mut tokens, replayed_tokens) = (request.prompt, transcript.generated_tokens());
        for token in request.continuation.into_iter().flat_map(|continuation| continuation.token_ids) {
            sampler.accept(token);
            tokens.push(token);
        }
        let sequence = Self {
            transcript,
            unsent,
            replayed_tokens,
            sampler,
            usage: Usage { prompt_tokens, generated_tokens: replayed_tokens, ..Usage::default() },
            id: request.id,
            events,
            place,
            reading: Reading { prompt: tokens.len(), end: 0 },
            clock: Clock { arrived, began: None, first_token: None, last_token: None },
            deadline: request.deadline,
            parent: request.span,
            phase,
        };
        (sequence, tokens)
    }

    /// Name of the request.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The span of what it does now.
    pub fn phase(&self) -> &Span {
        &self.phase
    }

    /// How it chooses tokens.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Whether its reader is gone.
    pub(crate) fn cancelled(&self) -> bool {
        self.events.cancelled()
    }

    /// Whether its deadline has passed.
    pub fn overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// It begins to run, or runs again after preemption.
    pub fn admitted(&mut self, now: Instant, cached_tokens: usize) {
        self.place.leave();
        if self.clock.began.is_none() {
            self.clock.began = Some(now);
            self.usage.cached_tokens = (cached_tokens as u32).min(self.usage.prompt_tokens);
            self.phase = info_span!(parent: &self.parent, span::PREFILL, request_id = %self.id);
        }
    }

    /// It found more of its prompt in the cache.
    pub fn reused(&mut self, tokens: usize) {
        if self.usage.preemptions == 0 {
            let cached = self.usage.cached_tokens + tokens as u32;
            self.usage.cached_tokens = cached.min(self.usage.prompt_tokens);
        }
    }

    /// It lost its blocks. False if it had none: it was to begin in this very step.
    pub fn preempted(&mut self) -> bool {
        let ran = !self.place.is_held();
        if ran {
            self.usage.preemptions += 1;
            self.place.retake((self.usage.prompt_tokens + self.usage.generated_tokens) as usize);
        }
        ran
    }

    /// Its rows of these positions were computed. Returns how many tokens of the prompt that read for the first time.
    pub fn computed(&mut self, rows: Range<usize>) -> usize {
        self.reading.computed(rows)
    }

    /// Takes a new token: text and events go out. Says why the sequence is over, if it is.
    pub fn push(&mut self, now: Instant, sampled: Sampled) -> Option<Ending> {
        if self.clock.first_token.is_none() {
            self.clock.first_token = Some(now);
            self.events.start(self.usage.prompt_tokens, self.usage.cached_tokens);
            self.phase = info_span!(parent: &self.parent, span::DECODE, request_id = %self.id);
        }
        self.clock.last_token = Some(now);
        self.sampler.accept(sampled.token);
        let (text, ending) = self.transcript.push(sampled.token);
        self.usage.generated_tokens = self.transcript.generated_tokens();
        self.events.delta(Delta {
            text: std::mem::take(&mut self.unsent) + &text,
            token_ids: vec![sampled.token],
            logprobs: sampled.logprobs.into_iter().collect(),
        });
        ending
    }

    /// The sequence is complete. Returns what it used here.
    pub fn finish(self, ending: Ending) -> (Usage, Timings) {
        let (usage, timings) = (self.usage, self.clock.timings());
        let here = Usage { generated_tokens: self.new_tokens(), ..usage };
        let Ending { reason, stop_string } = ending;
        self.close().finish(Finished { reason, stop_string, usage, timings });
        (here, timings)
    }

    /// What another gateway generated is a complete answer: all that is left to do is to say so.
    pub(crate) fn finish_replayed(mut self, now: Instant, ending: Ending) {
        (self.clock.began, self.clock.first_token, self.clock.last_token) = (Some(now), Some(now), Some(now));
        self.events.start(self.usage.prompt_tokens, 0);
        if !self.unsent.is_empty() {
            self.events.delta(Delta { text: std::mem::take(&mut self.unsent), ..Delta::default() });
        }
        self.finish(ending);
    }

    /// From arrival to the first token, if there is one.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.clock.first_token.map(|first| first.duration_since(self.clock.arrived))
    }

    /// Tokens generated so far.
    pub fn generated_tokens(&self) -> u32 {
        self.usage.generated_tokens
    }

    /// Of those, how many here.
    pub fn new_tokens(&self) -> u32 {
        self.usage.generated_tokens - self.replayed_tokens
    }

    /// The sequence ends without being complete.
    pub fn fail(self, error: GenerationError) {
        self.close().fail(error);
    }

    /// Ends the spans, so that whoever sees the last event finds them ended; what is left can only say that.
    fn close(self) -> EventSender {
        let Self { events, phase, parent, .. } = self;
        drop((phase, parent));
        events
    }
}

/// How far a prompt was read, however often its blocks were lost since.
struct Reading {
    /// Tokens of the prompt.
    prompt: usize,
    /// Position up to which they were computed, or found in the cache.
    end: usize,
}

impl Reading {
    fn computed(&mut self, rows: Range<usize>) -> usize {
        let end = rows.end.min(self.prompt);
        let new = end.saturating_sub(rows.start.max(self.end));
        self.end = self.end.max(end);
        new
    }
}

impl Clock {
    fn timings(&self) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.duration_since(from),
            _ => Duration::ZERO,
        };
        Timings {
            queue: between(Some(self.arrived), self.began),
            prefill: between(self.began, self.first_token),
            decode: between(self.first_token, self.last_token),
        }
    }
}
