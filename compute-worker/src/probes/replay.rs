//! Replaying: whether an engine answers what was recorded.

use std::fmt;
use std::time::{Duration, Instant};

use rookery_kernels::KvType;
use rookery_model::bundle::{Bundle, Digest};

use super::prober::{self, Ask};
use super::{Probe, ProbeError, ProbeSet, SelfCheck};
use crate::backend::Backend;
use crate::engine::{EngineConfig, EngineCore, EngineError};
use crate::model::forward::{Forward, ForwardLimits};
use crate::model::weights::ModelWeights;

/// What replaying found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// How the engine caches keys and values.
    pub kv_type: KvType,
    /// Probes replayed.
    pub probes: usize,
    /// Positions compared, over all of them.
    pub positions: usize,
    /// Names of the probes that do not fit the engine's context.
    pub skipped: Vec<String>,
    /// The first difference of each probe that gave anything else than what was recorded, in the order of the probes.
    pub differing: Vec<Mismatch>,
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
    /// Token and digest of the logits, as recorded.
    pub expected: (u32, Digest),
    /// As computed here; no token if a logit is not finite.
    pub seen: (Option<u32>, Digest),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probe, position, expected: (token, logits), seen } = self;
        write!(f, "probe {probe:?} differs at generated token {position}: expected token {token}, ")?;
        match seen.0 {
            Some(seen) if seen == *token => write!(f, "which came, but from other logits")?,
            Some(seen) => write!(f, "got {seen}")?,
            None => write!(f, "got logits that are not finite")?,
        }
        let short = |digest: &Digest| digest.hex()[..12].to_owned();
        write!(f, " (logits {}, expected {})", short(&seen.1), short(logits))
    }
}

/// Weights, cache and what computes over them, for probes alone.
pub(super) struct Machine {
    pub(super) forward: Forward,
    pub(super) backend: Box<dyn Backend>,
}

impl Machine {
    /// One for `bundle`, sized as an engine with these settings would be.
    pub(super) fn new(
        bundle: &Bundle,
        config: &EngineConfig,
        mut backend: Box<dyn Backend>,
    ) -> Result<Self, EngineError> {
        config.validate()?;
        let mut weights = ModelWeights::resolve(bundle).map_err(EngineError::Bundle)?;
        let block_bytes = weights.block_bytes(config.kv_type);
        let (blocks, positions) = config.cache_geometry(weights.config.context, block_bytes)?;
        backend.adopt(&mut weights).map_err(EngineError::Backend)?;
        let limits = ForwardLimits {
            threads: config.threads,
            blocks,
            kv_type: config.kv_type,
            positions,
            max_rows: config.max_step_tokens,
            max_logit_rows: config.max_batch,
        };
        Ok(Self { forward: Forward::new(weights, config.kernels()?, &limits), backend })
    }
}

/// Lets `core`, to which nothing was submitted yet, answer probes, and compares.
///
/// # Errors
/// When it fails; a wrong answer is no error.
pub fn replay(core: &mut EngineCore, set: &ProbeSet, extent: SelfCheck) -> Result<Replay, ProbeError> {
    replay_on(&mut core.forward, core.backend.as_mut(), set, extent)
}

/// Lets `backend` answer the probes of a bundle that no engine serves, and compares. Settings are an engine's, the type of
/// the key/value cache among them.
///
/// # Errors
/// As [`replay`].
pub fn replay_bundle(
    bundle: &Bundle,
    set: &ProbeSet,
    config: &EngineConfig,
    backend: Box<dyn Backend>,
    extent: SelfCheck,
) -> Result<Replay, ProbeError> {
    let mut machine = Machine::new(bundle, config, backend)?;
    replay_on(&mut machine.forward, machine.backend.as_mut(), set, extent)
}

/// Probes of a quick check, and tokens of each.
const QUICK: [usize; 2] = [2, 4];

pub(super) fn replay_on(
    forward: &mut Forward,
    backend: &mut dyn Backend,
    set: &ProbeSet,
    extent: SelfCheck,
) -> Result<Replay, ProbeError> {
    let began = Instant::now();
    let limits = *forward.limits();
    let [most_probes, most_tokens] = match extent {
        SelfCheck::Off => [0, 0],
        SelfCheck::Quick => QUICK,
        SelfCheck::Full => [usize::MAX; 2],
    };
    let ask = |probe| {
        let recording = Probe::recording(probe, limits.kv_type);
        (probe, recording, Ask { prompt: &probe.prompt, tokens: recording.tokens.len().min(most_tokens) })
    };
    let (fitting, unfit): (Vec<_>, Vec<_>) =
        set.probes.iter().map(ask).partition(|(_, _, ask)| ask.fits(&limits));
    let asked = &fitting[..fitting.len().min(most_probes)];
    let asks: Vec<Ask<'_>> = asked.iter().map(|(_, _, ask)| *ask).collect();
    let mut compared = vec![0; asks.len()];
    let mut differing: Vec<Option<Mismatch>> = vec![None; asks.len()];
    prober::answer(forward, backend, &asks, &mut |index, said| {
        let (probe, recording, _) = asked[index];
        let position = compared[index];
        compared[index] += 1;
        let expected = (recording.tokens[position], recording.logits[position].clone());
        if said.token == Some(expected.0) && said.logits == expected.1 {
            return true;
        }
        let (probe, seen) = (probe.name.clone(), (said.token, said.logits.clone()));
        differing[index] = Some(Mismatch { probe, position, expected, seen });
        false
    })?;
    Ok(Replay {
        kv_type: limits.kv_type,
        probes: asks.len(),
        positions: compared.iter().sum(),
        skipped: unfit.iter().map(|(probe, _, _)| probe.name.clone()).collect(),
        differing: differing.into_iter().flatten().collect(),
        elapsed: began.elapsed(),
    })
}
