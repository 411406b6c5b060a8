//! What goes and what stays.

use std::str::FromStr;

use rookery_model::config::ModelConfig;

use super::PruneError;

/// Widths are multiples of this, which blocks of quantised formats and of Hadamard transforms divide …
const STEP: usize = 256;
/// … and of this in feed-forwards narrower than [`NARROW`].
const SMALL_STEP: usize = 32;
/// Feed-forwards narrower than this are those of models for tests.
const NARROW: usize = 1024;

/// Which layers to drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DropLayers {
    /// So many, those of least influence.
    Auto(usize),
    /// These, counted from 0.
    These(Vec<usize>),
}

/// Text that names no layers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no layers; give auto:N, or layers by number such as 3,7,11")]
pub struct UnknownLayers(pub String);

impl FromStr for DropLayers {
    type Err = UnknownLayers;

    fn from_str(text: &str) -> Result<Self, UnknownLayers> {
        let unknown = |_| UnknownLayers(text.to_owned());
        if let Some(count) = text.strip_prefix("auto:") {
            return count.parse().map(DropLayers::Auto).map_err(unknown);
        }
        let layers = text.split(',').map(|layer| layer.trim().parse());
        layers.collect::<Result<_, _>>().map(DropLayers::These).map_err(unknown)
    }
}

impl DropLayers {
    /// Layers that go; one named twice goes once.
    pub(super) fn count(&self) -> usize {
        match self {
            DropLayers::Auto(count) => *count,
            DropLayers::These(layers) => sorted(layers).len(),
        }
    }

    /// All of them are among `layers`, and one stays.
    pub(super) fn check(&self, layers: usize) -> Result<(), PruneError> {
        if let DropLayers::These(these) = self
            && let Some(&layer) = these.iter().find(|&&layer| layer >= layers)
        {
            return Err(PruneError::NoSuchLayer { layer, layers });
        }
        match self.count() {
            asked if asked >= layers => Err(PruneError::TooManyLayers { asked, layers }),
            _ => Ok(()),
        }
    }
}

/// A narrower feed-forward of whole blocks.
pub(super) fn check_width(width: usize, ffn: usize) -> Result<(), PruneError> {
    let step = if ffn < NARROW { SMALL_STEP } else { STEP };
    if width == 0 || width >= ffn || !width.is_multiple_of(step) {
        return Err(PruneError::Width { width, ffn, step });
    }
    Ok(())
}

fn sorted(layers: &[usize]) -> Vec<usize> {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    layers.dedup();
    layers
}

/// What is left of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Layers of the source that stay, ascending.
    pub(super) kept: Vec<usize>,
    /// Layers of the source that go, ascending.
    pub(super) dropped: Vec<usize>,
    /// Channels that each feed-forward keeps, if not all.
    pub(super) width: Option<usize>,
    /// Layers of the source.
    layers: usize,
}

impl Cut {
    /// `influence` holds a value for each layer where layers are to be chosen. What is asked for was checked.
    pub(super) fn new(
        config: &ModelConfig,
        layers: &DropLayers,
        influence: Option<&[f64]>,
        width: Option<usize>,
    ) -> Self {
        let dropped = match layers {
            DropLayers::These(layers) => sorted(layers),
            DropLayers::Auto(count) => {
                let influence = influence.unwrap_or_default();
                let mut order: Vec<usize> = (0..influence.len()).collect();
                // Stable: of equals the first goes.
                order.sort_by(|&a, &b| influence[a].total_cmp(&influence[b]));
                order.truncate(*count);
                sorted(&order)
            }
        };
        let kept = (0..config.layers).filter(|layer| !dropped.contains(layer)).collect();
        Self { kept, dropped, width, layers: config.layers }
    }

    /// The shape of what is left.
    pub(super) fn apply(&self, config: &ModelConfig) -> ModelConfig {
        ModelConfig { layers: self.kept.len(), ffn: self.width.unwrap_or(config.ffn), ..config.clone() }
    }

    /// Where the source is when the pruned model has done its layer number `position`: before the next one that stays.
    pub(super) fn end(&self, position: usize) -> usize {
        self.kept.get(position + 1).copied().unwrap_or(self.layers)
    }

    /// Whether the layer at `position` loses channels, or stands beside dropped ones that it can make up for: those after
    /// it, or before it where none stays before them.
    pub(super) fn changes(&self, position: usize) -> bool {
        let layer = self.kept[position];
        self.width.is_some() || self.end(position) > layer + 1 || (position == 0 && layer > 0)
    }

    /// For people, in the metadata of the file.
    pub(super) fn describe(&self, config: &ModelConfig, recovered: bool) -> String {
        let mut parts = Vec::new();
        if !self.dropped.is_empty() {
            let list: Vec<String> = self.dropped.iter().map(ToString::to_string).collect();
            parts.push(format!("without layers {} of {}", list.join(", "), self.layers));
        }
        if let Some(width) = self.width {
            parts.push(format!("feed-forward {width} of {}", config.ffn));
        }
        if recovered {
            parts.push("refitted by least squares".to_owned());
        }
        parts.join("; ")
    }
}
