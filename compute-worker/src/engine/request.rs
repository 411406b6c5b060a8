//! What goes into the engine and what comes out: plain data, no channels.

use std::time::{Duration, Instant};

use super::GenerationError;

/// One generation to run. Values are final: defaults are filled in and ranges are checked by the caller.
#[derive(Debug)]
pub struct Request {
    /// Name of the request in logs and traces. The engine does not interpret it.
    pub id: String,
    /// Prompt as token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to stop, besides the limits of `sampling` and the context.
    pub stop: Stop,
    /// What another gateway generated of the answer: it goes on here as if it had been generated here.
    pub continuation: Option<Continuation>,
    /// Log-probabilities to return with each token: `None` for none, `Some(n)` for the chosen token and the
    /// `n` most likely ones.
    pub logprobs: Option<u32>,
    /// Higher is scheduled first; equal ones in order of arrival.
    pub priority: i32,
    /// When the answer is no longer wanted, in the queue or while tokens are produced.
    pub deadline: Option<Instant>,
    /// Parent of the `queue`, `prefill` and `decode` spans.
    pub span: tracing::Span,
}

/// The beginning of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Its tokens.
    pub token_ids: Vec<u32>,
    /// Bytes of their text that the reader has; what is beyond comes with the first new token.
    pub text_bytes: usize,
}

/// How the next token is chosen. The order is: bias, penalties, then greedy if the temperature is 0, else
/// temperature, top-k, top-p, min-p, and a draw keyed by (seed, position).
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Most tokens to generate; `None` or 0: as many as the context has room for.
    pub max_tokens: Option<u32>,
    /// Neither end-of-generation tokens nor stop conditions are considered before this many tokens.
    pub min_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) logits of tokens in the prompt or the answer; 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer, times how often they occur there.
    pub frequency_penalty: f32,
    /// Added to logits before everything else, as (token id, bias); −100 or less forbids the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the generator that draws tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy, up to the context.
    fn default() -> Self {
        Self {
            max_tokens: None,
            min_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// When a generation ends before `max_tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stop {
    /// The answer ends before the first of these strings.
    pub strings: Vec<String>,
    /// The answer ends when one of these tokens is generated.
    pub token_ids: Vec<u32>,
    /// Go on past the model's end-of-generation tokens.
    pub ignore_eos: bool,
}

/// One event of a generation: one `Started`, any number of `Delta`, then `Finished` or `Failed`. `Failed` may
/// also come first.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt has been read and the first token is there.
    Started {
        /// Tokens in the prompt.
        prompt_tokens: u32,
        /// Of those, how many were found in the cache.
        cached_tokens: u32,
    },
    /// Tokens were generated. One per token, or several at once, up to 256, if the reader is slower than the engine.
    Delta(Delta),
    /// The generation is complete.
    Finished(Finished),
    /// The generation ended without being complete.
    Failed(GenerationError),
}

/// Newly generated tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// Text that the tokens complete: whole characters, possibly none.
    pub text: String,
    /// The new tokens, stop tokens included.
    pub token_ids: Vec<u32>,
    /// One entry per token if log-probabilities were asked for, else empty.
    pub logprobs: Vec<PositionLogprobs>,
}

impl Delta {
    /// Appends what came after.
    pub(crate) fn merge(&mut self, next: Delta) {
        self.text.push_str(&next.text);
        self.token_ids.extend(next.token_ids);
        self.logprobs.extend(next.logprobs);
    }
}

/// Log-probabilities at one position, of the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionLogprobs {
    /// The chosen token.
    pub chosen: TokenLogprob,
    /// The most likely tokens, most likely first, ties by lowest id.
    pub top: Vec<TokenLogprob>,
}

/// One token and its natural-log probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Id in the vocabulary.
    pub token_id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// How a generation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// The stop string that ended it, if that is the reason.
    pub stop_string: Option<String>,
    /// What was used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model generated an end-of-generation token.
    EndOfText,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The text reached a stop string.
    StopString,
    /// A stop token was generated.
    StopToken,
    /// Prompt and answer fill the context.
    ContextFull,
}

/// Token counts of one generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Of those, how many came from the cache when the generation first ran.
    pub cached_tokens: u32,
    /// Tokens generated, stop tokens included, and those that the answer began with.
    pub generated_tokens: u32,
    /// How often its blocks were taken for another generation.
    pub preemptions: u32,
}

/// Times of one generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the moment the engine let it in to the first step that worked on it; what came before that, such as
    /// tokenising the prompt, is the service's time.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first to the last token.
    pub decode: Duration,
}
