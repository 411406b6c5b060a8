//! What live traffic shows of each version, over a sliding window.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// What traffic of the last [`WINDOW`] showed of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VersionTraffic {
    /// Requests that a gateway was asked for, each try counted.
    pub requests: u64,
    /// Of those, failed by the gateway and not by the client or by being full.
    pub failures: u64,
    /// Median time from sending a request to its first event, in microseconds; `None` before there is one.
    pub ttft_us: Option<u64>,
}

/// How far back the counts reach.
pub const WINDOW: Duration = Duration::from_secs(300);

/// Parts of the window; the oldest is dropped as a whole.
const PARTS: usize = 10;

/// Versions that are counted at the same time; beyond that, the one that was silent longest is forgotten.
const MOST_VERSIONS: usize = 512;

/// Buckets of times: four to each doubling, from a microsecond to more than an hour.
const BUCKETS: usize = 128;

/// Counts of all versions. Pure: callers say what time it is.
#[derive(Debug, Default)]
pub struct Traffic {
    versions: HashMap<String, Version>,
}

#[derive(Debug)]
struct Version {
    /// Newest first; each covers a part of the window that begins at its moment.
    parts: Vec<(Instant, Part)>,
}

#[derive(Debug, Default)]
struct Part {
    requests: u64,
    failures: u64,
    /// How many first events came in each bucket of time.
    first_events: HashMap<usize, u64>,
}

impl Traffic {
    /// A gateway began to answer after this time.
    pub fn began(&mut self, digest: &str, after: Duration, now: Instant) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        *self.part(digest, now).first_events.entry(bucket(micros)).or_default() += 1;
    }

    /// A try on a gateway has ended.
    pub fn ended(&mut self, digest: &str, failed: bool, now: Instant) {
        let part = self.part(digest, now);
        part.requests += 1;
        part.failures += u64::from(failed);
    }

    /// What the window shows.
    pub fn of(&self, digest: &str, now: Instant) -> VersionTraffic {
        let mut sum = Part::default();
        let parts = self.versions.get(digest).map_or(&[][..], |version| &version.parts);
        for (_, part) in parts.iter().filter(|(began, _)| now.saturating_duration_since(*began) < WINDOW) {
            sum.requests += part.requests;
            sum.failures += part.failures;
            for (bucket, count) in &part.first_events {
                *sum.first_events.entry(*bucket).or_default() += count;
            }
        }
        VersionTraffic { requests: sum.requests, failures: sum.failures, ttft_us: median(&sum.first_events) }
    }

    fn part(&mut self, digest: &str, now: Instant) -> &mut Part {
        if !self.versions.contains_key(digest) && self.versions.len() >= MOST_VERSIONS {
            let silent =
                self.versions.iter().min_by_key(|(_, version)| version.parts.first().map(|part| part.0));
            if let Some(silent) = silent.map(|(digest, _)| digest.clone()) {
                self.versions.remove(&silent);
            }
        }
        let version = self.versions.entry(digest.to_owned()).or_insert_with(|| Version { parts: Vec::new() });
        let fresh =
            |(began, _): &(Instant, Part)| now.saturating_duration_since(*began) < WINDOW / PARTS as u32;
        if !version.parts.first().is_some_and(fresh) {
            version.parts.insert(0, (now, Part::default()));
            version.parts.truncate(PARTS);
        }
        &mut version.parts[0].1
    }
}

fn bucket(micros: u64) -> usize {
    let micros = micros.max(1);
    let doublings = micros.ilog2() as usize;
    // The two bits below the highest one.
    let quarter = if doublings >= 2 { (micros >> (doublings - 2)) & 3 } else { 0 };
    (doublings * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> u64 {
    let (doublings, quarter) = (bucket / 4, bucket as u64 % 4);
    let low = (1u64 << doublings) + (quarter << doublings) / 4;
    low + (1u64 << doublings) / 8
}

fn median(buckets: &HashMap<usize, u64>) -> Option<u64> {
    let total: u64 = buckets.values().sum();
    let mut sorted: Vec<_> = buckets.iter().collect();
    sorted.sort_unstable();
    let mut seen = 0;
    sorted.into_iter().find_map(|(bucket, count)| {
        seen += count;
        (seen * 2 >= total).then(|| middle(*bucket))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_slide_out_of_the_window() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        traffic.began("a", Duration::from_millis(10), start);
        traffic.ended("a", true, start);
        traffic.ended("a", false, start + WINDOW / 2);
        let both = traffic.of("a", start + WINDOW / 2);
        assert_eq!((both.requests, both.failures), (2, 1));
        assert!(both.ttft_us.is_some_and(|median| (8_500..11_500).contains(&median)), "{both:?}");
        let late = traffic.of("a", start + WINDOW);
        assert_eq!(late, VersionTraffic { requests: 1, failures: 0, ttft_us: None });
        assert_eq!(traffic.of("b", start), VersionTraffic::default());
    }

    #[test]
    fn memory_is_bounded_in_versions_and_parts() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        for n in 0..MOST_VERSIONS as u64 * 2 {
            traffic.ended(&n.to_string(), false, start + Duration::from_millis(n));
        }
        assert_eq!(traffic.versions.len(), MOST_VERSIONS);
        for n in 0..100 {
            traffic.ended("x", false, start + WINDOW * n);
        }
        assert_eq!(traffic.versions["x"].parts.len(), PARTS);
    }

    proptest! {
        #[test]
        fn the_median_is_within_an_eighth(micros in prop::collection::vec(16u64..4_000_000_000, 1..100)) {
            let (mut traffic, now) = (Traffic::default(), Instant::now());
            for &micros in &micros {
                traffic.began("a", Duration::from_micros(micros), now);
            }
            let mut sorted = micros;
            sorted.sort_unstable();
            let exact = sorted[(sorted.len() - 1) / 2] as f64;
            let found = traffic.of("a", now).ttft_us.unwrap() as f64;
            prop_assert!((found / exact - 1.0).abs() <= 0.126, "{found} {exact}");
        }
    }
}
