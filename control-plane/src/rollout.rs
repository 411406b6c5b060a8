//! Roll-outs: how gateways come to a version, in waves, and back when it proves worse.
//!
//! ```text
//!        spec, plan, members, evidence, now
//!                      │
//!              plan::next (pure) ──► Wait, with a reason that people can read
//!                      │ Step: the next plan and what it assigns
//!              check::check (pure) ──► violations: logged, the plan is thrown away
//!                      │ none
//!              Store::advance: only if the plan's parent is still the current one
//! ```
//!
//! Nothing here remembers anything: whoever holds the store's rows and the gateways' reports can plan on, so every replica does,
//! and the one whose plan is stored first is right.

pub mod check;
pub mod gates;
pub mod member;
pub mod plan;
pub mod reconcile;
pub mod snapshot;
pub mod spec;
#[cfg(test)]
mod support;
mod trace;
pub mod waves;
pub mod windows;

pub use reconcile::{Insight, Preview, Reconciler, RolloutError};

use crate::domain::Digest;

/// What was seen of requests to a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounts {
    /// Requests that ended.
    pub requests: u64,
    /// Of those, the ones that failed through no fault of the client.
    pub failures: u64,
    /// Median time to the first token, microseconds; `None` if there was none.
    pub ttft_us: Option<u64>,
}

/// What the router sees of requests, by version.
pub trait Traffic: Send + Sync {
    /// What was seen of a version lately.
    fn of(&self, digest: &Digest) -> TrafficCounts;
}

impl Traffic for crate::fleet::Fleet {
    fn of(&self, digest: &Digest) -> TrafficCounts {
        let seen = self.traffic(digest.as_str());
        TrafficCounts { requests: seen.requests, failures: seen.failures, ttft_us: seen.ttft_us }
    }
}
