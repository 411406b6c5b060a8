//! How far pruning is, in bytes of f32 weights that were computed with.

use std::sync::atomic::{AtomicU64, Ordering};

use rookery_model::bundle::Progress;
use rookery_model::config::ModelConfig;
use rookery_model::names::TensorName;

use crate::eval::EvalProgress;

/// One phase of the work.
pub(super) struct Meter<'a> {
    progress: &'a dyn Progress,
    total: u64,
    layer_bytes: u64,
    done: AtomicU64,
}

impl<'a> Meter<'a> {
    /// A phase that computes `passes` layers.
    pub(super) fn layers(
        progress: &'a dyn Progress,
        what: &str,
        config: &ModelConfig,
        passes: usize,
    ) -> Self {
        let names = config.tensor_names().into_iter().filter(|name| matches!(name, TensorName::Layer(0, _)));
        let sizes = names.map(|name| config.shape(name)).map(|(rows, columns)| rows as u64 * columns as u64);
        let layer_bytes = sizes.sum::<u64>() * size_of::<f32>() as u64;
        Self::start(progress, what, layer_bytes * passes as u64, layer_bytes)
    }

    /// A phase over `total` bytes that hears of shares.
    pub(super) fn shares(progress: &'a dyn Progress, what: &str, total: u64) -> Self {
        Self::start(progress, what, total, 0)
    }

    fn start(progress: &'a dyn Progress, what: &str, total: u64, layer_bytes: u64) -> Self {
        progress.start(what, total);
        Self { progress, total, layer_bytes, done: AtomicU64::new(0) }
    }

    /// A layer more is done.
    pub(super) fn layer(&self) {
        self.to(self.done.load(Ordering::Relaxed) + self.layer_bytes);
    }

    /// All of it is.
    pub(super) fn finish(&self) {
        self.to(self.total);
        self.progress.finish();
    }

    fn to(&self, bytes: u64) {
        let bytes = bytes.min(self.total);
        let before = self.done.fetch_max(bytes, Ordering::Relaxed);
        if bytes > before {
            self.progress.advance(bytes - before);
        }
    }
}

impl EvalProgress for Meter<'_> {
    fn at(&self, share: f64) {
        self.to((self.total as f64 * share) as u64);
    }
}
