//! A limit of bytes a second, shared by all downloads of a gateway.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Time whose bytes may come at once after a pause.
const BURST: Duration = Duration::from_millis(500);

/// Gives bytes at a rate. What is taken beyond it is a debt that whoever takes next waits for, so chunks of any size are
/// fine.
#[derive(Debug, Default)]
pub struct Bucket(Mutex<Level>);

#[derive(Debug, Default)]
struct Level {
    /// Bytes a second; 0: no limit.
    rate: u64,
    /// Bytes that may be taken; below 0 while there is debt.
    bytes: f64,
    since: Option<Instant>,
}

impl Bucket {
    /// From now on so many bytes a second; 0: no limit.
    pub fn limit(&self, bytes_per_second: u64) {
        let mut level = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        level.refill(Instant::now());
        level.rate = bytes_per_second;
    }

    /// Takes bytes, and waits until the rate allows for them.
    pub async fn take(&self, bytes: u64) {
        let wait = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

impl Level {
    fn refill(&mut self, now: Instant) {
        let most = self.rate as f64 * BURST.as_secs_f64();
        let gained = self.since.map_or(most, |since| (now - since).as_secs_f64() * self.rate as f64);
        self.bytes = (self.bytes + gained).min(most);
        self.since = Some(now);
    }

    /// How long to wait.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            self.since = None;
            self.bytes = 0.0;
            return Duration::ZERO;
        }
        self.refill(now);
        self.bytes -= bytes as f64;
        Duration::try_from_secs_f64((-self.bytes / self.rate as f64).max(0.0)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_at_the_rate_whatever_the_chunks() {
        for chunk in [1_000, 64_000, 1_000_000] {
            let mut level = Level { rate: 100_000, ..Level::default() };
            let began = Instant::now();
            let mut now = began;
            for _ in 0..4_000_000 / chunk {
                now += level.take(chunk, now);
            }
            let rate = 4_000_000.0 / (now - began).as_secs_f64();
            assert!((98_000.0..=103_000.0).contains(&rate), "{rate} with chunks of {chunk}");
        }
    }

    #[test]
    fn a_pause_saves_up_half_a_second_and_no_more() {
        let mut level = Level { rate: 1000, ..Level::default() };
        let began = Instant::now();
        assert_eq!(level.take(500, began), Duration::ZERO);
        let later = began + Duration::from_secs(3600);
        assert_eq!(level.take(500, later), Duration::ZERO);
        assert_eq!(level.take(500, later), Duration::from_millis(500));
    }

    #[test]
    fn no_limit_means_no_wait() {
        let mut level = Level::default();
        assert_eq!(level.take(u64::MAX / 2, Instant::now()), Duration::ZERO);
    }
}
