//! A pruned model as a source: layers and channels picked from another, with down projections of its own.

use std::ops::Range;

use half::f16;
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerConfig;

use super::cut::Cut;

/// A layer that stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct KeptLayer {
    /// Which one of the source.
    pub(super) layer: usize,
    /// Channels that its feed-forward keeps, ascending, if not all.
    pub(super) channels: Option<Vec<usize>>,
    /// Its down projection of those channels, `[hidden][channels]`, where it was refitted.
    pub(super) down: Option<Vec<f16>>,
}

/// What is left of a model.
pub(super) struct PrunedSource<'a> {
    source: &'a dyn ModelSource,
    config: ModelConfig,
    layers: Vec<KeptLayer>,
}

impl<'a> PrunedSource<'a> {
    pub(super) fn new(source: &'a dyn ModelSource, cut: &Cut, layers: Vec<KeptLayer>) -> Self {
        Self { source, config: cut.apply(source.config()), layers }
    }

    /// The same with the source's down projections.
    pub(super) fn without_recovery(&self) -> Self {
        let plain =
            |kept: &KeptLayer| KeptLayer { layer: kept.layer, channels: kept.channels.clone(), down: None };
        Self {
            source: self.source,
            config: self.config.clone(),
            layers: self.layers.iter().map(plain).collect(),
        }
    }
}

impl ModelSource for PrunedSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let TensorName::Layer(layer, tensor) = name else { return self.source.tensor_rows(name, rows) };
        let kept = &self.layers[layer];
        let name = TensorName::Layer(kept.layer, tensor);
        match (tensor, &kept.channels, &kept.down) {
            (LayerTensor::FfnDown, _, Some(down)) => {
                let width = self.config.ffn;
                Ok(down[rows.start * width..rows.end * width].iter().map(|value| value.to_f32()).collect())
            }
            (LayerTensor::FfnDown, Some(channels), None) => {
                let values = self.source.tensor_rows(name, rows)?;
                Ok(pick_columns(&values, self.source.config().ffn, channels))
            }
            (LayerTensor::FfnGate | LayerTensor::FfnUp, Some(channels), _) => {
                let mut values = Vec::with_capacity(rows.len() * self.config.hidden);
                // Neighbours are read together.
                for run in channels[rows].chunk_by(|a, b| a + 1 == *b) {
                    values.extend(self.source.tensor_rows(name, run[0]..run[0] + run.len())?);
                }
                Ok(values)
            }
            _ => self.source.tensor_rows(name, rows),
        }
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
        format!("pruned from {}", self.source.description())
    }
}

/// `columns` of each row of `values`, rows of which are `width` long.
pub(super) fn pick_columns(values: &[f32], width: usize, columns: &[usize]) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| columns.iter().map(|&column| row[column])).collect()
}
