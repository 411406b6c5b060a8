//! From a source to a bundle, by a recipe.
//!
//! ```text
//! source ─► rotated ─► base: all w8 ─► calibration pass ─► low: w4 where allowed ─► sensitivities ─► choice
//!                       │ scratch        layer by layer       │ scratch (mixed)                        │
//!                       ▼                                     ▼                                        ▼
//!                    w8 is done here                      w4 is done here            mixed: rows copied from base and low
//! ```
//!
//! A recipe that smooths has the source smoothed before it is rotated, by what [`smoothing`] finds.
//!
//! Everything is kept in the staging folder of the [`Draft`] as it is done, under a key of all that it depends on. Memory
//! holds one matrix in f32, one Hessian with its factors, and the scratch of one batch of the calibration text.

use std::collections::BTreeMap;
use std::path::Path;

use rookery_compute_worker::engine::EngineConfig;
use rookery_compute_worker::probes::{self as recorded, Answers};
use rookery_kernels::KvType;
use rookery_model::bundle::{BundleInfo, PROBES_TYPE, Progress, QUANTIZATION_TYPE};
use rookery_model::pack::{Draft, ExistingTarget, check_target, describe};
use rookery_model::rotate::RotatedSource;
use rookery_model::smooth::SmoothedSource;
use rookery_model::source::ModelSource;

use crate::linalg::Compute;
use crate::probes;
use crate::recipe::Recipe;
use crate::smoothing;
use plan::Plan;
use stages::Stages;
use texts::Texts;

pub use error::QuantizeError;
pub use record::{CalibrationRecord, Quantization, RotationRecord, SensitivityRecord, Unit};

mod error;
mod mixed;
mod plan;
mod record;
mod stages;
mod texts;

/// How to pack.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeOptions {
    /// What people will call the model.
    pub name: String,
    /// What to do to each tensor.
    pub recipe: Recipe,
    /// Threads that compute; 0 means one for each core.
    pub threads: usize,
    /// What to do when the target exists.
    pub existing: ExistingTarget,
    /// Whether probes are recorded and put into the bundle.
    pub probes: bool,
    /// How many answers that are right in f32 may be wrong when packed; `None` allows any number.
    pub max_lost_probes: Option<usize>,
    /// What speed the probes promise: tokens a second of one generation alone, by name of the board or
    /// [`ANY_BOARD`](recorded::ANY_BOARD).
    pub profile: BTreeMap<String, f64>,
}

impl QuantizeOptions {
    /// Probes recorded, all cores, nothing replaced.
    pub fn new(name: impl Into<String>, recipe: Recipe) -> Self {
        Self {
            name: name.into(),
            recipe,
            threads: 0,
            existing: ExistingTarget::Refuse,
            probes: true,
            max_lost_probes: None,
            profile: BTreeMap::new(),
        }
    }
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PackReport {
    /// The bundle.
    pub bundle: BundleInfo,
    /// What was done, as the bundle carries it.
    pub quantization: Quantization,
    /// How many answers to probes are right, where they were recorded.
    pub answers: Option<Answers>,
}

/// Packs `source` into a new bundle folder `out` as the recipe says.
///
/// Bytes depend on source, name, recipe and calibration text only. An interrupted run is taken up where it was when the
/// same is packed to the same folder again.
///
/// # Errors
/// See [`QuantizeError`]; the target is as it was before.
pub fn pack(
    source: &dyn ModelSource,
    options: &QuantizeOptions,
    out: &Path,
    progress: &dyn Progress,
) -> Result<PackReport, QuantizeError> {
    // Hashing the source of a large model takes minutes.
    check_target(out, options.existing)?;
    let recipe = &options.recipe;
    // Smoothing leaves shapes as they are, and what it measures is kept in the draft that comes first.
    let unsmoothed = RotatedSource::new(source, recipe.rotate)?;
    let plan = Plan::new(unsmoothed.config(), recipe)?;
    let capacity = if plan.is_mixed() { plan.capacity()? } else { 0 };
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let compute = Compute::new(threads);
    let texts = Texts::read(source, &plan)?;
    // Refused early: a name, a source that cannot be hashed.
    let mut config = describe(&unsmoothed, &options.name, &recipe.label(), Vec::new())?;
    let key = texts.key(&config.source_digest, recipe);
    let mut draft = Draft::create(out, options.existing, &key)?;
    let smoothed = smooth(source, recipe, &texts, &compute, draft.scratch(), progress)?;
    let rotated = match &smoothed {
        Some(smoothed) => RotatedSource::new(smoothed, recipe.rotate)?,
        None => unsmoothed,
    };
    config.source = rotated.description().replace(char::is_control, " ");
    let stages = Stages { plan: &plan, source: &rotated, compute: &compute, key: &key, progress };
    let mut quantization = texts.record(&plan, &rotated, source.config().tied_head);
    let tensors = if plan.is_mixed() {
        stages.mixed(&mut draft, &texts, capacity, &mut quantization)?
    } else if plan.calibrates() {
        let scratch = draft.scratch().to_owned();
        let base = stages.base(&scratch)?;
        stages.calibrated(&mut draft, &base, texts.calibration.as_ref(), &scratch)?;
        plan.parts().flat_map(|part| plan.low_entries(part)).collect()
    } else {
        stages.plain(&mut draft)?
    };
    quantization.body_bits = plan.body_bits(&tensors);
    config.tensors = plan.in_order(tensors);
    quantization.check().map_err(QuantizeError::Record)?;
    draft.document(QUANTIZATION_TYPE, record::TITLE, &quantization.to_json())?;
    let mut answers = None;
    if options.probes {
        let bundle = draft.open(&config, &rotated)?;
        progress.start("recording probes", bundle.weight_bytes());
        let engine = EngineConfig { threads, ..EngineConfig::default() };
        let mut set = probes::record(&bundle, source, &engine, options.max_lost_probes)?;
        set.profile.clone_from(&options.profile);
        // Where no prompt fits the model's context there is nothing to check.
        if !set.probes.is_empty() {
            draft.document(PROBES_TYPE, recorded::TITLE, &set.to_json())?;
        }
        answers = Some(set.answers(KvType::F16));
        progress.advance(bundle.weight_bytes());
        progress.finish();
    }
    let bundle = draft.publish(&config, &rotated)?;
    Ok(PackReport { bundle, quantization, answers })
}

/// The source with outliers of its activations moved into its weights, where the recipe asks for it.
fn smooth<'a>(
    source: &'a dyn ModelSource,
    recipe: &Recipe,
    texts: &Texts,
    compute: &Compute,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<Option<SmoothedSource<'a>>, QuantizeError> {
    let (Some(strength), Some(sequences)) = (recipe.smooth, &texts.calibration) else { return Ok(None) };
    let maxima = smoothing::maxima(source, compute, sequences, scratch, progress)?;
    Ok(Some(SmoothedSource::new(source, &maxima, strength)?))
}

#[cfg(test)]
mod tests;
