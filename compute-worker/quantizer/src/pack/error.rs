//! Why packing failed.

use std::path::PathBuf;

use rookery_compute_worker::model::forward::ForwardError;
use rookery_model::bundle::BundleError;
use rookery_model::pack::PackError;
use rookery_model::rotate::RotateError;
use rookery_model::smooth::SmoothError;
use rookery_model::source::ImportError;

use crate::calibration::CalibrationError;
use crate::probes::ProbesError;
use crate::recipe::RecipeError;

/// Why packing failed. The target is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The recipe makes no sense.
    #[error("recipe")]
    Recipe(#[from] RecipeError),
    /// A pin fits no tensor of the model.
    #[error("pin {pin} fits no tensor of this model; names are such as {example}")]
    PinWithoutTensor {
        /// The pin.
        pin: String,
        /// A name that there is.
        example: String,
    },
    /// Not even the smallest bundle fits the budget.
    #[error(
        "the budget of {budget} is below {least}, which is what this model takes with every choice at w4"
    )]
    BudgetTooSmall {
        /// What was asked for.
        budget: String,
        /// The least that can be asked for, in the same unit.
        least: String,
    },
    /// The source could not be read.
    #[error("cannot read the source")]
    Source(#[from] ImportError),
    /// The source cannot be rotated.
    #[error("cannot rotate the model")]
    Rotate(#[from] RotateError),
    /// The source cannot be smoothed.
    #[error("cannot smooth the model")]
    Smooth(#[from] SmoothError),
    /// The calibration text cannot be used.
    #[error("calibration text")]
    Calibration(#[from] CalibrationError),
    /// The engine could not compute the calibration text.
    #[error("cannot run the model")]
    Forward(#[from] ForwardError),
    /// A matrix could not be rounded.
    #[error("cannot round {tensor}: {fault}")]
    Rounding {
        /// The matrix.
        tensor: String,
        /// What is wrong.
        fault: String,
    },
    /// The bundle could not be written.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// What was written does not read back.
    #[error("the packed bundle does not read back")]
    Bundle(#[from] BundleError),
    /// What was measured makes no sense.
    #[error(
        "cannot record how the model was quantised: {0}; look for values in the source that are not finite"
    )]
    Record(String),
    /// Probes could not be recorded, or too many answers were lost.
    #[error(transparent)]
    Probes(#[from] ProbesError),
    /// A file beside the bundle could not be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
