//! A backend that computes wrongly.

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};

/// Gives one channel of its third call twice.
pub(crate) struct Careless {
    inner: CpuBackend,
    calls: usize,
}

impl Default for Careless {
    fn default() -> Self {
        Self { inner: CpuBackend::new(Kernels::detect()), calls: 0 }
    }
}

impl Backend for Careless {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.inner.linear(pool, a, jobs)?;
        self.calls += 1;
        if self.calls == 3 {
            let job = &mut jobs[0];
            for row in job.out.chunks_exact_mut(job.out_stride) {
                row[job.out_column + 5] = row[job.out_column + 4];
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        "careless".to_owned()
    }
}
