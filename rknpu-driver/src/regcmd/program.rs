//! Tasks laid out in one buffer of commands.

use std::ops::Range;

use thiserror::Error;

use super::registers::{enable, pc, sync};
use super::task::{Base, EncodedTask, Relocation};
use super::word::Word;

/// Tasks start at multiples of this many bytes, as in every vendor stream.
const TASK_ALIGN: usize = 64;
/// Bytes of a word.
const WORD: usize = 8;
/// Words after a task's own: link, amount, sync, enable.
const TAIL: usize = 4;
/// Addresses that blocks read or write at are multiples of an atom.
const ATOM: u32 = 16;

/// Whether a task's tail leads to the next task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chaining {
    /// The PC goes on to the next task of the chain by itself (vendor kernel, several tasks a submit).
    #[default]
    Linked,
    /// Every task ends its run (mainline kernel, which starts tasks one by one).
    Separate,
}

/// How a program is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramOptions {
    /// Whether tails link tasks.
    pub chaining: Chaining,
    /// Cores that work on the program at once, 1 to 3. More than one sets `REGISTER_AMOUNTS.CORES_MINUS_ONE`, as the
    /// vendor's multi-core programmes do; what the hardware does with it is not known, and independent chains on
    /// several cores work without (open drivers), so 1 is the default.
    pub cores: u32,
}

impl Default for ProgramOptions {
    fn default() -> Self {
        ProgramOptions { chaining: Chaining::Linked, cores: 1 }
    }
}

/// Where a task lies in the buffer, in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramTask {
    /// Bytes from the buffer's start.
    pub offset: u32,
    /// Words without the tail, `rknpu_task::regcfg_amount`.
    pub words: u32,
    /// Blocks started.
    pub enable: u32,
    /// Interrupts that mark the end.
    pub interrupt_mask: u32,
}

/// A program that cannot be laid out or bound.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BindError {
    /// A task is too long for the amount that its predecessor carries, or for the buffer's 32-bit offsets.
    #[error("task {task} of {words} words is too long")]
    TaskTooLong {
        /// Index of the task.
        task: usize,
        /// Its words.
        words: usize,
    },
    /// A task names a base that was not given.
    #[error("task {task} refers to base {base}, {given} given")]
    MissingBase {
        /// Index of the task.
        task: usize,
        /// The base's index.
        base: u16,
        /// Number of bases given.
        given: usize,
    },
    /// Base plus offset, or the end of the command buffer, is beyond 32 bits.
    #[error("{base:#x} + {offset:#x} is beyond the NPU's 32-bit addresses")]
    AddressOverflow {
        /// The base address.
        base: u32,
        /// The offset.
        offset: u32,
    },
    /// An address is not a multiple of what the hardware fetches by.
    #[error("address {address:#x} is not a multiple of {align}")]
    Misaligned {
        /// The address.
        address: u32,
        /// What it must be a multiple of.
        align: u32,
    },
}

/// Tasks in one buffer of commands, addresses still open. It can be bound any number of times.
#[derive(Clone, Debug, Default)]
pub struct Program {
    options: ProgramOptions,
    words: Vec<Word>,
    tasks: Vec<ProgramTask>,
    /// (index of the task, its relocation with `word` counted from the buffer's start)
    relocations: Vec<(usize, Relocation)>,
    /// Indices of the words that hold the next task's place.
    links: Vec<usize>,
}

impl Program {
    /// A program without tasks.
    pub fn new(options: ProgramOptions) -> Program {
        Program { options, ..Program::default() }
    }

    /// Appends tasks that run one after another on one core, and says which of [`Program::tasks`] they are.
    ///
    /// # Errors
    /// A task has more words than the hardware's amount can say. Nothing is appended then.
    pub fn chain(&mut self, tasks: &[EncodedTask]) -> Result<Range<usize>, BindError> {
        let first = self.tasks.len();
        for (index, task) in tasks.iter().enumerate() {
            let end = (self.words.len() + task.words.len() + TAIL) * WORD + TASK_ALIGN;
            if amount(task) > pc::register_amounts::PC_DATA_AMOUNT.max() || u32::try_from(end).is_err() {
                return Err(BindError::TaskTooLong { task: first + index, words: task.words.len() });
            }
        }
        for (index, task) in tasks.iter().enumerate() {
            let next = tasks.get(index + 1).filter(|_| self.options.chaining == Chaining::Linked);
            self.push(task, next);
        }
        Ok(first..self.tasks.len())
    }

    fn push(&mut self, task: &EncodedTask, next: Option<&EncodedTask>) {
        let start = self.words.len();
        let moved = task
            .relocations
            .iter()
            .map(|relocation| Relocation { word: start + relocation.word, ..*relocation });
        self.relocations.extend(moved.map(|relocation| (self.tasks.len(), relocation)));
        // Offsets fit into 32 bits: `chain` checked the end of every task.
        self.tasks.push(ProgramTask {
            offset: (start * WORD) as u32,
            words: task.words.len() as u32,
            enable: task.enable,
            interrupt_mask: task.interrupt_mask,
        });
        self.words.extend(&task.words);

        let end = (self.words.len() + TAIL).next_multiple_of(TASK_ALIGN / WORD);
        let cores = pc::register_amounts::CORES_MINUS_ONE.put(0, self.options.cores.saturating_sub(1));
        let (link, amounts) = match next {
            Some(next) => {
                self.links.push(self.words.len());
                (Word::write(pc::BASE_ADDRESS, (end * WORD) as u32), amount(next) | cores)
            }
            None => (Word::ZERO, 0),
        };
        self.words.extend([
            link,
            Word::write(pc::REGISTER_AMOUNTS, amounts),
            Word::write(sync::BEFORE_ENABLE, 0),
            Word::write(enable::OPERATION_ENABLE, task.enable),
        ]);
        self.words.resize(end, Word::ZERO);
    }

    /// The tasks, chain after chain.
    pub fn tasks(&self) -> &[ProgramTask] {
        &self.tasks
    }

    /// Size of the command buffer in bytes.
    pub fn len(&self) -> usize {
        self.words.len() * WORD
    }

    /// Whether there are no tasks.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The words with addresses filled in: `bases[i]` is the address of [`Base`]`(i)`, `commands` that of the buffer
    /// these words will lie in.
    ///
    /// # Errors
    /// A base is missing, an address is beyond 32 bits, or one is not a multiple of 16 (64 for `commands`).
    pub fn bind_words(&self, bases: &[u32], commands: u32) -> Result<Vec<Word>, BindError> {
        let mut words = self.words.clone();
        check_align(commands, TASK_ALIGN as u32)?;
        offset_address(commands, self.len() as u32)?;
        for &link in &self.links {
            words[link] = words[link].with_value(offset_address(commands, words[link].value())?);
        }
        for &(task, Relocation { word, base: Base(base), offset, .. }) in &self.relocations {
            let missing = BindError::MissingBase { task, base, given: bases.len() };
            let address = offset_address(*bases.get(usize::from(base)).ok_or(missing)?, offset)?;
            check_align(address, ATOM)?;
            words[word] = words[word].with_value(address);
        }
        Ok(words)
    }

    /// [`Program::bind_words`] as the bytes of the command buffer.
    ///
    /// # Errors
    /// As [`Program::bind_words`].
    pub fn bind(&self, bases: &[u32], commands: u32) -> Result<Vec<u8>, BindError> {
        Ok(self.bind_words(bases, commands)?.iter().flat_map(|word| word.0.to_le_bytes()).collect())
    }
}

/// What the tail before `task` says of its length: fetches of two words, tail included, less one.
fn amount(task: &EncodedTask) -> u32 {
    let pairs = (task.words.len() + TAIL).div_ceil(2) - 1;
    u32::try_from(pairs).unwrap_or(u32::MAX)
}

fn offset_address(base: u32, offset: u32) -> Result<u32, BindError> {
    base.checked_add(offset).ok_or(BindError::AddressOverflow { base, offset })
}

fn check_align(address: u32, align: u32) -> Result<(), BindError> {
    if address.is_multiple_of(align) { Ok(()) } else { Err(BindError::Misaligned { address, align }) }
}
