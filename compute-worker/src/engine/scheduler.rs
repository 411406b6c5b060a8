//! Decides which rows the next step computes. Pure: no clock, no I/O, no thread; the same calls give the same plans.
//!
//! Every sequence has a [`Ticket`]; tickets order by rank: higher priority first, then earlier arrival.
//!
//! ```text
//! schedule:
//!   admit      the best waiting sequence, while its tokens' blocks are there and the better ones running leave
//!              rows; if not, take the place of running ones of strictly lower priority, if that makes room
//!   then for each running sequence, best first:
//!     decoding   1 row; a new block every 16 tokens; none left: preempt the worst running one (perhaps itself)
//!     prefilling as many rows as the budget has left after one row for each decoding sequence; blocks that others
//!                have computed by now are taken over first
//! ```
//!
//! - A sequence gets all blocks of its known tokens when it is admitted, beyond one spare block for each that
//!   runs, so a prompt once begun is not starved by the decoding of others.
//! - Nothing overtakes the best waiting sequence: whoever waits is admitted when those that run are done.
//! - A preempted sequence keeps its tokens, goes back to waiting with its old ticket, and computes its blocks
//!   again – or finds them, as long as they are still cached.
//! - The best of all sequences that run gets its rows in every step, since all others give way to it and the
//!   longest sequence fits the cache. So something always advances.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use rookery_kernels::BLOCK_TOKENS;

use super::block_pool::BlockPool;

mod table;
#[cfg(test)]
mod tests;

use table::BlockTable;

/// Rank of a sequence and its name in the scheduler. Smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    priority: Reverse<i32>,
    arrival: u64,
}

/// What a step may do at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences that run at the same time.
    pub max_batch: usize,
    /// Rows of one step; at least `max_batch`.
    pub max_step_tokens: usize,
}

/// Rows of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Whose rows.
    pub ticket: Ticket,
    /// Position of the first row.
    pub start: usize,
    /// Rows, at least 1, at consecutive positions.
    pub count: usize,
    /// The last row is the sequence's last token: a new one is sampled from its logits.
    pub sample: bool,
}

/// A sequence that begins to run in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Which.
    pub ticket: Ticket,
    /// Tokens whose blocks were found in the cache.
    pub cached_tokens: usize,
}

/// A sequence whose tokens another one computed since it was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reused {
    /// Which.
    pub ticket: Ticket,
    /// Tokens that it need not compute.
    pub tokens: usize,
}

/// One step. Reused from step to step.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to compute, best rank first.
    pub work: Vec<Work>,
    /// Who begins to run, or runs again.
    pub admitted: Vec<Admitted>,
    /// Who found more of its prompt in the cache.
    pub reused: Vec<Reused>,
    /// Who gave its blocks back and waits again.
    pub preempted: Vec<Ticket>,
}

impl Plan {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.work.iter().map(|work| work.count).sum()
    }

    fn clear(&mut self) {
        self.work.clear();
        self.admitted.clear();
        self.reused.clear();
        self.preempted.clear();
    }
}

/// All sequences that wait or run, and the blocks that they hold.
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: BTreeMap<Ticket, Entry>,
    running: BTreeMap<Ticket, Entry>,
    arrivals: u64,
}

/// A sequence as the scheduler sees it.
struct Entry {
    /// Prompt and answer so far.
    tokens: Vec<u32>,
    /// Of those, how many have their keys and values in the cache.
    computed: usize,
    blocks: BlockTable,
}

impl Entry {
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

impl Scheduler {
    /// A scheduler over the blocks of `pool`. A sequence never gets longer than all its blocks hold.
    pub fn new(pool: BlockPool, limits: Limits) -> Self {
        assert!(
            limits.max_batch >= 1 && limits.max_step_tokens >= limits.max_batch,
            "checked by the configuration"
        );
        Self { limits, pool, waiting: BTreeMap::new(), running: BTreeMap::new(), arrivals: 0 }
    }

    /// Adds a sequence that waits. `tokens` must not be empty and must fit the pool.
    pub fn add(&mut self, priority: i32, tokens: Vec<u32>) -> Ticket {
        debug_assert!(!tokens.is_empty() && tokens.len().div_ceil(BLOCK_TOKENS) <= self.pool.total());
        let ticket = Ticket { priority: Reverse(priority), arrival: self.arrivals };
        self.arrivals += 1;
        self.waiting.insert(ticket, Entry { tokens, computed: 0, blocks: BlockTable::default() });
        ticket
    }

    /// Forgets a sequence, wherever it is; its blocks are free at once.
    pub fn remove(&mut self, ticket: Ticket) {
        self.running.remove(&ticket);
        self.waiting.remove(&ticket);
    }

    /// Plans the next step. Every planned row must be computed and then committed before the next plan.
    pub fn schedule(&mut self, plan: &mut Plan) {
        plan.clear();
        self.admit(plan);
        let decoding = self.running.values().filter(|entry| entry.pending() == 1).count();
        let mut prompt_rows = self.limits.max_step_tokens - decoding;
        let mut next = self.running.keys().next().copied();
        while let Some(ticket) = next {
            let Some(entry) = self.running.get_mut(&ticket) else { break };
            // Before taking over: a prompt of which that leaves one row was not counted as decoding.
            let decodes = entry.pending() == 1;
            if prompt_rows > 0 && !decodes {
                let tokens = entry.blocks.take_over(&self.pool, &entry.tokens, entry.computed);
                if tokens > 0 {
                    entry.computed += tokens;
                    plan.reused.push(Reused { ticket, tokens });
                }
            }
            let start = entry.computed;
            let pending = entry.pending();
            let count = if decodes { 1 } else { pending.min(prompt_rows) };
            if count > 0 && self.reserve(ticket, start + count, plan) {
                plan.work.push(Work { ticket, start, count, sample: count == pending });
                prompt_rows -= if decodes { 0 } else { count };
            }
            let after = (Bound::Excluded(ticket), Bound::Unbounded);
            next = self.running.range(after).next().map(|(ticket, _)| *ticket);
        }
    }

    /// Records that a planned piece of work was computed, and the token that was sampled from it.
    pub fn commit(&mut self, work: &Work, sampled: Option<u32>) {
        let Some(entry) = self.running.get_mut(&work.ticket) else { return };
        entry.computed = work.start + work.count;
        entry.blocks.register_full(&self.pool, &entry.tokens[..entry.computed]);
        entry.tokens.extend(sampled);
    }

    /// Prompt and answer so far of a sequence.
    pub fn tokens(&self, ticket: Ticket) -> &[u32] {
        let entry = self.running.get(&ticket).or_else(|| self.waiting.get(&ticket));
        entry.map_or(&[], |entry| &entry.tokens)
    }

    /// Blocks of a sequence that runs, in the order of its tokens.
    pub fn blocks(&self, ticket: Ticket) -> &[u32] {
        self.running.get(&ticket).map_or(&[], |entry| entry.blocks.ids())
    }

    /// Whether a sequence runs.
    pub fn is_running(&self, ticket: Ticket) -> bool {
        self.running.contains_key(&ticket)
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The pool that the sequences' blocks come from.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Moves sequences from waiting to running, best first.
    fn admit(&mut self, plan: &mut Plan) {
        while let Some((&head, _)) = self.waiting.first_key_value() {
            let ahead: usize = self.running.range(..head).map(|(_, entry)| entry.pending()).sum();
            if ahead >= self.limits.max_step_tokens {
                return;
            }
            if let Some(cached_tokens) = self.try_admit(head) {
                plan.admitted.push(Admitted { ticket: head, cached_tokens });
                continue;
            }
            match self.running.last_key_value() {
                Some((&worst, _)) if worst.priority > head.priority && self.preempting_helps(head) => {
                    self.preempt(worst, plan);
                }
                _ => return,
            }
        }
    }

    /// Gives the waiting sequence `ticket` the blocks of all its tokens and lets it run, if there is room. Returns
    /// how many of its tokens were cached.
    fn try_admit(&mut self, ticket: Ticket) -> Option<usize> {
        if self.running.len() >= self.limits.max_batch {
            return None;
        }
        let entry = self.waiting.get(&ticket)?;
        let mut blocks = BlockTable::of_cached_prefix(&self.pool, &entry.tokens);
        let cached_tokens = blocks.ids().len() * BLOCK_TOKENS;
        let needed = entry.tokens.len().div_ceil(BLOCK_TOKENS) - blocks.ids().len();
        let spare = self.running.len();
        if self.pool.available() < needed + spare {
            return None;
        }
        for _ in 0..needed {
            blocks.push(self.pool.allocate()?);
        }
        let mut entry = self.waiting.remove(&ticket)?;
        entry.blocks = blocks;
        entry.computed = cached_tokens;
        self.running.insert(ticket, entry);
        Some(cached_tokens)
    }

    /// Whether `ticket` could be admitted if all running sequences of lower priority gave way.
    fn preempting_helps(&self, ticket: Ticket) -> bool {
        let Some(entry) = self.waiting.get(&ticket) else { return false };
        let staying = || self.running.iter().take_while(|(other, _)| other.priority <= ticket.priority);
        let count = staying().count();
        if count >= self.limits.max_batch {
            return false;
        }
        let shared = BlockTable::of_cached_prefix(&self.pool, &entry.tokens);
        let mut held: Vec<u32> = staying().flat_map(|(_, entry)| entry.blocks.ids()).copied().collect();
        held.sort_unstable();
        held.dedup();
        let kept = held.len() - shared.ids().iter().filter(|id| held.binary_search(id).is_ok()).count();
        kept + entry.tokens.len().div_ceil(BLOCK_TOKENS) + count <= self.pool.total()
    }

    /// Gets blocks for the first `tokens` tokens of a running sequence, at the cost of worse ones. False if it was
    /// itself the worst and had to give way.
    fn reserve(&mut self, ticket: Ticket, tokens: usize, plan: &mut Plan) -> bool {
        loop {
            let Some(entry) = self.running.get_mut(&ticket) else { return false };
            if entry.blocks.ids().len() * BLOCK_TOKENS >= tokens {
                return true;
            }
            match self.pool.allocate() {
                Some(lease) => entry.blocks.push(lease),
                None => {
                    let Some((&worst, _)) = self.running.last_key_value() else { return false };
                    self.preempt(worst, plan);
                }
            }
        }
    }

    fn preempt(&mut self, ticket: Ticket, plan: &mut Plan) {
        if let Some(mut entry) = self.running.remove(&ticket) {
            entry.blocks = BlockTable::default();
            entry.computed = 0;
            self.waiting.insert(ticket, entry);
            plan.preempted.push(ticket);
        }
    }
}
