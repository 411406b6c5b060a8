//! Linear layers with activations of about 16 bits: int8 values, and int8 values of what they leave over.

use rookery_compute_worker::backend::{Backend, BackendError};
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};

/// Computes y = a·W + r·W, where a is x rounded to int8 and r the rest of x rounded to int8 again. Errors of activations are
/// 254 times smaller than the engine's, at twice the cost.
pub(super) struct FineBackend {
    kernels: &'static Kernels,
    /// x − a, `[rows][cols]`.
    rest: Vec<f32>,
    /// It, rounded.
    rounded: Activations,
    /// A job's outputs over it.
    out: Vec<f32>,
}

impl FineBackend {
    pub(super) fn new(kernels: &'static Kernels) -> Self {
        Self { kernels, rest: Vec::new(), rounded: Activations::new(), out: Vec::new() }
    }
}

impl Backend for FineBackend {
    fn quantize(&mut self, pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) -> bool {
        self.kernels.quantize(pool, x, cols, out);
        self.rest.resize(x.len(), 0.0);
        let rounded = &*out;
        pool.for_each_row(&mut self.rest, cols, &|row, rest| {
            let scale = rounded.scale(row);
            for ((rest, x), a) in rest.iter_mut().zip(&x[row * cols..]).zip(rounded.row(row)) {
                *rest = x - f32::from(*a) * scale;
            }
        });
        self.kernels.quantize(pool, &self.rest, cols, &mut self.rounded);
        true
    }

    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.kernels.linear(pool, a, jobs);
        for job in jobs {
            let width = job.weights.rows();
            self.out.resize(a.rows() * width, 0.0);
            let rest = LinearJob {
                weights: job.weights,
                bias: None,
                out: &mut self.out,
                out_stride: width,
                out_column: 0,
            };
            self.kernels.linear(pool, &self.rounded, &mut [rest]);
            for (rest, out) in self.out.chunks_exact(width).zip(job.out.chunks_mut(job.out_stride)) {
                self.kernels.add_assign(&mut out[job.out_column..job.out_column + width], rest);
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        "sensitivity".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use rookery_kernels::{W8, Weights, tiles};

    use super::*;

    #[test]
    fn products_are_those_of_the_activations_as_they_were() {
        let (rows, cols, outputs) = (3, 70, 40);
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
        let x: Vec<f32> = (0..rows * cols).map(value).collect();
        let w: Vec<i8> = (0..outputs * cols).map(|i| (value(i * 31 + 5) * 200.0) as i8).collect();
        let mut stored = vec![0; tiles::w8_len(outputs, cols)];
        tiles::pack_w8(outputs, cols, &w, &mut stored);
        let sums: Vec<i32> = w.chunks(cols).map(|row| row.iter().map(|&w| i32::from(w)).sum()).collect();
        let scales = vec![0.01; outputs];
        let weights =
            Weights::W8(W8 { rows: outputs, cols, tiles: &stored, scales: &scales, row_sums: &sums });
        let (pool, mut backend) = (Pool::new(2), FineBackend::new(Kernels::detect()));
        let mut activations = Activations::new();
        assert!(backend.quantize(&pool, &x, cols, &mut activations));
        let mut out = vec![9.0; rows * (outputs + 2)];
        let job = LinearJob { weights, bias: None, out: &mut out, out_stride: outputs + 2, out_column: 1 };
        backend.linear(&pool, &activations, &mut [job]).unwrap();
        for m in 0..rows {
            assert_eq!((out[m * (outputs + 2)], out[m * (outputs + 2) + outputs + 1]), (9.0, 9.0));
            for n in 0..outputs {
                let exact: f64 =
                    (0..cols).map(|k| f64::from(x[m * cols + k]) * f64::from(w[n * cols + k]) * 0.01).sum();
                let found = f64::from(out[m * (outputs + 2) + 1 + n]);
                assert!((found - exact).abs() < 2e-4, "{found} {exact}");
            }
        }
    }
}
