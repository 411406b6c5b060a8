//! Logits of one position after another become numbers.

use super::statistics::{Distribution, Samples, log_sum_exp};
use super::{Divergences, EvalError};

/// Consecutive positions of one sequence.
pub(super) struct Block<'a> {
    /// All of the sequence's tokens.
    pub(super) sequence: &'a [u32],
    /// First position.
    pub(super) first: usize,
    /// `[model][position]`, `[vocab]` each.
    pub(super) logits: &'a [Vec<&'a [f32]>],
    /// The first model is the one that the others are compared with.
    pub(super) has_reference: bool,
}

/// What all positions said so far.
pub(super) struct Scores {
    /// Negative log probability of the next token by the reference.
    pub(super) reference: Samples,
    /// One for each candidate.
    pub(super) candidates: Vec<CandidateScores>,
}

/// Of one candidate; what needs a reference is there only with one.
#[derive(Clone, Default)]
pub(super) struct CandidateScores {
    /// Negative log probability of the next token, in nats.
    pub(super) surprise: Samples,
    /// How much more that is than by the reference.
    pub(super) extra_surprise: Option<Samples>,
    kl: Option<Samples>,
    /// 1 where both hold the same token for the most likely.
    pub(super) same_top: Option<Samples>,
}

impl CandidateScores {
    pub(super) fn divergences(&self) -> Option<Divergences> {
        self.kl.as_ref().map(|kl| Divergences {
            mean: kl.mean(),
            median: kl.quantile(0.5),
            p99: kl.quantile(0.99),
            max: kl.max(),
        })
    }
}

/// One model at one position.
#[derive(Clone, Copy)]
struct Point {
    log_sum: f64,
    /// Of the next token, unless the sequence ends here.
    surprise: Option<f64>,
    kl: f64,
    same_top: bool,
}

impl Scores {
    pub(super) fn new(candidates: usize, has_reference: bool) -> Self {
        let samples = || has_reference.then(Samples::default);
        let scores = CandidateScores {
            surprise: Samples::default(),
            extra_surprise: samples(),
            kl: samples(),
            same_top: samples(),
        };
        Self { reference: Samples::default(), candidates: vec![scores; candidates] }
    }

    /// Adds a block of the sequence `index`.
    ///
    /// # Errors
    /// Names the model whose logits are no numbers.
    pub(super) fn add(
        &mut self,
        index: usize,
        block: &Block<'_>,
        threads: usize,
        names: &[String],
    ) -> Result<(), EvalError> {
        for (offset, points) in block.points(threads).into_iter().enumerate() {
            if let Some(model) = points.iter().position(|point| !point.log_sum.is_finite()) {
                let (name, position) = (names[model].clone(), block.first + offset);
                return Err(EvalError::NotFinite { name, sequence: index, position });
            }
            let (reference, candidates) = points.split_at(usize::from(block.has_reference));
            let expected = reference.first().and_then(|point| point.surprise);
            if let Some(surprise) = expected {
                self.reference.push(index, surprise);
            }
            for (scores, point) in self.candidates.iter_mut().zip(candidates) {
                if let Some(surprise) = point.surprise {
                    scores.surprise.push(index, surprise);
                }
                if let (Some(samples), Some(surprise), Some(expected)) =
                    (&mut scores.extra_surprise, point.surprise, expected)
                {
                    samples.push(index, surprise - expected);
                }
                if let Some(samples) = &mut scores.kl {
                    samples.push(index, point.kl);
                }
                if let Some(samples) = &mut scores.same_top {
                    samples.push(index, f64::from(u8::from(point.same_top)));
                }
            }
        }
        Ok(())
    }
}

impl Block<'_> {
    /// `[position][model]`.
    fn points(&self, threads: usize) -> Vec<Vec<Point>> {
        let count = self.logits.first().map_or(0, Vec::len);
        let mut points = vec![Vec::new(); count];
        let share = count.div_ceil(threads.max(1)).max(1);
        std::thread::scope(|scope| {
            for (part, points) in points.chunks_mut(share).enumerate() {
                let run = move || {
                    for (offset, point) in points.iter_mut().enumerate() {
                        *point = self.point(part * share + offset);
                    }
                };
                scope.spawn(run);
            }
        });
        points
    }

    /// All models at the block's position `offset`.
    fn point(&self, offset: usize) -> Vec<Point> {
        let next = self.sequence.get(self.first + offset + 1).map(|&token| token as usize);
        let mut models = self.logits.iter().map(|rows| rows[offset]);
        let reference = if self.has_reference { models.next().map(Distribution::new) } else { None };
        let mut points = Vec::with_capacity(self.logits.len());
        points.extend(reference.as_ref().map(|reference| Point {
            log_sum: reference.log_sum,
            surprise: next.map(|token| reference.surprise(token)),
            kl: 0.0,
            same_top: true,
        }));
        points.extend(models.map(|logits| {
            let (log_sum, top) = log_sum_exp(logits);
            Point {
                log_sum,
                surprise: next.map(|token| log_sum - f64::from(logits[token])),
                kl: reference.as_ref().map_or(0.0, |reference| reference.divergence(logits, log_sum)),
                same_top: reference.as_ref().is_some_and(|reference| reference.top == top),
            }
        }));
        points
    }
}
