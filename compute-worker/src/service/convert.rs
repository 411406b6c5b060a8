//! Between the engine's types and the wire's.

use rookery_model::tokenizer::Tokenizer;
use rookery_proto::{v1, validate};

use crate::engine::{
    Continuation, Delta, FinishReason, Finished, PositionLogprobs, Sampling, Stop, TokenLogprob,
};

pub(super) fn sampling(wire: validate::Sampling, seed: u64) -> Sampling {
    Sampling {
        max_tokens: wire.max_tokens,
        min_tokens: wire.min_tokens,
        temperature: wire.temperature,
        top_k: wire.top_k,
        top_p: wire.top_p,
        min_p: wire.min_p,
        repetition_penalty: wire.repetition_penalty,
        presence_penalty: wire.presence_penalty,
        frequency_penalty: wire.frequency_penalty,
        logit_bias: wire.logit_bias,
        seed,
    }
}

pub(super) fn stop(wire: validate::Stop) -> Stop {
    Stop { strings: wire.strings, token_ids: wire.token_ids, ignore_eos: wire.ignore_eos }
}

pub(super) fn continuation(wire: validate::Continuation) -> Continuation {
    Continuation { token_ids: wire.token_ids, text_bytes: wire.text_bytes }
}

pub(super) fn delta(delta: Delta, tokenizer: &Tokenizer) -> v1::Delta {
    let logprobs = delta.logprobs.iter().map(|position| position_logprobs(position, tokenizer)).collect();
    v1::Delta { text: delta.text, token_ids: delta.token_ids, logprobs }
}

fn position_logprobs(position: &PositionLogprobs, tokenizer: &Tokenizer) -> v1::TokenLogprobs {
    let convert = |token: &TokenLogprob| v1::TokenLogprob {
        token_id: token.token_id,
        logprob: token.logprob,
        bytes: tokenizer.token_bytes(token.token_id).unwrap_or_default().to_vec(),
    };
    v1::TokenLogprobs {
        chosen: Some(convert(&position.chosen)),
        top: position.top.iter().map(convert).collect(),
    }
}

pub(super) fn finished(finished: Finished) -> v1::Finished {
    let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    v1::Finished {
        reason: reason(finished.reason).into(),
        stop_string: finished.stop_string.unwrap_or_default(),
        usage: Some(v1::Usage {
            prompt_tokens: finished.usage.prompt_tokens,
            cached_tokens: finished.usage.cached_tokens,
            generated_tokens: finished.usage.generated_tokens,
            preemptions: finished.usage.preemptions,
        }),
        timings: Some(v1::Timings {
            queue_us: micros(finished.timings.queue),
            prefill_us: micros(finished.timings.prefill),
            decode_us: micros(finished.timings.decode),
        }),
    }
}

pub(super) fn reason(reason: FinishReason) -> v1::FinishReason {
    match reason {
        FinishReason::EndOfText => v1::FinishReason::EndOfText,
        FinishReason::MaxTokens => v1::FinishReason::MaxTokens,
        FinishReason::StopString => v1::FinishReason::StopString,
        FinishReason::StopToken => v1::FinishReason::StopToken,
        FinishReason::ContextFull => v1::FinishReason::ContextFull,
    }
}
