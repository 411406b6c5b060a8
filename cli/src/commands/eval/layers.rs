//! `rookery eval --by-layer`.

use rookery_model::source::ModelSource;
use rookery_quantizer::eval::layers::by_layer;

use super::models::{Form, Opened};
use super::{EvalArgs, Setting};
use crate::error::{Failure, OrFail};
use crate::output;

/// Judges every bundle.
///
/// # Errors
/// When something cannot be read, or something is wrong with a bundle.
pub(super) fn run(
    args: &EvalArgs,
    setting: &Setting,
    models: &[Opened],
    reference: &Opened,
) -> Result<(), Failure> {
    let _ = (args, setting, models, reference);
    Err(Failure::new("not there yet"))
}
