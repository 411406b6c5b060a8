//! Why a model could not be pruned.

use std::path::PathBuf;

use rookery_compute_worker::model::reference::ReferenceError;
use rookery_model::gguf::GgufWriteError;
use rookery_model::source::ImportError;

use crate::calibration::CalibrationError;
use crate::eval::EvalError;
use crate::linalg::LinalgError;

/// Why a model could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// It is a folder.
    #[error(
        "{} is a folder, and only GGUF files can be pruned; convert it to an f16 GGUF file first, for example with \
         llama.cpp's convert_hf_to_gguf.py", path.display()
    )]
    NotGguf {
        /// The folder.
        path: PathBuf,
    },
    /// Nothing was asked for.
    #[error("there is nothing to prune; say which layers to drop or how wide the feed-forward shall be")]
    Nothing,
    /// A layer to drop is not there.
    #[error("there is no layer {layer} to drop; the model has layers 0 to {}", layers - 1)]
    NoSuchLayer {
        /// The layer asked for.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// No layer would stay.
    #[error("{asked} layers cannot be dropped of {layers}; at least one must stay")]
    TooManyLayers {
        /// Layers to drop.
        asked: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// The feed-forward would not become narrower, or not by whole blocks.
    #[error("a feed-forward of {ffn} cannot be narrowed to {width}; give a smaller multiple of {step}")]
    Width {
        /// Width asked for.
        width: usize,
        /// Width of the model.
        ffn: usize,
        /// What widths are multiples of.
        step: usize,
    },
    /// A forward pass gave values that are no numbers.
    #[error("the stream after layer {layer} is not finite on the calibration text; the weights are damaged")]
    NotFinite {
        /// The layer of the source.
        layer: usize,
    },
    /// The source could not be read, or what was written not be opened.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The calibration text cannot be used.
    #[error("calibration text")]
    Calibration(#[from] CalibrationError),
    /// The forward pass failed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A projection could not be refitted.
    #[error("cannot refit the down projection of layer {layer}")]
    Fit {
        /// The layer of the source.
        layer: usize,
        /// What is wrong.
        source: LinalgError,
    },
    /// There is a file already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The pruned model does not fit the disk.
    #[error("{} needs {needed} bytes, and its file system has {available} left", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// A file or its folder cannot be looked at.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] GgufWriteError),
    /// The model was written, and could not be measured.
    #[error("the pruned model was written, but not measured")]
    Eval(#[from] EvalError),
}
