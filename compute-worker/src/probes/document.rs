//! `probes.json`: what is recorded of each probe, and the rules for it.

use std::collections::HashSet;

use rookery_kernels::KvType;
use rookery_model::bundle::{Bundle, Digest, PROBES_TYPE};
use serde::{Deserialize, Serialize};

use super::ProbeError;

/// Title of the bundle's layer; its media type is [`PROBES_TYPE`].
pub const TITLE: &str = "probes.json";

/// Most probes of a set.
pub const MAX_PROBES: usize = 256;
/// Longest prompt of a probe, in tokens.
pub const MAX_PROMPT: usize = 1024;
/// Longest answer of a probe, in tokens.
pub const MAX_ANSWER: usize = 64;
/// Longest text of a probe, its name and its right answer, each in bytes.
const MAX_TEXT: usize = 16 << 10;

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
    pub fn of(bundle: &Bundle) -> Result<Option<Self>, ProbeError> {
        let vocabulary = bundle.info().config.model.vocab;
        bundle.document(PROBES_TYPE).map(|json| Self::parse(json, vocabulary)).transpose()
    }

    /// Reads the document of a model of `vocabulary` tokens.
    ///
    /// # Errors
    /// As [`ProbeSet::of`].
    pub fn parse(json: &[u8], vocabulary: usize) -> Result<Self, ProbeError> {
        let set: Self =
            serde_json::from_slice(json).map_err(|error| ProbeError::Document(error.to_string()))?;
        set.check(vocabulary)?;
        Ok(set)
    }

    /// The document.
    pub fn to_json(&self) -> Vec<u8> {
        // Nothing in it can fail to be written: no maps, no numbers but integers.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How many answers are right, keys and values cached as `kv_type`.
    pub fn answers(&self, kv_type: KvType) -> Answers {
        let mut count = Answers::default();
        for answer in self.probes.iter().filter_map(|probe| probe.answer.as_ref()) {
            let (reference, packed) = (answer.reference == Some(true), answer.packed(kv_type));
            count.asked += 1;
            count.reference += usize::from(reference);
            count.packed += usize::from(packed);
            count.lost += usize::from(reference && !packed);
            count.gained += usize::from(packed && answer.reference == Some(false));
        }
        count
    }

    /// Names of the probes that were answered right in f32 and no longer are, keys and values cached as `kv_type`.
    pub fn lost(&self, kv_type: KvType) -> impl Iterator<Item = &str> {
        let lost = move |answer: &Answer| answer.reference == Some(true) && !answer.packed(kv_type);
        let probes = self.probes.iter().filter(move |probe| probe.answer.as_ref().is_some_and(lost));
        probes.map(|probe| probe.name.as_str())
    }

    /// That every probe is complete, within bounds, and of a model with `vocabulary` tokens.
    pub(super) fn check(&self, vocabulary: usize) -> Result<(), ProbeError> {
        let fault = |fault: String| Err(ProbeError::Document(fault));
        if self.probes.len() > MAX_PROBES {
            return fault(format!("{} probes, at most {MAX_PROBES} are read", self.probes.len()));
        }
        let mut names = HashSet::new();
        for probe in &self.probes {
            if !names.insert(&probe.name) {
                return fault(format!("two probes are called {:?}", probe.name));
            }
            probe.check()?;
            let tokens = probe.prompt.iter().chain(&probe.f16.tokens).chain(&probe.int8.tokens);
            let unknown = tokens.copied().find(|&token| token as usize >= vocabulary);
            let fault = match unknown {
                _ if self.vocabulary != vocabulary => {
                    format!("has logits of {} tokens where the model has {vocabulary}", self.vocabulary)
                }
                Some(token) => format!("has token {token}, outside the vocabulary of {vocabulary}"),
                None => continue,
            };
            return Err(ProbeError::OtherModel { probe: probe.name.clone(), fault });
        }
        Ok(())
    }
}

impl Probe {
    /// What was answered, keys and values cached as `kv_type`.
    pub fn recording(&self, kv_type: KvType) -> &Recording {
        match kv_type {
            KvType::F16 => &self.f16,
            KvType::Int8 => &self.int8,
        }
    }

    fn check(&self) -> Result<(), ProbeError> {
        let fault = |what: &str| {
            let name: String = self.name.chars().take(80).collect();
            Err(ProbeError::Document(format!("probe {name:?} {what}")))
        };
        let answer = self.answer.as_ref().map_or(0, |answer| answer.text.len());
        if [self.name.len(), self.text.len(), answer].iter().any(|&bytes| bytes > MAX_TEXT) {
            return fault(&format!("has more than {MAX_TEXT} bytes of text"));
        }
        if !(1..=MAX_PROMPT).contains(&self.prompt.len()) {
            return fault(&format!("has no prompt of 1 to {MAX_PROMPT} tokens"));
        }
        for (kv_type, recording) in KvType::ALL.map(|kv_type| (kv_type, self.recording(kv_type))) {
            if !(1..=MAX_ANSWER).contains(&recording.tokens.len()) {
                return fault(&format!("has no answer of 1 to {MAX_ANSWER} tokens for {kv_type}"));
            }
            if recording.tokens.len() != recording.logits.len() {
                return fault(&format!("has not one digest for each token of its answer for {kv_type}"));
            }
        }
        Ok(())
    }
}

impl Answer {
    /// Whether the packed model gives it, keys and values cached as `kv_type`.
    pub fn packed(&self, kv_type: KvType) -> bool {
        match kv_type {
            KvType::F16 => self.f16,
            KvType::Int8 => self.int8,
        }
    }
}
