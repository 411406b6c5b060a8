//! `probes.json`: what is recorded of each probe, and the rules for it.

use std::collections::{BTreeMap, HashSet};

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
    /// What speed is promised: tokens a second of one generation alone, by name of the board as its device tree has it, or
    /// [`ANY_BOARD`] for those that are not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profile: BTreeMap<String, f64>,
}

/// Stands for every board that a profile does not name.
pub const ANY_BOARD: &str = "*";

/// Most boards of a profile.
const MAX_BOARDS: usize = 256;

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
    /// [`ProbeError::Document`], [`ProbeError::OtherVocabulary`] and [`ProbeError::OtherModel`] for what cannot be replayed
    /// on this model.
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
        // Nothing in it can fail to be written: keys of maps are text, numbers are finite.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Tokens a second that a board of this name is to reach, if the profile says.
    pub fn promised_speed(&self, board: &str) -> Option<f64> {
        self.profile.get(board).or_else(|| self.profile.get(ANY_BOARD)).copied()
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

    /// That there are probes, and every one is complete, within bounds, and of a model with `vocabulary` tokens.
    pub(super) fn check(&self, vocabulary: usize) -> Result<(), ProbeError> {
        let fault = |fault: String| Err(ProbeError::Document(fault));
        if self.probes.is_empty() {
            return fault("no probes".to_owned());
        }
        if self.vocabulary != vocabulary {
            return Err(ProbeError::OtherVocabulary { recorded: self.vocabulary, vocabulary });
        }
        if self.probes.len() > MAX_PROBES {
            return fault(format!("{} probes, at most {MAX_PROBES} are read", self.probes.len()));
        }
        let speeds = self.profile.values();
        if self.profile.len() > MAX_BOARDS || speeds.clone().any(|&speed| !speed.is_finite() || speed <= 0.0)
        {
            return fault(format!("profile must have at most {MAX_BOARDS} boards with positive speeds"));
        }
        let mut names = HashSet::new();
        for probe in &self.probes {
            if !names.insert(&probe.name) {
                return fault(format!("two probes are called {:?}", probe.name));
            }
            probe.check()?;
            let tokens = probe.prompt.iter().chain(&probe.f16.tokens).chain(&probe.int8.tokens);
            let unknown = tokens.copied().find(|&token| token as usize >= vocabulary);
            if let Some(token) = unknown {
                let fault = format!("has token {token}, outside the vocabulary of {vocabulary}");
                return Err(ProbeError::OtherModel { probe: probe.name.clone(), fault });
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: usize = 100;

    fn set() -> ProbeSet {
        let recording = |token| Recording { tokens: vec![token], logits: vec![Digest::of(b"logits")] };
        let probe = |name: &str, topic, answer| Probe {
            name: name.to_owned(),
            topic,
            text: "1 + 1 =".to_owned(),
            prompt: vec![1, 2, 3],
            f16: recording(4),
            int8: recording(5),
            answer,
        };
        let answer = |reference, f16, int8| Some(Answer { text: " 2".to_owned(), reference, f16, int8 });
        ProbeSet {
            profile: BTreeMap::new(),
            vocabulary: VOCABULARY,
            probes: vec![
                probe("kept", Topic::Arithmetic, answer(Some(true), true, true)),
                probe("lost", Topic::Logic, answer(Some(true), false, true)),
                probe("gained", Topic::Code, answer(Some(false), true, false)),
                probe("unmeasured", Topic::Code, answer(None, true, false)),
                probe("open", Topic::Text, None),
            ],
        }
    }

    fn fault(edit: impl FnOnce(&mut ProbeSet)) -> String {
        let mut set = set();
        edit(&mut set);
        ProbeSet::parse(&set.to_json(), VOCABULARY).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(ProbeSet::parse(&set().to_json(), VOCABULARY).unwrap(), set());
    }

    #[test]
    fn answers_are_counted_for_each_type_of_cache() {
        let f16 = Answers { asked: 4, reference: 2, packed: 3, lost: 1, gained: 1 };
        assert_eq!(set().answers(KvType::F16), f16);
        assert_eq!(set().answers(KvType::Int8), Answers { packed: 2, lost: 0, gained: 0, ..f16 });
        assert_eq!(set().lost(KvType::F16).collect::<Vec<_>>(), ["lost"]);
        assert_eq!(set().lost(KvType::Int8).count(), 0);
    }

    #[test]
    fn documents_that_break_a_rule_are_refused_by_name() {
        type Edit = fn(&mut ProbeSet);
        let cases: [(&str, Edit); 12] = [
            ("no probes", |set| set.probes.clear()),
            ("two probes are called \"kept\"", |set| set.probes[1].name = "kept".to_owned()),
            ("\"open\" has no prompt", |set| set.probes[4].prompt.clear()),
            ("\"open\" has no prompt", |set| set.probes[4].prompt = vec![0; MAX_PROMPT + 1]),
            ("no answer of 1 to 64 tokens for int8", |set| set.probes[0].int8.tokens.clear()),
            ("no answer of 1 to 64 tokens for f16", |set| set.probes[0].f16.tokens = vec![0; MAX_ANSWER + 1]),
            ("not one digest for each token", |set| set.probes[0].f16.tokens.push(1)),
            ("bytes of text", |set| set.probes[2].text = "x".repeat(MAX_TEXT + 1)),
            ("257 probes", |set| set.probes = vec![set.probes[0].clone(); MAX_PROBES + 1]),
            ("token 100, outside the vocabulary of 100", |set| set.probes[3].prompt[1] = 100),
            ("logits of 101 tokens, and the model has 100", |set| set.vocabulary = 101),
            // Before any of them is looked at.
            ("logits of 1 tokens, and the model has 100", |set| {
                set.vocabulary = 1;
                set.probes[0].prompt.clear();
            }),
        ];
        for (expected, edit) in cases {
            let fault = fault(edit);
            assert!(fault.contains(expected) && fault.contains("pack"), "{expected}: {fault}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let good = String::from_utf8(set().to_json()).unwrap();
        let hostile = [
            String::new(),
            "null".to_owned(),
            "[".repeat(100_000),
            good[..good.len() / 2].to_owned(),
            good.replace("\"vocabulary\":100", "\"vocabulary\":1e9"),
            good.replace("\"prompt\":[1,", "\"prompt\":[-1,"),
            good.replace("\"prompt\":[1,", "\"prompt\":[4294967296,"),
            good.replace("\"topic\":\"logic\"", "\"topic\":\"magic\""),
            good.replace("sha256:", "md5:"),
            good.replacen("\"probes\"", "\"more\":1,\"probes\"", 1),
            good.replace("\"reference\":true", "\"reference\":\"yes\""),
        ];
        for document in hostile {
            let refused = ProbeSet::parse(document.as_bytes(), VOCABULARY);
            assert!(matches!(refused, Err(ProbeError::Document(_))), "{document:.80}: {refused:?}");
        }
        assert!(ProbeSet::parse(&[0xff, 0xfe], VOCABULARY).is_err());
    }
}
