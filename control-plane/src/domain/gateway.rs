//! A gateway and what it reports about itself.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Labels;

/// Stable id of a gateway: 1 to 128 letters, digits, `.`, `_` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayId(String);

impl TryFrom<String> for GatewayId {
    type Error = InvalidGatewayId;

    fn try_from(text: String) -> Result<Self, InvalidGatewayId> {
        text.parse()
    }
}

impl From<GatewayId> for String {
    fn from(id: GatewayId) -> String {
        id.0
    }
}

/// The text is no id of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gateway id {0:?} must have 1 to 128 letters, digits, '.', '_' or '-'")]
pub struct InvalidGatewayId(String);

impl FromStr for GatewayId {
    type Err = InvalidGatewayId;

    fn from_str(text: &str) -> Result<Self, InvalidGatewayId> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if (1..=128).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            // A hostile peer chooses this text, and it ends up in logs.
            Err(InvalidGatewayId(text.chars().take(128).collect()))
        }
    }
}

impl GatewayId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model version as gateways report it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// Name that requests use.
    pub name: String,
    /// Digest of the version, `sha256:…`.
    pub digest: String,
    /// Architecture, for example `qwen2`.
    pub architecture: String,
    /// Packing recipe, for example `w8`.
    pub recipe: String,
    /// Number of weights.
    pub parameters: u64,
    /// Longest prompt plus answer in tokens.
    pub context_tokens: u32,
    /// Size of the vocabulary.
    pub vocabulary: u32,
}

/// A served model and how busy it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLoad {
    /// The model.
    pub model: Model,
    /// Generations in the current batch.
    pub running: u32,
    /// Generations that wait.
    pub queued: u32,
    /// Tokens that those which wait have to read: prompts, and after preemption the answers so far too.
    pub queued_tokens: u64,
    /// Cache blocks that are free or hold only reusable prefixes.
    pub free_blocks: u32,
    /// Where its linear layers are computed, in the gateway's words; empty if it does not say.
    pub backend: String,
    /// Why it computes slower than it should, in the gateway's words.
    pub degraded: Option<String>,
}

/// A gateway's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayState {
    /// False while it drains.
    pub accepting: bool,
    /// What it serves, by name and digest: at times two versions of one model.
    models: Vec<ModelLoad>,
}

impl GatewayState {
    /// A gateway that serves nothing yet.
    pub fn new(accepting: bool) -> Self {
        Self { accepting, models: Vec::new() }
    }

    /// Adds what it serves. False, and nothing is changed, if that version of that model is there already.
    pub fn add(&mut self, load: ModelLoad) -> bool {
        let key = |load: &ModelLoad| (load.model.name.clone(), load.model.digest.clone());
        match self.models.binary_search_by_key(&key(&load), key) {
            Ok(_) => false,
            Err(place) => {
                self.models.insert(place, load);
                true
            }
        }
    }

    /// What it serves, by name and digest.
    pub fn models(&self) -> &[ModelLoad] {
        &self.models
    }

    /// Whether it serves a model of that name.
    pub fn serves(&self, name: &str) -> bool {
        self.models.iter().any(|load| load.model.name == name)
    }

    /// Generations on this gateway, running or waiting, over all models: they share its processors.
    pub fn generations(&self) -> u64 {
        self.models.iter().map(|load| u64::from(load.running) + u64::from(load.queued)).sum()
    }

    /// Why the first model that computes slower than it should does so, with its name.
    pub fn degraded(&self) -> Option<(&str, &str)> {
        self.models.iter().find_map(|load| Some((load.model.name.as_str(), load.degraded.as_deref()?)))
    }

    /// Tokens that wait to be read, over all models.
    pub fn queued_tokens(&self) -> u64 {
        self.models.iter().map(|load| load.queued_tokens).fold(0, u64::saturating_add)
    }
}

/// What people and the store say of a gateway, whether or not it is linked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Its own labels, with `id`, and `board`, `driver` and `processor` where it reports them.
    pub labels: Labels,
    /// It is to get no new requests; what runs there goes on.
    pub drained: bool,
    /// It is hotter than it should be, and may soon be slower.
    pub hot: bool,
}
