//! Greedy answers to several prompts, straight from the forward pass: no queue, no sampler, no metrics.
//!
//! Each step lets one more sequence in and advances those that are in. So steps of all kinds occur even with two prompts:
//! a prompt alone, a prompt beside a decoding row, several decoding rows, one. What a sequence answers depends on none of
//! that, and if it does after all, a replay that is arranged otherwise shows it.

use std::collections::VecDeque;
use std::sync::OnceLock;

use rookery_kernels::{AttentionQuery, BLOCK_TOKENS};
use rookery_model::bundle::Digest;

use crate::backend::Backend;
use crate::model::forward::{Batch, Forward, ForwardError, ForwardLimits};

/// One prompt to answer with `tokens` tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) tokens: usize,
}

/// What came out at one position.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// The first of the most likely tokens; `None` if a logit is NaN or infinite.
    pub(super) token: Option<u32>,
    /// SHA-256 of the logits: f32, little endian.
    pub(super) logits: Digest,
}

impl Ask<'_> {
    /// Positions that go through the model: the last token is never fed.
    fn positions(&self) -> usize {
        self.prompt.len() + self.tokens.saturating_sub(1)
    }

    /// Whether a pass with these limits can answer it.
    pub(super) fn fits(&self, limits: &ForwardLimits) -> bool {
        let positions = self.positions();
        positions <= limits.positions && positions.div_ceil(BLOCK_TOKENS) <= limits.blocks
    }
}

impl Said {
    fn of(logits: &[f32]) -> Self {
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        Self { token: greedy(logits), logits: Digest::of(&bytes) }
    }
}

/// The lowest id of the highest logit; `None` if one is not finite.
fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (id, &logit) in (0..).zip(logits) {
        if !logit.is_finite() {
            return None;
        }
        if logit > best.0 {
            best = (logit, Some(id));
        }
    }
    best.1
}

/// Answers all of `asks`, each of which must fit, and calls `each` with the index of one and what came next in it. An answer
/// ends when `each` returns false, when it has all its tokens, or with a token that is none.
///
/// Keys and values go to any blocks of the cache; nobody else may use it.
///
/// # Errors
/// When a step fails.
pub(super) fn answer(
    forward: &mut Forward,
    backend: &mut dyn Backend,
    asks: &[Ask<'_>],
    each: &mut dyn FnMut(usize, &Said) -> bool,
) -> Result<(), ForwardError> {
    let limits = *forward.limits();
    let mut free: Vec<u32> = (0..limits.blocks as u32).rev().collect();
    let mut waiting: VecDeque<usize> = (0..asks.len()).filter(|&ask| asks[ask].tokens > 0).collect();
    let mut running: Vec<Answering> = Vec::new();
    loop {
        if let Some(&ask) = waiting.front()
            && running.len() < limits.max_logit_rows.min(limits.max_rows)
            && let Some(blocks) = take_blocks(&mut free, asks[ask].positions().div_ceil(BLOCK_TOKENS))
        {
            waiting.pop_front();
            running.push(Answering::new(ask, asks[ask].prompt, blocks));
        }
        if running.is_empty() {
            return Ok(());
        }
        if backend.wants_weights() {
            backend.adopt(forward.weights_mut())?;
        }
        let mut said = step(forward, backend, &mut running, limits.max_rows)?.into_iter();
        running.retain_mut(|sequence| {
            if sequence.computed < sequence.tokens.len() {
                return true;
            }
            let goes_on = said.next().is_some_and(|said| {
                let wanted = each(sequence.ask, &said);
                sequence.answered += 1;
                sequence.tokens.extend(said.token);
                wanted && said.token.is_some() && sequence.answered < asks[sequence.ask].tokens
            });
            if !goes_on {
                free.append(&mut sequence.blocks);
            }
            goes_on
        });
    }
}

/// A prompt being read or answered.
struct Answering {
    ask: usize,
    /// Prompt and answer so far.
    tokens: Vec<u32>,
    /// How many of them are in the cache.
    computed: usize,
    answered: usize,
    blocks: Vec<u32>,
}

impl Answering {
    fn new(ask: usize, prompt: &[u32], blocks: Vec<u32>) -> Self {
        Self { ask, tokens: prompt.to_vec(), computed: 0, answered: 0, blocks }
    }
}

fn take_blocks(free: &mut Vec<u32>, count: usize) -> Option<Vec<u32>> {
    let left = free.len().checked_sub(count)?;
    Some(free.split_off(left))
}

/// Computes up to `most_rows` rows, at least one of each sequence. Returns what came out of those that are now computed to
/// their ends, in order.
fn step(
    forward: &mut Forward,
    backend: &mut dyn Backend,
    running: &mut [Answering],
    most_rows: usize,
) -> Result<Vec<Said>, ForwardError> {
    let (mut tokens, mut logits_of, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
    for (index, sequence) in running.iter().enumerate() {
        let for_others = running.len() - index - 1;
        let room = most_rows - tokens.len() - for_others;
        let chunk = sequence.computed..sequence.tokens.len().min(sequence.computed + room);
        tokens.extend_from_slice(&sequence.tokens[chunk.clone()]);
        if chunk.end == sequence.tokens.len() {
            logits_of.push(tokens.len() - 1);
        }
        chunks.push(chunk);
    }
    let query = |blocks, position| AttentionQuery { blocks, len: position + 1 };
    let rows = running.iter().zip(&chunks);
    let queries: Vec<_> = rows
        .flat_map(|(sequence, chunk)| chunk.clone().map(|position| query(&sequence.blocks, position)))
        .collect();
    forward.run(backend, &Batch { tokens: &tokens, queries: &queries, logits_of: &logits_of })?;
    for (sequence, chunk) in running.iter_mut().zip(&chunks) {
        sequence.computed = chunk.end;
    }
    let said: Vec<OnceLock<Said>> = logits_of.iter().map(|_| OnceLock::new()).collect();
    forward.for_each_logits_row(&|row, logits| {
        // Each row is visited once, so the cell is empty.
        let _ = said[row].set(Said::of(logits));
    });
    Ok(said.into_iter().filter_map(OnceLock::into_inner).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_nothing_of_what_is_no_number() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, -1.0]), Some(1));
        assert_eq!(greedy(&[-2.0, -1.0]), Some(1));
        assert_eq!(greedy(&[1.0, f32::NAN]), None);
        assert_eq!(greedy(&[f32::INFINITY, 1.0]), None);
        assert_eq!(greedy(&[]), None);
    }

    #[test]
    fn a_digest_is_of_the_bits() {
        let bytes: Vec<u8> = [1.0_f32, -0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(Said::of(&[1.0, -0.0]).logits, Digest::of(&bytes));
        assert_ne!(Said::of(&[1.0, 0.0]).logits, Said::of(&[1.0, -0.0]).logits);
    }
}
