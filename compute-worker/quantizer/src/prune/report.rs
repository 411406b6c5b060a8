//! What was pruned and what that cost.

use std::path::{Path, PathBuf};

use rookery_model::bundle::Progress;
use rookery_model::gguf::GgufModel;
use rookery_model::source::ModelSource;
use serde::Serialize;

use super::meter::Meter;
use super::{LayerFit, PruneError};
use crate::eval::{EvalOptions, Model, Report, Subject, Text, evaluate};

/// The size of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Channels of a feed-forward.
    pub ffn: usize,
    /// Weights.
    pub parameters: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Shape {
    pub(super) fn of(path: &Path, model: &GgufModel) -> Result<Self, PruneError> {
        let metadata = std::fs::metadata(path);
        let bytes = metadata.map_err(|source| PruneError::Io { path: path.to_owned(), source })?.len();
        let config = model.config();
        Ok(Self { layers: config.layers, ffn: config.ffn, parameters: model.parameters(), bytes })
    }
}

/// What was pruned and what that cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PruneReport {
    /// The file written.
    pub output: PathBuf,
    /// What there was.
    pub source: Shape,
    /// What there is.
    pub pruned: Shape,
    /// Layers of the source that went, ascending.
    pub dropped: Vec<usize>,
    /// Block influence of each layer of the source, where layers were chosen by it.
    pub influence: Option<Vec<f64>>,
    /// Tokens calibrated on.
    pub calibration_tokens: usize,
    /// Down projections that were to be refitted, in the order of layers.
    pub fits: Vec<LayerFit>,
    /// Predictions on text that comes with the program and was not calibrated on. The source is the reference; candidates
    /// are `pruned` and, where recovery was not turned off, `pruned, recovered`, which is what the file holds.
    pub evaluation: Option<Report>,
}

impl PruneReport {
    /// Measures what was written, and what would have been without recovery.
    pub(super) fn measure(
        &mut self,
        source: &GgufModel,
        plain: Option<&dyn ModelSource>,
        written: &GgufModel,
        tokens: usize,
        progress: &dyn Progress,
    ) -> Result<(), PruneError> {
        let subject = |name: &str, shape: Shape, model| Subject {
            name: name.to_owned(),
            size_bytes: shape.bytes,
            model: Model::Source(model),
        };
        let mut candidates = Vec::new();
        match plain {
            Some(plain) => {
                candidates.push(subject("pruned", self.pruned, plain));
                candidates.push(subject("pruned, recovered", self.pruned, written));
            }
            None => candidates.push(subject("pruned", self.pruned, written)),
        }
        let reference = subject("source", self.source, source);
        let options = EvalOptions { tokens: Some(tokens), ..EvalOptions::default() };
        let total = (1 + candidates.len() as u64) * self.source.parameters * size_of::<f32>() as u64;
        let meter = Meter::shares(progress, "measuring predictions", total);
        let report = evaluate(candidates, Some(reference), &Text::builtin(), &options, &meter)?;
        meter.finish();
        self.evaluation = Some(report);
        Ok(())
    }
}
