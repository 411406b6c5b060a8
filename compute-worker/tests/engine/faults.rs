//! Batches that the forward pass refuses, and arithmetic that goes wrong.

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::engine::{EngineCore, GenerationError};
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardError, ForwardLimits};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, AttentionQuery, Kernels, KvType, LinearJob, Pool};
use rookery_model::pack::Recipe;

use crate::support::{Driver, VOCABULARY, bundle, config, prompt, request};

#[test]
fn a_batch_that_is_too_large_is_an_error() {
    let bundle = bundle("qwen2", Recipe::W8);
    let limits = ForwardLimits {
        threads: 1,
        blocks: 1,
        kv_type: KvType::F16,
        positions: 16,
        max_rows: 4,
        max_logit_rows: 1,
    };
    let kernels = Kernels::detect();
    let mut forward = Forward::new(ModelWeights::resolve(&bundle).unwrap(), kernels, &limits);
    let mut run = |rows: usize, logits_of: &[usize]| {
        let queries: Vec<_> = (0..rows).map(|at| AttentionQuery { blocks: &[0], len: at + 1 }).collect();
        let batch = Batch { tokens: &prompt(rows, 1), queries: &queries, logits_of };
        forward.run(&mut CpuBackend::new(kernels), &batch)
    };
    assert!(run(4, &[3]).is_ok());
    assert!(matches!(run(5, &[4]), Err(ForwardError::Oversized { rows: 5, most_rows: 4, .. })));
    assert!(matches!(run(4, &[2, 3]), Err(ForwardError::Oversized { logits: 2, most_logits: 1, .. })));
}

/// Its head gives no numbers.
struct Numberless(CpuBackend);

impl Backend for Numberless {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.0.linear(pool, a, jobs)?;
        let heads = jobs.iter_mut().filter(|job| job.weights.rows() == VOCABULARY as usize);
        heads.for_each(|job| job.out.fill(f32::NAN));
        Ok(())
    }

    fn name(&self) -> String {
        "numberless".to_owned()
    }
}

#[test]
fn logits_that_are_no_numbers_end_one_generation_and_not_the_engine() {
    let backend = Box::new(Numberless(CpuBackend::new(Kernels::detect())));
    let core = EngineCore::with_backend(&bundle("qwen2", Recipe::W8), config(), backend).unwrap();
    let mut driver = Driver::of(core);
    assert_eq!(driver.run(request("x", prompt(9, 1), 3)).error, Some(GenerationError::NotFinite));
    assert!(!driver.core.load().failed);
}
