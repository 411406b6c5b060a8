//! The text that a plan needs, and the key of everything that bytes depend on.

use rookery_model::bundle::Digest;
use rookery_model::pack::PACKER_VERSION;
use rookery_model::rotate::RotatedSource;
use rookery_model::source::ModelSource;

use super::QuantizeError;
use super::plan::Plan;
use super::record::{CalibrationRecord, Quantization, RotationRecord, VERSION};
use crate::calibrate::bytes_per_row;
use crate::calibration::Sequences;
use crate::recipe::{Bits, Recipe};

/// Most bytes that one batch's activations and cache may take.
const BATCH_BYTES: usize = 3 << 30;

/// Sequences that go through the model.
pub(super) struct Texts {
    /// To smooth and to round with.
    pub(super) calibration: Option<Sequences>,
    /// To measure sensitivities with.
    pub(super) sensitivity: Option<Sequences>,
}

impl Texts {
    /// Reads what the plan needs.
    pub(super) fn read(source: &dyn ModelSource, plan: &Plan) -> Result<Self, QuantizeError> {
        let (calibration, sensitivity) = (&plan.recipe.calibration, &plan.recipe.sensitivity);
        let most = BATCH_BYTES / bytes_per_row(&plan.model).max(1);
        let read = |tokens: usize, sequence: usize| {
            let sequence = sequence.min(most.max(1));
            let tokens = tokens.min(most / sequence * sequence);
            Sequences::read(source, &calibration.texts, tokens, sequence)
        };
        let watched = plan.calibrates() || plan.recipe.smooth.is_some();
        let rounding = watched.then(|| read(calibration.tokens, calibration.sequence)).transpose()?;
        let measuring =
            plan.is_mixed().then(|| read(sensitivity.tokens, sensitivity.sequence)).transpose()?;
        Ok(Self { calibration: rounding, sensitivity: measuring })
    }

    /// Digest of everything that the bytes of parts depend on.
    pub(super) fn key(&self, source_digest: &str, recipe: &Recipe) -> String {
        let digest = |sequences: &Option<Sequences>| {
            sequences.as_ref().map(|sequences| sequences.digest().to_string()).unwrap_or_default()
        };
        // Where the text lies does not matter, what it says does.
        let mut recipe = recipe.clone();
        recipe.calibration.texts.clear();
        let recipe = serde_json::to_string(&recipe).unwrap_or_default();
        let all = [
            PACKER_VERSION,
            env!("CARGO_PKG_VERSION"),
            source_digest,
            &recipe,
            &digest(&self.calibration),
            &digest(&self.sensitivity),
        ];
        Digest::of(all.join("\n").as_bytes()).to_string()
    }

    /// What is known before anything is rounded.
    pub(super) fn record(&self, plan: &Plan, source: &RotatedSource<'_>, was_tied: bool) -> Quantization {
        let recipe = &plan.recipe;
        Quantization {
            version: VERSION,
            bits: recipe.bits,
            budget: (recipe.bits == Bits::Mixed).then(|| recipe.budget()),
            pins: recipe.pins.clone(),
            w8_rounding: recipe.w8_rounding,
            w4_rounding: recipe.w4_rounding,
            smooth: recipe.smooth,
            rotation: RotationRecord { options: recipe.rotate, description: source.describe() },
            untied_head: was_tied && !source.config().tied_head,
            calibration: self.calibration.as_ref().map(|sequences| CalibrationRecord {
                digest: sequences.digest().to_string(),
                tokens: sequences.tokens.len(),
                sequence: sequences.length,
                built_in: recipe.calibration.texts.is_empty(),
            }),
            body_bits: 0.0,
            sensitivity: None,
            predicted_kl: None,
            units: Vec::new(),
        }
    }
}
