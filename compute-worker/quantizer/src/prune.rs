//! Smaller models: fewer layers, narrower feed-forwards, and what was lost recovered by least squares.
//!
//! ```text
//!  GGUF ─► influence of each layer ─► what to keep ─► two streams over calibration text, layer by layer ─► GGUF in f16
//!          1 − E cos(x, layer(x))                       source:  x ─── layer ─── layer ─── layer ─► x
//!                                                                              what is missing ┐
//!                                                       pruned:  x ─── layer (down refitted) ──┴── layer ─► x
//! ```
//!
//! - Layers are dropped by block influence (ShortGPT, Men et al. 2024), or as given.
//! - Channels of a feed-forward are kept by the norm of what they add to the stream: of their activations over calibration
//!   text times that of their weights (Wanda, Sun et al. 2023, summed over outputs), each token counting relative to the
//!   size of its stream.
//! - The down projection of every layer that was narrowed, and of the layer before dropped ones, is refitted by ridge
//!   regression so that the pruned model's stream is the source's again, as far as that layer's activations tell.
//!
//! Everything is computed in f32 by the [`Reference`]; what is written is what the refitting saw. Memory: calibration
//! tokens × feed-forward width × 12 bytes, a Gram matrix of the smaller of the two, and the refitted projections in f16.

use std::path::{Path, PathBuf};

use rookery_compute_worker::model::reference::Reference;
use rookery_model::bundle::Progress;
use rookery_model::gguf::GgufModel;
use rookery_model::source::ModelSource;

use crate::calibration::Sequences;
use crate::linalg::Compute;
use cut::Cut;
use meter::Meter;
use source::PrunedSource;

pub use cut::{DropLayers, UnknownLayers};
pub use error::PruneError;
pub use report::{PruneReport, Shape};
pub use twin::LayerFit;

mod cut;
mod error;
mod file;
mod influence;
mod least_squares;
mod meter;
mod report;
mod source;
mod twin;

/// Most tokens of a calibration sequence.
const MAX_SEQUENCE: usize = 512;
/// Fewest of them, unless less is asked for altogether.
const MIN_SEQUENCE: usize = 32;
/// Sequences that calibration text is cut into at least, so that some can be held out.
const SEQUENCES: usize = 8;

/// What to take away and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// Which layers go.
    pub layers: DropLayers,
    /// Channels that each feed-forward keeps; `None` for all.
    pub ffn_width: Option<usize>,
    /// Text files to calibrate on; none for the built-in text.
    pub texts: Vec<PathBuf>,
    /// Tokens to calibrate on, at most.
    pub calibration_tokens: usize,
    /// Whether down projections are refitted.
    pub recover: bool,
    /// Tokens of the built-in evaluation text to measure on, at most; 0 measures nothing.
    pub eval_tokens: usize,
    /// Whether a file that is there may be replaced.
    pub replace: bool,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            layers: DropLayers::These(Vec::new()),
            ffn_width: None,
            texts: Vec::new(),
            calibration_tokens: 4096,
            recover: true,
            eval_tokens: 4096,
            replace: false,
        }
    }
}

/// Writes a smaller model than that in the GGUF file `model` to the GGUF file `out`, and measures it.
///
/// # Errors
/// See [`PruneError`]; nothing is left at `out` unless it is only the measurement that failed.
pub fn prune(
    model: &Path,
    options: &PruneOptions,
    out: &Path,
    progress: &dyn Progress,
) -> Result<PruneReport, PruneError> {
    let source = open(model)?;
    if out.exists() && !options.replace {
        return Err(PruneError::Exists { path: out.to_owned() });
    }
    let config = source.config();
    options.check(config)?;
    let length = (options.calibration_tokens / SEQUENCES).clamp(MIN_SEQUENCE, MAX_SEQUENCE);
    let length = length.min(options.calibration_tokens.max(1));
    let sequences = Sequences::read(&source, &options.texts, options.calibration_tokens, length)?;
    let reference = Reference::open(&source);
    let mut influence = None;
    if let DropLayers::Auto(_) = options.layers {
        let meter = Meter::layers(progress, "measuring layers", config, config.layers);
        influence = Some(influence::influences(&reference, config, &sequences, &meter)?);
        meter.finish();
    }
    let cut = Cut::new(config, &options.layers, influence.as_deref(), options.ffn_width);
    file::check_space(out, &cut.apply(config))?;

    let compute = Compute::new(std::thread::available_parallelism().map_or(1, usize::from));
    let passes = cut.kept.len() + if options.recover { config.layers } else { 0 };
    let meter = Meter::layers(progress, "pruning", config, passes);
    let twin = twin::Twin {
        compute: &compute,
        source: &source,
        reference,
        sequences: &sequences,
        cut: &cut,
        recover: options.recover,
        meter: &meter,
    };
    let (layers, fits) = twin.run()?;
    meter.finish();
    let pruned = PrunedSource::new(&source, &cut, layers);
    file::write(out, source.file(), &pruned, &cut.describe(config, options.recover))?;
    let written = GgufModel::open(out)?;

    let shape = |path: &Path, source: &GgufModel| Shape::of(path, source);
    let mut report = PruneReport {
        output: out.to_owned(),
        source: shape(model, &source)?,
        pruned: shape(out, &written)?,
        dropped: cut.dropped.clone(),
        influence,
        calibration_tokens: sequences.tokens.len(),
        fits,
        evaluation: None,
    };
    if options.eval_tokens > 0 {
        let plain = options.recover.then(|| pruned.without_recovery());
        let plain = plain.as_ref().map(|plain| plain as &dyn ModelSource);
        report.measure(&source, plain, &written, options.eval_tokens, progress)?;
    }
    Ok(report)
}

fn open(model: &Path) -> Result<GgufModel, PruneError> {
    if model.is_dir() {
        return Err(PruneError::NotGguf { path: model.to_owned() });
    }
    Ok(GgufModel::open(model)?)
}

impl PruneOptions {
    /// Checks what is asked for against the model, before anything is computed.
    fn check(&self, config: &rookery_model::config::ModelConfig) -> Result<(), PruneError> {
        self.layers.check(config.layers)?;
        if let Some(width) = self.ffn_width {
            cut::check_width(width, config.ffn)?;
        }
        if self.layers.count() == 0 && self.ffn_width.is_none() {
            return Err(PruneError::Nothing);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
