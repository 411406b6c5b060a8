use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn ids(count: usize) -> Vec<GatewayId> {
    (0..count).map(|index| format!("gw-{index}").parse().unwrap()).collect()
}

fn idle(ids: &[GatewayId]) -> Vec<Candidate<'_>> {
    ids.iter()
        .map(|id| Candidate {
            id,
            digest: "",
            in_flight: 0,
            reported: 0,
            queued_tokens: 0,
            free_blocks: 10,
            cached_tokens: 0,
            recent_tokens: 0,
            slow: false,
        })
        .collect()
}

fn by_load(candidates: &[Candidate<'_>], random: u64) -> Option<usize> {
    choose(candidates, &Wish { random, ..Wish::default() })
}

fn by_session(candidates: &[Candidate<'_>], session: &str, random: u64) -> Option<usize> {
    choose(candidates, &Wish { session: Some(session), random, ..Wish::default() })
}

#[test]
fn the_least_loaded_is_chosen_by_each_key_in_turn() {
    let ids = ids(3);
    let mut candidates = idle(&ids);
    (candidates[0].in_flight, candidates[1].reported) = (1, 2);
    assert_eq!(by_load(&candidates, 0), Some(2));
    candidates[2].reported = 1;
    candidates[0].queued_tokens = 5;
    assert_eq!(by_load(&candidates, 0), Some(2));
    candidates[2].queued_tokens = 5;
    candidates[0].recent_tokens = 640;
    assert_eq!(by_load(&candidates, 0), Some(2));
    candidates[2].recent_tokens = 640;
    candidates[0].free_blocks = 11;
    assert_eq!(by_load(&candidates, 0), Some(0));
    assert_eq!(by_load(&[], 0), None);
}

#[test]
fn ties_are_spread() {
    for count in [4, 100] {
        let ids = ids(count);
        let candidates = idle(&ids);
        let mut counts = vec![0; count];
        for random in 0..1000 * count as u64 {
            counts[by_load(&candidates, mix(random)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}

#[test]
fn of_many_the_better_of_two_is_taken() {
    let ids = ids(100);
    let mut candidates = idle(&ids);
    candidates[7].in_flight = 1;
    let chosen: Vec<_> = (0..10_000).filter_map(|random| by_load(&candidates, mix(random))).collect();
    assert!(!chosen.contains(&7), "whoever it is drawn with is better");
    // A thousand requests that stay: no gateway gets far from the mean of ten.
    let mut candidates = idle(&ids);
    for random in 0..1000 {
        let chosen = by_load(&candidates, mix(random)).unwrap();
        candidates[chosen].in_flight += 1;
    }
    assert!(candidates.iter().all(|candidate| (7..=13).contains(&candidate.in_flight)));
}

#[test]
fn sessions_are_spread_and_stay_when_other_gateways_go() {
    let ids = ids(8);
    let candidates = idle(&ids);
    let mut counts: HashMap<usize, u32> = HashMap::new();
    for session in 0..4000 {
        let session = format!("session-{session}");
        let home = by_session(&candidates, &session, session.len() as u64).unwrap();
        *counts.entry(home).or_default() += 1;
        let fewer = if home == 7 { &candidates[1..] } else { &candidates[..7] };
        let again = by_session(fewer, &session, 99).unwrap();
        assert_eq!(fewer[again].id, candidates[home].id);
    }
    assert!(counts.values().all(|count| (400..600).contains(count)), "{counts:?}");
}

#[test]
fn a_cached_beginning_counts_against_what_waits() {
    let ids = ids(100);
    let wish = Wish { prompt_tokens: 500, random: 3, ..Wish::default() };
    let mut candidates = idle(&ids);
    candidates[42].cached_tokens = 400;
    assert_eq!(choose(&candidates, &wish), Some(42), "it is found among many");
    candidates[42].in_flight = 2;
    assert_eq!(choose(&candidates, &wish), Some(42), "400 tokens are worth a place in the batch");
    candidates[42].queued_tokens = 2000;
    assert_ne!(choose(&candidates, &wish), Some(42), "a long queue is not");
    candidates[42].queued_tokens = 0;
    candidates[42].cached_tokens = 16;
    assert_ne!(choose(&candidates, &wish), Some(42), "neither is a short beginning");
    candidates[42].cached_tokens = 500;
    candidates[42].in_flight = 3;
    assert_ne!(choose(&candidates, &wish), Some(42), "nothing is, so far from the least load");
}

#[test]
fn a_slow_gateway_gets_less() {
    let ids = ids(2);
    let mut candidates = idle(&ids);
    candidates[0].slow = true;
    for random in 0..90 {
        let chosen = by_load(&candidates, random).unwrap();
        candidates[chosen].in_flight += 1;
    }
    assert!((25..=35).contains(&candidates[0].in_flight), "{}", candidates[0].in_flight);
}

proptest! {
    /// Nothing is ever sent to a gateway with more load than the least plus the slack.
    #[test]
    fn affinity_never_beats_load(
        loads in prop::collection::vec((0u64..20, 0u64..20, 0u64..1000, any::<bool>()), 1..9),
        session in "[a-z]{0,8}",
        random: u64,
    ) {
        let ids = ids(loads.len());
        let mut candidates = idle(&ids);
        for (candidate, &(in_flight, reported, _, slow)) in candidates.iter_mut().zip(&loads) {
            (candidate.in_flight, candidate.reported, candidate.slow) = (in_flight, reported, slow);
        }
        let least = candidates.iter().map(Candidate::load).min().unwrap();
        let with = by_session(&candidates, &session, random).unwrap();
        prop_assert!(candidates[with].load() <= least + AFFINITY_SLACK);
        let without = by_load(&candidates, random).unwrap();
        prop_assert_eq!(candidates[without].load(), least);
        for (candidate, &(_, _, cached, _)) in candidates.iter_mut().zip(&loads) {
            candidate.cached_tokens = cached;
        }
        let prefix = choose(&candidates, &Wish { prompt_tokens: 1000, random, ..Wish::default() }).unwrap();
        prop_assert!(candidates[prefix].load() <= least + AFFINITY_SLACK);
    }
}
