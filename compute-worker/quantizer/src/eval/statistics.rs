//! Numbers over positions, with standard errors over sequences.
//!
//! Positions of one sequence depend on each other, so a sequence counts as one draw. Means are ratios of sums over
//! sequences (the delta method gives their error); quantiles are drawn again with whole sequences (the bootstrap: Efron,
//! "Bootstrap methods: another look at the jackknife", 1979).

use super::Measured;

/// Times that sequences are drawn again for the error of a quantile.
const RESAMPLES: u64 = 200;

/// One quantity at every position.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    sequences: Vec<Vec<f64>>,
}

impl Samples {
    /// Adds a value to `sequence`; sequences come in ascending order.
    pub(super) fn push(&mut self, sequence: usize, value: f64) {
        if self.sequences.len() <= sequence {
            self.sequences.resize_with(sequence + 1, Vec::new);
        }
        self.sequences[sequence].push(value);
    }

    /// Mean over all positions.
    pub(super) fn mean(&self) -> Measured {
        let sums: Vec<(f64, f64)> =
            self.sequences.iter().map(|values| (values.iter().sum(), values.len() as f64)).collect();
        let count: f64 = sums.iter().map(|(_, count)| count).sum();
        let value = sums.iter().map(|(sum, _)| sum).sum::<f64>() / count;
        let n = sums.len() as f64;
        let squares: f64 = sums.iter().map(|(sum, count)| (sum - value * count).powi(2)).sum();
        let standard_error = (sums.len() > 1).then(|| (squares * n / (n - 1.0)).sqrt() / count);
        Measured { value, standard_error }
    }

    /// The exponential of the mean.
    pub(super) fn exponential(&self) -> Measured {
        let mean = self.mean();
        let value = mean.value.exp();
        Measured { value, standard_error: mean.standard_error.map(|error| error * value) }
    }

    /// The smallest value that a `share` of all positions does not exceed.
    pub(super) fn quantile(&self, share: f64) -> Measured {
        let mut sorted: Vec<(f64, usize)> = Vec::new();
        for (sequence, values) in self.sequences.iter().enumerate() {
            sorted.extend(values.iter().map(|value| (*value, sequence)));
        }
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let draws = self.sequences.len();
        let value = weighted_quantile(&sorted, &vec![1; draws], share);
        let drawn: Vec<f64> = (0..RESAMPLES)
            .map(|resample| {
                let mut times = vec![0; draws];
                for draw in 0..draws {
                    times[(random(resample, draw as u64) % draws as u64) as usize] += 1;
                }
                weighted_quantile(&sorted, &times, share)
            })
            .collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let variance = drawn.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (RESAMPLES - 1) as f64;
        Measured { value, standard_error: (draws > 1).then(|| variance.sqrt()) }
    }

    /// The largest value.
    pub(super) fn max(&self) -> f64 {
        self.sequences.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The quantile where each value of sequence s counts `times[s]` times.
fn weighted_quantile(sorted: &[(f64, usize)], times: &[u64], share: f64) -> f64 {
    let total: u64 = sorted.iter().map(|&(_, sequence)| times[sequence]).sum();
    let wanted = ((share * total as f64).ceil() as u64).max(1);
    let mut seen = 0;
    for &(value, sequence) in sorted {
        seen += times[sequence];
        if seen >= wanted {
            return value;
        }
    }
    sorted.last().map_or(f64::NAN, |&(value, _)| value)
}

/// A number that depends on its two counters only (the finaliser of SplitMix64: Steele et al., 2014).
fn random(stream: u64, counter: u64) -> u64 {
    let mut x = (stream << 32 | counter).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A next-token distribution, prepared to compare others with.
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    /// Of the unnormalised `exp(logit − max)`, `[vocab]`.
    weights: Vec<f64>,
    sum: f64,
    /// `ln Σ exp(logit)`; not finite where a logit is not.
    pub(super) log_sum: f64,
    /// The most likely token, the first if there are several.
    pub(super) top: usize,
}

impl<'a> Distribution<'a> {
    pub(super) fn new(logits: &'a [f32]) -> Self {
        let top = top(logits);
        let max = f64::from(logits[top]);
        let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        Self { logits, weights, sum, log_sum: max + sum.ln(), top }
    }

    /// `−ln` of the probability of `token`.
    pub(super) fn surprise(&self, token: usize) -> f64 {
        self.log_sum - f64::from(self.logits[token])
    }

    /// `Σ p·ln(p/q)` where p is this and q what the logits `other` give, whose `ln Σ exp` is `log_sum`.
    pub(super) fn divergence(&self, other: &[f32], log_sum: f64) -> f64 {
        let terms = self.weights.iter().zip(self.logits).zip(other);
        let sum: f64 = terms.map(|((weight, &p), &q)| weight * (f64::from(p) - f64::from(q))).sum();
        // Rounding can leave a tiny negative number where the two are equal.
        (sum / self.sum - self.log_sum + log_sum).max(0.0)
    }
}

/// `ln Σ exp(x)` and the index of the largest.
pub(super) fn log_sum_exp(logits: &[f32]) -> (f64, usize) {
    let top = top(logits);
    let max = f64::from(logits[top]);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    (max + sum.ln(), top)
}

fn top(logits: &[f32]) -> usize {
    let better = |best: usize, (index, &x): (usize, &f32)| if x > logits[best] { index } else { best };
    logits.iter().enumerate().fold(0, better)
}

#[cfg(test)]
mod tests {
    use rookery_compute_worker::model::reference::divergence;

    use super::*;

    fn samples(sequences: &[&[f64]]) -> Samples {
        Samples { sequences: sequences.iter().map(|values| values.to_vec()).collect() }
    }

    #[test]
    fn means_carry_the_spread_of_sequences() {
        // Means 1 and 3 of equal length: the error of their mean is the deviation 2/√2 over √2.
        let mean = samples(&[&[0.0, 2.0], &[3.0, 3.0]]).mean();
        assert_eq!(mean, Measured { value: 2.0, standard_error: Some(1.0) });
        assert_eq!(samples(&[&[1.0, 2.0]]).mean().standard_error, None);
        let exponential = samples(&[&[0.0], &[0.0]]).exponential();
        assert_eq!(exponential, Measured { value: 1.0, standard_error: Some(0.0) });
    }

    #[test]
    fn the_error_of_a_mean_is_that_of_drawing_again() {
        // Sequences of 4 equal values k: a sample of the integers 0..100.
        let mut all = Samples::default();
        for sequence in 0..100 {
            (0..4).for_each(|_| all.push(sequence, sequence as f64));
        }
        let expected = (100.0f64 * 101.0 / 12.0 / 100.0).sqrt();
        assert!((all.mean().standard_error.unwrap() - expected).abs() < 1e-9);
        let median = all.quantile(0.5);
        assert_eq!(median.value, 49.0);
        // The median of 100 uniform draws on 0..100 deviates by 100 / (2·√100).
        assert!((median.standard_error.unwrap() - 5.0).abs() < 1.0, "{median:?}");
        assert_eq!((all.quantile(0.99).value, all.max()), (98.0, 99.0));
        assert_eq!(all.quantile(0.5), median, "drawn the same way each time");
    }

    #[test]
    fn divergence_equals_that_of_the_reference() {
        let logits = |salt: u64| -> Vec<f32> {
            (0..500).map(|i| (random(salt, i) >> 40) as f32 / (1u64 << 21) as f32).collect()
        };
        let (p, q) = (logits(1), logits(2));
        let distribution = Distribution::new(&p);
        let (log_sum, _) = log_sum_exp(&q);
        assert!((distribution.divergence(&q, log_sum) - divergence(&p, &q)).abs() < 1e-12);
        assert_eq!(distribution.divergence(&p, distribution.log_sum), 0.0);
        let surprise: f64 = (0..500).map(|token| (-distribution.surprise(token)).exp()).sum();
        assert!((surprise - 1.0).abs() < 1e-12, "probabilities add up");
        assert!(!Distribution::new(&[0.0, f32::NAN]).log_sum.is_finite());
    }
}
