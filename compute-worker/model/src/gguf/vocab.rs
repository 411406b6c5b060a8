//! The `tokenizer.*` metadata of a GGUF file.

use super::value::Metadata;
use crate::source::ImportError;
use crate::tokenizer::GgufVocab;

/// Collects what the tokenizer is made from; its own checks come later.
pub(super) fn read_vocab(metadata: &Metadata) -> Result<GgufVocab, ImportError> {
    let text = |key: &str| metadata.string(key).map(|text| text.map(str::to_owned));
    let texts = |key: &str| metadata.strings(key).map(|texts| texts.unwrap_or_default().to_vec());
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    let model = "tokenizer.ggml.model";
    Ok(GgufVocab {
        model: text(model)?.ok_or_else(|| ImportError::key(model, "missing"))?,
        pre: text("tokenizer.ggml.pre")?.unwrap_or_default(),
        tokens: texts("tokenizer.ggml.tokens")?,
        scores: scores.iter().map(|&score| score as f32).collect(),
        token_types: metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: texts("tokenizer.ggml.merges")?,
        bos: metadata.token_id("tokenizer.ggml.bos_token_id")?,
        eos: metadata.token_id("tokenizer.ggml.eos_token_id")?,
        eot: metadata.token_id("tokenizer.ggml.eot_token_id")?,
        eom: metadata.token_id("tokenizer.ggml.eom_token_id")?,
        unknown: metadata.token_id("tokenizer.ggml.unknown_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
