//! Traffic of shared beginnings over gateways with modelled caches: how much of what could be reused is.

use std::collections::BTreeSet;

use super::{tests::*, *};
use crate::domain::routing::mix;

const GATEWAYS: usize = 4;
const STREAMS: usize = 16;
/// Tokens of prompts that a gateway reads in a step, beside one of each answer.
const STEP_TOKENS: usize = 96;
const OWN_TOKENS: usize = 24;
const ANSWER_TOKENS: usize = 8;

struct Running {
    reservation: Reservation<usize>,
    group: usize,
    unread: Option<usize>,
    left: usize,
}

struct Outcome {
    hit_rate: f64,
    /// Requests of the busiest gateway, in terms of the mean.
    heaviest: f64,
}

fn simulate(groups: usize, shared: usize, requests: usize, seed: u64) -> Outcome {
    let mut registry = Registry::default();
    let ids: Vec<_> = (0..GATEWAYS).map(|n| id(&format!("g{n}"))).collect();
    for (n, id) in ids.iter().enumerate() {
        registry.link(id.clone(), n, serving(&["m"]));
    }
    let mut queues: Vec<Vec<Running>> = (0..GATEWAYS).map(|_| Vec::new()).collect();
    let mut caches = vec![BTreeSet::new(); GATEWAYS];
    let (mut sent, mut hits, mut counts) = (0, 0, vec![0usize; GATEWAYS]);
    let (mut seen, mut now) = (BTreeSet::new(), Instant::now());
    let mut best = 0;
    while sent < requests || queues.iter().any(|queue| !queue.is_empty()) {
        while sent < requests && queues.iter().map(Vec::len).sum::<usize>() < STREAMS {
            let draw = |salt: u64| mix(seed ^ ((sent as u64) << 8) ^ salt) as f64 / u64::MAX as f64;
            let group = ((draw(1) * draw(2)) * groups as f64) as usize;
            best += usize::from(!seen.insert(group));
            let tokens: Vec<u32> = (0..shared)
                .map(|_| group as u32)
                .chain((0..OWN_TOKENS).map(|_| 9999 + sent as u32))
                .collect();
            let prompt = Prompt::of_ids(&tokens);
            let random = mix(seed ^ sent as u64);
            let reservation =
                registry.reserve(&Query { prompt: &prompt, ..query("m", &[], random, now) }).unwrap();
            let home = reservation.connection;
            counts[home] += 1;
            queues[home].push(Running { reservation, group, unread: None, left: ANSWER_TOKENS });
            sent += 1;
        }
        now += Duration::from_millis(20);
        for (home, queue) in queues.iter_mut().enumerate() {
            let mut budget = STEP_TOKENS;
            for running in queue.iter_mut() {
                if running.unread == Some(0) {
                    running.left -= 1;
                    continue;
                }
                let unread = running.unread.get_or_insert_with(|| {
                    let hit = caches[home].contains(&running.group);
                    hits += usize::from(hit);
                    if hit { OWN_TOKENS } else { shared + OWN_TOKENS }
                });
                let read = budget.min(*unread);
                (budget, *unread) = (budget - read, *unread - read);
                if *unread == 0 {
                    caches[home].insert(running.group);
                    registry.begun(&mut running.reservation);
                }
                if budget == 0 {
                    break;
                }
            }
            queue.retain_mut(|running| {
                running.left > 0 || {
                    registry.release(&mut running.reservation);
                    false
                }
            });
        }
    }
    let most = counts.into_iter().max().unwrap_or(0);
    Outcome { hit_rate: hits as f64 / best as f64, heaviest: (most * GATEWAYS) as f64 / requests as f64 }
}

#[test]
fn caches_are_used_and_nobody_is_swamped() {
    for (groups, shared) in [(8, 256), (32, 256), (64, 128), (128, 320), (24, 256)] {
        for seed in 0..5 {
            let requests = if groups == 24 { 320 } else { 1200 };
            let Outcome { hit_rate, heaviest } = simulate(groups, shared, requests, seed);
            assert!(hit_rate >= 0.9, "{groups} groups, seed {seed}: {hit_rate}");
            assert!(heaviest <= 1.5, "{groups} groups, seed {seed}: {heaviest}");
        }
    }
}
