//! Text to token ids and back.
//!
//! A model's tokenizer travels as the JSON of the `tokenizers` crate plus a [`TokenizerConfig`]; a GGUF vocabulary is
//! turned into the same pair by [`gguf_to_tokenizer_json`], so that everything after import knows one form only.
//!
//! Text from users never becomes a special token. [`Tokenizer::encode_text`] does not look for any, and chats go
//! through [`Tokenizer::encode_chat`], where only what the template itself writes counts as special.

use std::error::Error;

use serde::{Deserialize, Serialize};

mod gguf_vocab;
mod json;
mod specials;
mod token_bytes;

pub use gguf_vocab::{GgufVocab, gguf_to_tokenizer_json};

pub use crate::text_stream::{Emitted, TextStream};
use specials::{Piece, Specials, unguard};
use token_bytes::TokenBytes;

/// What a tokenizer's JSON does not say: how prompts begin, how answers end, how chats are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Whether a prompt begins with `bos`.
    pub add_bos: bool,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// Every token that ends a generation (end of sequence, of turn, of message). The first is the one that templates
    /// know as `eos_token`.
    pub eos: Vec<u32>,
    /// Chat template in Jinja, as models carry it.
    pub chat_template: Option<String>,
}

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The kind of tokenizer is not implemented.
    #[error("tokenizer model {found:?} is not supported (supported: {supported})")]
    UnsupportedModel {
        /// Kind found.
        found: String,
        /// Kinds that work.
        supported: &'static str,
    },
    /// The vocabulary names a way to split text that is not implemented.
    #[error("pre-tokenizer {found:?} is not supported (supported: {supported})")]
    UnsupportedPreTokenizer {
        /// Name found.
        found: String,
        /// Names that work.
        supported: String,
    },
    /// A feature of the JSON would make the result random or is unknown in the model families served.
    #[error("tokenizer json: {0} is not supported")]
    UnsupportedFeature(&'static str),
    /// A step of the JSON is of a kind that the model families served do not use.
    #[error("tokenizer json: {part} of type {found:?} is not supported (supported: {supported})")]
    UnsupportedPart {
        /// `normalizer` or `pre_tokenizer`.
        part: &'static str,
        /// Type found; empty if it has none.
        found: String,
        /// Types that work.
        supported: String,
    },
    /// The JSON is not one of a tokenizer.
    #[error("tokenizer json")]
    Json(#[source] Box<dyn Error + Send + Sync>),
    /// Parallel lists of the vocabulary differ in length, or one is missing.
    #[error("vocabulary has {tokens} tokens but {found} {list}")]
    ListLength {
        /// Which list.
        list: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// Two ids have the same text.
    #[error("tokens {first} and {second} have the same text {text:?}")]
    DuplicateToken {
        /// The text.
        text: String,
        /// Lower id.
        first: u32,
        /// Higher id.
        second: u32,
    },
    /// Two texts have the same id.
    #[error("token {id} is both {first:?} and {second:?}")]
    DuplicateId {
        /// The id.
        id: u32,
        /// One text.
        first: String,
        /// The other.
        second: String,
    },
    /// Added tokens that are not in the vocabulary follow it in order, without holes; this one does not.
    #[error("added token {text:?} is listed as {id}, but would be {found:?}")]
    AddedTokenId {
        /// The token's text.
        text: String,
        /// Its id in the JSON.
        id: u32,
        /// The id that encoding would give it.
        found: Option<u32>,
    },
    /// The tokenizer does not belong to the model.
    #[error("the tokenizer has {tokens} tokens where the model has {rows}")]
    MoreThanModel {
        /// Highest id, plus one.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A token's text is longer than any tokenizer makes.
    #[error("token {id} has {bytes} bytes, more than {max}")]
    TokenTooLong {
        /// Which token.
        id: usize,
        /// Bytes of its text.
        bytes: usize,
        /// Most that is accepted.
        max: usize,
    },
    /// A token id lies outside the vocabulary.
    #[error("{what} is token {id}, outside the vocabulary of {vocabulary}")]
    IdOutOfRange {
        /// Which token, e.g. `bos`.
        what: &'static str,
        /// Its id.
        id: u32,
        /// Number of tokens.
        vocabulary: usize,
    },
    /// A merge does not join two tokens to a third.
    #[error("merge {index} ({text:?}): {fault}")]
    BadMerge {
        /// Which merge.
        index: usize,
        /// As the file spells it.
        text: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A score is not a number.
    #[error("score of token {id} is not a number")]
    BadScore {
        /// Which token.
        id: usize,
    },
    /// The vocabulary is empty.
    #[error("vocabulary is empty")]
    Empty,
    /// Ids are higher than any vocabulary needs.
    #[error("vocabulary of {vocabulary} ids is larger than {max}")]
    VocabularyTooLarge {
        /// Highest id, plus one.
        vocabulary: usize,
        /// Most that is accepted.
        max: usize,
    },
    /// The text could not be encoded.
    #[error("text cannot be encoded")]
    Encode(#[source] Box<dyn Error + Send + Sync>),
}

/// One model's tokenizer. Immutable; share it freely among threads.
pub struct Tokenizer {
    /// Treats special tokens as text; `specials` finds them where they count.
    inner: tokenizers::Tokenizer,
    config: TokenizerConfig,
    bytes: TokenBytes,
    specials: Specials,
}

impl Tokenizer {
    /// Builds a tokenizer from the JSON of the `tokenizers` crate.
    ///
    /// # Errors
    /// When the JSON is not a tokenizer of a supported kind, or `config` names ids that it lacks.
    pub fn new(json: &str, config: TokenizerConfig) -> Result<Self, TokenizerError> {
        let (inner, bytes, specials) = json::read(json)?;
        let named =
            config.bos.map(|id| ("bos", id)).into_iter().chain(config.eos.iter().map(|&id| ("eos", id)));
        for (what, id) in named {
            if id as usize >= bytes.len() {
                return Err(TokenizerError::IdOutOfRange { what, id, vocabulary: bytes.len() });
            }
        }
        Ok(Tokenizer { inner, config, bytes, specials })
    }

    /// [`Tokenizer::new`] for a model with `rows` tokens: every id it gives has a row in the embedding.
    ///
    /// # Errors
    /// As [`Tokenizer::new`], and when the tokenizer has more tokens than that.
    pub(crate) fn for_model(
        json: &str,
        config: TokenizerConfig,
        rows: usize,
    ) -> Result<Self, TokenizerError> {
        let tokenizer = Self::new(json, config)?;
        match tokenizer.vocabulary() {
            tokens if tokens > rows => Err(TokenizerError::MoreThanModel { tokens, rows }),
            _ => Ok(tokenizer),
        }
    }

    /// Token ids of plain text, after `bos` where the model wants it. Text that looks like a special token stays text.
    ///
    /// # Errors
    /// When the tokenizer has no token for part of the text and none for the unknown.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::from_iter(self.config.bos.filter(|_| self.config.add_bos));
        self.append(text, &mut ids)?;
        Ok(ids)
    }

    /// Token ids of a prompt in which special tokens count, such as [`Tokenizer::render_chat`] returns. It gets `bos`
    /// where the model wants it, unless it begins with it already.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_prompt(&self, rendered: &str) -> Result<Vec<u32>, TokenizerError> {
        let pieces = self.specials.split(rendered);
        let mut ids = Vec::new();
        if let Some(bos) = self.config.bos.filter(|_| self.config.add_bos)
            && pieces.first() != Some(&Piece::Special(bos))
        {
            ids.push(bos);
        }
        for piece in pieces {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => self.append(&unguard(text), &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The bytes a token stands for: none for special tokens, part of a character for some. `None` if it is no token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    /// One more than the highest token id. A model may have more rows than that in its head; those are no tokens.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// Whether this token ends a generation.
    pub fn is_eog(&self, id: u32) -> bool {
        self.config.eos.contains(&id)
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// The text of a token as the vocabulary spells it; for special tokens, what templates write.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Text for a chat template in which nothing will count as a special token.
    pub(crate) fn guard<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        self.specials.guard(text)
    }

    fn append(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(TokenizerError::Encode)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary", &self.vocabulary()).finish_non_exhaustive()
    }
}
