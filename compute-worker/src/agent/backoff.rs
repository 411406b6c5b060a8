//! How long to wait before the next attempt: doubling, capped, shortened at random so that a fleet that lost its
//! control plane does not come back in step.

use std::time::Duration;

#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// True until the first pause since the start or the last reset.
    pub(super) fn is_first(&self) -> bool {
        self.failures == 0
    }

    /// The next pause, `random` being evenly spread over [0, 1]: from half of the full pause to all of it.
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let full = self.min.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// The next pause is the shortest again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_start_over() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        let pauses: Vec<_> = (0..7).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff.next(0.0), max / 2);
        for _ in 0..100 {
            assert!(backoff.next(0.5) <= max);
        }
        backoff.reset();
        assert!(backoff.is_first());
        assert_eq!(backoff.next(1.0), min);
    }
}
