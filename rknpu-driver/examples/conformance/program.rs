//! Runs one programme of a vector on a machine of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use rknpu_driver::sim::{
    Backing, BackingError, CORES, Kick, Machine, MapError, Memory, MemoryFault, Options, SimError, Stopped,
};
use thiserror::Error;

use super::host;
use super::layout::Layout;
use super::vector::{self, Op, Tensor, Values, Vector};

/// Where the first buffer lies. Streams of the vendor's compiler also touch 16 bytes at address 0 (tasks that load
/// tables leave their addresses 0), so a page is mapped there.
const FIRST: u32 = 0x10_0000;

/// The word that names the next task, with an address of 0.
const NEXT_TASK: u64 = 0x0101 << 48 | 0x0010;

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

impl RunError {
    /// Whether bytes were read that nobody wrote.
    pub(crate) fn is_unwritten(&self) -> bool {
        match self {
            Self::Tensor { source, .. } => matches!(source, MemoryFault::Unwritten { .. }),
            Self::Stopped { source, .. } => {
                matches!(source.error.root(), SimError::Memory { source: MemoryFault::Unwritten { .. }, .. })
            }
            Self::Vector(_) | Self::Backing(_) | Self::Map(_) => false,
        }
    }
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
///
/// With `fill` the arena of inputs, outputs and intermediate results holds that byte before. Without, reading there what
/// neither an input nor a task wrote ends the run.
pub(crate) fn run(
    vector: &Vector,
    cores: usize,
    test: usize,
    fill: Option<u8>,
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
                let kick = |(core, tasks): &(usize, Vec<usize>)| Ok((*core, kick(vector, &placed, tasks)?));
                let kicks = chains.iter().map(kick).collect::<Result<Vec<(usize, Kick)>, String>>()?;
                for ((core, kick), report) in kicks.iter().zip(machine.run_chains(&placed.memory, &kicks)) {
                    let report = report.map_err(|source| RunError::Stopped { core: *core, source })?;
                    let last = report.tasks.last().map_or(0, |task| task.raw_status);
                    let mask = kick.interrupt_mask;
                    if last & mask == 0 {
                        let why = format!("core {core}: the last task raised {last:#x}, not {mask:#x}");
                        return Err(why.into());
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
fn place(vector: &Vector, fill: Option<u8>) -> Result<Placed, RunError> {
    let memory = Memory::new(Options::default().unwritten);
    let scratch = Arc::new(Backing::new(1)?);
    scratch.mark_written(0..scratch.len());
    memory.map(0, scratch)?;
    let mut placed = Placed { memory, bases: BTreeMap::new(), regcmd: 0 };
    let mut next = FIRST;
    let arena = vector.tensors.iter().filter(|tensor| in_arena(tensor));
    let arena_bytes = arena.map(|tensor| tensor.offset + tensor.bytes.max(1)).max().unwrap_or(1);
    let arena = placed.buffer(&mut next, arena_bytes)?;
    if let Some(fill) = fill {
        placed.write(arena, &vec![fill; arena_bytes], "arena")?;
    }
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

/// The kick of a chain, whose tasks must be linked one to the next; the last one says what interrupt to wait for.
fn kick(vector: &Vector, placed: &Placed, tasks: &[usize]) -> Result<Kick, String> {
    let (Some(first), Some(last)) = (tasks.first(), tasks.last()) else {
        return Err("an empty chain".to_owned());
    };
    if let Some(pair) = tasks.windows(2).find(|pair| !linked(vector, pair[0], pair[1])) {
        return Err(format!(
            "task {} does not lead to task {}, which the programme has next",
            pair[0], pair[1]
        ));
    }
    let (first, last) = (vector.tasks[*first], vector.tasks[*last]);
    let regcmd = placed.regcmd + first.regcmd_byte_offset;
    Ok(Kick::new(regcmd, first.regcfg_amount, tasks.len() as u32, last.int_mask))
}

/// Whether the word behind a task's own names the other task as the next one.
fn linked(vector: &Vector, from: usize, to: usize) -> bool {
    let (from, to) = (vector.tasks[from], vector.tasks[to]);
    let words = vector.bytes("regcmd").unwrap_or_default().as_chunks::<8>().0;
    let tail = from.regcmd_byte_offset / 8 + from.regcfg_amount;
    let word = words.get(tail as usize).map(|bytes| u64::from_le_bytes(*bytes));
    word == Some(NEXT_TASK | u64::from(to.regcmd_byte_offset) << 16)
}

/// What runs between two points at which everything before has ended.
#[derive(Debug, PartialEq)]
enum Phase {
    /// Operator `ops[index]`, which the compiler left to the CPU.
    Host(usize),
    /// Chains of tasks, one a core.
    Chains(Vec<(usize, Vec<usize>)>),
}

/// The programme in its own order. One core: a chain from one host operator to the next. Several cores: operator after
/// operator, because an operator reads what the other cores' tasks of the one before it wrote. Where the programme goes on
/// to a later operator, those without tasks in between are the host's.
fn phases(vector: &Vector, cores: usize) -> Result<Vec<Phase>, RunError> {
    let mut program: Vec<&[usize]> = vector.program(cores).iter().map(Vec::as_slice).collect();
    if program.is_empty() || program.len() > CORES {
        return Err(format!("the programme for {cores} cores is none").into());
    }
    let mut phases: Vec<Phase> = Vec::new();
    let mut done = 0;
    loop {
        let heads = program.iter().filter_map(|tasks| tasks.first());
        let heads = heads.map(|task| operator(vector, *task)).collect::<Result<Vec<_>, _>>()?;
        let next = heads.into_iter().min();
        if next.is_some_and(|next| next < done) {
            return Err(format!("the programme for {cores} cores goes back to an operator").into());
        }
        let host =
            (done..next.unwrap_or(vector.ops.len())).filter(|index| !starts_or_ends(&vector.ops[*index]));
        phases.extend(host.map(Phase::Host));
        let Some(next) = next else { return Ok(phases) };
        let mut chains = Vec::new();
        for (core, tasks) in program.iter_mut().enumerate() {
            let mut of_next = 0;
            while let Some(task) = tasks.get(of_next)
                && operator(vector, *task)? == next
            {
                of_next += 1;
            }
            let (taken, rest) = tasks.split_at(of_next);
            *tasks = rest;
            if !taken.is_empty() {
                chains.push((core, taken.to_vec()));
            }
        }
        done = next + 1;
        match phases.last_mut() {
            Some(Phase::Chains(chain)) if cores == 1 => {
                chain[0].1.extend(chains.into_iter().flat_map(|chain| chain.1));
            }
            _ => phases.push(Phase::Chains(chains)),
        }
    }
}

/// Index of the operator that a task belongs to.
fn operator(vector: &Vector, task: usize) -> Result<usize, String> {
    let op = vector
        .tasks
        .get(task)
        .ok_or_else(|| format!("the programme names task {task}, which is nowhere"))?
        .op;
    let index = vector.ops.iter().position(|other| other.id == op);
    index.ok_or_else(|| format!("task {task} belongs to operator {op}, which is nowhere"))
}

/// The operators that stand for the graph's inputs and outputs and do nothing.
fn starts_or_ends(op: &Op) -> bool {
    matches!(op.kind.as_str(), "InputOperator" | "OutputOperator")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A vector of these operators (kind by id) and tasks (operator by index), with one programme.
    fn vector(ops: &[&str], tasks: &[i64], program: &[&[usize]]) -> Vector {
        let ops: Vec<_> = ops
            .iter()
            .enumerate()
            .map(|(id, kind)| serde_json::json!({"id": id, "type": kind, "inputs": [], "outputs": []}))
            .collect();
        let task = |op: &i64| serde_json::json!({"op": op, "int_mask": 0x300, "regcfg_amount": 2, "regcmd_byte_offset": 0});
        let tasks: Vec<_> = tasks.iter().map(task).collect();
        serde_json::from_value(serde_json::json!({
            "spec": {}, "inputs": [], "outputs": [], "tensors": [], "ops": ops, "tasks": tasks, "relocs": [],
            "core_programs": {program.len().to_string(): program}, "arrays": {},
        }))
        .unwrap()
    }

    #[test]
    fn a_programme_runs_in_its_own_order() {
        let ops = ["InputOperator", "Conv", "Log", "Add", "OutputOperator"];
        let chain = |tasks: &[usize]| Phase::Chains(vec![(0, tasks.to_vec())]);
        let one = vector(&ops, &[1, 1, 3], &[&[0, 1, 2]]);
        assert_eq!(phases(&one, 1).unwrap(), [chain(&[0, 1]), Phase::Host(2), chain(&[2])]);
        let joined = vector(&["Conv", "Add"], &[0, 1], &[&[0, 1]]);
        assert_eq!(phases(&joined, 1).unwrap(), [chain(&[0, 1])]);
        let two = vector(&["Conv", "Add"], &[0, 1, 1], &[&[0, 1], &[2]]);
        let chains = vec![(0, vec![1]), (1, vec![2])];
        assert_eq!(phases(&two, 2).unwrap(), [chain(&[0]), Phase::Chains(chains)]);
    }

    #[test]
    fn a_programme_that_cannot_be_is_refused() {
        let cases = [
            (vector(&["Conv"], &[7], &[&[0]]), "operator 7, which is nowhere"),
            (vector(&["Conv"], &[0], &[&[0, 1]]), "task 1, which is nowhere"),
            (vector(&["Conv", "Add"], &[1, 0], &[&[0, 1]]), "goes back to an operator"),
        ];
        for (vector, why) in cases {
            let error = phases(&vector, 1).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
