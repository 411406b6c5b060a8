//! Rocket's scheduler: a queue of jobs for each core, worked off by a thread each.
//!
//! A job's simulated time is that of a job with the memory to itself. Jobs on other cores would share it on a board, but which of them run at
//! the same moment of the device's time is not known here: threads overlap in the host's time, by chance. Three cores together are therefore
//! faster at streaming than the board's memory.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::engine::{CoreWork, Engine};
use super::fence::Fence;
use super::objects::{Object, Space, Store, lock};
use super::schedule::WorkLog;
use crate::sim::faults::JobFaults;
use crate::sim::{CORES, Kick};
use crate::uapi::rocket::JOB_TIMEOUT_MS;

/// The interrupts that the driver's handler looks for; a chain that ends in others is never seen to end.
const DPU_INTERRUPTS: u32 = 0x300;
/// The driver's own time-out.
const TIME_OUT: Duration = Duration::from_millis(JOB_TIMEOUT_MS);

/// The queues of one device. Dropping it lets the threads finish what is queued.
#[derive(Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    start: Start,
}

/// Starts the thread of a core.
type Start = fn(&Arc<Shared>, core: usize) -> std::io::Result<()>;

#[derive(Debug)]
struct Shared {
    engine: Engine,
    store: Arc<Store>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cores: [CoreQueue; CORES],
    closed: bool,
}

#[derive(Debug, Default)]
struct CoreQueue {
    jobs: VecDeque<Queued>,
    /// Jobs queued and running.
    load: usize,
    has_thread: bool,
}

/// One descriptor's place in the scheduler: its jobs run in order, and all on one core while any is unfinished.
#[derive(Debug, Default)]
pub(super) struct Entity {
    last: Mutex<Option<(usize, Weak<Fence>)>>,
}

/// A job as it is queued.
#[derive(Debug)]
pub(super) struct Queued {
    /// One a task.
    pub(super) kicks: Vec<Kick>,
    pub(super) space: Arc<Space>,
    /// Jobs that must be over before: the last writers of every object this one uses.
    pub(super) after: Vec<Arc<Fence>>,
    pub(super) fence: Arc<Fence>,
    /// Kept alive until the job is over.
    pub(super) objects: Vec<Arc<Object>>,
    pub(super) faults: JobFaults,
    pub(super) log: Arc<Mutex<WorkLog>>,
}

impl Queue {
    pub(super) fn new(engine: Engine, store: &Arc<Store>) -> Self {
        let store = Arc::clone(store);
        let shared = Arc::new(Shared { engine, store, state: Mutex::default(), changed: Condvar::new() });
        Self { shared, start: Shared::start }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Queues a job. `ENOMEM`: the host gives no thread for its core; the job is over then, and nothing of it ran.
    pub(super) fn push(&self, entity: &Entity, job: Queued) -> Result<(), Errno> {
        let shared = &self.shared;
        shared.store.books.jobs.fetch_add(1, Relaxed);
        let mut last = lock(&entity.last);
        let mut state = lock(&shared.state);
        let unfinished =
            last.as_ref().filter(|(_, fence)| fence.upgrade().is_some_and(|fence| !fence.is_signalled()));
        let core = unfinished.map_or_else(|| state.least_loaded(), |(core, _)| *core);
        *last = Some((core, Arc::downgrade(&job.fence)));
        let queue = &mut state.cores[core];
        // Without a thread nothing is queued, and the next push tries again.
        if !queue.has_thread && (self.start)(shared, core).is_err() {
            drop(state);
            shared.store.books.jobs.fetch_sub(1, Relaxed);
            job.fence.signal();
            return Err(Errno::ENOMEM);
        }
        queue.has_thread = true;
        queue.jobs.push_back(job);
        queue.load += 1;
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
    }
}

impl State {
    fn least_loaded(&self) -> usize {
        (0..CORES).min_by_key(|core| self.cores[*core].load).unwrap_or(0)
    }
}

impl Shared {
    fn start(self: &Arc<Self>, core: usize) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("rknpu-sim-core{core}"));
        thread.spawn(move || shared.work(core)).map(drop)
    }

    fn work(&self, core: usize) {
        while let Some(job) = self.next(core) {
            for fence in &job.after {
                fence.wait(None);
            }
            self.run(core, job);
        }
    }

    fn next(&self, core: usize) -> Option<Queued> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.cores[core].jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, core: usize, job: Queued) {
        let work = CoreWork { core, kicks: job.kicks };
        let ends = |status: u32, _| status & DPU_INTERRUPTS != 0;
        let mut result = self.engine.run(&job.space.memory, &[work], job.faults, ends, TIME_OUT);
        let hung = !result.done() || result.elapsed >= TIME_OUT;
        if hung {
            result.elapsed = TIME_OUT;
            self.engine.machine.reset(core);
        }
        lock(&job.log).add(&[core], &result);
        // All books are right before anybody learns that the job is over.
        drop((job.objects, job.space));
        lock(&self.state).cores[core].load -= 1;
        self.store.books.jobs.fetch_sub(1, Relaxed);
        if hung {
            job.fence.hang(Instant::now() + TIME_OUT, self.engine.real_time_outs)
        } else {
            job.fence.signal()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Interface;
    use crate::sim::Unwritten;
    use crate::sim::kernel::SimConfig;

    #[test]
    fn a_job_without_a_thread_is_refused_and_waited_for_by_nobody() {
        let store = Store::new(0);
        let engine = Engine::new(&SimConfig { report: None, ..SimConfig::new(Interface::Rocket) });
        let mut queue = Queue::new(engine, &store);
        let (entity, space) = (Entity::default(), Space::new(Unwritten::Error, &store));
        let push = |queue: &Queue| {
            let fence = Arc::new(Fence::default());
            let job = Queued {
                kicks: Vec::new(),
                space: Arc::clone(&space),
                after: Vec::new(),
                fence: Arc::clone(&fence),
                objects: Vec::new(),
                faults: JobFaults::default(),
                log: Arc::default(),
            };
            (queue.push(&entity, job), fence)
        };
        queue.start = |_, _| Err(std::io::ErrorKind::OutOfMemory.into());
        let (refused, fence) = push(&queue);
        assert_eq!(refused, Err(Errno::ENOMEM));
        assert!(fence.is_signalled());
        assert_eq!(store.books.usage().jobs, 0);
        queue.start = Shared::start;
        let (taken, fence) = push(&queue);
        assert_eq!(taken, Ok(()));
        fence.wait(None);
        assert_eq!(store.books.usage().jobs, 0);
    }
}
