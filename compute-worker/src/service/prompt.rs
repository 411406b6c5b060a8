//! From a request's input to token ids, off the async threads where it takes long.

use std::{sync::Arc, time::Instant};

use rookery_model::{chat::ChatMessage, tokenizer::Tokenizer};
use rookery_proto::{
    server::Tasks,
    status::{self, Reason},
    validate::Input,
};
use tokio::sync::Semaphore;
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
    ) -> Result<Vec<u32>, Status> {
        let input = match input {
            Input::TokenIds(ids) => return Ok(ids),
            Input::Text(text) if text.len() <= SHORT_BYTES => {
                return tokenizer.encode_text(&text).map_err(|error| errors::tokenizer("text", &error));
            }
            long @ (Input::Text(_) | Input::Chat(_)) => long,
        };
        let tokenizer = Arc::clone(tokenizer);
        let work = async {
            let _place = self.places.acquire().await;
            self.tasks.run_blocking("tokenise", move || encode(&tokenizer, input)).await
        };
        let result = match deadline {
            // Dropping the wait is safe: work that has begun ends by itself and is forgotten.
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| errors::deadline())?
            }
            None => work.await,
        };
        result.unwrap_or_else(|| Err(status::refuse(Reason::Internal, "the tokenizer failed on this input")))
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
