//! From raw requests to typed ones. Every limit in the `.proto` comments is checked here, and a request that breaks
//! several gets all of them named at once.

use std::collections::{BTreeMap, HashMap};

use tonic::Status;

use crate::{status, v1};

pub mod limit;

/// What a model is to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Plain text.
    Text(String),
    /// Token ids, at least one.
    TokenIds(Vec<u32>),
    /// Messages, at least one, each with a role.
    Chat(Vec<v1::ChatMessage>),
}

impl Input {
    /// Name of the request's field that holds it.
    pub fn field(&self) -> &'static str {
        match self {
            Input::Text(_) => "text",
            Input::TokenIds(_) => "token_ids",
            Input::Chat(_) => "chat",
        }
    }

    /// Bytes of text in it; 0 for token ids.
    pub fn text_bytes(&self) -> usize {
        match self {
            Input::Text(text) => text.len(),
            Input::TokenIds(_) => 0,
            Input::Chat(messages) => messages.iter().map(|m| m.role.len() + m.content.len()).sum(),
        }
    }
}

/// How tokens are chosen, with every default filled in but the seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Most tokens to generate, at least 1; `None`: as many as the context has room for.
    pub max_tokens: Option<u32>,
    /// Tokens before which nothing stops the generation; at most `max_tokens`.
    pub min_tokens: u32,
    /// 0 is greedy. From 0 to 100.
    pub temperature: f32,
    /// 0 keeps all tokens.
    pub top_k: u32,
    /// In (0, 1].
    pub top_p: f32,
    /// In [0, 1].
    pub min_p: f32,
    /// From 0.01 to 100; 1 changes nothing.
    pub repetition_penalty: f32,
    /// From -2 to 2.
    pub presence_penalty: f32,
    /// From -2 to 2.
    pub frequency_penalty: f32,
    /// Token ids and what is added to their logits, by token id; each from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the generator; `None`: one is to be drawn.
    pub seed: Option<u64>,
}

/// When a generation ends early.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stop {
    /// At most 16, none empty.
    pub strings: Vec<String>,
    /// At most 64.
    pub token_ids: Vec<u32>,
    /// Go on past end-of-generation tokens.
    pub ignore_eos: bool,
}

/// A checked [`v1::GenerateRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// Name of the model; empty: the only one served.
    pub model: String,
    /// What to continue.
    pub input: Input,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to stop early.
    pub stop: Stop,
    /// Most likely tokens to return with each position; `None`: no log-probabilities at all.
    pub logprobs: Option<u32>,
    /// Higher is scheduled first.
    pub priority: i32,
    /// Routing hint; may be empty.
    pub session_id: String,
    /// Labels that the gateway must have.
    pub labels: BTreeMap<String, String>,
    /// What the generation has brought before it goes on here.
    pub continuation: Option<Continuation>,
}

/// A checked [`v1::Continuation`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// The tokens that were passed on, at least one.
    pub token_ids: Vec<u32>,
    /// Bytes of their text that were passed on. Whether the tokens have so many is the engine's to check.
    pub text_bytes: usize,
}

/// A checked [`v1::TokenizeRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenize {
    /// Name of the model; empty: the only one served.
    pub model: String,
    /// Text or chat.
    pub input: Input,
}

/// The fields of a request that break the contract.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .0.iter().map(|(field, what)| format!("{field}: {what}")).collect::<Vec<_>>().join("; "))]
pub struct InvalidFields(Vec<(String, String)>);

impl InvalidFields {
    /// The fields, each with what is wrong with it.
    pub fn violations(&self) -> &[(String, String)] {
        &self.0
    }
}

impl From<InvalidFields> for Status {
    fn from(error: InvalidFields) -> Status {
        status::invalid_fields(error.0)
    }
}

impl TryFrom<v1::GenerateRequest> for Generate {
    type Error = InvalidFields;

    fn try_from(request: v1::GenerateRequest) -> Result<Self, InvalidFields> {
        use v1::generate_request::Input as Raw;
        let mut check = Check::default();
        check.at_most_bytes("model", &request.model, limit::MODEL_BYTES);
        check.at_most_bytes("session_id", &request.session_id, limit::SESSION_ID_BYTES);
        check.require((-limit::PRIORITY..=limit::PRIORITY).contains(&request.priority), "priority", || {
            format!("must be from -100 to 100, is {}", request.priority)
        });
        let input = request.input.map(|raw| match raw {
            Raw::Text(text) => Input::Text(text),
            Raw::TokenIds(list) => Input::TokenIds(list.ids),
            Raw::Chat(chat) => Input::Chat(chat.messages),
        });
        let input = check.input(input);
        let sampling = check.sampling(request.sampling.unwrap_or_default());
        let stop = check.stop(request.stop.unwrap_or_default());
        let logprobs = request.logprobs.map(|logprobs| logprobs.top);
        check.require(logprobs.unwrap_or(0) <= limit::TOP_LOGPROBS, "logprobs.top", || {
            "must be at most 20".into()
        });
        let labels = check.labels(request.labels);
        let continuation = check.continuation(request.continuation, &sampling);
        let (model, priority, session_id) = (request.model, request.priority, request.session_id);
        check.finish(input.map(|input| Generate {
            model,
            input,
            sampling,
            stop,
            logprobs,
            priority,
            session_id,
            labels,
            continuation,
        }))
    }
}

impl TryFrom<v1::TokenizeRequest> for Tokenize {
    type Error = InvalidFields;

    fn try_from(request: v1::TokenizeRequest) -> Result<Self, InvalidFields> {
        use v1::tokenize_request::Input as Raw;
        let mut check = Check::default();
        check.at_most_bytes("model", &request.model, limit::MODEL_BYTES);
        let input = request.input.map(|raw| match raw {
            Raw::Text(text) => Input::Text(text),
            Raw::Chat(chat) => Input::Chat(chat.messages),
        });
        let input = check.input(input);
        if let Some(input) = &input {
            let bytes = input.text_bytes();
            check.require(bytes <= limit::TOKENIZE_BYTES, input.field(), || {
                format!("must have at most {} bytes of text, has {bytes}", limit::TOKENIZE_BYTES)
            });
        }
        check.finish(input.map(|input| Tokenize { model: request.model, input }))
    }
}

impl Generate {
    /// Checks the token ids in sampling and stop parameters against a model of `vocabulary` tokens. The prompt's
    /// own ids are the engine's to check.
    ///
    /// # Errors
    /// Names every field with an id that the model does not have.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<(), InvalidFields> {
        let mut check = Check::default();
        let known = |id: u32| (id as usize) < vocabulary;
        let outside = |id: u32| format!("token id {id} is outside the model's vocabulary of {vocabulary}");
        for &(id, _) in &self.sampling.logit_bias {
            check.require(known(id), "sampling.logit_bias", || outside(id));
        }
        for (index, &id) in self.stop.token_ids.iter().enumerate() {
            check.require(known(id), format_args!("stop.token_ids[{index}]"), || outside(id));
        }
        for (index, &id) in self.continuation.iter().flat_map(|c| &c.token_ids).enumerate() {
            check.require(known(id), format_args!("continuation.token_ids[{index}]"), || outside(id));
        }
        check.finish(Some(()))
    }
}

#[derive(Default)]
struct Check(Vec<(String, String)>);

impl Check {
    fn require(&mut self, holds: bool, field: impl ToString, description: impl FnOnce() -> String) {
        if !holds {
            self.0.push((field.to_string(), description()));
        }
    }

    fn at_most_bytes(&mut self, field: impl ToString, value: &str, most: usize) {
        self.require(value.len() <= most, field, || {
            format!("must have at most {most} bytes, has {}", value.len())
        });
    }

    /// NaN and infinities are in no range, so they are refused here too.
    fn range(&mut self, field: &str, value: f32, range: impl std::ops::RangeBounds<f32>, text: &str) {
        self.require(value.is_finite() && range.contains(&value), field, || {
            format!("must be {text}, is {value}")
        });
    }

    fn input(&mut self, input: Option<Input>) -> Option<Input> {
        match &input {
            None => self.require(false, "input", || "one of text, token_ids or chat must be set".into()),
            Some(Input::Text(_)) => {}
            Some(Input::TokenIds(ids)) => {
                self.require(!ids.is_empty(), "token_ids", || "must have at least one id".into());
            }
            Some(Input::Chat(messages)) => {
                let count = messages.len();
                self.require((1..=limit::CHAT_MESSAGES).contains(&count), "chat.messages", || {
                    format!("must have from 1 to {} messages, has {count}", limit::CHAT_MESSAGES)
                });
                for (index, message) in messages.iter().enumerate() {
                    let length = message.role.len();
                    let field = format_args!("chat.messages[{index}].role");
                    self.require((1..=limit::ROLE_BYTES).contains(&length), field, || {
                        format!("must have from 1 to {} bytes, has {length}", limit::ROLE_BYTES)
                    });
                }
            }
        }
        input
    }

    fn sampling(&mut self, raw: v1::SamplingParams) -> Sampling {
        let sampling = Sampling {
            max_tokens: raw.max_tokens.filter(|&tokens| tokens > 0),
            min_tokens: raw.min_tokens.unwrap_or(0),
            temperature: raw.temperature.unwrap_or(0.0),
            top_k: raw.top_k.unwrap_or(0),
            top_p: raw.top_p.unwrap_or(1.0),
            min_p: raw.min_p.unwrap_or(0.0),
            repetition_penalty: raw.repetition_penalty.unwrap_or(1.0),
            presence_penalty: raw.presence_penalty.unwrap_or(0.0),
            frequency_penalty: raw.frequency_penalty.unwrap_or(0.0),
            logit_bias: sorted(raw.logit_bias),
            seed: raw.seed,
        };
        let most = sampling.max_tokens.unwrap_or(u32::MAX);
        self.require(sampling.min_tokens <= most, "sampling.min_tokens", || {
            format!("must be at most max_tokens ({most}), is {}", sampling.min_tokens)
        });
        self.range("sampling.temperature", sampling.temperature, 0.0..=limit::TEMPERATURE, "from 0 to 100");
        let above_zero = f32::MIN_POSITIVE;
        self.range("sampling.top_p", sampling.top_p, above_zero..=1.0, "greater than 0 and at most 1");
        self.range("sampling.min_p", sampling.min_p, 0.0..=1.0, "from 0 to 1");
        let repetition = sampling.repetition_penalty;
        self.range("sampling.repetition_penalty", repetition, limit::REPETITION_PENALTY, "from 0.01 to 100");
        let penalty = -limit::PENALTY..=limit::PENALTY;
        self.range("sampling.presence_penalty", sampling.presence_penalty, penalty.clone(), "from -2 to 2");
        self.range("sampling.frequency_penalty", sampling.frequency_penalty, penalty, "from -2 to 2");
        let count = sampling.logit_bias.len();
        self.require(count <= limit::LOGIT_BIAS_ENTRIES, "sampling.logit_bias", || {
            format!("must have at most {} entries, has {count}", limit::LOGIT_BIAS_ENTRIES)
        });
        for &(id, bias) in &sampling.logit_bias {
            let field = format!("sampling.logit_bias[{id}]");
            self.range(&field, bias, -limit::LOGIT_BIAS..=limit::LOGIT_BIAS, "from -100 to 100");
        }
        sampling
    }

    fn stop(&mut self, raw: v1::StopParams) -> Stop {
        let (strings, ids) = (raw.strings.len(), raw.token_ids.len());
        self.require(strings <= limit::STOP_STRINGS, "stop.strings", || {
            format!("must have at most {} entries, has {strings}", limit::STOP_STRINGS)
        });
        for (index, string) in raw.strings.iter().enumerate() {
            let length = string.len();
            let field = format_args!("stop.strings[{index}]");
            self.require((1..=limit::STOP_STRING_BYTES).contains(&length), field, || {
                format!("must have from 1 to {} bytes, has {length}", limit::STOP_STRING_BYTES)
            });
        }
        self.require(ids <= limit::STOP_TOKEN_IDS, "stop.token_ids", || {
            format!("must have at most {} entries, has {ids}", limit::STOP_TOKEN_IDS)
        });
        Stop { strings: raw.strings, token_ids: raw.token_ids, ignore_eos: raw.ignore_eos }
    }

    fn labels(&mut self, raw: HashMap<String, String>) -> BTreeMap<String, String> {
        let count = raw.len();
        self.require(count <= limit::LABELS, "labels", || {
            format!("must have at most {} entries, has {count}", limit::LABELS)
        });
        for (name, value) in &raw {
            let fits = |text: &str| (1..=limit::LABEL_BYTES).contains(&text.len());
            self.require(fits(name) && fits(value), "labels", || {
                format!("names and values must have from 1 to {} bytes", limit::LABEL_BYTES)
            });
        }
        raw.into_iter().collect()
    }

    fn continuation(&mut self, raw: Option<v1::Continuation>, sampling: &Sampling) -> Option<Continuation> {
        let raw = raw?;
        self.require(!raw.token_ids.is_empty(), "continuation.token_ids", || {
            "must have at least one id".into()
        });
        let drawn = sampling.temperature > 0.0;
        self.require(!drawn || sampling.seed.is_some(), "sampling.seed", || {
            "must be set to continue an answer whose tokens are drawn".into()
        });
        // What does not fit is more than any text has.
        let text_bytes = usize::try_from(raw.text_bytes).unwrap_or(usize::MAX);
        Some(Continuation { token_ids: raw.token_ids, text_bytes })
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, InvalidFields> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(InvalidFields(self.0)),
        }
    }
}

/// In the order of token ids, so that nothing depends on the order of a map.
fn sorted(bias: HashMap<u32, f32>) -> Vec<(u32, f32)> {
    let mut bias: Vec<_> = bias.into_iter().collect();
    bias.sort_unstable_by_key(|&(id, _)| id);
    bias
}

#[cfg(test)]
mod tests;
