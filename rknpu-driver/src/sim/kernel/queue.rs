//! Rocket's scheduler: a queue of jobs for each core, worked off by a thread each.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

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
}

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
        Self { shared: Arc::new(Shared { engine, store, state: Mutex::default(), changed: Condvar::new() }) }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(super) fn push(&self, entity: &Entity, job: Queued) {
        let shared = &self.shared;
        shared.store.books.jobs.fetch_add(1, Relaxed);
        let mut last = lock(&entity.last);
        let mut state = lock(&shared.state);
        let unfinished =
            last.as_ref().filter(|(_, fence)| fence.upgrade().is_some_and(|fence| !fence.is_signalled()));
        let core = unfinished.map_or_else(|| state.least_loaded(), |(core, _)| *core);
        *last = Some((core, Arc::downgrade(&job.fence)));
        let queue = &mut state.cores[core];
        queue.jobs.push_back(job);
        queue.load += 1;
        if !queue.has_thread {
            let shared = Arc::clone(shared);
            let thread = std::thread::Builder::new().name(format!("rknpu-sim-core{core}"));
            // Without a thread the job stays pending, which is a hang to its program, and the next push tries again.
            queue.has_thread = thread.spawn(move || shared.work(core)).is_ok();
        }
        drop(state);
        shared.changed.notify_all();
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
        let mut result = self.engine.run(&job.space.memory, &[work], job.faults, ends);
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
