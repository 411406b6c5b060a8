//! Who is linked at this moment, when links came about, and what happened to gateways.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::faults::{Fault, Faults};
use crate::error::Failure;

const SECOND: Duration = Duration::from_secs(1);

/// How often it is looked whether the control plane has kept everything.
const LOOK: Duration = Duration::from_millis(200);

/// How many gateways are linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Lives of the control plane before this one.
    lives: usize,
    /// Gateways that are linked to it and never away by themselves.
    steady: usize,
}

/// The gateways of a simulation. Shared by all of them and by what measures.
#[derive(Debug)]
pub(crate) struct Roster {
    /// The faults of each gateway.
    faults: Vec<Vec<Fault>>,
    count: watch::Sender<Count>,
    /// Which gateways have transitions that the control plane has not acknowledged.
    untold: Vec<AtomicBool>,
    /// Whether gateways go away by themselves.
    loose: watch::Sender<bool>,
    /// When links came about.
    links: Mutex<Vec<Instant>>,
    losses: AtomicU64,
    crashes: AtomicU64,
}

/// A gateway is linked until this is dropped.
#[derive(Debug)]
pub(crate) struct Linked {
    roster: Arc<Roster>,
    steady: bool,
    lives: usize,
}

impl Roster {
    /// `count` gateways, none of which is linked.
    pub(crate) fn new(count: usize, faults: &Faults, seed: u64) -> Self {
        let of = |index| Fault::ALL.into_iter().filter(|fault| faults.has(*fault, seed, index)).collect();
        Self {
            faults: (0..count as u64).map(of).collect(),
            count: watch::Sender::default(),
            untold: (0..count).map(|_| AtomicBool::new(false)).collect(),
            loose: watch::Sender::new(false),
            links: Mutex::default(),
            losses: AtomicU64::new(0),
            crashes: AtomicU64::new(0),
        }
    }

    /// What is wrong with a gateway.
    pub(crate) fn faults(&self, index: usize) -> &[Fault] {
        self.faults.get(index).map_or(&[], Vec::as_slice)
    }

    /// Gateway `index` has a link now.
    pub(crate) fn link(self: &Arc<Self>, index: usize) -> Linked {
        let steady = !self.faults(index).contains(&Fault::Offline);
        self.links().push(Instant::now());
        let mut lives = 0;
        self.count.send_modify(|count| {
            lives = count.lives;
            count.steady += usize::from(steady);
        });
        Linked { roster: Arc::clone(self), steady, lives }
    }

    /// The control plane is dead, and whatever links gateways have yet to miss are none.
    pub(crate) fn all_gone(&self) {
        self.count.send_modify(|count| *count = Count { lives: count.lives + 1, steady: 0 });
    }

    /// Gateway `index` reports, with transitions or without.
    pub(crate) fn reports(&self, index: usize, transitions: bool) {
        if let Some(untold) = self.untold.get(index) {
            untold.store(transitions, Ordering::Relaxed);
        }
    }

    /// Waits until the control plane has kept all that gateways have told.
    ///
    /// # Errors
    /// If it has not within `limit`.
    pub(crate) async fn all_told(&self, limit: Duration) -> Result<(), Failure> {
        let all = async {
            while self.untold.iter().any(|untold| untold.load(Ordering::Relaxed)) {
                sleep(LOOK).await;
            }
        };
        timeout(limit, all).await.map_err(|_| {
            let limit = humantime::format_duration(limit);
            Failure::new(format!("the control plane has not kept what gateways told after {limit}"))
        })
    }

    /// From now on gateways with that fault lose their uplinks.
    pub(crate) fn let_loose(&self) {
        self.loose.send_replace(true);
    }

    /// Waits until they do. Cancel safe.
    pub(crate) async fn loose(&self) {
        // The sender is here, so this ends only when it is so.
        let _ = self.loose.subscribe().wait_for(|loose| *loose).await;
    }

    /// A gateway has lost its uplink by a fault of its own.
    pub(crate) fn lost(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    /// A gateway's program has died.
    pub(crate) fn crashed(&self) {
        self.crashes.fetch_add(1, Ordering::Relaxed);
    }

    /// Links lost by faults so far.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Crashes so far.
    pub(crate) fn crashes(&self) -> u64 {
        self.crashes.load(Ordering::Relaxed)
    }

    /// Waits until every gateway is linked that has no fault which keeps it away.
    ///
    /// # Errors
    /// If they are not within `limit`.
    pub(crate) async fn all_there(&self, limit: Duration) -> Result<(), Failure> {
        let steady = self.faults.iter().filter(|faults| !faults.contains(&Fault::Offline)).count();
        let mut count = self.count.subscribe();
        // The sender is here, so the wait ends by what is wanted or by the limit.
        if timeout(limit, count.wait_for(|count| count.steady >= steady)).await.is_ok() {
            return Ok(());
        }
        let now = self.count.borrow().steady;
        let limit = humantime::format_duration(limit);
        Err(Failure::new(format!(
            "only {now} of the {steady} gateways that are never away are linked after {limit}"
        ))
        .hint("what gateways and control plane wrote above says why"))
    }

    /// Most links that came about within one second since `since`.
    pub(crate) fn most_links_a_second(&self, since: Instant) -> usize {
        let links = self.links();
        let links: Vec<_> = links.iter().filter(|at| **at >= since).collect();
        let within = |end: usize| {
            let begins = links[..=end].partition_point(|at| links[end].duration_since(**at) >= SECOND);
            end + 1 - begins
        };
        (0..links.len()).map(within).max().unwrap_or(0)
    }

    fn links(&self) -> MutexGuard<'_, Vec<Instant>> {
        // A push either happened or not.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.roster.count.send_modify(|count| {
            count.steady -= usize::from(self.steady && self.lives == count.lives);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gateways_that_may_be_away_are_not_waited_for() {
        let faults: Faults = "offline=50%".parse().unwrap();
        let roster = Arc::new(Roster::new(64, &faults, 1));
        let steady = |index: &usize| roster.faults(*index).is_empty();
        let mut linked: Vec<_> = (0..64).filter(steady).map(|index| roster.link(index)).collect();
        assert!((10..54).contains(&linked.len()));
        assert!(roster.all_there(Duration::ZERO).await.is_ok());
        linked.pop();
        let error = roster.all_there(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains(&format!("only {} of", linked.len())), "{error}");
        roster.all_gone();
        linked.push(roster.link((0..64).find(steady).unwrap()));
        linked.drain(..2);
        let error = roster.all_there(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("only 1 of"), "{error}");
    }

    #[test]
    fn links_are_counted_over_any_second() {
        let roster = Roster::new(1, &Faults::default(), 1);
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        roster.links().extend([0, 500, 999, 1000, 1400, 3000].map(at));
        assert_eq!(roster.most_links_a_second(began), 4);
        assert_eq!(roster.most_links_a_second(at(1001)), 1);
        assert_eq!(roster.most_links_a_second(at(4000)), 0);
    }
}
