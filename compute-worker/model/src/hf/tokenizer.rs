//! `tokenizer.json` and the files beside it, which say how prompts begin, how answers end and how chats are
//! written.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::json::{Object, parse, read_text};
use crate::source::ImportError;
use crate::tokenizer::{Tokenizer, TokenizerConfig};

/// Files that are read here, if they are there.
pub(super) const FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Reads and checks the tokenizer of a folder: its JSON and the configuration beside it.
pub(super) fn read_tokenizer(
    folder: &Path,
    config: &Object,
    vocabulary: usize,
) -> Result<(String, TokenizerConfig), ImportError> {
    let name = FILES[0];
    let Some(json) = read_text(folder, name)? else {
        let hint = "a fast tokenizer's tokenizer.json is needed; save one beside the weights";
        return Err(ImportError::unsupported("a model folder without tokenizer.json", hint));
    };
    let tokenizer_config = read_tokenizer_config(folder, config, &json)?;
    // Building it once finds every fault now that would otherwise show when a packed model is served.
    Tokenizer::for_model(&json, tokenizer_config.clone(), vocabulary).map_err(ImportError::Tokenizer)?;
    Ok((json, tokenizer_config))
}

fn read_tokenizer_config(folder: &Path, config: &Object, json: &str) -> Result<TokenizerConfig, ImportError> {
    let tokenizer: Value = parse(FILES[0], json)?;
    let ids = ids_by_text(&tokenizer);
    let settings = Object::read(folder, "tokenizer_config.json")?;
    let generation = Object::read(folder, "generation_config.json")?;
    let named = |field: &str| settings.as_ref().and_then(|settings| token_text(settings.get(field)?));
    let id_of = |text: &str, field: &str| {
        let unknown =
            || ImportError::key(format!("tokenizer_config.json: {field}"), format!("{text:?} is no token"));
        ids.get(text).copied().ok_or_else(unknown)
    };
    let bos = match named("bos_token") {
        Some(text) => Some(id_of(text, "bos_token")?),
        // A tokenizer that says it has none has none, whatever the model's own configuration says.
        None if settings.is_some() => None,
        None => config.token_ids("bos_token_id")?.first().copied(),
    };
    let mut eos = Vec::new();
    if let Some(text) = named("eos_token") {
        eos.push(id_of(text, "eos_token")?);
    }
    for object in generation.iter().chain([config]) {
        for id in object.token_ids("eos_token_id")? {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
    }
    let asked = settings.as_ref().map(|settings| settings.bool("add_bos_token")).transpose()?.flatten();
    let add_bos = bos.is_some() && asked.unwrap_or_else(|| begins_with_special(&tokenizer));
    Ok(TokenizerConfig { add_bos, bos, eos, chat_template: chat_template(folder, settings.as_ref())? })
}

/// Every token's id by its text; added tokens win.
fn ids_by_text(tokenizer: &Value) -> HashMap<&str, u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut ids = HashMap::new();
    if let Some(vocab) = tokenizer.pointer("/model/vocab").and_then(Value::as_object) {
        ids.extend(vocab.iter().filter_map(|(text, value)| Some((text.as_str(), id(value)?))));
    }
    if let Some(added) = tokenizer.get("added_tokens").and_then(Value::as_array) {
        ids.extend(
            added.iter().filter_map(|token| Some((token.get("content")?.as_str()?, id(token.get("id")?)?))),
        );
    }
    ids
}

/// A special token as these files write it: its text, or an object around it.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Whether the tokenizer's own template puts a special token before the text.
fn begins_with_special(tokenizer: &Value) -> bool {
    let Some(processor) = tokenizer.get("post_processor") else { return false };
    let one = std::slice::from_ref(processor);
    let processors = processor.get("processors").and_then(Value::as_array).map_or(one, Vec::as_slice);
    let first = |processor: &Value| processor.pointer("/single/0/SpecialToken").is_some();
    processors.iter().any(first)
}

/// The chat template: a file of its own, else the field, whose list form has one called `default`.
fn chat_template(folder: &Path, settings: Option<&Object>) -> Result<Option<String>, ImportError> {
    if let Some(template) = read_text(folder, "chat_template.jinja")? {
        return Ok(Some(template));
    }
    let field = "chat_template";
    if let Some(object) = Object::read(folder, "chat_template.json")? {
        return Ok(object.string(field)?.map(str::to_owned));
    }
    let Some(settings) = settings else { return Ok(None) };
    match settings.get(field) {
        Some(Value::Array(templates)) => {
            let named = |template: &&Value| template.get("name").and_then(Value::as_str) == Some("default");
            let chosen = templates.iter().find(named).or(templates.first());
            let text = chosen.and_then(|template| template.get("template")?.as_str());
            text.map(|text| Some(text.to_owned())).ok_or_else(|| settings.error(field, "lists no template"))
        }
        _ => Ok(settings.string(field)?.map(str::to_owned)),
    }
}
