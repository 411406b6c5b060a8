//! Every error that a call can meet, as a status with a reason.

use rookery_model::{chat::ChatError, tokenizer::TokenizerError};
use rookery_proto::status::{self, Reason};
use tonic::Status;

use crate::engine::{GenerationError, SubmitError};
use crate::one_line::one_line;

/// The engine refused a request whose prompt came from `field`.
pub(super) fn submit(field: &str, error: SubmitError) -> Status {
    let message = error.to_string();
    match error {
        SubmitError::QueueFull { queued_requests, queued_tokens, retry_after } => {
            let metadata = [
                ("queuedRequests", queued_requests.to_string()),
                ("queuedTokens", queued_tokens.to_string()),
            ];
            status::refuse_with(Reason::QueueFull, message, &metadata, Some(retry_after))
        }
        SubmitError::PromptTooLong { prompt, context } => status::prompt_too_long(field, prompt, context),
        SubmitError::InvalidToken { .. } => status::invalid_field("token_ids", &message),
        SubmitError::Continuation { field, what } => {
            status::invalid_field(&format!("continuation.{field}"), &what)
        }
        SubmitError::EmptyPrompt => status::invalid_field(field, "gives no token at all"),
        SubmitError::Stopped => status::refuse(Reason::EngineFailed, "the model's engine has stopped"),
    }
}

/// A generation ended early.
pub(super) fn generation(error: &GenerationError) -> Status {
    match error {
        GenerationError::DeadlineExceeded { .. } => deadline(),
        GenerationError::NotFinite => status::refuse(Reason::NumericFault, error.to_string()),
        GenerationError::AllForbidden => status::invalid_field("sampling.logit_bias", &error.to_string()),
        GenerationError::Internal(_) => status::refuse(Reason::EngineFailed, error.to_string()),
        GenerationError::Stopped => status::refuse(Reason::EngineFailed, "the model's engine has stopped"),
    }
}

/// The client's deadline passed.
pub(super) fn deadline() -> Status {
    status::refuse(Reason::DeadlineExceeded, "the deadline passed before the answer was complete")
}

/// Text that the tokenizer cannot encode.
pub(super) fn tokenizer(field: &str, error: &TokenizerError) -> Status {
    status::invalid_field(field, &one_line(error))
}

/// Messages that the model's template cannot render, or refuses.
pub(super) fn chat(error: &ChatError) -> Status {
    status::invalid_field("chat", &one_line(error))
}
