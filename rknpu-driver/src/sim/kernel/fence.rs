//! When a queued job is over, and how waiting for it ends.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::objects::lock;

/// The end of one job, waited for by any number of threads.
#[derive(Debug, Default)]
pub(super) struct Fence {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Queued or computing.
    #[default]
    Pending,
    /// A core hangs in it, until the driver's own time-out at `until`, which waiters wait for or not.
    Hung { until: Instant, really: bool },
    /// Over, well or not: rocket's waiters are not told which.
    Signalled,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    Signalled,
    TimedOut,
}

/// A simulated job computes for as long as the machine below needs, which says nothing about the device; this only keeps a wait from
/// lasting for ever.
const LONGEST: Duration = Duration::from_secs(3600);

impl Fence {
    pub(super) fn signal(&self) {
        *lock(&self.state) = State::Signalled;
        self.changed.notify_all();
    }

    /// The job's core hangs and will be reset at `until`, which waits are to last for only if `really`.
    pub(super) fn hang(&self, until: Instant, really: bool) {
        *lock(&self.state) = State::Hung { until, really };
        self.changed.notify_all();
    }

    pub(super) fn is_signalled(&self) -> bool {
        matches!(*lock(&self.state), State::Signalled)
    }

    /// Waits for the job as a program with this deadline sees it. Computing takes no time on the simulated device, so a deadline
    /// that still lies ahead is met by every job that does not hang. A hung job is over when the driver resets its core: a deadline
    /// beyond that moment meets it, an earlier one does not, and neither is waited out unless the hang says so.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Waited {
        let began = Instant::now();
        let late = deadline.is_some_and(|deadline| deadline <= began);
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let longest = match *state {
                State::Signalled => return Waited::Signalled,
                State::Hung { until, really }
                    if now >= until || (!really && deadline.is_none_or(|at| at >= until)) =>
                {
                    *state = State::Signalled;
                    self.changed.notify_all();
                    return Waited::Signalled;
                }
                State::Hung { until, really } if really && deadline.is_none_or(|deadline| deadline > now) => {
                    deadline.map_or(until, |deadline| deadline.min(until)) - now
                }
                State::Hung { .. } => return Waited::TimedOut,
                State::Pending if late || began.elapsed() > LONGEST => return Waited::TimedOut,
                State::Pending => LONGEST,
            };
            state = self.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_end_by_signal_by_reset_and_by_deadline() {
        let fence = Fence::default();
        let now = Instant::now();
        assert_eq!(fence.wait(Some(now)), Waited::TimedOut);
        fence.hang(now + Duration::from_secs(500), false);
        assert_eq!(fence.wait(Some(now + Duration::from_secs(499))), Waited::TimedOut);
        assert!(!fence.is_signalled());
        assert_eq!(fence.wait(Some(now + Duration::from_secs(500))), Waited::Signalled);
        assert_eq!(fence.wait(Some(now)), Waited::Signalled);
    }

    #[test]
    fn a_real_time_out_is_waited_out() {
        let (began, wait) = (Instant::now(), Duration::from_millis(10));
        let fence = Fence::default();
        fence.hang(began + Duration::from_secs(600), true);
        assert_eq!(fence.wait(Some(began + wait)), Waited::TimedOut);
        assert!(began.elapsed() >= wait);
        let until = Instant::now() + wait;
        fence.hang(until, true);
        assert_eq!(fence.wait(None), Waited::Signalled);
        assert!(Instant::now() >= until);
    }

    #[test]
    fn a_signal_wakes_a_waiter() {
        let fence = Fence::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| fence.wait(Some(Instant::now() + Duration::from_secs(60))));
            fence.signal();
            assert_eq!(waiter.join().unwrap(), Waited::Signalled);
        });
    }
}
