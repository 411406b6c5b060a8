//! Traffic whose prompts share their beginnings, and how well a fleet made use of that.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context;
use rookery_kernels::BLOCK_TOKENS;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    client::{Client, generate, ids},
    fleet::Fleet,
};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Requests in all.
    pub requests: usize,
    /// At the same time.
    pub streams: usize,
    /// Different beginnings.
    pub groups: usize,
    /// Tokens of each beginning.
    pub shared_tokens: usize,
    /// Tokens of each prompt that no other has.
    pub own_tokens: usize,
    /// Tokens of each answer.
    pub answer_tokens: u32,
    /// Of the order, and of who asks for what.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Prompt tokens that workers found in their caches.
    pub cached_tokens: u64,
    /// The most that they could have found: all shared tokens but the first of each beginning.
    pub best_tokens: u64,
    /// Requests that each worker answered.
    pub requests: BTreeMap<String, usize>,
    /// Tokens that each worker had to compute.
    pub work: BTreeMap<String, u64>,
}

impl Outcome {
    /// Share of the best possible.
    pub fn hit_rate(&self) -> f64 {
        self.cached_tokens as f64 / self.best_tokens as f64
    }

    /// The requests of the busiest of `workers`, in terms of the mean.
    pub fn heaviest_requests(&self, workers: usize) -> f64 {
        let total: usize = self.requests.values().sum();
        let most = self.requests.values().max().copied().unwrap_or(0);
        most as f64 * workers as f64 / total as f64
    }

    /// The work of the busiest of `workers`, in terms of the mean.
    pub fn heaviest_work(&self, workers: usize) -> f64 {
        let total: u64 = self.work.values().sum();
        self.work.values().max().copied().unwrap_or(0) as f64 * workers as f64 / total as f64
    }
}

/// Sends the traffic to the fleet's control plane.
///
/// # Errors
/// When a generation fails.
pub async fn run(fleet: &Fleet, traffic: Traffic) -> anyhow::Result<Outcome> {
    let places = Arc::new(Semaphore::new(traffic.streams));
    let mut running = JoinSet::new();
    let mut seen = vec![false; traffic.groups];
    let mut outcome =
        Outcome { cached_tokens: 0, best_tokens: 0, requests: BTreeMap::new(), work: BTreeMap::new() };
    let shared = (traffic.shared_tokens - traffic.shared_tokens % BLOCK_TOKENS) as u64;
    for number in 0..traffic.requests {
        let group = group(traffic, number as u64);
        outcome.best_tokens += if std::mem::replace(&mut seen[group], true) { shared } else { 0 };
        let place = Arc::clone(&places).acquire_owned().await.context("the places are open")?;
        let (client, prompt) = (fleet.client(), prompt(traffic, group, number));
        running.spawn(async move {
            let answer = one(&client, prompt, traffic.answer_tokens).await;
            drop(place);
            answer
        });
    }
    for answer in running.join_all().await {
        let (gateway, cached, computed) = answer?;
        outcome.cached_tokens += cached;
        *outcome.requests.entry(gateway.clone()).or_default() += 1;
        *outcome.work.entry(gateway).or_default() += computed;
    }
    Ok(outcome)
}

/// Where it was answered, how much of the prompt was cached, and how many tokens were computed.
async fn one(client: &Client, prompt: Vec<u32>, answer: u32) -> anyhow::Result<(String, u64, u64)> {
    let answer = generate(client, ids(prompt, answer)).await?;
    let usage = answer.finished.as_ref().and_then(|finished| finished.usage).context("no usage")?;
    let computed = usage.prompt_tokens - usage.cached_tokens + usage.generated_tokens;
    Ok((answer.gateway().to_owned(), usage.cached_tokens.into(), computed.into()))
}

/// Few beginnings are asked for often, many seldom: the group is the product of two draws.
fn group(traffic: Traffic, number: u64) -> usize {
    let draw = |salt: u64| unit(mix(traffic.seed ^ number.wrapping_mul(2) ^ salt << 32));
    ((draw(1) * draw(2)) * traffic.groups as f64) as usize
}

fn prompt(traffic: Traffic, group: usize, number: usize) -> Vec<u32> {
    let token = |salt: u64, index: usize| (mix(salt << 32 ^ index as u64) % 500) as u32 + 1;
    let shared = (0..traffic.shared_tokens).map(|index| token(group as u64 + 1, index));
    let own = (0..traffic.own_tokens).map(|index| token(number as u64 + 1_000_000, index));
    shared.chain(own).collect()
}

fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn unit(value: u64) -> f64 {
    (value >> 11) as f64 / (1u64 << 53) as f64
}
