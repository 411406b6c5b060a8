//! Leaves gateways alone for a while that fail again and again.
//!
//! ```text
//!  closed ── FAILURES in a row ─► open ── after 1 s, 2 s, … 30 s ─► half open: one request at a time tries it
//!     ▲                            ▲                                   │ fails        │ succeeds
//!     │                            └───────────────────────────────────┘              │
//!     └───────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::domain::GatewayId;

/// Failures in a row that open a breaker.
pub const FAILURES: u32 = 3;

/// How long a breaker stays open the first time; each further time twice as long, up to [`LONGEST`].
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Longest time that a breaker stays open.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Gateways of which failures are remembered; beyond that, all is forgotten.
const MOST: usize = 10_000;

/// Whether a gateway may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong with it.
    Closed,
    /// It failed, and one request may try it now.
    HalfOpen,
    /// It failed and is left alone, but nobody tries it now.
    Open,
    /// It failed, and a request is trying it.
    Trying,
}

/// The breakers of all gateways that have failed lately. Pure: callers say what time it is.
#[derive(Debug, Default)]
pub struct Breakers {
    failing: HashMap<GatewayId, Breaker>,
}

#[derive(Debug, Default)]
struct Breaker {
    /// In a row.
    failures: u32,
    /// How often it has opened, and until when it stays so.
    open: Option<(u32, Instant)>,
    trying: bool,
}

impl Breakers {
    /// Whether the gateway may be asked.
    pub fn verdict(&self, gateway: &GatewayId, now: Instant) -> Verdict {
        match self.failing.get(gateway) {
            None | Some(Breaker { open: None, .. }) => Verdict::Closed,
            Some(Breaker { trying: true, .. }) => Verdict::Trying,
            Some(Breaker { open: Some((_, until)), .. }) if *until <= now => Verdict::HalfOpen,
            Some(_) => Verdict::Open,
        }
    }

    /// A request tries a gateway whose breaker is not closed. Until [`Breakers::tried`], nobody else does.
    pub fn trying(&mut self, gateway: &GatewayId) {
        if let Some(breaker) = self.failing.get_mut(gateway) {
            breaker.trying = true;
        }
    }

    /// That request has ended.
    pub fn tried(&mut self, gateway: &GatewayId) {
        if let Some(breaker) = self.failing.get_mut(gateway) {
            breaker.trying = false;
        }
    }

    /// A gateway has begun to answer: all is well.
    pub fn succeeded(&mut self, gateway: &GatewayId) {
        self.failing.remove(gateway);
    }

    /// A gateway has failed.
    pub fn failed(&mut self, gateway: &GatewayId, now: Instant) {
        if self.failing.len() >= MOST && !self.failing.contains_key(gateway) {
            self.failing.clear();
        }
        let breaker = self.failing.entry(gateway.clone()).or_default();
        breaker.failures = breaker.failures.saturating_add(1);
        let times = match breaker.open {
            None if breaker.failures < FAILURES => return,
            None => 0,
            // Requests that were sent before it opened say nothing new.
            Some((_, until)) if now < until && !breaker.trying => return,
            Some((times, _)) => (times + 1).min(16),
        };
        let pause = SHORTEST.saturating_mul(1 << times).min(LONGEST);
        breaker.open = Some((times, now + pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_is_tried_by_one_and_closes() {
        let (mut breakers, gateway) = (Breakers::default(), "gw".parse().unwrap());
        let now = Instant::now();
        for _ in 1..FAILURES {
            breakers.failed(&gateway, now);
            assert_eq!(breakers.verdict(&gateway, now), Verdict::Closed);
        }
        breakers.succeeded(&gateway);
        for _ in 0..FAILURES {
            assert_eq!(breakers.verdict(&gateway, now), Verdict::Closed, "only failures in a row count");
            breakers.failed(&gateway, now);
        }
        assert_eq!(breakers.verdict(&gateway, now), Verdict::Open);
        let later = now + SHORTEST;
        assert_eq!(breakers.verdict(&gateway, later), Verdict::HalfOpen);
        breakers.trying(&gateway);
        assert_eq!(breakers.verdict(&gateway, later), Verdict::Trying, "by one at a time");
        breakers.succeeded(&gateway);
        breakers.tried(&gateway);
        assert_eq!(breakers.verdict(&gateway, later), Verdict::Closed);
    }

    #[test]
    fn it_stays_open_twice_as_long_each_time_up_to_a_limit() {
        let (mut breakers, gateway) = (Breakers::default(), "gw".parse().unwrap());
        let mut now = Instant::now();
        (0..FAILURES).for_each(|_| breakers.failed(&gateway, now));
        let mut pause = SHORTEST;
        for _ in 0..40 {
            // What was sent before it opened and fails later is no reason to wait longer.
            breakers.failed(&gateway, now);
            now += pause - Duration::from_millis(1);
            assert_eq!(breakers.verdict(&gateway, now), Verdict::Open, "{pause:?}");
            now += Duration::from_millis(1);
            assert_eq!(breakers.verdict(&gateway, now), Verdict::HalfOpen, "{pause:?}");
            breakers.trying(&gateway);
            breakers.failed(&gateway, now);
            breakers.tried(&gateway);
            pause = (pause * 2).min(LONGEST);
        }
    }
}
