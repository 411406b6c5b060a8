//! Where linear layers are computed.
//!
//! Linear layers are exact integers, so every backend gives the same accumulators and hence the same tokens;
//! choosing one is a question of speed only. Everything else of the forward pass is f32 on the host.
//!
//! - [`CpuBackend`]: the kernels of this machine's processor.
//! - [`npu::NpuBackend`]: the RK3588's NPU through either kernel interface, or its simulator; on any fault the same
//!   call is computed by the kernels.
//! - [`Backends`] finds out which of them works, and makes one for each engine.

mod choice;
mod cpu;
pub mod npu;

pub use choice::{BackendChoice, BackendSettings, Backends};
pub use cpu::CpuBackend;

use rookery_kernels::{Activations, LinearJob, Pool};

use crate::model::weights::ModelWeights;

/// Computes linear layers over quantised activations.
pub trait Backend: Send {
    /// Takes a model's matrices to where this backend computes, before the first call of [`Backend::linear`] and whenever
    /// [`Backend::wants_weights`]. The weights stay readable through `weights` wherever they are.
    ///
    /// # Errors
    /// When the backend is of no use for this model.
    fn adopt(&mut self, _weights: &mut ModelWeights) -> Result<(), BackendError> {
        Ok(())
    }

    /// Computes every job over the same activations: `out = acc·sa·sw (+ bias)`, see [`LinearJob`].
    ///
    /// # Errors
    /// When the hardware failed and nothing can take its place; outputs are then undefined and the engine that called
    /// stops.
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError>;

    /// Norms rows of `weight.len()` values: `out = x / sqrt(mean(x²) + eps) · weight`. False, and nothing is done, where the
    /// processor is to compute it.
    fn rms_norm(&mut self, _x: &[f32], _weight: &[f32], _eps: f32, _out: &mut [f32]) -> bool {
        false
    }

    /// `out = silu(gate) · up`, rows of `columns` values. False, and nothing is done, where the processor is to compute it.
    fn silu_mul(&mut self, _gate: &[f32], _up: &[f32], _columns: usize, _out: &mut [f32]) -> bool {
        false
    }

    /// Rounds rows of `cols` values to int8, the activations of the calls of [`Backend::linear`] that follow. False, and `out`
    /// is not touched, where the kernels are to do it. Backends that compute leave it to them; it is for those that watch
    /// what goes into linear layers, or round in another way on purpose.
    fn quantize(&mut self, _pool: &Pool, _x: &[f32], _cols: usize, _out: &mut Activations) -> bool {
        false
    }

    /// Whether answers are the same as of every other backend. Not where [`Backend::rms_norm`] or [`Backend::silu_mul`]
    /// compute otherwise than the processor.
    fn is_exact(&self) -> bool {
        true
    }

    /// Name in logs, for example `cpu/avx512-vnni`.
    fn name(&self) -> String;

    /// Why it computes slower than it should, if it does.
    fn degraded(&self) -> Option<npu::FaultKind> {
        None
    }

    /// Whether it lost the weights that it had adopted, and [`Backend::adopt`] should give them back before the next step.
    /// Until then it computes, though slower.
    fn wants_weights(&self) -> bool {
        false
    }

    /// Whether steps have reports, so that there is a span to make for them.
    fn reports_steps(&self) -> bool {
        false
    }

    /// What an accelerator did since the last call of this.
    fn take_step_report(&mut self) -> Option<npu::StepReport> {
        None
    }
}

/// A backend could not compute.
#[derive(Debug, thiserror::Error)]
#[error("backend {backend}: {message}")]
pub struct BackendError {
    /// Name of the backend.
    pub backend: String,
    /// What happened.
    pub message: String,
}
