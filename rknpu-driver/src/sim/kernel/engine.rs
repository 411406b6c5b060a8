//! Runs the chains of one job on the machine, with the faults that are to befall it.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::flip;
use super::objects::lock;
use crate::sim::faults::{FaultInjector, JobFaults, mix};
use crate::sim::machine::Budget;
use crate::sim::{CORES, Kick, Machine, Memory};
use crate::timing::{Board, TaskWork, job_time};

/// The machine under both kernel models.
pub(super) struct Engine {
    pub(super) machine: Machine,
    pub(super) board: Board,
    pub(super) faults: FaultInjector,
    /// Threads that compute at once.
    pub(super) threads: usize,
    /// Time-outs pass on the host.
    pub(super) real_time_outs: bool,
    /// Is told why a stream stopped.
    pub(super) report: Option<fn(&str)>,
    stopped: Mutex<Option<String>>,
}

/// What one core is to do: chains one after another, each started when the interrupt of the one before was taken.
#[derive(Clone, Debug)]
pub(super) struct CoreWork {
    pub(super) core: usize,
    pub(super) kicks: Vec<Kick>,
}

/// What one core did.
#[derive(Clone, Debug, Default)]
pub(super) struct CoreResult {
    /// The last interrupt status that the driver saw.
    pub(super) status: u32,
    /// The PC's task counter.
    pub(super) counter: u32,
    /// False: no interrupt arrived that the driver takes for the end of its last chain.
    pub(super) done: bool,
    pub(super) work: Vec<TaskWork>,
}

/// What a job did. `cores` is in the order of its work.
#[derive(Clone, Debug)]
pub(super) struct JobResult {
    pub(super) cores: Vec<CoreResult>,
    /// Time on the device, by the timing model.
    pub(super) elapsed: Duration,
}

impl JobResult {
    pub(super) fn done(&self) -> bool {
        self.cores.iter().all(|core| core.done)
    }
}

/// Which statuses a driver takes for the end of a chain that was started with this mask.
pub(super) type Accepts = fn(status: u32, mask: u32) -> bool;

/// The misfortune of one core.
#[derive(Clone, Copy)]
struct Mishap {
    core: usize,
    kick: usize,
    /// Tasks of that kick which run; `None`: all, and only the interrupt is lost or wrong.
    tasks: Option<u32>,
    status: u32,
}

impl Engine {
    pub(super) fn new(config: &super::SimConfig) -> Self {
        Self {
            machine: Machine::new(config.options),
            board: config.board,
            faults: FaultInjector::new(config.faults.clone().unwrap_or_default()),
            threads: config.threads.clamp(1, CORES),
            real_time_outs: config.real_time_outs,
            report: config.report,
            stopped: Mutex::default(),
        }
    }

    /// Why the last stream that stopped did.
    pub(super) fn last_stop(&self) -> Option<String> {
        lock(&self.stopped).clone()
    }

    /// A core that has worked for longer than `time_out` in the device's time hangs.
    pub(super) fn run(
        &self,
        memory: &Memory,
        work: &[CoreWork],
        faults: JobFaults,
        accepts: Accepts,
        time_out: Duration,
    ) -> JobResult {
        let mishap = mishap(work, faults);
        let results: Vec<Mutex<CoreResult>> = work.iter().map(|_| Mutex::default()).collect();
        let next = AtomicUsize::new(0);
        let worker = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((work, result)) = work.get(index).zip(results.get(index)) else { return };
                let mishap = mishap.filter(|mishap| mishap.core == index);
                *lock(result) = self.run_core(memory, work, mishap, accepts, time_out);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(work.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        let cores: Vec<_> = results.iter().map(|result| lock(result).clone()).collect();
        if faults.bit_flip {
            flip::one_bit(memory, work, faults.draw);
        }
        let chains: Vec<_> = cores.iter().map(|core| core.work.clone()).collect();
        JobResult { elapsed: job_time(&self.board, &chains).elapsed, cores }
    }

    fn run_core(
        &self,
        memory: &Memory,
        work: &CoreWork,
        mishap: Option<Mishap>,
        accepts: Accepts,
        time_out: Duration,
    ) -> CoreResult {
        let mut result = CoreResult::default();
        let mut budget = Budget::new(self.board, time_out);
        for (index, kick) in work.kicks.iter().enumerate() {
            let mishap = mishap.filter(|mishap| mishap.kick == index);
            let mut kick = *kick;
            if let Some(tasks) = mishap.and_then(|mishap| mishap.tasks) {
                kick.task_con = kick.task_con & !TASKS | tasks;
            }
            let complete = kick.task_con & TASKS != 0
                && self.run_kick(memory, work.core, &kick, &mut budget, &mut result);
            if let Some(mishap) = mishap {
                result.status = mishap.status;
            }
            if !complete || mishap.is_some() || !accepts(result.status, kick.interrupt_mask) {
                return result;
            }
        }
        result.done = !work.kicks.is_empty();
        result
    }

    /// Whether the chain came to its end.
    fn run_kick(
        &self,
        memory: &Memory,
        core: usize,
        kick: &Kick,
        budget: &mut Budget,
        result: &mut CoreResult,
    ) -> bool {
        let chain = || self.machine.run_chain_within(core, memory, kick, Some(budget));
        let run = catch_unwind(AssertUnwindSafe(chain));
        let (report, complete) = match run {
            Ok(Ok(report)) => (report, true),
            Ok(Err(stopped)) => {
                self.tell(core, &stopped.error);
                (stopped.report, false)
            }
            Err(_) => {
                self.tell(core, &"the simulator panicked");
                return false;
            }
        };
        result.counter = report.tasks_done() & TASKS;
        result.status = report.status;
        result.work.extend(report.work());
        complete
    }

    fn tell(&self, core: usize, why: &dyn Reason) {
        let text = format!("NPU core {core} hangs: {}", why.chain());
        if let Some(report) = self.report {
            report(&text);
        }
        *lock(&self.stopped) = Some(text);
    }
}

/// TASK_CON's number of tasks.
const TASKS: u32 = 0xfff;

fn mishap(work: &[CoreWork], faults: JobFaults) -> Option<Mishap> {
    if !(faults.time_out || faults.wrong_status || faults.lost_interrupt) || work.is_empty() {
        return None;
    }
    let [which_core, which_kick, which_task] = [1, 2, 3].map(|n| mix(faults.draw ^ n) as usize);
    let core = which_core % work.len();
    let kicks = &work[core].kicks;
    let kick = which_kick % kicks.len().max(1);
    let tasks = kicks.get(kick).map_or(0, |kick| kick.task_con & TASKS);
    let runs = (which_task % (tasks.max(1) as usize)) as u32;
    // A read error is what a driver would see beside no completion; which bits a confused interrupt carries is made up.
    let status = if faults.wrong_status { 0x1000 } else { 0 };
    Some(Mishap { core, kick, tasks: faults.time_out.then_some(runs), status })
}

/// Something that says why, with all that lies beneath it.
trait Reason {
    fn chain(&self) -> String;
}

impl Reason for crate::sim::SimError {
    fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut below = self.source();
        while let Some(error) = below {
            text.push_str(": ");
            text.push_str(&error.to_string());
            below = error.source();
        }
        text
    }
}

impl Reason for &str {
    fn chain(&self) -> String {
        (*self).to_owned()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("board", &self.board)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}
