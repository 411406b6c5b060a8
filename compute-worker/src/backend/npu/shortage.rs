//! When something for which there was no memory is tried again: after pauses that double.

use std::time::{Duration, Instant};

/// Memory that could not be had. It is no fault of the device: nothing is reset for it.
#[derive(Debug)]
pub(super) struct Shortage {
    first: Duration,
    longest: Duration,
    /// The last pause and its end, while there is too little.
    pause: Option<(Duration, Instant)>,
}

impl Shortage {
    /// Nothing is short yet; pauses will go from `first` to `longest`.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first: first.min(longest), longest, pause: None }
    }

    /// There was too little. True if it is the first time in a row.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let pause = self.pause.map_or(self.first, |(pause, _)| pause.saturating_mul(2).min(self.longest));
        self.pause.replace((pause, now.checked_add(pause).unwrap_or(now))).is_none()
    }

    /// There was enough.
    pub(super) fn ends(&mut self) {
        self.pause = None;
    }

    /// Whether there was too little the last time.
    pub(super) fn lasts(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether the memory may be asked for.
    pub(super) fn may_try(&self, now: Instant) -> bool {
        self.pause.is_none_or(|(_, until)| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_anew_after_success() {
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut shortage = Shortage::new(second, 5 * second);
        assert!(shortage.may_try(now) && !shortage.lasts());
        for pause in [1, 2, 4, 5, 5] {
            assert_eq!(shortage.begins(now), pause == 1);
            assert!(shortage.lasts() && !shortage.may_try(now + pause * second - second / 2));
            now += pause * second;
            assert!(shortage.may_try(now));
        }
        shortage.ends();
        assert!(shortage.begins(now) && shortage.may_try(now + second));
    }
}
