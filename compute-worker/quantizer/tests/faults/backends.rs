//! Backends with faults.

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};
use rookery_quantizer::eval::layers::Rule;

/// Which activations are rounded wrongly.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Where {
    Everywhere,
    /// What attention and the feed-forward's middle give: every other call of a layer.
    Requantisation,
}

/// Rounds activations by another rule.
pub(crate) struct Faulty {
    inner: CpuBackend,
    rule: Rule,
    place: Where,
    calls: usize,
}

impl Faulty {
    pub(crate) fn new(rule: Rule, place: Where) -> Self {
        Self { inner: CpuBackend::new(Kernels::detect()), rule, place, calls: 0 }
    }
}

impl Backend for Faulty {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.inner.linear(pool, a, jobs)
    }

    fn quantize(&mut self, _pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) -> bool {
        self.calls += 1;
        if self.place == Where::Requantisation && self.calls % 2 == 1 {
            return false;
        }
        let rule: fn(f32) -> f32 = match self.rule {
            Rule::Floor => f32::floor,
            Rule::Ceiling => f32::ceil,
            Rule::Truncation => f32::trunc,
            Rule::OtherTies => f32::round,
            Rule::Unknown => |x| x.round() + 1.0,
        };
        let (mut values, mut scales) = (Vec::with_capacity(x.len()), Vec::new());
        for row in x.chunks_exact(cols) {
            let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            scales.push(largest / 127.0);
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            values.extend(row.iter().map(|x| rule(x * inverse).clamp(-127.0, 127.0) as i8));
        }
        *out = Activations::from_rows(cols, &values, &scales);
        true
    }

    fn name(&self) -> String {
        "faulty".to_owned()
    }
}
