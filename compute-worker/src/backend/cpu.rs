//! Linear layers by the kernels of this machine's processor.

use rookery_kernels::{Activations, Kernels, LinearJob, Pool};

use super::{Backend, BackendError};

/// The processor as a backend: one of the kernels' instruction sets.
#[derive(Clone, Copy)]
pub struct CpuBackend {
    kernels: &'static Kernels,
}

impl CpuBackend {
    /// A backend that computes with `kernels`.
    pub fn new(kernels: &'static Kernels) -> Self {
        Self { kernels }
    }
}

impl Backend for CpuBackend {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.kernels.linear(pool, a, jobs);
        Ok(())
    }

    fn name(&self) -> String {
        format!("cpu/{}", self.kernels.isa())
    }
}
