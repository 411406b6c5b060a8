//! KL divergence of next-token distributions, the same bits on every machine.

use rookery_kernels::math;

/// A distribution that others are compared with.
pub(super) struct Target {
    /// `[vocab]`.
    probabilities: Vec<f32>,
    /// Σ p·z − ln Σ e^z over the logits z it was made of, less their maximum: minus its entropy.
    negative_entropy: f64,
}

impl Target {
    /// The distribution of `logits`.
    pub(super) fn of(logits: &[f32]) -> Self {
        let max = maximum(logits);
        let exponentials: Vec<f32> = logits.iter().map(|logit| math::exp(logit - max)).collect();
        let sum: f64 = exponentials.iter().map(|&e| f64::from(e)).sum();
        let probabilities: Vec<f32> = exponentials.iter().map(|&e| (f64::from(e) / sum) as f32).collect();
        let negative_entropy = expectation(&probabilities, logits, max) - ln(sum);
        Self { probabilities, negative_entropy }
    }

    /// KL(self ‖ softmax(logits)) in nats; below zero only by rounding, about 1e-8.
    pub(super) fn divergence(&self, logits: &[f32]) -> f64 {
        let max = maximum(logits);
        let sum = lanes(logits, |_, logit| f64::from(math::exp(logit - max)));
        self.negative_entropy - expectation(&self.probabilities, logits, max) + ln(sum)
    }
}

fn maximum(logits: &[f32]) -> f32 {
    logits.iter().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit))
}

/// Σ p·(z − max).
fn expectation(probabilities: &[f32], logits: &[f32], max: f32) -> f64 {
    lanes(logits, |index, logit| f64::from(probabilities[index]) * f64::from(logit - max))
}

/// Σ f in eight strided lanes, added up in order.
fn lanes(values: &[f32], f: impl Fn(usize, f32) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    for (chunk, values) in values.chunks(8).enumerate() {
        for (lane, &value) in values.iter().enumerate() {
            sums[lane] += f(chunk * 8 + lane, value);
        }
    }
    sums.iter().sum()
}

/// Natural logarithm of a positive, normal x, by IEEE operations alone: x = m·2^e with m near 1, and
/// ln m = 2·atanh((m − 1)/(m + 1)) as a series.
fn ln(x: f64) -> f64 {
    const BIAS: i64 = 1023;
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - BIAS;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | (BIAS as u64) << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    // |s| < 0.172: the first term left out is below 1e-17 of the sum.
    let series = (0..11).rev().fold(0.0, |sum, n| sum * s * s + 1.0 / f64::from(2 * n + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(salt: usize) -> Vec<f32> {
        (0..1003).map(|i| ((i * 7919 + salt * 104_729) % 1009) as f32 / 60.0).collect()
    }

    #[test]
    fn logarithms_are_right() {
        for x in [1e-300, 1e-9, 0.5, 0.999_999, 1.0, 1.5, std::f64::consts::E, 151_936.0, 1e300] {
            assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1.0), "{x}");
        }
    }

    #[test]
    fn a_distribution_does_not_diverge_from_itself_however_it_is_shifted() {
        let a = logits(1);
        let shifted: Vec<f32> = a.iter().map(|z| z + 64.0).collect();
        let target = Target::of(&a);
        assert!(target.divergence(&a).abs() < 1e-7);
        assert!(target.divergence(&shifted).abs() < 1e-6);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let (a, b) = (logits(1), logits(2));
        let softmax = |z: &[f32]| -> Vec<f64> {
            let sum: f64 = z.iter().map(|&z| f64::from(z).exp()).sum();
            z.iter().map(|&z| f64::from(z).exp() / sum).collect()
        };
        let (p, q) = (softmax(&a), softmax(&b));
        let exact: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((Target::of(&a).divergence(&b) - exact).abs() < 1e-6 * exact);
    }
}
