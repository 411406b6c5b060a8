//! Renders chats with the model's own template.
//!
//! Templates are Jinja as `transformers` runs it: blocks trimmed, Python's string methods, `raise_exception`,
//! `strftime_now`, loop controls. They come with models, so they are not trusted: a render has fuel, which bounds both
//! its time and its memory.
//!
//! What users say cannot become a special token. Before rendering, every occurrence of one in a role or a content is
//! broken by a guard character, which [`Tokenizer::encode_prompt`] removes after it has looked for special tokens.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};

use crate::tokenizer::{Tokenizer, TokenizerError};

mod functions;

/// What a render may use: one unit is an instruction, or 64 bytes made. Real templates take a few hundred units.
const FUEL: u64 = 200_000;
/// More for each message: real templates take a few dozen units.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// Contents are copied several times (trimmed, split, joined): one unit for this many bytes lets them be, 16 times.
const BYTES_PER_FUEL: usize = 4;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what the template knows besides.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Why a chat could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model has no chat template.
    #[error("the model has no chat template; send text instead of messages")]
    NoTemplate,
    /// There is nothing to render.
    #[error("a chat needs at least one message")]
    NoMessages,
    /// The template itself refuses these messages, e.g. for the order of roles.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template took too many steps or made too much text.
    #[error("the model's chat template takes too many steps or makes too much text")]
    OutOfFuel,
    /// The template is not valid, or uses what is not supported.
    #[error("the model's chat template fails: {0}")]
    Template(String),
    /// The rendered text could not be encoded.
    #[error("rendered chat")]
    Encode(#[source] TokenizerError),
}

impl Tokenizer {
    /// Renders the messages, ready for the assistant to answer, with the guards described above in it: made for
    /// [`Tokenizer::encode_prompt`].
    ///
    /// # Errors
    /// When there is no template, it fails, it refuses the messages, or it runs too long.
    pub fn render_chat(&self, messages: &[ChatMessage]) -> Result<String, ChatError> {
        self.render_chat_at(messages, SystemTime::now())
    }

    /// [`Tokenizer::render_chat`] for templates that write the date: `now` is the time they see, in UTC.
    ///
    /// # Errors
    /// As [`Tokenizer::render_chat`].
    pub fn render_chat_at(&self, messages: &[ChatMessage], now: SystemTime) -> Result<String, ChatError> {
        let template = self.config().chat_template.as_deref().ok_or(ChatError::NoTemplate)?;
        if messages.is_empty() {
            return Err(ChatError::NoMessages);
        }
        let guarded: Vec<_> = messages
            .iter()
            .map(|message| context! { role => self.guard(&message.role), content => self.guard(&message.content) })
            .collect();
        let token = |id: Option<u32>| id.and_then(|id| self.token_text(id)).unwrap_or_default();
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let mut environment = environment(now);
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + (bytes / BYTES_PER_FUEL) as u64;
        environment.set_fuel(Some(fuel));
        let values = context! {
            messages => guarded,
            add_generation_prompt => true,
            bos_token => token(self.config().bos),
            eos_token => token(self.config().eos.first().copied()),
        };
        let template = environment.template_from_str(template).map_err(|error| classify(&error))?;
        template.render(values).map_err(|error| classify(&error))
    }

    /// Token ids of a chat, ready for the assistant to answer.
    ///
    /// # Errors
    /// As [`Tokenizer::render_chat`] and [`Tokenizer::encode_prompt`].
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, ChatError> {
        self.encode_prompt(&self.render_chat(messages)?).map_err(ChatError::Encode)
    }
}

/// What templates of `transformers` expect to find.
fn environment(now: SystemTime) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the default delimiters are valid"),
    );
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", functions::to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "refused").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: String| functions::strftime(now, &format));
    environment
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn classify(error: &minijinja::Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return ChatError::Refused(message.clone());
        }
        cause = current.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        ChatError::OutOfFuel
    } else {
        ChatError::Template(error.to_string())
    }
}
