//! What can go wrong: when the engine starts, when a request is submitted, while one runs.

use std::time::Duration;

use rookery_kernels::Isa;
use rookery_model::bundle::BundleError;

use crate::backend::BackendError;

/// The engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Weights or tokenizer could not be had from the bundle.
    #[error("model could not be read from the bundle")]
    Bundle(#[source] BundleError),
    /// This machine lacks the instruction set that the configuration asks for.
    #[error("instruction set {0} is not available on this machine")]
    IsaUnavailable(Isa),
    /// The backend cannot compute with this model's weights.
    #[error("the backend cannot take the model's weights")]
    Backend(#[source] BackendError),
    /// Not even one block of the cache fits.
    #[error("key/value cache of {bytes} bytes is smaller than one block of {block_bytes} bytes")]
    CacheTooSmall {
        /// Configured size.
        bytes: u64,
        /// Size of one block over all layers.
        block_bytes: u64,
    },
    /// The tokenizer has tokens that the model does not know.
    #[error("tokenizer has token {token_id}, the model's vocabulary ends before {vocabulary}")]
    Tokenizer {
        /// The highest such token.
        token_id: u32,
        /// Size of the model's vocabulary.
        vocabulary: usize,
    },
    /// A setting is outside of its range.
    #[error("engine setting {setting} must be at least {least}")]
    Setting {
        /// Name of the field in [`super::EngineConfig`].
        setting: &'static str,
        /// Smallest allowed value.
        least: usize,
    },
    /// The operating system gave no thread.
    #[error("engine thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// A request was refused. Nothing was kept of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full, in requests or in prompt tokens.
    #[error("queue is full: {queued_requests} requests with {queued_tokens} tokens to read wait")]
    QueueFull {
        /// Requests that wait.
        queued_requests: usize,
        /// Their prompt tokens.
        queued_tokens: usize,
        /// When it is worth trying again: the queued prompt tokens at the engine's recent pace.
        retry_after: Duration,
    },
    /// Prompt and one token of answer do not fit the context.
    #[error("prompt of {prompt} tokens leaves no room for an answer in the context of {context} tokens")]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt: usize,
        /// Longest prompt plus answer.
        context: usize,
    },
    /// A token id is outside of the vocabulary.
    #[error("token id {token_id} is outside of the vocabulary of {vocabulary}")]
    InvalidToken {
        /// The id.
        token_id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The prompt has no tokens.
    #[error("prompt is empty")]
    EmptyPrompt,
    /// The answer cannot have begun as the continuation says.
    #[error("continuation.{field}: {what}")]
    Continuation {
        /// Its field.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The engine was shut down or has failed.
    #[error("engine has stopped")]
    Stopped,
}

/// A generation ended without being complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// Its deadline passed, in the queue or while it ran.
    #[error("deadline exceeded after {generated_tokens} tokens")]
    DeadlineExceeded {
        /// Tokens that were generated until then; 0 in the queue and in prefill.
        generated_tokens: u32,
    },
    /// The model's arithmetic gave no number for this text; it would again.
    #[error("the model's logits are not finite")]
    NotFinite,
    /// The request's own bias and `min_tokens` forbid every token.
    #[error("the request forbids every token")]
    AllForbidden,
    /// The engine failed; the message says how.
    #[error("engine failed: {0}")]
    Internal(String),
    /// The engine was shut down before the generation was complete.
    #[error("engine was shut down")]
    Stopped,
}
