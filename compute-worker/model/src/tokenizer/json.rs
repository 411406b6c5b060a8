//! What is checked of a tokenizer's JSON before the `tokenizers` crate sees it.

use serde::Deserialize;

use super::TokenizerError;

/// The parts that decide whether the tokenizer is of the kind this crate serves. The rest is skipped, not stored.
#[derive(Deserialize)]
struct Outline {
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

/// Refuses what would be random (dropout) or what no served family uses. Prefix and suffix are refused for one more
/// reason: the crate slices tokens by their length without looking.
pub(super) fn check(json: &str) -> Result<(), TokenizerError> {
    let Outline { model } = serde_json::from_str(json).map_err(|error| TokenizerError::Json(error.into()))?;
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
