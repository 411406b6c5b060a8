//! The program counter: fetches words, writes registers, starts blocks, follows the chain.

use super::error::{Place, RegisterId, SimError};
use super::machine::{Budget, ChainReport, Core, Kick, Stopped, TaskReport};
use super::memory::{Memory, Window};
use super::options::Options;
use super::registers::{BANKED, enable_bit};
use super::{cna, dpu, ppu};
use crate::regcmd::registers::{enable, pc};
use crate::regcmd::{Block, Word};
use crate::timing::TaskWork;

/// Bytes of a word.
const WORD: u64 = 8;

/// Where the next task is.
#[derive(Clone, Copy)]
struct Fetch {
    at: u32,
    amounts: u32,
}

impl Fetch {
    fn words(self) -> u64 {
        (u64::from(pc::register_amounts::PC_DATA_AMOUNT.get(self.amounts)) + 1) * 2
    }
}

/// Runs the tasks of a kick, for as long as the budget lasts. The tasks before a failing one stay done.
pub(super) fn run(
    core: &mut Core,
    memory: &Memory,
    kick: &Kick,
    options: &Options,
    mut budget: Option<&mut Budget>,
) -> Result<ChainReport, Box<Stopped>> {
    let mut report = ChainReport::default();
    for block in [Block::Cna, Block::Core] {
        core.blocks.set_pointer(block, kick.pointers);
    }
    let mut fetch = Fetch { at: kick.base_address, amounts: kick.register_amounts };
    let number = pc::task_con::TASK_NUMBER.get(kick.task_con);
    for task in 0..number {
        let step = run_task(core, memory, fetch, kick, options).and_then(|(done, next)| {
            let spent = budget.as_deref_mut().map_or(Ok(()), |budget| budget.spend(&done.work));
            report.raw_status |= done.raw_status;
            report.tasks.push(done);
            spent.map_err(|error| (Place::Execution, error))?;
            let missing =
                || SimError::ProgramCounter { reason: format!("the chain ends before task {number}") };
            match next {
                Some(next) => Ok(next),
                None if task + 1 == number => Ok(fetch),
                None => Err((Place::Tail, missing())),
            }
        });
        match step {
            Ok(next) => fetch = next,
            Err((place, error)) => {
                let error = SimError::Task { task, place, source: Box::new(error) };
                return Err(Box::new(Stopped { report, error }));
            }
        }
    }
    report.status = report.raw_status & kick.interrupt_mask;
    Ok(report)
}

type Placed<T> = Result<T, (Place, SimError)>;

/// Fetches one task's words, runs what they enable, and says where the next task is.
fn run_task(
    core: &mut Core,
    memory: &Memory,
    fetch: Fetch,
    kick: &Kick,
    options: &Options,
) -> Placed<(TaskReport, Option<Fetch>)> {
    let window = memory.window(pc::BASE_ADDRESS, fetch.at & !0xf).map_err(|error| (Place::Word(0), error))?;
    let mut next = (None, None);
    for index in 0..fetch.words() {
        let at = |error| (Place::Word(index as u32), error);
        let word = fetch_word(&window, index).map_err(at)?;
        match Block::from_target(word.target()) {
            // The vendor's compiler ends its last task with an empty word in place of the next task's address.
            Some(Block::Padding) if word.0 == 0 => {}
            Some(Block::Pc) => write_pc(word, &mut next).map_err(at)?,
            Some(Block::Sync) => {}
            Some(Block::Enable) => {
                let mask = word.value();
                core.blocks.arm(mask, kick.dma_base).map_err(at)?;
                let mut work =
                    TaskWork { tasks: 1, command_bytes: fetch.words() * WORD, ..TaskWork::default() };
                let raw_status = interrupts(core, mask);
                let outcome = execute(core, memory, options, &mut work);
                core.blocks.retire();
                outcome.map_err(|error| (Place::Execution, error))?;
                let next = next.0.map(|at| Fetch { at, amounts: next.1.unwrap_or(0) });
                return Ok((TaskReport { enabled: mask, raw_status, work }, next));
            }
            _ => core.blocks.write(word).map_err(at)?,
        }
    }
    let reason = format!("{} words from {:#010x} enable no block", fetch.words(), fetch.at);
    Err((Place::Tail, SimError::ProgramCounter { reason }))
}

fn fetch_word(window: &Window, index: u64) -> Result<Word, SimError> {
    let mut bytes = [0; WORD as usize];
    window.read((index * WORD) as i64, &mut bytes)?;
    Ok(Word(u64::from_le_bytes(bytes)))
}

/// Words to the PC itself: the next task's address and amount. Streams write no other of its registers.
fn write_pc(word: Word, next: &mut (Option<u32>, Option<u32>)) -> Result<(), SimError> {
    if word.register() == pc::BASE_ADDRESS.offset {
        next.0 = Some(word.value()).filter(|at| *at != 0);
    } else if word.register() == pc::REGISTER_AMOUNTS.offset {
        next.1 = Some(word.value());
    } else {
        let register = RegisterId(word.register());
        return Err(SimError::illegal(
            register,
            word.value(),
            "streams write BASE_ADDRESS and REGISTER_AMOUNTS only",
        ));
    }
    Ok(())
}

/// Runs the blocks that the task enables: a convolution, the DPU alone, or the PPU.
fn execute(core: &mut Core, memory: &Memory, options: &Options, work: &mut TaskWork) -> Result<(), SimError> {
    let on = |block| core.blocks.enabled(block);
    let (convolution, dpu_on, ppu_on) = (on(Block::Cna), on(Block::Dpu), on(Block::Ppu));
    if convolution != on(Block::Core) || (convolution && !dpu_on) || (on(Block::DpuRdma) && !dpu_on) {
        let mask =
            BANKED.into_iter().filter(|block| on(*block)).fold(0, |mask, block| mask | enable_bit(block));
        return Err(SimError::illegal(
            enable::OPERATION_ENABLE,
            mask,
            "CNA, CORE and DPU work together, DPU_RDMA needs the DPU",
        ));
    }
    if dpu_on {
        let main = match convolution {
            true => Some(cna::convolve(&core.blocks, &mut core.buffered, memory, options, work)?),
            false => None,
        };
        dpu::run(&core.blocks, main, memory, options, work)?;
    }
    if ppu_on {
        ppu::run(&core.blocks, memory, options, work)?;
    }
    Ok(())
}

/// INTERRUPT_RAW_STATUS bits: two a unit, one for each bank.
fn interrupts(core: &Core, mask: u32) -> u32 {
    let units = [
        (Block::Cna, &[0, 2, 4][..]),
        (Block::Core, &[6][..]),
        (Block::Dpu, &[8][..]),
        (Block::Ppu, &[10][..]),
    ];
    let enabled = units.into_iter().filter(|(block, _)| mask & enable_bit(*block) != 0);
    enabled.fold(0, |raw, (block, bits)| {
        bits.iter().fold(raw, |raw, bit| raw | 1 << (bit + core.blocks.bank(block)))
    })
}
