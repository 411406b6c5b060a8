//! Recording and replaying.

use std::time::Duration;

use rookery_model::bundle::{Bundle, Digest};

use super::{ProbeError, ProbeSet, SelfCheck, Topic};
use crate::engine::{EngineConfig, EngineCore};

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

/// What replaying found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Probes replayed.
    pub probes: usize,
    /// Positions compared, over all of them.
    pub positions: usize,
    /// Names of the probes that gave anything else than what was recorded.
    pub differing: Vec<String>,
    /// The first difference of the first of them.
    pub first: Option<Mismatch>,
    /// Time taken.
    pub elapsed: Duration,
}

/// Where an answer left what was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the probe.
    pub probe: String,
    /// Which generated token, from 0.
    pub position: usize,
    /// Token and logits recorded.
    pub expected: (u32, Digest),
    /// Token and logits seen; `None` if the answer ended before.
    pub seen: Option<(u32, Digest)>,
}

/// Lets the engine answer `prompts` over `bundle`, once for each type of key/value cache, and keeps what it said.
/// Whether answers are right in f32 is not known here.
///
/// # Errors
/// When there is no engine for the bundle, or it fails.
pub fn record(_bundle: &Bundle, _prompts: &[Prompt], _config: &EngineConfig) -> Result<ProbeSet, ProbeError> {
    unimplemented!()
}

/// Lets `core` answer probes, and compares.
///
/// # Errors
/// When it fails; a wrong answer is no error.
pub fn replay(_core: &mut EngineCore, _probes: &ProbeSet, _extent: SelfCheck) -> Result<Replay, ProbeError> {
    unimplemented!()
}
