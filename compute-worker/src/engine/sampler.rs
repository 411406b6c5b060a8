//! From logits to a token.
//!
//! ```text
//! raw logits ─► log-probabilities (chosen and top n, if asked for)
//!     └─► bias ─► penalties ─► forbidden tokens out ─┬─ temperature 0: highest, lowest id of equals
//!                                                    └─ softmax(logits / temperature) ─► top-k ─► top-p ─► min-p
//!                                                        ─► draw by Philox(seed, position)
//! ```
//!
//! The same logits give the same token on every machine: exponentials are [`rookery_kernels`]' own, sums have a
//! fixed order, ties go to the lowest id, and the draw depends on (seed, position) only. Top-k, top-p and min-p each
//! keep a beginning of the tokens in order of probability, so together they keep the shortest of the three. Top-p's
//! share is of what top-k kept.

use rookery_kernels::Kernels;

use super::random::Philox;
use super::request::{PositionLogprobs, Sampling, TokenLogprob};

mod nucleus;
mod penalties;
#[cfg(test)]
mod tests;

use penalties::Penalties;

/// Tokens with this bias or less are never chosen.
const FORBIDDING_BIAS: f32 = -100.0;

/// Lowest scaled logit below the highest one; its exponential is 0 in f32 as is.
const LEAST_EXPONENT: f32 = -1000.0;

/// Values that scans over the vocabulary take side by side.
const LANES: usize = 32;

/// How one generation chooses its tokens, and what that depends on so far.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    logprobs: Option<u32>,
    /// Never chosen.
    forbidden: Vec<u32>,
    /// Not chosen before `min_tokens`: what would end the answer.
    ending: Vec<u32>,
    penalties: Penalties,
    generated: u32,
    random: Philox,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Log-probabilities of the model's own distribution, if asked for.
    pub logprobs: Option<PositionLogprobs>,
}

/// No token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The model's arithmetic went wrong.
    #[error("logits are not finite")]
    NotFinite,
    /// Bias and `min_tokens` forbid the whole vocabulary.
    #[error("every token is forbidden")]
    AllForbidden,
}

impl Sampler {
    /// A sampler for a prompt. `ending` are the tokens that would end the answer.
    pub fn new(sampling: Sampling, logprobs: Option<u32>, prompt: &[u32], ending: Vec<u32>) -> Self {
        let biased = sampling.logit_bias.iter();
        Self {
            forbidden: biased.filter(|(_, bias)| *bias <= FORBIDDING_BIAS).map(|(id, _)| *id).collect(),
            penalties: Penalties::new(&sampling, prompt),
            random: Philox::new(sampling.seed),
            generated: 0,
            sampling,
            logprobs,
            ending,
        }
    }

    /// Chooses the token at `position` (counted from the start of the prompt) from its logits `[vocabulary]`, which
    /// are used as scratch.
    ///
    /// # Errors
    /// When logits are NaN or infinite, or nothing is allowed.
    pub fn sample(
        &self,
        kernels: &Kernels,
        position: usize,
        logits: &mut [f32],
    ) -> Result<Sampled, SampleError> {
        if !all_finite(logits) {
            return Err(SampleError::NotFinite);
        }
        let raw = self.logprobs.map(|_| logits.to_vec());
        for &(id, bias) in &self.sampling.logit_bias {
            logits[id as usize] += bias;
        }
        self.penalties.apply(&self.sampling, logits);
        self.exclude(logits, f32::NEG_INFINITY);
        let max = maximum(logits);
        if max == f32::NEG_INFINITY {
            return Err(SampleError::AllForbidden);
        }
        let token = match self.sampling.temperature {
            0.0 => first_equal(logits, max),
            temperature => {
                self.probabilities(kernels, max, temperature, logits);
                nucleus::draw(&self.sampling, logits, self.random.uniform(position as u64))
            }
        };
        Ok(Sampled { token, logprobs: raw.map(|raw| self.report(kernels, &raw, token)) })
    }

    /// Takes note of a token that was chosen.
    pub fn accept(&mut self, token: u32) {
        self.generated += 1;
        self.penalties.generated(token);
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// Whether ends and stops are still not considered.
    pub fn below_minimum(&self) -> bool {
        self.generated < self.sampling.min_tokens
    }

    /// Gives `value` to tokens that must not be chosen now. One that the model does not have cannot be chosen anyway.
    fn exclude(&self, values: &mut [f32], value: f32) {
        let ending = if self.below_minimum() { self.ending.as_slice() } else { &[] };
        for &id in self.forbidden.iter().chain(ending) {
            if let Some(excluded) = values.get_mut(id as usize) {
                *excluded = value;
            }
        }
    }

    /// Turns logits with maximum `max` into probabilities; excluded tokens get exactly 0.
    fn probabilities(&self, kernels: &Kernels, max: f32, temperature: f32, logits: &mut [f32]) {
        for logit in logits.iter_mut() {
            *logit = ((*logit - max) / temperature).max(LEAST_EXPONENT);
        }
        kernels.softmax(logits);
        self.exclude(logits, 0.0);
    }

    fn report(&self, kernels: &Kernels, raw: &[f32], token: u32) -> PositionLogprobs {
        let (max, log_sum) = kernels.log_softmax_stats(raw);
        let logprob =
            |token_id: u32| TokenLogprob { token_id, logprob: raw[token_id as usize] - max - log_sum };
        let top = most_likely(raw, self.logprobs.unwrap_or(0) as usize);
        PositionLogprobs { chosen: logprob(token), top: top.into_iter().map(logprob).collect() }
    }
}

/// Whether no value is NaN or infinite. `x·0` is 0 for finite x and NaN otherwise.
fn all_finite(values: &[f32]) -> bool {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * 0.0;
        }
    }
    sums.iter().sum::<f32>() == 0.0 && rest.iter().all(|value| value.is_finite())
}

/// The highest of values that are not NaN.
fn maximum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (high, &value) in highest.iter_mut().zip(chunk) {
            // Not `f32::max`, whose rule for NaN costs two instructions more.
            *high = if value > *high { value } else { *high };
        }
    }
    highest.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

fn first_equal(values: &[f32], wanted: f32) -> u32 {
    values.iter().position(|value| *value == wanted).unwrap_or(0) as u32
}

/// Ids of the `count` highest values, highest first, lowest id of equals first.
fn most_likely(values: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    let mut threshold = f32::NEG_INFINITY;
    for (id, &value) in values.iter().enumerate() {
        if best.len() < count || value > threshold {
            let place = best.partition_point(|(held, _)| *held >= value);
            best.insert(place, (value, id as u32));
            best.truncate(count);
            threshold = best.last().map_or(f32::INFINITY, |(held, _)| *held);
        }
    }
    best.into_iter().map(|(_, id)| id).collect()
}
