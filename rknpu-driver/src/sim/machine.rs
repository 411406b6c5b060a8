//! The machine: three cores, each with its register file and buffers, executing chains of tasks.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

use super::cna::Buffered;
use super::error::SimError;
use super::memory::Memory;
use super::options::Options;
use super::registers::Blocks;
use crate::timing::{Board, TaskWork, task_time};

/// Cores of an RK3588's NPU.
pub const CORES: usize = 3;

/// What a kernel driver writes into the PC of one core to start a chain. Values are those of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kick {
    /// BASE_ADDRESS: where the first task's words are (bits 31:4).
    pub base_address: u32,
    /// REGISTER_AMOUNTS of the first task: pairs of words minus one.
    pub register_amounts: u32,
    /// TASK_CON: bits 11:0 number of tasks, bit 12 ping-pong fetch, bit 13 clears the counter.
    pub task_con: u32,
    /// INTERRUPT_MASK.
    pub interrupt_mask: u32,
    /// TASK_DMA_BASE_ADDR: added to every address of every task. Both drivers leave it 0 unless asked.
    pub dma_base: u32,
    /// S_POINTER of CNA and CORE, which drivers write and streams do not.
    pub pointers: u32,
}

impl Kick {
    /// The kick of `tasks` tasks whose first has `words` words before its tail of four, as both drivers write it.
    pub fn new(regcmd: u32, words: u32, tasks: u32, interrupt_mask: u32) -> Self {
        Self {
            base_address: regcmd,
            register_amounts: words.saturating_add(TAIL).div_ceil(2).saturating_sub(1),
            task_con: 0x6 << 12 | tasks & 0xfff,
            interrupt_mask,
            dma_base: 0,
            pointers: 0xe,
        }
    }
}

/// Time on the device that a core's chains may take together: a stream can ask for years of it in a few words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    board: Board,
    whole: Duration,
    left: Duration,
}

impl Budget {
    /// `whole` on this board.
    pub(crate) fn new(board: Board, whole: Duration) -> Self {
        Self { board, whole, left: whole }
    }

    /// Takes a task's time, as if it had the memory for itself: what is over here is over with other cores at work too.
    pub(super) fn spend(&mut self, work: &TaskWork) -> Result<(), SimError> {
        let left = self.left.checked_sub(task_time(&self.board, work));
        self.left = left.ok_or_else(|| SimError::ProgramCounter {
            reason: format!("the chain is still running after {:?} of the device's time", self.whole),
        })?;
        Ok(())
    }
}

/// Words of a task's tail: next task, its amount, and the two words of the enable.
const TAIL: u32 = 4;

/// What one task did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskReport {
    /// The enable mask.
    pub enabled: u32,
    /// Bits of INTERRUPT_RAW_STATUS that the task set.
    pub raw_status: u32,
    /// What it asked of the hardware.
    pub work: TaskWork,
}

/// What a chain did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainReport {
    /// Tasks completed, in order.
    pub tasks: Vec<TaskReport>,
    /// INTERRUPT_RAW_STATUS at the end.
    pub raw_status: u32,
    /// INTERRUPT_STATUS at the end: the raw bits that the mask lets through.
    pub status: u32,
}

impl ChainReport {
    /// Number of completed tasks, TASK_STATUS of the PC.
    pub fn tasks_done(&self) -> u32 {
        self.tasks.len() as u32
    }

    /// The tasks' work, in order.
    pub fn work(&self) -> Vec<TaskWork> {
        self.tasks.iter().map(|task| task.work).collect()
    }
}

/// A chain that stopped before its end. What its tasks wrote until then is in memory.
#[derive(Debug, Error)]
#[error("{} tasks were done", report.tasks_done())]
pub struct Stopped {
    /// The tasks that were completed.
    pub report: ChainReport,
    /// Why the next was not.
    #[source]
    pub error: SimError,
}

/// Three cores. Each works on one chain at a time; different cores may run on different threads.
pub struct Machine {
    options: Options,
    cores: [Mutex<Core>; CORES],
}

/// State of one core between tasks.
#[derive(Default)]
pub(super) struct Core {
    pub(super) blocks: Blocks,
    /// What the last convolution left in CBUF.
    pub(super) buffered: Buffered,
}

impl Machine {
    /// Cores as after a reset.
    pub fn new(options: Options) -> Self {
        Self { options, cores: Default::default() }
    }

    /// The machine's parameters.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Runs a chain to its end on this thread. Waits for the chain that the core is working on.
    pub fn run_chain(&self, core: usize, memory: &Memory, kick: &Kick) -> Result<ChainReport, Box<Stopped>> {
        self.run_chain_within(core, memory, kick, None)
    }

    /// Like [`Machine::run_chain`], but stops after the task with which the budget is overspent.
    pub(crate) fn run_chain_within(
        &self,
        core: usize,
        memory: &Memory,
        kick: &Kick,
        budget: Option<&mut Budget>,
    ) -> Result<ChainReport, Box<Stopped>> {
        let Some(slot) = self.cores.get(core) else {
            let error = SimError::Core { core, reason: "there are cores 0 to 2" };
            return Err(Box::new(Stopped { report: ChainReport::default(), error }));
        };
        let mut state = slot.lock().unwrap_or_else(PoisonError::into_inner);
        super::pc::run(&mut state, memory, kick, &self.options, budget)
    }

    /// Runs one chain a core at once, each on its own thread, and waits for all. Reports come in the order of `kicks`.
    pub fn run_chains(
        &self,
        memory: &Memory,
        kicks: &[(usize, Kick)],
    ) -> Vec<Result<ChainReport, Box<Stopped>>> {
        if let [(core, kick)] = kicks {
            return vec![self.run_chain(*core, memory, kick)];
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = kicks
                .iter()
                .map(|(core, kick)| scope.spawn(|| self.run_chain(*core, memory, kick)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(report) => report,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        })
    }

    /// Resets one core: registers, tables and buffers are as after power-on.
    pub fn reset(&self, core: usize) {
        if let Some(slot) = self.cores.get(core) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Core::default();
        }
    }
}
