//! What a job must be for the kernel and the hardware to run it as meant.

use std::collections::HashSet;
use std::ptr;
use std::sync::Arc;

use super::commands::{self, Addresses, Written};
use super::{Job, JobBuffer, Task};
use crate::buffer::Inner;
use crate::device::link::Link;
use crate::device::{CoreMask, Domain, Interface};
use crate::error::JobError;

/// Bytes of a register command.
const WORD: u64 = 8;
/// Words of the tail that follows a task's commands.
pub(crate) const TAIL_WORDS: u32 = 4;
/// Words that one fetch of the program counter's amount field can count: the field has 16 bits and counts
/// pairs.
const MOST_WORDS: u32 = 2 * (1 << 16) - TAIL_WORDS;
/// Interrupt bits of the two DPU groups.
pub(crate) const DPU_INTERRUPTS: u32 = 0x300;
/// Sets of cores that the vendor's driver starts; it takes others, commits nothing and lets the caller time
/// out.
const VENDOR_CORE_SETS: [u8; 5] = [0b001, 0b010, 0b100, 0b011, 0b111];

/// A buffer in a job, and whether the job writes it.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) inner: Arc<Inner>,
    pub(crate) write: bool,
}

/// All buffers of a job: the commands first, then those that are read, then those that are written.
pub(crate) fn uses(job: &Job) -> Vec<Use> {
    let reads = job.reads.iter().map(|buffer| match buffer {
        JobBuffer::Buffer(buffer) => &buffer.0,
        JobBuffer::Sealed(buffer) => &buffer.0,
    });
    let read = [&job.commands.0].into_iter().chain(reads).map(|inner| (inner, false));
    let written = job.writes.iter().map(|buffer| (&buffer.0, true));
    read.chain(written).map(|(inner, write)| Use { inner: inner.clone(), write }).collect()
}

/// Checks everything that needs no kernel call. Gives the addresses of each chain's tasks, `[chain][task]`.
pub(crate) fn check(
    job: &Job,
    uses: &[Use],
    domain: &Domain,
    link: &Arc<Link>,
    interface: Interface,
) -> Result<Vec<Vec<Addresses>>, JobError> {
    check_cores(job, domain, interface)?;
    check_buffers(job, uses, link)?;
    if job.timeout.is_zero() {
        return Err(JobError::Malformed("its time-out is zero".to_owned()));
    }
    let words = job.commands.read(..)?;
    let mut chains = Vec::with_capacity(job.chains.len());
    for chain in &job.chains {
        let mut addresses = Vec::with_capacity(chain.tasks.len());
        for (index, task) in chain.tasks.iter().enumerate() {
            check_task(index, task, words.len() as u64, interface)?;
            let start = task.offset as usize;
            // With the tail: the program counter fetches its words as it does the others.
            let end = start + (task.words + TAIL_WORDS) as usize * WORD as usize;
            let found = commands::addresses(&words[start..end]);
            check_outputs(index, &found, uses)?;
            addresses.push(found);
        }
        chains.push(addresses);
    }
    Ok(chains)
}

fn check_cores(job: &Job, domain: &Domain, interface: Interface) -> Result<(), JobError> {
    let mut cores = 0;
    for chain in &job.chains {
        let core = CoreMask::of(chain.core);
        if !domain.cores.contains(chain.core) {
            return Err(JobError::Core(chain.core));
        }
        if cores & core.0 != 0 {
            return Err(JobError::Malformed(format!("{} has two chains", chain.core)));
        }
        if chain.tasks.is_empty() {
            return Err(JobError::Malformed(format!("the chain of {} has no task", chain.core)));
        }
        cores |= core.0;
    }
    if cores == 0 {
        return Err(JobError::Malformed("it has no chain".to_owned()));
    }
    if interface == Interface::Vendor && !VENDOR_CORE_SETS.contains(&cores) {
        return Err(JobError::CoreSet(cores));
    }
    Ok(())
}

fn check_buffers(job: &Job, uses: &[Use], link: &Arc<Link>) -> Result<(), JobError> {
    let mut seen = HashSet::with_capacity(uses.len());
    for Use { inner, write } in uses {
        if inner.domain != job.domain {
            return Err(JobError::ForeignBuffer { buffer: inner.domain, job: job.domain });
        }
        if inner.object.link.is_retired() {
            return Err(JobError::Stale(inner.domain));
        }
        if !Arc::ptr_eq(&inner.object.link, link) {
            return Err(JobError::Malformed("a buffer belongs to another device".to_owned()));
        }
        // Rocket accepts a handle in both lists, runs nothing and reports success.
        if !seen.insert(ptr::from_ref::<Inner>(inner)) {
            return Err(JobError::ListedTwice { iova: inner.iova });
        }
        if *write && inner.is_sealed() {
            return Err(JobError::Sealed { iova: inner.iova });
        }
    }
    // Rocket attaches a job's fence to what it writes alone: without a written buffer nothing could be waited
    // for.
    if job.writes.is_empty() {
        return Err(JobError::Malformed("it writes no buffer".to_owned()));
    }
    Ok(())
}

fn check_task(index: usize, task: &Task, bytes: u64, interface: Interface) -> Result<(), JobError> {
    let malformed = |what: String| Err(JobError::Malformed(format!("task {index} {what}")));
    if task.words == 0 || task.words > MOST_WORDS {
        return malformed(format!("has {} words, possible are 1 to {MOST_WORDS}", task.words));
    }
    // The program counter fetches pairs of words.
    if !task.offset.is_multiple_of(16) {
        return malformed(format!("starts at byte {}, not a multiple of 16", task.offset));
    }
    let end = u64::from(task.offset) + u64::from(task.words + TAIL_WORDS) * WORD;
    if end > bytes {
        return malformed(format!("ends at byte {end} of {bytes} bytes of commands"));
    }
    // Rocket waits for the DPU alone: a task that ends elsewhere would run into the kernel's time-out.
    if interface == Interface::Rocket && task.interrupt_mask != DPU_INTERRUPTS {
        return Err(JobError::InterruptMask { task: index, mask: task.interrupt_mask });
    }
    // The vendor's driver compares its mask with the status after setting both bits of each pair: a mask with
    // half a pair is never met. It looks at a core's last task, and at the last of each 4,095 that it hands
    // to the hardware at once: with many tasks that may be any of them, so all are checked.
    if task.interrupt_mask == 0 || fuzz(task.interrupt_mask) != task.interrupt_mask {
        return malformed(format!(
            "waits for interrupts {:#x}, not whole pairs of bits",
            task.interrupt_mask
        ));
    }
    Ok(())
}

/// Every task must say where it writes (it would write where an earlier one did), and every such cube must lie
/// in a buffer that the job lists as written, as far as the task's own commands tell its size. Address 0
/// stands for none (a task that only loads tables).
///
/// This catches mistakes; it does not prove that a job keeps to its buffers, which whoever prepares it
/// promises: registers keep values of earlier tasks, and tails lead where they say.
fn check_outputs(index: usize, found: &Addresses, uses: &[Use]) -> Result<(), JobError> {
    if found.written.is_empty() {
        return Err(JobError::Malformed(format!("task {index} does not say where it writes")));
    }
    for &Written { address, bytes } in found.written.iter().filter(|written| written.address != 0) {
        let Some(target) = find(uses, address).filter(|target| target.write) else {
            let what =
                format!("task {index} writes to {address:#x}, which is in no buffer listed as written");
            return Err(JobError::Malformed(what));
        };
        if u64::from(address - target.inner.iova) + bytes > target.inner.len as u64 {
            let what = format!("task {index} writes {bytes} bytes to {address:#x}, beyond its buffer's end");
            return Err(JobError::Malformed(what));
        }
    }
    Ok(())
}

/// The buffer that an address lies in.
pub(crate) fn find(uses: &[Use], address: u32) -> Option<&Use> {
    uses.iter().find(|it| address.checked_sub(it.inner.iova).is_some_and(|at| (at as usize) < it.inner.len))
}

/// The status as the vendor's driver compares it: both bits of a pair where either is set, of the twelve bits
/// it knows.
pub(crate) fn fuzz(status: u32) -> u32 {
    let either = (status | status >> 1) & 0x555;
    either | either << 1
}
