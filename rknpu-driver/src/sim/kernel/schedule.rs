//! Which cores are free, and what was computed.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::engine::JobResult;
use super::objects::lock;
use crate::sim::CORES;
use crate::uapi::SimulatedWork;

/// Waiting for a core that computes, or for its domain, ends here: no stream takes this long, whatever the host.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// Tasks whose work is kept for a program that does not ask for it.
const MOST_TASKS: usize = 1 << 16;

/// The cores as the vendor's driver sees them.
#[derive(Debug, Default)]
pub(super) struct Cores {
    state: Mutex<CoresState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct CoresState {
    cores: [CoreState; CORES],
    resets: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CoreState {
    #[default]
    Idle,
    Busy,
    /// In a job that will not end, until a reset.
    Hung,
}

/// Cores taken for a job. [`Cores::release`] gives them back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    mask: u32,
    resets: u64,
}

impl Cores {
    /// Takes all cores of the mask, when the last of them is free. `EINVAL`: one hangs, so that the driver's three waits would pass
    /// with the job still queued.
    pub(super) fn take(&self, mask: u32) -> Result<Taken, Errno> {
        let began = Instant::now();
        let mut state = lock(&self.state);
        loop {
            let wanted = |wanted| in_mask(&state.cores, mask).any(|core| *core == wanted);
            if wanted(CoreState::Hung) || began.elapsed() > LONGEST {
                return Err(Errno::EINVAL);
            }
            if !wanted(CoreState::Busy) {
                break;
            }
            state = self.changed.wait_timeout(state, LONGEST).unwrap_or_else(PoisonError::into_inner).0;
        }
        set(&mut state.cores, mask, CoreState::Busy);
        Ok(Taken { mask, resets: state.resets })
    }

    /// Whether no reset came in between; the cores are free, or hung if the job is left hanging.
    pub(super) fn release(&self, taken: Taken, hung: bool) -> bool {
        let mut state = lock(&self.state);
        set(&mut state.cores, taken.mask, if hung { CoreState::Hung } else { CoreState::Idle });
        self.changed.notify_all();
        state.resets == taken.resets
    }

    pub(super) fn any_hung(&self, mask: u32) -> bool {
        in_mask(&lock(&self.state).cores, mask).any(|core| *core == CoreState::Hung)
    }

    /// Ends every job: hung cores are free, computing ones will find that they were reset.
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.resets += 1;
        for core in &mut state.cores {
            if *core == CoreState::Hung {
                *core = CoreState::Idle;
            }
        }
        self.changed.notify_all();
    }

    /// The core the driver picks for a job that leaves it the choice.
    pub(super) fn least_loaded(&self) -> usize {
        lock(&self.state).cores.iter().position(|core| *core == CoreState::Idle).unwrap_or(0)
    }
}

fn in_mask(cores: &[CoreState; CORES], mask: u32) -> impl Iterator<Item = &CoreState> {
    cores.iter().enumerate().filter(move |(core, _)| mask >> core & 1 == 1).map(|(_, state)| state)
}

fn set(cores: &mut [CoreState; CORES], mask: u32, to: CoreState) {
    for (index, core) in cores.iter_mut().enumerate() {
        if mask >> index & 1 == 1 {
            *core = to;
        }
    }
}

/// What a descriptor's jobs computed since it was last asked.
#[derive(Debug, Default)]
pub(super) struct WorkLog {
    work: SimulatedWork,
    tasks: usize,
}

impl WorkLog {
    /// Adds a job; `cores` names the core of each of its results.
    pub(super) fn add(&mut self, cores: &[usize], result: &JobResult) {
        self.work.elapsed = self.work.elapsed.saturating_add(result.elapsed);
        for (&core, result) in cores.iter().zip(&result.cores) {
            if self.work.chains.len() <= core {
                self.work.chains.resize_with(core + 1, Vec::new);
            }
            self.tasks += result.work.len();
            if self.tasks <= MOST_TASKS {
                self.work.chains[core].extend_from_slice(&result.work);
            }
        }
    }

    pub(super) fn take(&mut self) -> SimulatedWork {
        std::mem::take(self).work
    }
}
