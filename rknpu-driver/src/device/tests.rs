//! Devices over small kernels that count calls and fail when told to.

pub(crate) mod fake;
mod rocket;
mod vendor;

use std::time::Duration;

use super::*;
use crate::job::{Chain, Task};

/// Words of a task of [`commands`].
const WORDS: u32 = 4;

/// Commands of tasks that write one atom each: a feature address, a destination, two words without meaning,
/// and a tail.
pub(crate) fn commands(tasks: &[(u32, u32)]) -> Vec<u8> {
    let word = |target: u64, register: u64, value: u32| target << 48 | u64::from(value) << 16 | register;
    let words = tasks.iter().flat_map(|&(read, written)| {
        let body = [word(0x0201, 0x1070, read), word(0x1001, 0x4020, written), 0, 0];
        body.into_iter().chain([0; 4])
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// A job of `per_core.len()` chains whose tasks read `input` and write one atom of `output` each, one after
/// the other.
pub(crate) fn job(
    device: &Device,
    domain: DomainId,
    cores: &[(u8, usize)],
    input: Buffer,
    output: Buffer,
) -> Job {
    let count: usize = cores.iter().map(|&(_, tasks)| tasks).sum();
    let places: Vec<_> = (0..count as u32).map(|task| (input.iova(), output.iova() + 16 * task)).collect();
    let bytes = commands(&places);
    let commands = device.allocate(domain, bytes.len(), BufferKind::Commands).unwrap();
    commands.write(..).unwrap().copy_from_slice(&bytes);
    let mut next = 0;
    let chains = cores.iter().map(|&(core, tasks)| {
        let tasks = (0..tasks).map(|_| {
            let offset = next;
            next += (WORDS + 4) * 8;
            Task { offset, words: WORDS, enable_mask: 0xd, interrupt_mask: 0x300 }
        });
        Chain { core: CoreId(core), tasks: tasks.collect() }
    });
    let chains = chains.collect();
    let (reads, writes) = (vec![input.into()], vec![output]);
    Job { domain, commands, chains, reads, writes, timeout: Duration::from_millis(200) }
}

/// Input and output of 256 bytes, and a job of the given chains over them.
pub(crate) fn simple(device: &Device, domain: DomainId, cores: &[(u8, usize)]) -> (Buffer, Job) {
    let input = device.allocate(domain, 256, BufferKind::Data).unwrap();
    let output = device.allocate(domain, 256, BufferKind::Data).unwrap();
    let job = job(device, domain, cores, input, output.clone());
    (output, job)
}

/// [`Device::prepare`] for jobs over the fakes.
pub(crate) fn prepare(device: &Device, job: Job) -> Result<PreparedJob, JobError> {
    #[expect(unsafe_code, reason = "the fakes write nothing but one atom a destination")]
    // SAFETY: a fake runs nothing but the destinations among a task's words, an atom each, and tests put those
    // into a buffer that the job writes, or expect the job to be refused.
    unsafe {
        device.prepare(job)
    }
}

/// The atom that task `task` of the fakes writes.
pub(crate) fn expected(task: usize) -> [u8; 16] {
    [0xa0 | task as u8; 16]
}
