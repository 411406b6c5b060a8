//! How far an evaluation is, and a source that counts what is read of it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerConfig;

use super::EvalProgress;

/// Work done of work to do, in products of f32; whoever waits for others can stop them all.
pub(super) struct Meter<'a> {
    total: u64,
    done: AtomicU64,
    stopped: AtomicBool,
    progress: &'a dyn EvalProgress,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total: u64, progress: &'a dyn EvalProgress) -> Self {
        progress.at(0.0);
        Self { total: total.max(1), done: AtomicU64::new(0), stopped: AtomicBool::new(false), progress }
    }

    pub(super) fn add(&self, products: u64) {
        let done = self.done.fetch_add(products, Ordering::Relaxed) + products;
        self.progress.at((done as f64 / self.total as f64).min(1.0));
    }

    /// Makes every [`Watched`] source fail at its next reading.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// A source of whose layers each value read stands for one product a token.
pub(super) struct Watched<'a> {
    pub(super) source: &'a dyn ModelSource,
    pub(super) meter: &'a Meter<'a>,
    pub(super) tokens: u64,
}

impl ModelSource for Watched<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        if self.meter.stopped.load(Ordering::Relaxed) {
            let (what, hint) =
                ("going on after another model failed".to_owned(), "see that failure".to_owned());
            return Err(ImportError::Unsupported { what, hint });
        }
        let values = self.source.tensor_rows(name, rows)?;
        // The head is read again for each block of logits, whose rows are counted as they come.
        if matches!(name, TensorName::Layer(..)) {
            self.meter.add(values.len() as u64 * self.tokens);
        }
        Ok(values)
    }

    fn tokenizer_json(&self) -> &str {
        self.source.tokenizer_json()
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        self.source.tokenizer_config()
    }

    fn digest(&self) -> Result<String, ImportError> {
        self.source.digest()
    }

    fn description(&self) -> String {
        self.source.description()
    }

    fn parameters(&self) -> u64 {
        self.source.parameters()
    }
}
