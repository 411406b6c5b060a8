//! Where linear layers are computed.
//!
//! Linear layers are exact integers, so every backend gives the same accumulators and hence the same tokens;
//! choosing one is a question of speed only. Everything else of the forward pass is f32 on the host.

mod cpu;

pub use cpu::CpuBackend;

use rookery_kernels::{Activations, LinearJob, Pool};

/// Computes linear layers over quantised activations.
pub trait Backend: Send {
    /// Computes every job over the same activations: `out = acc·sa·sw (+ bias)`, see [`LinearJob`].
    ///
    /// # Errors
    /// When the hardware failed; outputs are then undefined and the engine that called stops.
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError>;

    /// Name in logs, for example `cpu/avx512-vnni`.
    fn name(&self) -> String;
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
