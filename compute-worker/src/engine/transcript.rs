//! What a generation's tokens have come to so far: their text, and whether they end the answer.
//!
//! It depends on the tokens alone. So an answer that another gateway began goes on here by its tokens being pushed again,
//! which sends nothing: [`Replay`].

use std::sync::Arc;

use rookery_model::text_stream::{Emitted, TextStream};
use rookery_model::tokenizer::Tokenizer;

use super::SubmitError;
use super::request::{FinishReason, Request, Stop};

#[cfg(test)]
mod tests;

/// The answer's tokens as text.
pub(super) struct Transcript {
    tokenizer: Arc<Tokenizer>,
    stop: Stop,
    text: Text,
    limits: Lengths,
    prompt_tokens: usize,
    generated_tokens: u32,
}

/// Where an answer ends, at the latest and at the earliest.
struct Lengths {
    /// Tokens of the answer.
    max_tokens: u32,
    /// Tokens before which nothing but a length ends it.
    min_tokens: u32,
    /// Prompt and answer.
    context: usize,
}

/// Why a generation is complete.
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

impl Transcript {
    /// Of a request whose prompt and answer may have `context` tokens.
    pub(super) fn new(request: &Request, tokenizer: &Arc<Tokenizer>, context: usize) -> Self {
        let max_tokens = request.sampling.max_tokens.filter(|most| *most > 0).unwrap_or(u32::MAX);
        let min_tokens = request.sampling.min_tokens;
        Self {
            tokenizer: Arc::clone(tokenizer),
            text: Text::new(min_tokens, &request.stop),
            stop: request.stop.clone(),
            limits: Lengths { max_tokens, min_tokens, context },
            prompt_tokens: request.prompt.len(),
            generated_tokens: 0,
        }
    }

    /// Tokens of the answer.
    pub(super) fn generated_tokens(&self) -> u32 {
        self.generated_tokens
    }

    /// The text that a token completes, and whether it is the last one.
    pub(super) fn push(&mut self, token: u32) -> (String, Option<Ending>) {
        // So many tokens came before it that it may end the answer.
        let considered = self.generated_tokens >= self.limits.min_tokens;
        self.generated_tokens += 1;
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
        let length = self.prompt_tokens + self.generated_tokens as usize;
        let reason = if self.generated_tokens >= self.limits.max_tokens {
            FinishReason::MaxTokens
        } else if length >= self.limits.context {
            FinishReason::ContextFull
        } else {
            return (emitted.text, None);
        };
        (emitted.text + &self.text.finish(), Some(Ending::by(reason)))
    }
}

/// The tokens that another gateway generated, pushed again.
pub(crate) struct Replay {
    pub(super) transcript: Transcript,
    /// Text that the reader does not have yet.
    pub(super) unsent: String,
    /// The last of the tokens ends the answer.
    pub(super) ending: Option<Ending>,
}

impl Replay {
    /// Pushes the tokens of the request's continuation; `None` if it has none.
    ///
    /// # Errors
    /// When tokens come after the end of the answer, or the reader has text that they do not make.
    pub(super) fn of(
        request: &Request,
        tokenizer: &Arc<Tokenizer>,
        context: usize,
    ) -> Result<Option<Self>, SubmitError> {
        let Some(continuation) = &request.continuation else { return Ok(None) };
        let mut transcript = Transcript::new(request, tokenizer, context);
        let (mut text, mut ending) = (String::new(), None);
        for (index, &token) in continuation.token_ids.iter().enumerate() {
            if ending.is_some() {
                return Err(SubmitError::Continuation { field: "token_ids", what: past_end(index) });
            }
            let (more, end) = transcript.push(token);
            text.push_str(&more);
            ending = end;
        }
        let sent = continuation.text_bytes;
        if !text.is_char_boundary(sent) {
            let what = format!("{sent} is not where a character of the tokens' {} bytes ends", text.len());
            return Err(SubmitError::Continuation { field: "text_bytes", what });
        }
        Ok(Some(Self { transcript, unsent: text.split_off(sent), ending }))
    }
}

fn past_end(index: usize) -> String {
    format!("the answer ends before the token at {index}")
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
