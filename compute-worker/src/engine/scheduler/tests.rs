//! The scheduler against a shadow of the cache: what each slot holds, as a digest of all tokens up to it.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Digest of all tokens so far: what a key/value pair at their end depends on.
fn digest(tokens: &[u32]) -> u64 {
    tokens
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3))
}

struct Job {
    ticket: Ticket,
    /// Length of prompt and answer at which it ends.
    end: usize,
}

/// Runs plans as an engine would and checks every one.
struct Machine {
    scheduler: Scheduler,
    limits: Limits,
    jobs: Vec<Job>,
    cache: HashMap<(u32, usize), u64>,
    plan: Plan,
}

impl Machine {
    fn new(blocks: usize, limits: Limits) -> Self {
        let scheduler = Scheduler::new(BlockPool::new(blocks), limits);
        Self { scheduler, limits, jobs: Vec::new(), cache: HashMap::new(), plan: Plan::default() }
    }

    fn add(&mut self, priority: i32, prompt: Vec<u32>, answer: usize) -> Ticket {
        let end = (prompt.len() + answer).min(self.scheduler.pool().total() * BLOCK_TOKENS);
        let ticket = self.scheduler.add(priority, prompt);
        self.jobs.push(Job { ticket, end });
        ticket
    }

    /// Adds copies of a prompt, behind one whose length leaves the second copy full blocks of rows, and before a long
    /// one that takes all rows it can get.
    fn add_copies(&mut self, priority: i32, prompt: &[u32], answer: usize, copies: usize) {
        let room = self.scheduler.pool().total() * BLOCK_TOKENS - 1;
        // One token beyond full blocks is the least that a copy has to compute itself.
        let length = (prompt.len().min(room) - 1) / BLOCK_TOKENS * BLOCK_TOKENS + 1;
        let taken = length + self.scheduler.running();
        let before = self.limits.max_step_tokens.saturating_sub(taken) % BLOCK_TOKENS;
        if before > 0 {
            self.add(priority, vec![7; before], answer);
        }
        for _ in 0..copies {
            self.add(priority, prompt[..length].to_vec(), answer);
        }
        self.add(priority, vec![8; room.min(100)], answer);
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let mut plan = std::mem::take(&mut self.plan);
        self.scheduler.schedule(&mut plan);
        prop_assert!(plan.rows() <= self.limits.max_step_tokens);
        prop_assert!(self.scheduler.running() <= self.limits.max_batch);
        prop_assert!(plan.work.is_sorted_by(|a, b| a.ticket < b.ticket), "one piece each, best first");
        let best = self.scheduler.running.keys().next();
        prop_assert_eq!(plan.work.first().map(|work| &work.ticket), best, "the best that runs advances");
        prop_assert!(self.jobs.is_empty() || !plan.work.is_empty(), "something advances");
        let stays = |admitted: &Admitted| self.scheduler.is_running(admitted.ticket);
        prop_assert!(plan.admitted.iter().all(stays), "nobody is admitted in vain");
        let mut written = HashSet::new();
        for work in &plan.work {
            self.execute(work, &mut written)?;
        }
        for work in &plan.work {
            let sampled = work.sample.then(|| digest(self.scheduler.tokens(work.ticket)) as u32 % 3);
            self.scheduler.commit(work, sampled);
            let length = self.scheduler.tokens(work.ticket).len();
            if self.jobs.iter().any(|job| job.ticket == work.ticket && length >= job.end) {
                self.end(work.ticket);
            }
        }
        self.plan = plan;
        Ok(())
    }

    fn execute(&mut self, work: &Work, written: &mut HashSet<(u32, usize)>) -> Result<(), TestCaseError> {
        let (tokens, blocks) = (self.scheduler.tokens(work.ticket), self.scheduler.blocks(work.ticket));
        prop_assert_eq!(work.sample, work.start + work.count == tokens.len());
        let slot = |position: usize| (blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
        for position in work.start..work.start + work.count {
            prop_assert!(written.insert(slot(position)), "nobody else writes this slot in this step");
            self.cache.insert(slot(position), digest(&tokens[..=position]));
        }
        for position in 0..work.start + work.count {
            let held = self.cache.get(&slot(position)).copied();
            prop_assert_eq!(
                held,
                Some(digest(&tokens[..=position])),
                "position {} is what it should be",
                position
            );
        }
        Ok(())
    }

    fn end(&mut self, ticket: Ticket) {
        self.scheduler.remove(ticket);
        self.jobs.retain(|job| job.ticket != ticket);
    }

    /// Steps until all is done; fails if that takes more than `most` steps.
    fn finish(&mut self, most: usize) -> Result<(), TestCaseError> {
        for _ in 0..most {
            if self.jobs.is_empty() {
                break;
            }
            self.step()?;
        }
        prop_assert!(self.jobs.is_empty(), "livelock: {} sequences never end", self.jobs.len());
        let pool = self.scheduler.pool();
        prop_assert_eq!(pool.available(), pool.total(), "all blocks come back");
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Op {
    Add { priority: i32, prompt: Vec<u32>, answer: usize, copies: usize },
    Step(usize),
    Cancel(usize),
}

fn op() -> impl Strategy<Value = Op> {
    // Few different tokens, in runs, so that prefixes are shared often; several at once, so that one finds in the
    // cache what another computed since both were admitted.
    let prompt = prop::collection::vec((0..2u32, 1..24usize), 1..5)
        .prop_map(|runs| runs.into_iter().flat_map(|(token, n)| vec![token; n]).collect::<Vec<_>>());
    prop_oneof![
        3 => (-1..2i32, prompt, 1..60usize, 1..4usize)
            .prop_map(|(priority, prompt, answer, copies)| Op::Add { priority, prompt, answer, copies }),
        4 => (1..12usize).prop_map(Op::Step),
        1 => any::<usize>().prop_map(Op::Cancel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn every_plan_is_sound_and_everything_ends(
        ops in prop::collection::vec(op(), 1..40),
        blocks in 8..24usize,
        max_batch in 1..8usize,
        extra in 0..100usize,
    ) {
        let limits = Limits { max_batch, max_step_tokens: max_batch + extra };
        let mut machine = Machine::new(blocks, limits);
        for op in ops {
            match op {
                Op::Add { priority, prompt, answer, copies } => {
                    let room = blocks * BLOCK_TOKENS - 1;
                    if copies == 1 {
                        machine.add(priority, prompt[..prompt.len().min(room)].to_vec(), answer);
                    } else {
                        machine.add_copies(priority, &prompt, answer, copies);
                    }
                }
                Op::Step(steps) => {
                    for _ in 0..steps { machine.step()?; }
                }
                Op::Cancel(index) => {
                    if let Some(job) = machine.jobs.get(index % machine.jobs.len().max(1)) {
                        machine.end(job.ticket);
                    }
                }
            }
        }
        // Even one row a step would do: every sequence has at most all blocks' tokens, and may be preempted by
        // each better one.
        machine.finish(200_000)?;
    }
}

fn limits(max_batch: usize, max_step_tokens: usize) -> Limits {
    Limits { max_batch, max_step_tokens }
}

#[test]
fn prompts_fill_what_decoding_leaves_of_the_budget() {
    let mut machine = Machine::new(64, limits(4, 10));
    let short = machine.add(0, vec![1; 4], 50);
    machine.step().unwrap();
    let long = machine.add(0, vec![2; 25], 50);
    machine.step().unwrap();
    let rows: Vec<_> = machine.plan.work.iter().map(|work| (work.ticket, work.count, work.sample)).collect();
    assert_eq!(rows, [(short, 1, true), (long, 9, false)]);
}

#[test]
fn higher_priority_goes_first_and_takes_the_place_of_lower() {
    let mut machine = Machine::new(64, limits(1, 32));
    let low = machine.add(-1, vec![1; 20], 50);
    machine.step().unwrap();
    let high = machine.add(1, vec![2; 20], 2);
    machine.step().unwrap();
    assert_eq!(machine.plan.preempted, [low]);
    assert_eq!(machine.plan.work[0].ticket, high);
    machine.step().unwrap();
    machine.step().unwrap();
    assert_eq!(
        machine.plan.admitted,
        [Admitted { ticket: low, cached_tokens: 16 }],
        "its full block was still cached"
    );
}

#[test]
fn when_blocks_run_out_the_latest_arrival_gives_way_and_comes_back() {
    let mut machine = Machine::new(4, limits(2, 32));
    let first = machine.add(0, vec![1; 16], 40);
    let second = machine.add(0, vec![2; 15], 40);
    let mut preempted = Vec::new();
    for _ in 0..200 {
        machine.step().unwrap();
        preempted.extend(machine.plan.preempted.iter().copied());
        if machine.jobs.is_empty() {
            break;
        }
    }
    assert!(machine.jobs.is_empty());
    assert!(preempted.contains(&second) && !preempted.contains(&first));
}

#[test]
fn a_prompt_that_another_computes_at_the_same_time_is_computed_once() {
    let mut machine = Machine::new(64, limits(4, 50));
    for _ in 0..3 {
        machine.add(0, vec![7; 50], 3);
    }
    let mut rows = 0;
    while !machine.jobs.is_empty() {
        machine.step().unwrap();
        rows += machine.plan.rows();
    }
    // The first computes all 50, the others the 2 beyond the full blocks; then 2 rows each, one for each token.
    assert_eq!(rows, 50 + 2 + 2 + 3 * 2);
}

#[test]
fn a_row_that_taking_over_leaves_counts_as_a_prompts() {
    let mut machine = Machine::new(1024, limits(16, 256));
    let shared: Vec<u32> = (0..49).collect();
    machine.add(0, vec![1000; 175], 1);
    machine.add(0, shared.clone(), 1);
    machine.add(0, shared, 1);
    machine.add(0, (2000..4000).collect(), 1);
    // Each step checks its rows.
    machine.finish(100).unwrap();
}

#[test]
fn nobody_gives_way_in_vain() {
    let mut machine = Machine::new(8, limits(4, 200));
    let high = machine.add(1, (0..60).collect(), 30);
    let low = machine.add(-1, (100..120).collect(), 3);
    machine.step().unwrap();
    // Seven blocks are not to be had while `high` runs.
    let wide = machine.add(0, (200..300).collect(), 3);
    machine.step().unwrap();
    assert_eq!(machine.plan.preempted, []);
    assert!(machine.scheduler.is_running(low) && machine.scheduler.is_running(high));
    assert!(!machine.scheduler.is_running(wide));
    machine.finish(200).unwrap();
    // With no batch slot to win, neither.
    let mut machine = Machine::new(64, limits(1, 32));
    machine.add(1, vec![1; 9], 9);
    machine.step().unwrap();
    machine.add(0, vec![2; 9], 9);
    machine.step().unwrap();
    assert_eq!(machine.plan.preempted, []);
}

#[test]
fn equal_priority_is_first_come_first_served() {
    let mut machine = Machine::new(64, limits(1, 32));
    let tickets: Vec<_> = (0..5).map(|n| machine.add(0, vec![n; 3], 1)).collect();
    let mut order = Vec::new();
    while !machine.jobs.is_empty() {
        machine.step().unwrap();
        order.extend(machine.plan.work.iter().map(|work| work.ticket));
    }
    assert_eq!(order, tickets);
}
