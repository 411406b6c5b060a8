//! From a request's input to token ids, off the async threads where it takes long.

use std::{sync::Arc, time::Instant};

use rookery_model::{chat::ChatMessage, tokenizer::Tokenizer};
use rookery_proto::{
    server::{Admission, Tasks},
    status::{self, Reason},
    validate::Input,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::errors;

/// Text of up to this many bytes is tokenised where it is: that takes less time than a change of threads.
const SHORT_BYTES: usize = 1024;

/// Inputs tokenised at the same time; more would only take processors from the engine.
const AT_ONCE: usize = 2;

pub(super) struct Prompts {
    tasks: Tasks,
    places: Arc<Semaphore>,
}

/// A prompt, and the call's place at the gate, which it had to lend to the work: work that has begun goes on when
/// its call is cancelled, and must be counted until it ends.
pub(super) struct Prompt {
    pub(super) token_ids: Vec<u32>,
    pub(super) admission: Admission,
}

impl Prompts {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { tasks, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Token ids of `input`. Ids are passed on unchecked; the engine knows its vocabulary.
    pub(super) async fn tokens(
        &self,
        tokenizer: &Arc<Tokenizer>,
        input: Input,
        deadline: Option<Instant>,
        admission: Admission,
    ) -> Result<Prompt, Status> {
        let short = match &input {
            Input::TokenIds(_) => true,
            Input::Text(text) => text.len() <= SHORT_BYTES,
            Input::Chat(_) => false,
        };
        if short {
            return Ok(Prompt { token_ids: encode(tokenizer, input)?, admission });
        }
        let work = self.encode_elsewhere(Arc::clone(tokenizer), input, admission);
        let result = match deadline {
            // Dropping the wait is safe: work that has begun ends by itself, with the places that it holds.
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| errors::deadline())?
            }
            None => work.await,
        };
        result.unwrap_or_else(|| Err(status::refuse(Reason::Internal, "the tokenizer failed on this input")))
    }

    /// On a thread that may block; `None` if it panicked.
    async fn encode_elsewhere(
        &self,
        tokenizer: Arc<Tokenizer>,
        input: Input,
        admission: Admission,
    ) -> Option<Result<Prompt, Status>> {
        // An error would mean a closed semaphore, and this one is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        // Alive for as long as somebody waits for the result.
        let caller = Arc::new(());
        let waiting = Arc::downgrade(&caller);
        let work = move || {
            let _place: OwnedSemaphorePermit = place;
            if waiting.strong_count() == 0 {
                return Err(errors::deadline());
            }
            encode(&tokenizer, input).map(|token_ids| Prompt { token_ids, admission })
        };
        let result = self.tasks.run_blocking("tokenise", work).await;
        drop(caller);
        result
    }
}

fn encode(tokenizer: &Tokenizer, input: Input) -> Result<Vec<u32>, Status> {
    match input {
        Input::TokenIds(ids) => Ok(ids),
        Input::Text(text) => tokenizer.encode_text(&text).map_err(|error| errors::tokenizer("text", &error)),
        Input::Chat(messages) => {
            let message =
                |m: rookery_proto::v1::ChatMessage| ChatMessage { role: m.role, content: m.content };
            let messages: Vec<_> = messages.into_iter().map(message).collect();
            tokenizer.encode_chat(&messages).map_err(|error| errors::chat(&error))
        }
    }
}
