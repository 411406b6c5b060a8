//! The vendor driver's IOMMU domains: sixteen address spaces, one of which the whole device uses at a time.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::objects::{Space, Store, lock};
use super::schedule::LONGEST;
use crate::sim::Unwritten;
use crate::uapi::vendor::RKNPU_MAX_IOMMU_DOMAIN_NUM;

#[derive(Debug)]
pub(super) struct Domains {
    spaces: Vec<Arc<Space>>,
    state: Mutex<State>,
    left: Condvar,
    longest: Duration,
}

#[derive(Debug, Default)]
struct State {
    current: u32,
    users: u32,
}

/// Keeps a domain switched in while it lives.
#[derive(Debug)]
pub(super) struct DomainUse<'a> {
    domains: &'a Domains,
    id: u32,
}

impl Domains {
    pub(super) fn new(unwritten: Unwritten, store: &Arc<Store>) -> Self {
        let spaces = (0..RKNPU_MAX_IOMMU_DOMAIN_NUM).map(|_| Space::new(unwritten, store)).collect();
        Self { spaces, state: Mutex::default(), left: Condvar::new(), longest: LONGEST }
    }

    pub(super) fn current(&self) -> u32 {
        lock(&self.state).current
    }

    /// Switches a domain in as soon as nobody uses another: `EINVAL` if there is no such domain. The driver gives up after six seconds of
    /// waiting for the device to drain. Those are the device's seconds: a simulated job computes for as long as the host
    /// needs, and lets go of its domain when it ends or hangs, so that nobody here uses a domain without computing.
    pub(super) fn enter(&self, id: u32) -> Result<DomainUse<'_>, Errno> {
        let deadline = Instant::now() + self.longest;
        let mut state = lock(&self.state);
        while state.current != id && state.users > 0 {
            let left = deadline.checked_duration_since(Instant::now()).ok_or(Errno::EINVAL)?;
            state = self.left.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if self.spaces.get(id as usize).is_none() {
            return Err(Errno::EINVAL);
        }
        state.current = id;
        state.users += 1;
        Ok(DomainUse { domains: self, id })
    }
}

impl DomainUse<'_> {
    pub(super) fn space(&self) -> &Arc<Space> {
        &self.domains.spaces[self.id as usize] // `enter` looked it up
    }
}

impl Drop for DomainUse<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.domains.state);
        state.users -= 1;
        if state.users == 0 {
            self.domains.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_domain_at_a_time() {
        let domains = Domains::new(Unwritten::Error, &Store::new(0));
        assert_eq!(domains.enter(16).unwrap_err(), Errno::EINVAL);
        assert_eq!(domains.enter(u32::MAX).unwrap_err(), Errno::EINVAL);
        let first = domains.enter(3).unwrap();
        let second = domains.enter(3).unwrap();
        assert_eq!(domains.current(), 3);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| domains.enter(4).map(|_| domains.current()));
            drop(first);
            drop(second);
            assert_eq!(other.join().unwrap(), Ok(4));
        });
        assert_eq!(lock(&domains.state).users, 0);
    }

    #[test]
    fn a_wait_for_a_switch_is_bounded_and_no_shorter_than_one_for_a_core() {
        let mut domains = Domains::new(Unwritten::Error, &Store::new(0));
        assert_eq!(domains.longest, LONGEST);
        domains.longest = Duration::from_millis(1);
        let _used = domains.enter(3).unwrap();
        assert_eq!(domains.enter(4).unwrap_err(), Errno::EINVAL);
        assert_eq!(domains.current(), 3);
    }
}
