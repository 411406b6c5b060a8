//! How far one model's predictions are from another's.

/// Kullback–Leibler divergence over many positions, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Positions added.
    pub positions: usize,
    /// Sum over them.
    pub total: f64,
    /// Largest of one position.
    pub max: f64,
    /// Positions at which both give the same token the highest probability.
    pub same_top: usize,
}

impl Divergence {
    /// Adds one position: `reference` and `other` are logits of the same vocabulary.
    pub fn add(&mut self, reference: &[f32], other: &[f32]) {
        let kl = divergence(reference, other);
        self.positions += 1;
        self.total += kl;
        self.max = self.max.max(kl);
        self.same_top += usize::from(top(reference) == top(other));
    }

    /// Mean over all positions.
    pub fn mean(&self) -> f64 {
        self.total / self.positions.max(1) as f64
    }
}

/// `Σ p·ln(p/q)` in f64, where `p` and `q` are the distributions that the logits `reference` and `other` give.
///
/// # Panics
/// If the two differ in length.
pub fn divergence(reference: &[f32], other: &[f32]) -> f64 {
    assert_eq!(reference.len(), other.len(), "logits of one vocabulary");
    let (p_log_sum, q_log_sum) = (log_sum_exp(reference), log_sum_exp(other));
    let terms = reference.iter().zip(other).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_log_sum, f64::from(q) - q_log_sum);
        p.exp() * (p - q)
    });
    // Rounding can leave a tiny negative number where the two are equal.
    terms.sum::<f64>().max(0.0)
}

/// `ln Σ exp(x)` in f64.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Index of the highest logit, the first if there are several.
fn top(logits: &[f32]) -> usize {
    let better = |best: usize, (index, &x): (usize, &f32)| if x > logits[best] { index } else { best };
    logits.iter().enumerate().fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        // Logits are logarithms of (3/4, 1/4) and (1/2, 1/2), each plus a constant.
        let kl = divergence(&[3f32.ln() + 5.0, 5.0], &[-2.0, -2.0]);
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((kl - expected).abs() < 1e-7, "{kl} {expected}");
        assert_eq!(divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]), 0.0);
    }

    #[test]
    fn positions_add_up() {
        let mut sum = Divergence::default();
        sum.add(&[0.0, 1.0], &[0.0, 1.0]);
        sum.add(&[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!((sum.positions, sum.same_top), (2, 1));
        assert!((sum.mean() - sum.max / 2.0).abs() < 1e-12 && sum.max > 0.0);
    }
}
