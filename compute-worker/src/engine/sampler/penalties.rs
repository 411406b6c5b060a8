//! Repetition, presence and frequency penalties. Their cost is bounded by the different tokens seen, not by the
//! vocabulary.

use std::collections::HashMap;

use crate::engine::request::Sampling;

/// Different tokens of a prompt and its answer. Empty while no penalty is in force.
#[derive(Debug, Default)]
pub(super) struct Penalties {
    active: bool,
    /// Different tokens, each with how often it occurs in the answer.
    seen: Vec<(u32, u32)>,
    /// Where a token stands in `seen`.
    places: HashMap<u32, usize>,
}

impl Penalties {
    pub(super) fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let active = sampling.repetition_penalty != 1.0
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0;
        let mut penalties = Self { active, ..Self::default() };
        if active {
            for &token in prompt {
                penalties.place(token);
            }
        }
        penalties
    }

    /// Counts a token of the answer.
    pub(super) fn generated(&mut self, token: u32) {
        if self.active {
            let place = self.place(token);
            self.seen[place].1 += 1;
        }
    }

    /// Lowers the logits of tokens that were seen. Each token is changed on its own, so their order is of no
    /// consequence.
    pub(super) fn apply(&self, sampling: &Sampling, logits: &mut [f32]) {
        for &(token, count) in &self.seen {
            let logit = &mut logits[token as usize];
            let repeated = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / repeated } else { *logit * repeated };
            if count > 0 {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
            }
        }
    }

    fn place(&mut self, token: u32) -> usize {
        *self.places.entry(token).or_insert_with(|| {
            self.seen.push((token, 0));
            self.seen.len() - 1
        })
    }
}
