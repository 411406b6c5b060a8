//! A tokenizer's JSON, checked and taken apart for the `tokenizers` crate.
//!
//! The crate's own reader is not used. It holds several trees of vocabulary and merges at a time, which is most of a
//! worker's memory beside its weights; it panics on a merge longer than every token; and it gives added tokens other
//! ids than the file says with no more than a warning. This reader parses once, into what is kept.

use std::fmt;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper};

use super::TokenizerError;
use super::specials::Specials;
use super::token_bytes::{Alphabet, TokenBytes};

/// Steps before splitting that served families use. Others are refused: some of the crate's panic on bad parameters.
const NORMALIZERS: [&str; 8] = ["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Strip"];
/// Ways to split text that served families use.
const PRE_TOKENIZERS: [&str; 5] = ["Sequence", "ByteLevel", "Digits", "Metaspace", "Split"];

/// The parts that decide whether the tokenizer is of the kind this crate serves, read first for the sake of messages.
#[derive(Deserialize)]
struct Outline {
    version: Option<String>,
    model: ModelOutline,
}

#[derive(Deserialize)]
struct ModelOutline {
    /// Old files leave it out; they are BPE if they have merges.
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// What encoding depends on. The rest (decoder, post-processor, truncation, padding) is done elsewhere or not at all.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

/// A token found in text before anything else.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    unk_token: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Vocab,
    merges: Vec<Merge>,
}

/// Two tokens that become one: a pair, or in old files a string with a space between.
struct Merge(String, String);

/// Reads a tokenizer: the crate's part, the bytes of its tokens, its special tokens.
pub(super) fn read(json: &str) -> Result<(tokenizers::Tokenizer, TokenBytes, Specials), TokenizerError> {
    check_outline(json)?;
    let document: Document = serde_json::from_str(json).map_err(invalid)?;
    let Document { mut added_tokens, normalizer, pre_tokenizer, decoder, model } = document;
    added_tokens.retain(|added| !added.token.content.is_empty());
    let byte_level = [&pre_tokenizer, &decoder].into_iter().flatten().any(is_byte_level);
    let alphabet = if byte_level { Alphabet::ByteLevel } else { Alphabet::SentencePiece };
    let bytes = TokenBytes::new(&model.vocab, &added_tokens, alphabet)?;

    let mut tokenizer = tokenizers::Tokenizer::new(model.build()?);
    let normalizer: Option<NormalizerWrapper> = part("normalizer", normalizer, &NORMALIZERS)?;
    tokenizer.with_normalizer(normalizer).map_err(TokenizerError::Json)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> = part("pre_tokenizer", pre_tokenizer, &PRE_TOKENIZERS)?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    tokenizer.set_encode_special_tokens(true);
    let tokens = added_tokens.iter().map(|added| added.token.clone());
    tokenizer.add_tokens(tokens).map_err(TokenizerError::Json)?;
    for Added { id, token } in &added_tokens {
        let found = tokenizer.token_to_id(&token.content);
        if found != Some(*id) {
            return Err(TokenizerError::AddedTokenId { text: token.content.clone(), id: *id, found });
        }
    }
    let special = added_tokens.into_iter().filter(|added| added.token.special);
    Ok((tokenizer, bytes, Specials::new(special.map(|added| (added.token.content, added.id)))))
}

/// Refuses what would be random (dropout) or what no served family uses.
fn check_outline(json: &str) -> Result<(), TokenizerError> {
    let Outline { version, model } = serde_json::from_str(json).map_err(invalid)?;
    if version.is_some_and(|version| version != "1.0") {
        return Err(TokenizerError::UnsupportedFeature("a version other than 1.0"));
    }
    if let Some(found) = model.kind.filter(|kind| kind != "BPE") {
        return Err(TokenizerError::UnsupportedModel { found, supported: "BPE" });
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(TokenizerError::UnsupportedFeature("dropout"));
    }
    if model.continuing_subword_prefix.is_some_and(|prefix| !prefix.is_empty()) {
        return Err(TokenizerError::UnsupportedFeature("continuing_subword_prefix"));
    }
    if model.end_of_word_suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(TokenizerError::UnsupportedFeature("end_of_word_suffix"));
    }
    Ok(())
}

fn invalid(error: serde_json::Error) -> TokenizerError {
    TokenizerError::Json(error.into())
}

/// Checks a part's type and those of its members, then makes the crate's form of it.
fn part<T: DeserializeOwned>(
    part: &'static str,
    value: Option<Value>,
    supported: &[&str],
) -> Result<Option<T>, TokenizerError> {
    let Some(value) = value else { return Ok(None) };
    match types(&value).into_iter().find(|kind| !supported.contains(kind)) {
        Some(found) => {
            let (found, supported) = (found.to_owned(), supported.join(", "));
            Err(TokenizerError::UnsupportedPart { part, found, supported })
        }
        None => serde_json::from_value(value).map(Some).map_err(invalid),
    }
}

/// Types of a part and of all its members.
fn types(value: &Value) -> Vec<&str> {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
    let members =
        ["normalizers", "pretokenizers", "decoders"].into_iter().filter_map(|field| value.get(field));
    let members = members.filter_map(Value::as_array).flatten().flat_map(types);
    std::iter::once(kind).chain(members).collect()
}

fn is_byte_level(part: &Value) -> bool {
    types(part).contains(&"ByteLevel")
}

impl Model {
    fn build(self) -> Result<tokenizers::models::bpe::BPE, TokenizerError> {
        let mut whole = String::new();
        for (index, Merge(left, right)) in self.merges.iter().enumerate() {
            whole.clear();
            whole.extend([left.as_str(), right]);
            if ![left, right, &whole].into_iter().all(|text| self.vocab.contains_key(text)) {
                let fault = "its parts or the whole are no tokens";
                return Err(TokenizerError::BadMerge { index, text: format!("{left} {right}"), fault });
            }
        }
        let merges = self.merges.into_iter().map(|Merge(left, right)| (left, right)).collect();
        let mut builder = BpeBuilder::new()
            .vocab_and_merges(self.vocab, merges)
            // The crate would remember 10,000 words for each thread that ever encodes, and is no faster for it: 100 kB
            // of code and prose take 38 ms without, 41 to 48 ms with.
            .cache_capacity(0)
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false));
        if let Some(unknown) = self.unk_token {
            builder = builder.unk_token(unknown);
        }
        builder.build().map_err(TokenizerError::Json)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: two tokens, or a string of two with a space between")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
        let (left, right) =
            text.split_once(' ').ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
        Ok(Merge(left.to_owned(), right.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Merge, A::Error> {
        let mut next = |count| parts.next_element()?.ok_or_else(|| A::Error::invalid_length(count, &self));
        let (left, right) = (next(0)?, next(1)?);
        match parts.next_element::<IgnoredAny>()? {
            None => Ok(Merge(left, right)),
            Some(_) => Err(A::Error::invalid_length(3, &self)),
        }
    }
}
