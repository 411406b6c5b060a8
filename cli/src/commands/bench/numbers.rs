//! Prompts and statistics of the benchmark.

use std::time::Instant;

/// Random prompts, all different.
pub(super) struct Prompts {
    state: u64,
    vocabulary: usize,
}

impl Prompts {
    pub(super) fn new(seed: u64, vocabulary: usize) -> Self {
        Prompts { state: seed, vocabulary }
    }

    /// The next prompt. Ids are spread over the whole vocabulary.
    pub(super) fn next(&mut self, tokens: u32) -> Vec<u32> {
        (0..tokens).map(|_| (self.draw() % self.vocabulary.max(1) as u64) as u32).collect()
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// `count` times, evenly spread up to `now` since `previous`.
pub(super) fn spread(previous: Instant, now: Instant, count: usize) -> impl Iterator<Item = Instant> {
    let step = (now - previous) / count.max(1) as u32;
    (1..=count as u32).map(move |token| if token == count as u32 { now } else { previous + step * token })
}

/// Milliseconds between two tokens of the same stream, all streams together.
pub(super) fn gaps_ms(streams: &[Vec<Instant>]) -> Vec<f64> {
    let gaps = streams.iter().flat_map(|times| times.windows(2));
    gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).collect()
}

/// Tokens per second from the last stream's first token to the first stream's last one: while all of them
/// decode. Falls back to the whole span of tokens where there is no such time.
pub(super) fn steady_rate(streams: &[Vec<Instant>]) -> f64 {
    let firsts = streams.iter().filter_map(|times| times.first());
    let lasts = streams.iter().filter_map(|times| times.last());
    let (Some(mut from), Some(mut to)) = (firsts.clone().max(), lasts.clone().min()) else { return 0.0 };
    if to <= from {
        (from, to) = match (firsts.min(), lasts.max()) {
            (Some(from), Some(to)) if to > from => (from, to),
            _ => return 0.0,
        };
    }
    let tokens = streams.iter().flatten().filter(|time| *time > from && *time <= to).count();
    tokens as f64 / (*to - *from).as_secs_f64()
}

/// The value below which the share `rank` of the values lies; 0 if there are none.
pub(super) fn percentile(values: &[f64], rank: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (rank * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_steady_rate_counts_only_the_time_when_all_decode() {
        let zero = Instant::now();
        let at = |ms: &[u64]| ms.iter().map(|ms| zero + Duration::from_millis(*ms)).collect::<Vec<_>>();
        // The second stream starts late; between 100 ms and 200 ms both give a token every 50 ms.
        let streams = [at(&[10, 20, 30, 50, 100, 150, 200]), at(&[100, 150, 200, 210])];
        assert!((steady_rate(&streams) - 40.0).abs() < 1e-9);
        assert!((steady_rate(&[at(&[0, 100, 200])]) - 10.0).abs() < 1e-9);
        assert_eq!(steady_rate(&[]), 0.0);
    }

    #[test]
    fn percentiles_are_of_the_values() {
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.99), 3.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn prompts_differ_and_repeat_with_their_seed() {
        let mut prompts = Prompts::new(7, 100);
        let (first, second) = (prompts.next(16), prompts.next(16));
        assert_ne!(first, second);
        assert_eq!(first, Prompts::new(7, 100).next(16));
        assert!(first.iter().all(|id| *id < 100));
    }
}
