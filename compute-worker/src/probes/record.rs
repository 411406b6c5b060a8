//! Recording: what this engine answers, for both types of key/value cache.

use std::collections::BTreeMap;

use rookery_kernels::KvType;
use rookery_model::bundle::Bundle;
use rookery_model::tokenizer::Tokenizer;

use super::prober::{self, Ask};
use super::{Answer, Machine, Probe, ProbeError, ProbeSet, Recording, Topic};
use crate::backend::CpuBackend;
use crate::engine::{EngineConfig, GenerationError};

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Unique within the set, for example `arithmetic/sum`.
    pub name: String,
    /// What it is about.
    pub topic: Topic,
    /// Plain text for the model to continue.
    pub text: String,
    /// The one right continuation, if there is one.
    pub answer: Option<String>,
    /// Tokens to generate.
    pub tokens: usize,
}

/// Lets the engine answer `prompts` over `bundle` on this machine's processor, once for each type of key/value cache, and
/// keeps what it said. Prompts that do not fit the model's context are left out. Whether answers are right in f32 is not
/// known here. Of `config`, threads and instruction set count; neither changes what is recorded.
///
/// # Errors
/// When there is no engine for the bundle, it fails, or gives no number.
pub fn record(bundle: &Bundle, prompts: &[Prompt], config: &EngineConfig) -> Result<ProbeSet, ProbeError> {
    let tokenizer = bundle.tokenizer()?;
    let mut asked = Vec::new();
    for prompt in prompts {
        let tokens = tokenizer
            .encode_text(&prompt.text)
            .map_err(|source| ProbeError::Encode { probe: prompt.name.clone(), source })?;
        asked.push((prompt, tokens));
    }
    let context = bundle.info().config.model.context;
    asked.retain(|(prompt, tokens)| !tokens.is_empty() && tokens.len() + prompt.tokens <= context);
    let [f16, int8] = [KvType::F16, KvType::Int8].map(|kv_type| recordings(bundle, &asked, kv_type, config));
    let probes = asked.into_iter().zip(f16?.into_iter().zip(int8?));
    let probes = probes.map(|((prompt, tokens), (f16, int8))| {
        let right = |recording: &Recording, answer| is_right(&tokenizer, &recording.tokens, answer);
        let answer = prompt.answer.as_ref().map(|answer| Answer {
            text: answer.clone(),
            reference: None,
            f16: right(&f16, answer),
            int8: right(&int8, answer),
        });
        let (name, topic, text) = (prompt.name.clone(), prompt.topic, prompt.text.clone());
        Probe { name, topic, text, prompt: tokens, f16, int8, answer }
    });
    let set = ProbeSet {
        vocabulary: bundle.info().config.model.vocab,
        probes: probes.collect(),
        profile: BTreeMap::new(),
    };
    // None are a result too, though no document.
    if !set.probes.is_empty() {
        set.check(set.vocabulary)?;
    }
    Ok(set)
}

/// Most sequences at a time, and most rows of a step.
const MOST: [usize; 2] = [16, 256];

fn recordings(
    bundle: &Bundle,
    asked: &[(&Prompt, Vec<u32>)],
    kv_type: KvType,
    config: &EngineConfig,
) -> Result<Vec<Recording>, ProbeError> {
    let [max_batch, max_step_tokens] = MOST;
    let (threads, isa) = (config.threads, config.isa);
    // As much as the sequences need.
    let context_tokens = asked.iter().map(|(prompt, tokens)| tokens.len() + prompt.tokens).max();
    let config = EngineConfig {
        threads,
        isa,
        kv_type,
        context_tokens,
        max_batch,
        max_step_tokens,
        kv_cache_bytes: u64::MAX,
        ..EngineConfig::default()
    };
    let backend = CpuBackend::new(config.kernels()?);
    let mut machine = Machine::new(bundle, &config, Box::new(backend))?;
    let asks: Vec<Ask<'_>> =
        asked.iter().map(|(prompt, tokens)| Ask { prompt: tokens, tokens: prompt.tokens }).collect();
    let empty = || Recording { tokens: Vec::new(), logits: Vec::new() };
    let mut recordings: Vec<Recording> = asks.iter().map(|_| empty()).collect();
    prober::answer(&mut machine.forward, machine.backend.as_mut(), &asks, &mut |ask, said| {
        recordings[ask].tokens.extend(said.token);
        recordings[ask].logits.push(said.logits.clone());
        true
    })?;
    let complete = |(recording, ask): (&Recording, &Ask<'_>)| recording.tokens.len() == ask.tokens;
    match recordings.iter().zip(&asks).position(|pair| !complete(pair)) {
        Some(ask) => Err(ProbeError::Unanswered {
            probe: asked[ask].0.name.clone(),
            source: GenerationError::NotFinite,
        }),
        None => Ok(recordings),
    }
}

/// Whether `tokens` begin with `answer`, not counting white space before it, and no letter or digit goes on from there.
pub fn is_right(tokenizer: &Tokenizer, tokens: &[u32], answer: &str) -> bool {
    let until_end = tokens.iter().take_while(|token| !tokenizer.is_eog(**token));
    let bytes: Vec<u8> =
        until_end.filter_map(|token| tokenizer.token_bytes(*token)).flatten().copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    let rest = text.trim_start().strip_prefix(answer.trim());
    rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}
