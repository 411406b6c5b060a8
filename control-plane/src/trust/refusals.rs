//! Failed attempts, logged so that they are seen and cannot fill the log.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

/// How long a peer's failures of one kind count as told.
const WINDOW: Duration = Duration::from_secs(600);

/// Peers and kinds remembered in a window; more are only counted.
const MOST: usize = 1024;

/// Remembers which failures were logged: each kind once per address and window, at most a thousand in all. What was left
/// out is counted, and said once the window ends. Clones are the same.
#[derive(Clone, Debug)]
pub struct Refusals {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    told: HashSet<(IpAddr, &'static str, String)>,
    left_out: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        let state = State { since: Instant::now(), told: HashSet::new(), left_out: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Refusals {
    /// Logs that `peer` was refused for `detail`, unless that kind of refusal was logged just before for its address and
    /// the gateway that its certificate names (else ""). True if it was logged now.
    pub fn note(&self, peer: SocketAddr, kind: &'static str, gateway: &str, detail: &str) -> bool {
        let left_out = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(left_out) = state.note((peer.ip(), kind, gateway.to_owned()), Instant::now()) else {
                return false;
            };
            left_out
        };
        if left_out > 0 {
            warn!(left_out, "further refusals of the last ten minutes were not logged");
        }
        warn!(%peer, kind, gateway, detail, "refused; more of the same from there is not logged for ten minutes");
        true
    }

    /// How many lines of this kind were logged in the current window.
    pub fn told(&self, kind: &str) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.told.iter().filter(|(_, told, _)| *told == kind).count()
    }
}

impl State {
    /// `None` if nothing is to be logged, else how many were left out in the window before this one.
    fn note(&mut self, attempt: (IpAddr, &'static str, String), now: Instant) -> Option<u64> {
        let mut before = 0;
        if now.duration_since(self.since) >= WINDOW {
            self.since = now;
            self.told.clear();
            before = std::mem::take(&mut self.left_out);
        }
        if self.told.len() < MOST && self.told.insert(attempt) {
            return Some(before);
        }
        self.left_out = self.left_out.saturating_add(before).saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_kind_is_told_once_and_memory_is_bounded() {
        let start = Instant::now();
        let mut state = State { since: start, told: HashSet::new(), left_out: 0 };
        let from = |last: u32, kind| (IpAddr::from(last.to_be_bytes()), kind, String::new());
        assert_eq!(state.note(from(1, "a"), start), Some(0));
        assert_eq!(state.note(from(1, "a"), start), None);
        assert_eq!(state.note(from(1, "b"), start), Some(0));
        for number in 0..100_000 {
            state.note(from(number, "a"), start);
        }
        assert_eq!(state.told.len(), MOST);
        let left_out = state.left_out;
        assert_eq!(state.note(from(1, "a"), start + WINDOW), Some(left_out));
        assert_eq!(state.left_out, 0);
    }
}
