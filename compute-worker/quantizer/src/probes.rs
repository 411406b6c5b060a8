//! Prompts with known answers, and what packing lost of them.
//!
//! ```text
//! prompts ─► engine over the packed model, each type of cache ─► tokens and digests, to be reproduced everywhere
//!        └─► the source in f32, one pass over prompts with their right answers ─► which ones it knew
//! ```
//!
//! An answer is lost if the source gives it and the packed model does not. Few probes are lost by chance: the questions are
//! easy, and an answer that wavers in f32 counts as one that was not known.

mod prompts;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rookery_compute_worker::backend::{Backend, CpuBackend};
use rookery_compute_worker::engine::EngineConfig;
use rookery_compute_worker::model::reference::{Reference, ReferenceError};
use rookery_compute_worker::probes::{
    self as recorded, Answers, ProbeError, ProbeSet, Prompt, SelfCheck, is_right, replay_bundle,
};
use rookery_kernels::KvType;
use rookery_model::bundle::{Bundle, BundleError};
use rookery_model::source::ModelSource;
use rookery_model::tokenizer::Tokenizer;
use serde::Serialize;

pub use prompts::prompts;

/// Probes could not be recorded, or say that the packed model is not good enough.
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// The engine could not record or replay them.
    #[error("the engine could not answer the probes")]
    Engine(#[from] ProbeError),
    /// The bundle could not be read.
    #[error("the bundle could not be read")]
    Bundle(#[from] BundleError),
    /// The unpacked model could not be asked.
    #[error("the unpacked model could not answer the probes")]
    Reference(#[from] ReferenceError),
    /// The bundle carries none.
    #[error("the bundle carries no probes; pack the model again to have them recorded")]
    None,
    /// Packing lost too many answers.
    #[error(
        "packing lost {} right answers, at most {allowed} may be lost: {}; choose a recipe with more bits, or allow more",
        names.len(),
        names.join(", ")
    )]
    Lost {
        /// Names of the probes whose answers were lost.
        names: Vec<String>,
        /// How many may be lost.
        allowed: usize,
    },
}

/// What replaying a bundle's probes showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbesReport {
    /// With keys and values cached as f16, then as int8.
    pub caches: Vec<CacheReport>,
}

/// What replaying showed with one type of key/value cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheReport {
    /// `f16` or `int8`.
    pub kv_cache_type: &'static str,
    /// Probes replayed.
    pub probes: usize,
    /// Generated tokens compared, their logits to the last bit.
    pub tokens: usize,
    /// Names of probes that do not fit the context.
    pub skipped: Vec<String>,
    /// Where probes gave anything else than what was recorded; empty if all is well.
    pub differing: Vec<String>,
    /// Time taken.
    #[serde(skip)]
    pub elapsed: Duration,
    /// How many answers were right when they were recorded.
    pub answers: Answers,
    /// Names of probes whose answers packing lost.
    pub lost: Vec<String>,
}

impl ProbesReport {
    /// Whether everything came out as recorded.
    pub fn reproduces(&self) -> bool {
        self.caches.iter().all(|cache| cache.differing.is_empty())
    }
}

/// Records [`prompts`] over `bundle`, and asks `source` in f32 which answers it knew.
///
/// `max_lost` is how many answers that are right in f32 may be wrong when packed, keys and values cached as f16; `None`
/// allows any number.
///
/// # Errors
/// When the engine or the source fails, and [`ProbesError::Lost`].
pub fn record(
    bundle: &Bundle,
    source: &dyn ModelSource,
    config: &EngineConfig,
    max_lost: Option<usize>,
) -> Result<ProbeSet, ProbesError> {
    record_prompts(bundle, source, &prompts(), config, max_lost)
}

/// As [`record`], of other prompts.
///
/// # Errors
/// As [`record`].
pub fn record_prompts(
    bundle: &Bundle,
    source: &dyn ModelSource,
    prompts: &[Prompt],
    config: &EngineConfig,
    max_lost: Option<usize>,
) -> Result<ProbeSet, ProbesError> {
    let mut set = recorded::record(bundle, prompts, config)?;
    ask_reference(&mut set, source, &bundle.tokenizer()?)?;
    let names: Vec<String> = set.lost(KvType::F16).map(str::to_owned).collect();
    match max_lost {
        Some(allowed) if names.len() > allowed => Err(ProbesError::Lost { names, allowed }),
        _ => Ok(set),
    }
}

/// Replays the probes that `bundle` carries on this machine's processor, for each type of key/value cache. Of `config`,
/// threads, instruction set and limits count.
///
/// # Errors
/// [`ProbesError::None`], and when the engine fails; a wrong answer is no error.
pub fn evaluate(bundle: &Bundle, config: &EngineConfig) -> Result<ProbesReport, ProbesError> {
    let kernels = config.kernels().map_err(ProbeError::Engine)?;
    evaluate_on(bundle, config, &|| Box::new(CpuBackend::new(kernels)))
}

/// As [`evaluate`], with linear layers on the backends that `backend` makes.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_on(
    bundle: &Bundle,
    config: &EngineConfig,
    backend: &dyn Fn() -> Box<dyn Backend>,
) -> Result<ProbesReport, ProbesError> {
    let set = ProbeSet::of(bundle)?.ok_or(ProbesError::None)?;
    let mut caches = Vec::new();
    for kv_type in KvType::ALL {
        let config = EngineConfig { kv_type, ..config.clone() };
        let replay = replay_bundle(bundle, &set, &config, backend(), SelfCheck::Full)?;
        caches.push(CacheReport {
            kv_cache_type: kv_type.name(),
            probes: replay.probes,
            tokens: replay.positions,
            skipped: replay.skipped,
            differing: replay.differing.iter().map(ToString::to_string).collect(),
            elapsed: replay.elapsed,
            answers: set.answers(kv_type),
            lost: set.lost(kv_type).map(str::to_owned).collect(),
        });
    }
    Ok(ProbesReport { caches })
}

/// A question with its right answer, as one sequence for the f32 model.
struct Question {
    probe: usize,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// The most likely token after the prompt and after each token of the answer.
    best: Vec<u32>,
}

/// Fills in which answers `source` gives: in one pass over all prompts with their answers, the most likely token at each
/// position tells what it would have said.
fn ask_reference(
    set: &mut ProbeSet,
    source: &dyn ModelSource,
    tokenizer: &Tokenizer,
) -> Result<(), ProbesError> {
    let mut questions = Vec::new();
    for (index, probe) in set.probes.iter().enumerate() {
        let Some(answer) = &probe.answer else { continue };
        let whole = format!("{}{}", probe.text, answer.text);
        let encode = |source| ProbeError::Encode { probe: probe.name.clone(), source };
        let tokens = tokenizer.encode_text(&whole).map_err(encode)?;
        // A tokenizer may join the end of the prompt to the answer. Then this way of asking does not work.
        if tokens.starts_with(&probe.prompt) && tokens.len() > probe.prompt.len() {
            questions.push(Question { probe: index, tokens, prompt: probe.prompt.len(), best: Vec::new() });
        }
    }
    let sequences: Vec<Vec<u32>> = questions.iter().map(|question| question.tokens.clone()).collect();
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    Reference::open(source).logits(&sequences, &mut |sequence, position, logits| {
        let question = &mut questions[sequence];
        if position + 1 >= question.prompt {
            question.best.push(most_likely(logits));
        }
    })?;
    for question in questions {
        if let Some(answer) = &mut set.probes[question.probe].answer {
            answer.reference = Some(question.knows(tokenizer, &answer.text));
        }
    }
    Ok(())
}

impl Question {
    /// Whether the most likely tokens spell the answer. The last of them may go on behind it, with a full stop for example.
    fn knows(&self, tokenizer: &Tokenizer, text: &str) -> bool {
        let answer = &self.tokens[self.prompt..];
        let agreed = answer.iter().zip(&self.best).take_while(|(answer, best)| answer == best).count();
        let said: Vec<u32> = answer[..agreed].iter().chain(self.best.get(agreed)).copied().collect();
        is_right(tokenizer, &said, text)
    }
}

/// The lowest id of the highest logit.
fn most_likely(logits: &[f32]) -> u32 {
    let best = (0..)
        .zip(logits)
        .fold((0, f32::NEG_INFINITY), |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best });
    best.0
}
