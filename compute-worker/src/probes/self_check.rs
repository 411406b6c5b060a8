//! The check before a model is served.

use rookery_model::bundle::Bundle;
use rookery_model::pack::PACKER_VERSION;

use super::replay::replay_on;
use super::{Mismatch, Probe, ProbeError, ProbeSet, Replay, SelfCheck};
use crate::backend::{Backend, CpuBackend};
use crate::engine::{EngineCore, self_checked};

/// Way out of a failed check.
const NEVERTHELESS: &str =
    "`--self-check off`, or worker.engine.self-check = \"off\", serves it nevertheless";

/// What became of a check that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelfCheckReport {
    /// Not done, and why.
    Skipped(&'static str),
    /// Every answer is what was recorded.
    Passed(Replay),
}

/// The model must not be served.
#[derive(Debug, thiserror::Error)]
pub enum SelfCheckError {
    /// The probes could not be read or replayed.
    #[error("self-check of model {model:?} could not be done")]
    Probes {
        /// Name of the model.
        model: String,
        /// Why.
        #[source]
        source: ProbeError,
    },
    /// The tokenizer reads a prompt differently.
    #[error(
        "self-check of model {model:?} failed: probe {probe:?} has other tokens than when it was recorded; {advice}; \
         {NEVERTHELESS}"
    )]
    Tokenizer {
        /// Name of the model.
        model: String,
        /// Name of the probe.
        probe: String,
        /// What to do.
        advice: String,
    },
    /// An answer differs.
    #[error("self-check of model {model:?} on {backend} failed: {mismatch}; {culprit}; {NEVERTHELESS}")]
    Differs {
        /// Name of the model.
        model: String,
        /// Where it was computed.
        backend: String,
        /// The first difference.
        mismatch: Box<Mismatch>,
        /// What is likely to be at fault, and what to do.
        culprit: String,
    },
}

/// Replays the probes that `bundle` carries on the engine that is to serve it and has served nothing yet, and says in the
/// log what came of it.
///
/// # Errors
/// When an answer differs from what was recorded, or probes cannot be replayed.
pub fn self_check(
    core: &mut EngineCore,
    bundle: &Bundle,
    extent: SelfCheck,
) -> Result<SelfCheckReport, SelfCheckError> {
    let checked = check(core, bundle, extent);
    // What an accelerator did until here is no part of the first client's step.
    if let Some(report) = core.backend.take_step_report() {
        core.instruments.npu_step(&report);
    }
    checked
}

fn check(
    core: &mut EngineCore,
    bundle: &Bundle,
    extent: SelfCheck,
) -> Result<SelfCheckReport, SelfCheckError> {
    let (model, backend) = (core.info().name.clone(), core.info().backend.clone());
    let skipped = |reason| {
        tracing::info!(model, reason, "no self-check");
        Ok(SelfCheckReport::Skipped(reason))
    };
    if extent == SelfCheck::Off {
        return skipped("it is switched off");
    }
    if !core.backend.is_exact() {
        return skipped("operations that the NPU computes in fp16 change answers");
    }
    let failed = |source| SelfCheckError::Probes { model: model.clone(), source };
    let Some(set) = ProbeSet::of(bundle).map_err(failed)? else {
        return skipped("the bundle carries no probes; pack the model again to have them recorded");
    };
    let encodes =
        |probe: &&Probe| core.tokenizer().encode_text(&probe.text).is_ok_and(|ids| ids == probe.prompt);
    if let Some(probe) = set.probes.iter().find(|probe| !encodes(probe)) {
        return Err(SelfCheckError::Tokenizer { model, probe: probe.name.clone(), advice: advice(bundle) });
    }
    let replay = super::replay(core, &set, extent).map_err(failed)?;
    self_checked(&model, replay.elapsed);
    let Some(mismatch) = replay.differing.first() else {
        if replay.positions == 0 {
            return skipped("no probe fits the context");
        }
        tracing::info!(
            model,
            backend,
            probes = replay.probes,
            tokens = replay.positions,
            kv_cache_type = %replay.kv_type,
            took = ?replay.elapsed,
            "self-check passed"
        );
        return Ok(SelfCheckReport::Passed(replay));
    };
    let culprit = culprit(core, bundle, &set, extent);
    Err(SelfCheckError::Differs { model, backend, mismatch: Box::new(mismatch.clone()), culprit })
}

/// What a mismatch comes from, as far as can be told from here.
fn culprit(core: &mut EngineCore, bundle: &Bundle, set: &ProbeSet, extent: SelfCheck) -> String {
    let mut cpu = CpuBackend::new(core.forward.kernels());
    if core.backend.name() != cpu.name()
        && let Ok(replay) = replay_on(&mut core.forward, &mut cpu, set, extent)
        && replay.differing.is_empty()
    {
        return "the processor alone answers as recorded, so the accelerator is at fault: serve with \
                `--backend cpu`, or worker.engine.backend = \"cpu\", and look at `rookery npu compare`"
            .to_owned();
    }
    advice(bundle)
}

/// What to do where no accelerator is at fault.
fn advice(bundle: &Bundle) -> String {
    let packer = &bundle.info().config.packer_version;
    if packer != PACKER_VERSION {
        return format!(
            "the model was packed by version {packer} and this is {PACKER_VERSION}: run that version, or pack it again"
        );
    }
    "this machine computes something else than the one that packed the model: compare with another gateway and check \
     this one's memory, or pack the model again if its bundle was changed"
        .to_owned()
}
