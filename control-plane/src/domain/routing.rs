//! Which gateway a request goes to: the session's own, or one that has read the prompt's beginning, where load
//! permits; else the least loaded.
//!
//! [`names`] says which versions a request may go to, [`prefix`] who has read what, [`breaker`] who is left alone for
//! a while, [`traffic`] what became of it all.

pub mod breaker;
pub mod names;
pub mod prefix;
pub mod traffic;

use super::GatewayId;

/// How many more generations than the least loaded gateway a session's own gateway, or one that has read the prompt's
/// beginning, may have and still be chosen: reusing a cached conversation is worth about that much waiting in a batch.
pub const AFFINITY_SLACK: u64 = 2;

/// Up to this many gateways are compared all with each other. Of more, two are drawn and the better one is taken: several
/// replicas that all took the one that looks best would swamp it before it could report.
pub const MOST_COMPARED: usize = 8;

/// What one more generation in the batch costs a request, in tokens of prompt to read.
const GENERATION_TOKENS: u64 = 32;

/// What a token that would have to be read again costs, in tokens that wait: not only this request waits for it, but all
/// that come after it there. With 1, a burst of new prompts has every gateway read everything.
const READ_AGAIN: u64 = 4;

/// Tokens of recent work that make no difference.
const RECENT_STEP: u64 = 64;

/// A gateway that could take the request.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: &'a GatewayId,
    /// The version there: a gateway with two of them is two candidates.
    pub digest: &'a str,
    /// Requests that this control plane has sent there and that have not ended.
    pub in_flight: u64,
    /// Generations that it reported, running or waiting. Lags behind, and counts other clients' too.
    pub reported: u64,
    /// Prompt tokens that wait there: as reported, or as sent there and not begun, whichever is more.
    pub queued_tokens: u64,
    /// Free cache blocks of the model.
    pub free_blocks: u32,
    /// Tokens of this request's prompt that it has probably read already.
    pub cached_tokens: u64,
    /// Tokens that it was given to read lately.
    pub recent_tokens: u64,
    /// Slower than it should be, or too hot.
    pub slow: bool,
}

/// What the choice depends on besides the gateways.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Session that the request belongs to.
    pub session: Option<&'a str>,
    /// Length of its prompt.
    pub prompt_tokens: u64,
    /// Decides between equals, and who is compared where there are many.
    pub random: u64,
}

impl Candidate<'_> {
    /// The report includes most of what is in flight, so the larger of the two is the better guess than their sum. A slow
    /// gateway counts as if it had twice as much, and one more.
    fn load(&self) -> u64 {
        let load = self.in_flight.max(self.reported);
        if self.slow { load.saturating_mul(2).saturating_add(1) } else { load }
    }

    /// Tokens to read until this request's first token, with what reading and sharing the batch cost others.
    fn cost(&self, wish: &Wish<'_>) -> u64 {
        let own = wish.prompt_tokens.saturating_sub(self.cached_tokens).saturating_mul(READ_AGAIN);
        let shared = self.load().saturating_mul(GENERATION_TOKENS);
        self.queued_tokens.saturating_add(own).saturating_add(shared)
    }

    /// Smaller is better.
    fn rank(&self, random: u64) -> (u64, u64, u64, std::cmp::Reverse<u32>, u64) {
        let tie = mix(hash(self.digest.as_bytes(), hash(self.id.as_str().as_bytes(), SEED)) ^ random);
        let recent = self.recent_tokens / RECENT_STEP;
        (self.load(), self.queued_tokens, recent, std::cmp::Reverse(self.free_blocks), tie)
    }
}

/// Index of the gateway to use, or `None` if there is no candidate.
///
/// - With a session: the first in the session's own order of gateways (rendezvous hashing: gateways that come or go
///   move only their own sessions) whose load is within [`AFFINITY_SLACK`] of the least.
/// - Else, if somebody whose load is as near to the least has read the prompt's beginning: where the fewest tokens are
///   to be read before the first token comes.
/// - Else the least load, then the fewest queued tokens, the least recent work, the most free blocks, and an order that
///   `random` decides; of more than [`MOST_COMPARED`], the better one of two that `random` draws.
pub fn choose(candidates: &[Candidate<'_>], wish: &Wish<'_>) -> Option<usize> {
    let least = candidates.iter().map(Candidate::load).min()?;
    let near = |index: &usize| candidates[*index].load() <= least + AFFINITY_SLACK;
    if let Some(session) = wish.session {
        let session = hash(session.as_bytes(), SEED);
        return (0..candidates.len())
            .filter(near)
            .max_by_key(|&index| mix(hash(candidates[index].id.as_str().as_bytes(), session)));
    }
    let compared = compared(candidates.len(), wish.random);
    let readers = (0..candidates.len()).filter(|&index| candidates[index].cached_tokens > 0).filter(near);
    let readers: Vec<usize> = readers.collect();
    if readers.is_empty() {
        return compared.into_iter().min_by_key(|&index| candidates[index].rank(wish.random));
    }
    let others = compared.into_iter().filter(near);
    let key = |&index: &usize| (candidates[index].cost(wish), candidates[index].rank(wish.random));
    readers.iter().copied().chain(others).min_by_key(key)
}

/// Who is compared: all if there are few, else two different ones.
fn compared(count: usize, random: u64) -> Vec<usize> {
    if count <= MOST_COMPARED {
        return (0..count).collect();
    }
    let first = (mix(random) % count as u64) as usize;
    let distance = 1 + (mix(random ^ SEED) % (count as u64 - 1)) as usize;
    vec![first, (first + distance) % count]
}

/// FNV-1a's offset basis.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits: the same in every process and build, which std's hasher does not promise.
pub(super) fn hash(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finaliser of SplitMix64: FNV alone leaves the high bits of similar ids alike.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
