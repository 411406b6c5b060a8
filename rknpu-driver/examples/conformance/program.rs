//! Runs one programme of a vector on a machine of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use rknpu_driver::sim::{
    Backing, BackingError, CORES, Kick, Machine, MapError, Memory, MemoryFault, Options, Stopped,
};
use thiserror::Error;

use super::host;
use super::layout::Layout;
use super::vector::{self, Tensor, Values, Vector};

/// Where the first buffer lies. Streams of the vendor's compiler also touch 16 bytes at address 0 (tasks that load
/// tables leave their addresses 0), so a page is mapped there.
const FIRST: u32 = 0x10_0000;

/// Why a programme did not run to its end.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The vector contradicts itself.
    #[error("{0}")]
    Vector(String),
    /// No memory.
    #[error("memory")]
    Backing(#[from] BackingError),
    /// Buffers do not fit the address space.
    #[error("address space")]
    Map(#[from] MapError),
    /// An output, or an input of a host operator, was not written.
    #[error("tensor {name}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is missing.
        source: MemoryFault,
    },
    /// A task failed.
    #[error("core {core}")]
    Stopped {
        /// Which core.
        core: usize,
        /// Where and why.
        source: Box<Stopped>,
    },
}

impl From<String> for RunError {
    fn from(text: String) -> Self {
        Self::Vector(text)
    }
}

/// A vector's buffers in an address space.
pub(crate) struct Placed {
    memory: Memory,
    bases: BTreeMap<i64, u32>,
    regcmd: u32,
}

/// Runs the programme for `cores` cores with the inputs of a test; returns the output tensors' elements in NCHW.
pub(crate) fn run(
    vector: &Vector,
    cores: usize,
    test: usize,
    fill: u8,
) -> Result<Vec<(Tensor, Values)>, RunError> {
    let placed = place(vector, fill)?;
    for id in &vector.inputs {
        let tensor = vector.tensor(*id)?;
        let name = format!("t{test}.in.{}", tensor.name);
        let values = match tensor.dtype.as_str() {
            "i8" | "i16" => vector.values(&format!("{name}.q")),
            _ => vector.values(&format!("{name}.f32")),
        };
        placed.store(tensor, &values.ok_or_else(|| format!("no input {name}"))?)?;
    }
    let machine = Machine::new(Options::default());
    for phase in phases(vector, cores)? {
        match phase {
            Phase::Host(op) => host::run(vector, &vector.ops[op], &placed)?,
            Phase::Chains(chains) => {
                let kicks: Vec<(usize, Kick)> =
                    chains.iter().map(|(core, tasks)| (*core, kick(vector, &placed, tasks))).collect();
                for ((core, _), report) in chains.iter().zip(machine.run_chains(&placed.memory, &kicks)) {
                    let report = report.map_err(|source| RunError::Stopped { core: *core, source })?;
                    let last = report.tasks.last().map_or(0, |task| task.raw_status);
                    let mask = kicks[0].1.interrupt_mask;
                    if last & mask == 0 {
                        return Err(format!("the last task raised {last:#x}, not {mask:#x}").into());
                    }
                }
            }
        }
    }
    let output = |id: &i64| {
        let tensor = vector.tensor(*id)?;
        Ok((tensor.clone(), placed.load(tensor)?))
    };
    vector.outputs.iter().map(output).collect()
}

/// Buffers with their contents, and the stream with its addresses.
fn place(vector: &Vector, fill: u8) -> Result<Placed, RunError> {
    let memory = Memory::new(Options::default().unwritten);
    let scratch = Arc::new(Backing::new(1)?);
    scratch.mark_written(0..scratch.len());
    memory.map(0, scratch)?;
    let mut placed = Placed { memory, bases: BTreeMap::new(), regcmd: 0 };
    let mut next = FIRST;
    let arena = vector.tensors.iter().filter(|tensor| in_arena(tensor));
    let arena_bytes = arena.map(|tensor| tensor.offset + tensor.bytes.max(1)).max().unwrap_or(1);
    let arena = placed.buffer(&mut next, arena_bytes)?;
    placed.write(arena, &vec![fill; arena_bytes], "arena")?;
    for tensor in &vector.tensors {
        if in_arena(tensor) {
            placed.bases.insert(tensor.id, arena + tensor.offset as u32);
        } else if let Some(blob) = vector.constants.get(&tensor.id) {
            let base = placed.buffer(&mut next, tensor.bytes.max(blob.len()))?;
            placed.write(base, blob, &tensor.name)?;
            placed.bases.insert(tensor.id, base);
        }
    }
    let stream = vector.bytes("regcmd")?;
    let mut words: Vec<u64> =
        stream.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let regcmd = placed.buffer(&mut next, stream.len())?;
    relocate(vector, &placed, &mut words, regcmd)?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    placed.write(regcmd, &bytes, "regcmd")?;
    placed.regcmd = regcmd;
    Ok(placed)
}

fn in_arena(tensor: &Tensor) -> bool {
    matches!(tensor.mem.as_str(), "input" | "output" | "internal")
}

/// Puts addresses into bits 47:16 of the words that name tensors or tasks.
fn relocate(vector: &Vector, placed: &Placed, words: &mut [u64], regcmd: u32) -> Result<(), RunError> {
    const NEXT_TASK: u64 = 0x0101 << 48 | 0x0010;
    let put = |word: &mut u64, value: u32| *word = *word & !(0xffff_ffff << 16) | u64::from(value) << 16;
    for word in words.iter_mut() {
        let offset = (*word >> 16) as u32;
        if *word & 0xffff_0000_0000_ffff == NEXT_TASK && offset != 0 {
            put(word, regcmd.wrapping_add(offset));
        }
    }
    for (tensor, addend, index, _, _) in &vector.relocs {
        let base = placed
            .bases
            .get(tensor)
            .ok_or_else(|| format!("a word names tensor {tensor}, which is nowhere"))?;
        let word = words.get_mut(*index).ok_or_else(|| format!("no word {index}"))?;
        put(word, base.wrapping_add(*addend));
    }
    Ok(())
}

fn kick(vector: &Vector, placed: &Placed, tasks: &[usize]) -> Kick {
    let (first, last) = (vector.tasks[tasks[0]], vector.tasks[tasks[tasks.len() - 1]]);
    let regcmd = placed.regcmd + first.regcmd_byte_offset;
    Kick::new(regcmd, first.regcfg_amount, tasks.len() as u32, last.int_mask)
}

/// What runs between two points at which everything before has ended.
enum Phase {
    /// Operator `ops[index]`, which the compiler left to the CPU.
    Host(usize),
    /// Chains of tasks, one a core.
    Chains(Vec<(usize, Vec<usize>)>),
}

/// One core: a chain from one host operator to the next. Several cores: operator after operator, because an operator
/// reads what the other cores' tasks of the one before it wrote.
fn phases(vector: &Vector, cores: usize) -> Result<Vec<Phase>, RunError> {
    let program = vector.program(cores);
    let known = |task: &usize| *task < vector.tasks.len();
    if program.len() > CORES || !program.iter().flatten().all(known) {
        return Err(format!("the programme for {cores} cores is none").into());
    }
    let mut phases: Vec<Phase> = Vec::new();
    for (index, op) in vector.ops.iter().enumerate() {
        let of_op = |tasks: &Vec<usize>| {
            tasks.iter().copied().filter(|task| vector.tasks[*task].op == op.id).collect()
        };
        let chains: Vec<(usize, Vec<usize>)> = program
            .iter()
            .map(of_op)
            .enumerate()
            .filter(|(_, tasks): &(usize, Vec<usize>)| !tasks.is_empty())
            .collect();
        match (chains.is_empty(), phases.last_mut()) {
            (true, _) if matches!(op.kind.as_str(), "InputOperator" | "OutputOperator") => {}
            (true, _) => phases.push(Phase::Host(index)),
            (false, Some(Phase::Chains(before))) if cores == 1 => {
                before[0].1.extend(chains.into_iter().flat_map(|c| c.1))
            }
            (false, _) => phases.push(Phase::Chains(chains)),
        }
    }
    Ok(phases)
}

impl Placed {
    fn buffer(&mut self, next: &mut u32, bytes: usize) -> Result<u32, RunError> {
        let backing = Arc::new(Backing::new(bytes.max(1))?);
        let base = *next;
        // A page stays unmapped behind each buffer, so that running over its end is seen.
        *next = base.saturating_add(backing.len() as u32).saturating_add(0x1000);
        self.memory.map(base, backing)?;
        Ok(base)
    }

    fn write(&self, base: u32, bytes: &[u8], name: &str) -> Result<(), RunError> {
        self.memory.write(base, bytes).map_err(|source| RunError::Tensor { name: name.to_owned(), source })
    }

    fn base(&self, tensor: &Tensor) -> Result<u32, RunError> {
        self.bases
            .get(&tensor.id)
            .copied()
            .ok_or_else(|| RunError::Vector(format!("{} is nowhere", tensor.name)))
    }

    /// Writes NCHW elements in the tensor's layout.
    pub(crate) fn store(&self, tensor: &Tensor, values: &Values) -> Result<(), RunError> {
        let (base, layout) = (self.base(tensor)?, Layout::of(tensor)?);
        let logical = vector::encode(&tensor.dtype, values)
            .filter(|_| values.len() == tensor.shape.iter().product::<usize>())
            .ok_or_else(|| format!("{} does not take {} elements", tensor.name, values.len()))?;
        self.write(base, &layout.pack(&logical), &tensor.name)
    }

    /// Reads a tensor's elements in NCHW.
    pub(crate) fn load(&self, tensor: &Tensor) -> Result<Values, RunError> {
        let (base, layout) = (self.base(tensor)?, Layout::of(tensor)?);
        let logical = layout
            .unpack(|offset, into| self.memory.read(base.wrapping_add(offset as u32), into))
            .map_err(|source| RunError::Tensor { name: tensor.name.clone(), source })?;
        Ok(vector::decode(&tensor.dtype, &logical).ok_or_else(|| format!("dtype {}", tensor.dtype))?)
    }
}
