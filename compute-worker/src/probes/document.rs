//! `probes.json`: what is recorded of each probe.

use rookery_model::bundle::{Bundle, Digest};
use serde::{Deserialize, Serialize};

use super::ProbeError;

/// Media type of the bundle's layer.
pub const MEDIA_TYPE: &str = "application/vnd.rookery.model.probes.v1+json";
/// Title of the bundle's layer.
pub const TITLE: &str = "probes.json";
/// Longest document that is read.
pub const MAX_BYTES: usize = 4 << 20;

/// All probes of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSet {
    /// Tokens of the model's vocabulary, that is, logits of a position.
    pub vocabulary: usize,
    /// In the order in which they are replayed; a quick check takes the first of them.
    pub probes: Vec<Probe>,
}

/// One prompt and its answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Unique within the set, for example `arithmetic/sum`.
    pub name: String,
    /// What it is about.
    pub topic: Topic,
    /// The prompt, for people.
    pub text: String,
    /// The prompt as the engine is given it.
    pub prompt: Vec<u32>,
    /// With keys and values cached as f16.
    pub f16: Recording,
    /// With keys and values cached as int8.
    pub int8: Recording,
    /// What should be answered, where one continuation is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// What a probe is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// Sums, products, sequences of numbers.
    Arithmetic,
    /// Logic and common knowledge.
    Logic,
    /// Source code.
    Code,
    /// Text of any kind, without a right continuation.
    Text,
}

/// What an engine answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// Greedy tokens.
    pub tokens: Vec<u32>,
    /// For each of them, SHA-256 of the logits it was chosen from: `[vocabulary]` f32, little endian.
    pub logits: Vec<Digest>,
}

/// The right continuation of a probe, and who knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What must come next, to its last letter or digit; leading white space does not matter.
    pub text: String,
    /// Whether the model gave it in f32, before packing; `None` if that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<bool>,
    /// Whether the packed model gives it, keys and values cached as f16.
    pub f16: bool,
    /// Likewise, as int8.
    pub int8: bool,
}

/// How many answers are right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Probes that have a right answer.
    pub asked: usize,
    /// Answered right in f32 before packing.
    pub reference: usize,
    /// Answered right by the packed model.
    pub packed: usize,
    /// Right in f32 and wrong when packed.
    pub lost: usize,
    /// Wrong in f32 and right when packed.
    pub gained: usize,
}

impl ProbeSet {
    /// The probes that a bundle carries, if it does.
    ///
    /// # Errors
    /// [`ProbeError::Document`] and [`ProbeError::OtherModel`] for what cannot be replayed on this model.
    pub fn of(_bundle: &Bundle) -> Result<Option<Self>, ProbeError> {
        unimplemented!()
    }
}
