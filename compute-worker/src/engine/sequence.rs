//! One generation inside the engine: from tokens to text, events, and the end.
//!
//! The scheduler owns a sequence's tokens and blocks; this is everything else. Its phases are spans of the request's
//! trace: `queue` from arrival, `prefill` from the first step that works on it, `decode` from the first token.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rookery_model::text_stream::{Emitted, TextStream};
use rookery_model::tokenizer::Tokenizer;
use rookery_proto::semconv::span;
use tracing::{Span, info_span};

use super::GenerationError;
use super::admission::{QueuePlace, Submission};
use super::generation::EventSender;
use super::request::{Delta, FinishReason, Finished, Stop, Timings, Usage};
use super::sampler::{Sampled, Sampler};

#[cfg(test)]
mod tests;

/// A generation that waits or runs.
pub struct Sequence {
    id: String,
    sampler: Sampler,
    tokenizer: Arc<Tokenizer>,
    stop: Stop,
    text: Text,
    limits: Lengths,
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

/// Where a sequence ends at the latest.
struct Lengths {
    /// Tokens of the answer.
    max_tokens: u32,
    /// Prompt and answer.
    context: usize,
}

/// When things happened.
struct Clock {
    arrived: Instant,
    began: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// A sequence that waits, and its prompt.
    pub(crate) fn new(
        submission: Submission,
        tokenizer: &Arc<Tokenizer>,
        context: usize,
    ) -> (Self, Vec<u32>) {
        let Submission { request, events, place, arrived } = submission;
        let mut ending = request.stop.token_ids.clone();
        if !request.stop.ignore_eos {
            ending.extend(tokenizer.config().eos.iter().copied());
        }
        let phase = info_span!(parent: &request.span, span::QUEUE, request_id = %request.id);
        let max_tokens = request.sampling.max_tokens.filter(|most| *most > 0).unwrap_or(u32::MAX);
        let sequence = Self {
            limits: Lengths { max_tokens, context },
            text: Text::new(request.sampling.min_tokens, &request.stop),
            sampler: Sampler::new(request.sampling, request.logprobs, &request.prompt, ending),
            usage: Usage { prompt_tokens: request.prompt.len() as u32, ..Usage::default() },
            id: request.id,
            tokenizer: Arc::clone(tokenizer),
            stop: request.stop,
            events,
            place,
            reading: Reading { prompt: request.prompt.len(), end: 0 },
            clock: Clock { arrived, began: None, first_token: None, last_token: None },
            deadline: request.deadline,
            parent: request.span,
            phase,
        };
        (sequence, request.prompt)
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
            self.usage.cached_tokens = cached_tokens as u32;
            self.phase = info_span!(parent: &self.parent, span::PREFILL, request_id = %self.id);
        }
    }

    /// It found more of its prompt in the cache.
    pub fn reused(&mut self, tokens: usize) {
        if self.usage.preemptions == 0 {
            self.usage.cached_tokens += tokens as u32;
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
        let considered = !self.sampler.below_minimum();
        self.sampler.accept(sampled.token);
        self.usage.generated_tokens += 1;
        let (text, ending) = self.advance(sampled.token, considered);
        self.events.delta(Delta {
            text,
            token_ids: vec![sampled.token],
            logprobs: sampled.logprobs.into_iter().collect(),
        });
        ending
    }

    /// The text that a token completes, and whether it is the last one. `considered`: so many tokens came before it
    /// that it may end the answer.
    fn advance(&mut self, token: u32, considered: bool) -> (String, Option<Ending>) {
        let ends = considered && self.stop.token_ids.contains(&token);
        let ends_text = considered && !self.stop.ignore_eos && self.tokenizer.is_eog(token);
        if ends || ends_text {
            let reason = if ends { FinishReason::StopToken } else { FinishReason::EndOfText };
            return (self.text.finish(), Some(Ending::by(reason)));
        }
        let emitted = self.text.push(self.tokenizer.token_bytes(token).unwrap_or(&[]));
        if let Some(index) = emitted.stopped {
            let string = self.stop.strings.get(index).cloned();
            return (emitted.text, Some(Ending { reason: FinishReason::StopString, stop_string: string }));
        }
        let length = self.usage.prompt_tokens as usize + self.usage.generated_tokens as usize;
        let reason = if self.usage.generated_tokens >= self.limits.max_tokens {
            FinishReason::MaxTokens
        } else if length >= self.limits.context {
            FinishReason::ContextFull
        } else {
            return (emitted.text, None);
        };
        (emitted.text + &self.text.finish(), Some(Ending::by(reason)))
    }

    /// The sequence is complete. Returns what it used.
    pub fn finish(self, ending: Ending) -> (Usage, Timings) {
        let (usage, timings) = (self.usage, self.clock.timings());
        let Ending { reason, stop_string } = ending;
        self.close().finish(Finished { reason, stop_string, usage, timings });
        (usage, timings)
    }

    /// From arrival to the first token, if there is one.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.clock.first_token.map(|first| first.duration_since(self.clock.arrived))
    }

    /// Tokens generated so far.
    pub fn generated_tokens(&self) -> u32 {
        self.usage.generated_tokens
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

/// Why a sequence is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The reason.
    pub reason: FinishReason,
    /// The stop string, if that is the reason.
    pub stop_string: Option<String>,
}

impl Ending {
    fn by(reason: FinishReason) -> Self {
        Self { reason, stop_string: None }
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

/// A text stream whose stop strings count only from `min_tokens` on.
struct Text {
    stream: TextStream,
    /// Tokens still to come before stop strings count, and those strings.
    later: Option<(u32, Vec<String>)>,
    /// The last bytes of the stream, up to three: a character may be incomplete when stop strings begin to count.
    tail: Vec<u8>,
}

impl Text {
    fn new(min_tokens: u32, stop: &Stop) -> Self {
        let strings = stop.strings.clone();
        if min_tokens == 0 || strings.is_empty() {
            return Self { stream: TextStream::new(strings), later: None, tail: Vec::new() };
        }
        Self { stream: TextStream::new(Vec::new()), later: Some((min_tokens, strings)), tail: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8]) -> Emitted {
        match &mut self.later {
            None => {}
            Some((remaining @ 1.., _)) => {
                *remaining -= 1;
                self.tail.extend_from_slice(bytes);
                self.tail.drain(..self.tail.len().saturating_sub(3));
            }
            Some((_, strings)) => {
                let mut stream = TextStream::new(std::mem::take(strings));
                stream.push(incomplete_end(&self.tail));
                self.stream = stream;
                self.later = None;
            }
        }
        self.stream.push(bytes)
    }

    fn finish(&mut self) -> String {
        self.stream.finish()
    }
}

/// The bytes at the end that begin a character without completing it.
fn incomplete_end(bytes: &[u8]) -> &[u8] {
    let ends = (0..bytes.len()).rev().map(|start| &bytes[start..]);
    let incomplete = |end: &&[u8]| {
        std::str::from_utf8(end).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    ends.into_iter().find(incomplete).unwrap_or(&[])
}
