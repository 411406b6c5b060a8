//! Which gateway a request goes to: least loaded first, or the session's own where load permits.

use super::GatewayId;

/// How many more generations than the least loaded gateway a session's own gateway may have and still be chosen:
/// reusing a cached conversation is worth about that much waiting in a batch.
pub const AFFINITY_SLACK: u64 = 2;

/// A gateway that could take the request.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: &'a GatewayId,
    /// Requests that this control plane has sent there and that have not ended.
    pub in_flight: u64,
    /// Generations that it reported, running or waiting. Lags behind, and counts other clients' too.
    pub reported: u64,
    /// Prompt tokens that it reported as waiting.
    pub queued_tokens: u64,
    /// Free cache blocks of the model.
    pub free_blocks: u32,
}

impl Candidate<'_> {
    /// The report includes most of what is in flight, so the larger of the two is the better guess than their sum.
    fn load(&self) -> u64 {
        self.in_flight.max(self.reported)
    }
}

/// Index of the gateway to use, or `None` if there is no candidate.
///
/// With a session: the first in the session's own order of gateways (rendezvous hashing: gateways that come or go
/// move only their own sessions) whose load is within [`AFFINITY_SLACK`] of the least. Without: the least load, then
/// the fewest queued tokens, then the most free blocks, then an order that `random` decides.
pub fn choose(candidates: &[Candidate<'_>], session: Option<&str>, random: u64) -> Option<usize> {
    let indices = 0..candidates.len();
    let Some(session) = session else {
        return indices.min_by_key(|&index| {
            let candidate = &candidates[index];
            let tie = mix(hash(candidate.id.as_str().as_bytes(), SEED) ^ random);
            (candidate.load(), candidate.queued_tokens, std::cmp::Reverse(candidate.free_blocks), tie)
        });
    };
    let least = candidates.iter().map(Candidate::load).min()?;
    let session = hash(session.as_bytes(), SEED);
    indices
        .filter(|&index| candidates[index].load() <= least + AFFINITY_SLACK)
        .max_by_key(|&index| mix(hash(candidates[index].id.as_str().as_bytes(), session)))
}

/// FNV-1a's offset basis.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits: the same in every process and build, which std's hasher does not promise.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finaliser of SplitMix64: FNV alone leaves the high bits of similar ids alike.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn ids(count: usize) -> Vec<GatewayId> {
        (0..count).map(|index| format!("gw-{index}").parse().unwrap()).collect()
    }

    fn idle(ids: &[GatewayId]) -> Vec<Candidate<'_>> {
        ids.iter()
            .map(|id| Candidate { id, in_flight: 0, reported: 0, queued_tokens: 0, free_blocks: 10 })
            .collect()
    }

    #[test]
    fn the_least_loaded_is_chosen_by_each_key_in_turn() {
        let ids = ids(3);
        let mut candidates = idle(&ids);
        (candidates[0].in_flight, candidates[1].reported) = (1, 2);
        assert_eq!(choose(&candidates, None, 0), Some(2));
        candidates[2].reported = 1;
        candidates[0].queued_tokens = 5;
        assert_eq!(choose(&candidates, None, 0), Some(2));
        candidates[2].queued_tokens = 5;
        candidates[0].free_blocks = 11;
        assert_eq!(choose(&candidates, None, 0), Some(0));
        assert_eq!(choose(&[], None, 0), None);
    }

    #[test]
    fn ties_are_spread() {
        let ids = ids(4);
        let candidates = idle(&ids);
        let mut counts = [0; 4];
        for random in 0..4000 {
            counts[choose(&candidates, None, mix(random)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn sessions_are_spread_and_stay_when_other_gateways_go() {
        let ids = ids(8);
        let candidates = idle(&ids);
        let mut counts: HashMap<usize, u32> = HashMap::new();
        for session in 0..4000 {
            let session = format!("session-{session}");
            let home = choose(&candidates, Some(&session), session.len() as u64).unwrap();
            *counts.entry(home).or_default() += 1;
            let fewer = if home == 7 { &candidates[1..] } else { &candidates[..7] };
            let again = choose(fewer, Some(&session), 99).unwrap();
            assert_eq!(fewer[again].id, candidates[home].id);
        }
        assert!(counts.values().all(|count| (400..600).contains(count)), "{counts:?}");
    }

    proptest! {
        /// Nothing is ever sent to a gateway with more load than the least plus the slack.
        #[test]
        fn affinity_never_beats_load(loads in prop::collection::vec((0u64..20, 0u64..20), 1..9), session in "[a-z]{0,8}", random: u64) {
            let ids = ids(loads.len());
            let mut candidates = idle(&ids);
            for (candidate, &(in_flight, reported)) in candidates.iter_mut().zip(&loads) {
                (candidate.in_flight, candidate.reported) = (in_flight, reported);
            }
            let least = loads.iter().map(|(a, b)| *a.max(b)).min().unwrap();
            let with = choose(&candidates, Some(&session), random).unwrap();
            prop_assert!(candidates[with].load() <= least + AFFINITY_SLACK);
            let without = choose(&candidates, None, random).unwrap();
            prop_assert_eq!(candidates[without].load(), least);
        }
    }
}
