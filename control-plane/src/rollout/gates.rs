//! Gates of traffic: does the version do as well with real requests as the one before?
//!
//! What a version must show on a gateway before it serves there (signature, digests, memory, probes, speed, temperature) the
//! gateway checks by itself; here only its verdict counts.

use super::TrafficCounts;
use crate::domain::rollout::GateLimits;

/// Fewer requests of either version say nothing.
pub const LEAST_REQUESTS: u64 = 50;

/// As many failures as this can be bad luck.
const LUCK: u64 = 2;

/// What one observer saw of both versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Who saw it.
    pub source: &'static str,
    /// Of the version that is rolled out.
    pub new: TrafficCounts,
    /// Of what gateways served before.
    pub old: TrafficCounts,
}

impl Evidence {
    /// Whether both versions had requests enough to compare them.
    pub fn judges(&self) -> bool {
        self.new.requests >= LEAST_REQUESTS && self.old.requests >= LEAST_REQUESTS
    }
}

/// Why the version does worse than the one before, if it does: what was expected and what was seen.
pub fn judge(limits: &GateLimits, evidence: &[Evidence]) -> Option<String> {
    evidence.iter().filter(|evidence| evidence.judges()).find_map(|evidence| {
        let Evidence { source, new, old } = evidence;
        errors(limits, new, old)
            .or_else(|| first_token(limits, new, old))
            .map(|finding| format!("{finding} ({source}; {} and {} requests)", new.requests, old.requests))
    })
}

fn errors(limits: &GateLimits, new: &TrafficCounts, old: &TrafficCounts) -> Option<String> {
    let percent = |counts: &TrafficCounts| 100.0 * counts.failures as f64 / counts.requests.max(1) as f64;
    let (seen, before) = (percent(new), percent(old));
    let most = before + limits.max_extra_error_percent;
    (seen > most && new.failures > LUCK)
        .then(|| format!("error rate: expected at most {most:.2} % of requests to fail, saw {seen:.2} %"))
}

fn first_token(limits: &GateLimits, new: &TrafficCounts, old: &TrafficCounts) -> Option<String> {
    let (seen, before) = (new.ttft_us?, old.ttft_us?);
    let most = before as f64 * (1.0 + limits.max_extra_ttft_percent / 100.0);
    let ms = |us: f64| us / 1000.0;
    (seen as f64 > most).then(|| {
        format!(
            "time to first token: expected a median of at most {:.1} ms, saw {:.1} ms",
            ms(most),
            ms(seen as f64)
        )
    })
}

/// Adds up what gateways report of one version: medians by the number of requests behind them.
pub fn add<'a>(counts: impl IntoIterator<Item = &'a TrafficCounts>) -> TrafficCounts {
    let (mut all, mut weighted, mut weight) = (TrafficCounts::default(), 0_u128, 0_u128);
    for TrafficCounts { requests, failures, ttft_us } in counts {
        all.requests = all.requests.saturating_add(*requests);
        all.failures = all.failures.saturating_add(*failures);
        if let Some(ttft_us) = ttft_us {
            // Both are 64 bits wide, so neither product nor a fleet's sum overflows.
            weighted = weighted.saturating_add(u128::from(*ttft_us) * u128::from(*requests));
            weight += u128::from(*requests);
        }
    }
    all.ttft_us = weighted.checked_div(weight).map(|mean| u64::try_from(mean).unwrap_or(u64::MAX));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(requests: u64, failures: u64, ttft_ms: u64) -> TrafficCounts {
        TrafficCounts { requests, failures, ttft_us: (ttft_ms > 0).then_some(ttft_ms * 1000) }
    }

    #[test]
    fn a_version_is_compared_with_the_one_before() {
        let limits = GateLimits::default();
        for (new, old, expected) in [
            // Not enough of either.
            (counts(49, 49, 900), counts(1000, 0, 100), None),
            (counts(1000, 900, 900), counts(49, 0, 100), None),
            // As good.
            (counts(100, 1, 150), counts(1000, 5, 100), None),
            // Two failures can be bad luck, three are not.
            (counts(50, 2, 0), counts(1000, 0, 0), None),
            (counts(50, 3, 0), counts(1000, 0, 0), Some("at most 1.00 % of requests to fail, saw 6.00 %")),
            // The one before fails too.
            (counts(100, 11, 0), counts(100, 10, 0), None),
            (counts(100, 12, 0), counts(100, 10, 0), Some("at most 11.00 %")),
            (counts(100, 0, 151), counts(100, 0, 100), Some("at most 150.0 ms, saw 151.0 ms")),
        ] {
            let verdict = judge(&limits, &[Evidence { source: "router", new, old }]);
            match (verdict, expected) {
                (None, None) => {}
                (Some(said), Some(expected)) => assert!(said.contains(expected), "{said}"),
                (said, expected) => panic!("{new:?} {old:?}: {said:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn medians_weigh_by_their_requests() {
        let all = add(&[counts(10, 1, 100), counts(30, 0, 200), counts(5, 5, 0)]);
        assert_eq!(all, counts(45, 6, 175));
        assert_eq!(add(&[]), TrafficCounts::default());
        let huge = TrafficCounts { requests: u64::MAX, failures: u64::MAX, ttft_us: Some(u64::MAX) };
        assert_eq!(add(&[huge, huge]).requests, u64::MAX);
    }
}
