//! Makes a `tokenizers` JSON from the vocabulary that a GGUF file carries.
//!
//! llama.cpp's behaviour is the reference, down to what it does differently from the tokenizer a model was trained
//! with (no Unicode normalisation for Qwen2), because GGUF files are made for it and measured with it.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::{TokenizerConfig, TokenizerError};

/// The `tokenizer.*` metadata of a GGUF file, as read; nothing is checked yet.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`, which names the pre-tokenizer of a byte-level BPE; empty if absent.
    pub pre: String,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`; empty if absent.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`; empty if absent.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs, each written as two tokens with a space between; empty if absent.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// How a byte-level BPE splits text before merging, by the names that share it.
struct PreTokenizer {
    names: &'static [&'static str],
    regex: &'static str,
    /// A piece that is a token as a whole becomes it, whatever the merges say.
    ignore_merges: bool,
    add_bos: bool,
}

const PRE_TOKENIZERS: [PreTokenizer; 2] = [
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        regex: r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        regex: r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ignore_merges: false,
        add_bos: false,
    },
];

/// Texts of tokens that end a generation in every model that has them.
const END_OF_GENERATION: [&str; 12] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// Ends a generation where it is special. Elsewhere it is HTML: Qwen's vocabulary has it as an ordinary token, at which
/// llama.cpp stops all the same.
const END_OF_SEQUENCE: &str = "</s>";

/// Longest text of a SentencePiece token in bytes; trainers stop at 64. Pairs are looked for at every place where a token
/// can be cut, so the work grows with the square of its length.
const MAX_SCORED_BYTES: usize = 512;

/// Texts that are special whatever their type says: llama.cpp holds a wrong type for a mistake of the conversion.
const ALWAYS_SPECIAL: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenType {
    /// In the vocabulary and reached by merges.
    Normal,
    /// Special: only a template writes it.
    Special,
    /// Found in any text before merging.
    UserDefined,
    /// One byte of a SentencePiece vocabulary.
    Byte,
    /// Padding of the embedding; no token at all.
    Unused,
}

impl TokenType {
    fn new(number: i32, text: &str) -> TokenType {
        if END_OF_GENERATION.contains(&text) || ALWAYS_SPECIAL.contains(&text) {
            return TokenType::Special;
        }
        match number {
            2 | 3 => TokenType::Special,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            // 1 is normal; llama.cpp also takes 0 and numbers it does not know for merging.
            _ => TokenType::Normal,
        }
    }
}

/// Turns a GGUF vocabulary into a `tokenizers` JSON and the configuration beside it.
///
/// # Errors
/// Names what is not supported, or the list, token or merge at fault.
pub fn gguf_to_tokenizer_json(vocab: GgufVocab) -> Result<(String, TokenizerConfig), TokenizerError> {
    check_lists(&vocab)?;
    let types: Vec<TokenType> = (vocab.tokens.iter().enumerate())
        .map(|(id, text)| TokenType::new(vocab.token_types.get(id).copied().unwrap_or(1), text))
        .collect();
    let ids = ids_by_text(&vocab.tokens, &types)?;
    let (json, add_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level(&vocab, &types, &ids)?,
        "llama" => sentence_piece(&vocab, &types, &ids)?,
        _ => {
            return Err(TokenizerError::UnsupportedModel { found: vocab.model, supported: "gpt2, llama" });
        }
    };
    let eos = end_of_generation(&vocab, &types, &ids)?;
    let bos = in_vocabulary("bos", vocab.bos, vocab.tokens.len())?;
    let add_bos = vocab.add_bos.unwrap_or(add_bos) && bos.is_some();
    Ok((json.to_string(), TokenizerConfig { add_bos, bos, eos, chat_template: vocab.chat_template }))
}

fn check_lists(vocab: &GgufVocab) -> Result<(), TokenizerError> {
    let tokens = vocab.tokens.len();
    if tokens == 0 {
        return Err(TokenizerError::Empty);
    }
    for (list, found) in [("token types", vocab.token_types.len()), ("scores", vocab.scores.len())] {
        if found != 0 && found != tokens {
            return Err(TokenizerError::ListLength { list, found, tokens });
        }
    }
    match vocab.scores.iter().position(|score| score.is_nan()) {
        Some(id) => Err(TokenizerError::BadScore { id }),
        None => Ok(()),
    }
}

/// Ids of all tokens that exist, by text. Empty texts and unused ids are no tokens.
fn ids_by_text<'a>(
    tokens: &'a [String],
    types: &[TokenType],
) -> Result<HashMap<&'a str, u32>, TokenizerError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, text) in tokens.iter().enumerate() {
        if text.is_empty() || types[id] == TokenType::Unused {
            continue;
        }
        let second = id as u32;
        if let Some(first) = ids.insert(text.as_str(), second) {
            return Err(TokenizerError::DuplicateToken { text: text.clone(), first, second });
        }
    }
    Ok(ids)
}

fn in_vocabulary(
    what: &'static str,
    id: Option<u32>,
    vocabulary: usize,
) -> Result<Option<u32>, TokenizerError> {
    match id {
        Some(id) if id as usize >= vocabulary => Err(TokenizerError::IdOutOfRange { what, id, vocabulary }),
        id => Ok(id),
    }
}

/// Ids that the metadata names, the model's own `eos` first, then those known by their text.
fn end_of_generation(
    vocab: &GgufVocab,
    types: &[TokenType],
    ids: &HashMap<&str, u32>,
) -> Result<Vec<u32>, TokenizerError> {
    let mut eos = Vec::new();
    for (what, id) in [("eos", vocab.eos), ("eot", vocab.eot), ("eom", vocab.eom)] {
        eos.extend(in_vocabulary(what, id, vocab.tokens.len())?);
    }
    eos.extend(END_OF_GENERATION.iter().filter_map(|text| ids.get(text)));
    eos.extend(ids.get(END_OF_SEQUENCE).filter(|&&id| types[id as usize] == TokenType::Special));
    let mut seen = std::collections::HashSet::new();
    eos.retain(|&id| seen.insert(id));
    Ok(eos)
}

/// Byte-level BPE, and whether it wants `bos` if the file does not say.
fn byte_level(
    vocab: &GgufVocab,
    types: &[TokenType],
    ids: &HashMap<&str, u32>,
) -> Result<(Value, bool), TokenizerError> {
    let pre = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&vocab.pre.as_str())).ok_or_else(|| {
        let supported: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect();
        TokenizerError::UnsupportedPreTokenizer { found: vocab.pre.clone(), supported: supported.join(", ") }
    })?;
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for (index, text) in vocab.merges.iter().enumerate() {
        let bad = |fault| TokenizerError::BadMerge { index, text: text.clone(), fault };
        let (left, right) = text.split_once(' ').ok_or_else(|| bad("not two tokens with a space between"))?;
        let known = [left, right, &[left, right].concat()].iter().all(|part| ids.contains_key(part));
        if !known {
            return Err(bad("its parts or the whole are no tokens"));
        }
        merges.push(json!([left, right]));
    }
    let split =
        json!({"type": "Split", "pattern": {"Regex": pre.regex}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let json = json!({
        "version": "1.0",
        "added_tokens": added_tokens(&vocab.tokens, types),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
        "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary(ids),
            "merges": merges,
        },
    });
    Ok((json, pre.add_bos))
}

/// SentencePiece BPE with byte fallback. The file has scores instead of merges: a pair may merge if the result is a
/// token, and the highest score goes first.
fn sentence_piece(
    vocab: &GgufVocab,
    types: &[TokenType],
    ids: &HashMap<&str, u32>,
) -> Result<(Value, bool), TokenizerError> {
    if vocab.scores.is_empty() {
        let tokens = vocab.tokens.len();
        return Err(TokenizerError::ListLength { list: "scores", found: 0, tokens });
    }
    if let Some((id, text)) = vocab.tokens.iter().enumerate().find(|(_, text)| text.len() > MAX_SCORED_BYTES)
    {
        return Err(TokenizerError::TokenTooLong { id, bytes: text.len(), max: MAX_SCORED_BYTES });
    }
    let mut pairs: Vec<(f32, u32, u32)> = Vec::new();
    for (id, text) in vocab.tokens.iter().enumerate().filter(|(id, _)| types[*id] == TokenType::Normal) {
        let cuts = text.char_indices().skip(1).filter_map(|(cut, _)| {
            let (left, right) = text.split_at(cut);
            Some((vocab.scores[id], *ids.get(left)?, *ids.get(right)?))
        });
        pairs.extend(cuts);
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let text_of = |id: u32| vocab.tokens[id as usize].as_str();
    let merges: Vec<Value> =
        pairs.iter().map(|&(_, left, right)| json!([text_of(left), text_of(right)])).collect();

    let unknown = in_vocabulary("unknown", vocab.unknown.or(Some(0)), vocab.tokens.len())?;
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = json!({"type": "Prepend", "prepend": "▁"});
    let normalizers = if vocab.add_space_prefix.unwrap_or(true) { vec![prefix, space] } else { vec![space] };
    let json = json!({
        "version": "1.0",
        "added_tokens": added_tokens(&vocab.tokens, types),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE",
            "unk_token": unknown.map(text_of).filter(|text| ids.contains_key(text)),
            "fuse_unk": false,
            "byte_fallback": true,
            "vocab": vocabulary(ids),
            "merges": merges,
        },
    });
    Ok((json, true))
}

/// `model.vocab`. Added tokens are in it too: that is what gives them their own ids.
fn vocabulary(ids: &HashMap<&str, u32>) -> Value {
    // Sorted, not as hashed: the JSON's bytes go into the bundle's digest, and a map may keep the order of insertion.
    let sorted: BTreeMap<&str, u32> = ids.iter().map(|(&text, &id)| (text, id)).collect();
    Value::Object(
        sorted.into_iter().map(|(text, id)| (text.to_owned(), Value::from(id))).collect::<Map<_, _>>(),
    )
}

fn added_tokens(tokens: &[String], types: &[TokenType]) -> Value {
    let added = tokens.iter().enumerate().filter(|(id, text)| {
        !text.is_empty() && matches!(types[*id], TokenType::Special | TokenType::UserDefined)
    });
    let added = added.map(|(id, content)| {
        json!({
            "id": id, "content": content, "special": types[id] == TokenType::Special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    Value::Array(added.collect())
}
