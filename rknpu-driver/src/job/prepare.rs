//! From a job to what the kernel takes.

use std::sync::Arc;
use std::time::Duration;

use super::check::{self, TAIL_WORDS, Use};
use super::commands::Addresses;
use super::proof::Proof;
use super::{Chain, Job, Prepared};
use crate::buffer::Buffer;
use crate::device::allocate::{self, Purpose, Request};
use crate::device::link::Link;
use crate::device::{CoreMask, Domain, Interface};
use crate::error::JobError;
use crate::uapi::{rocket, vendor};

/// Interrupts that a task clears before it starts: all of them.
const ALL_INTERRUPTS: u32 = 0x1ffff;
/// The longest time-out that the vendor's driver reckons with rightly: it multiplies milliseconds by 1000 in
/// 32 bits.
const LONGEST: Duration = Duration::from_secs(3600);

/// What the kernel takes for one job.
#[derive(Debug)]
pub(crate) enum Kicked {
    Vendor(VendorJob),
    Rocket(RocketJob),
}

/// A job as the vendor's driver takes it.
#[derive(Debug)]
pub(crate) struct VendorJob {
    /// The task objects.
    pub(crate) tasks: Buffer,
    /// All fields that go in.
    pub(crate) submit: vendor::rknpu_submit,
    /// Each core's last task: its index and interrupt mask.
    pub(crate) last: Vec<(u32, u32)>,
}

/// A job as rocket takes it.
#[derive(Debug)]
pub(crate) struct RocketJob {
    pub(crate) tasks: Vec<rocket::drm_rocket_task>,
    pub(crate) in_handles: Vec<u32>,
    pub(crate) out_handles: Vec<u32>,
    pub(crate) proof: Proof,
}

/// Checks a job and builds what the kernel takes.
pub(crate) fn prepare(
    job: Job,
    domain: &Domain,
    link: &Arc<Link>,
    interface: Interface,
    iommu: bool,
) -> Result<Prepared, JobError> {
    let uses = check::uses(&job);
    // Before looking, so that whoever writes the commands from here on is noticed.
    let epoch = job.commands.0.epoch();
    let addresses = check::check(&job, &uses, domain, link, interface)?;
    let tasks = job.chains.iter().map(|chain| chain.tasks.len()).sum::<usize>();
    let tasks = u32::try_from(tasks).map_err(|_| JobError::Malformed("too many tasks".to_owned()))?;
    let kicked = match interface {
        Interface::Vendor => Kicked::Vendor(vendor_job(&job, link, tasks, iommu)?),
        Interface::Rocket => Kicked::Rocket(rocket_job(&job, &uses, &addresses)?),
    };
    let timeout = job.timeout.min(LONGEST);
    Ok(Prepared { domain: job.domain, link: link.clone(), uses, epoch, tasks, timeout, kicked })
}

fn vendor_job(job: &Job, link: &Arc<Link>, count: u32, iommu: bool) -> Result<VendorJob, JobError> {
    let mut chains: Vec<&Chain> = job.chains.iter().collect();
    chains.sort_by_key(|chain| chain.core);
    let cores = chains.iter().fold(0, |mask, chain| mask | CoreMask::of(chain.core).0);
    // With three cores the driver looks two entries further up (docs/npu.md, "Kernel interfaces").
    let first_entry = if chains.len() == 3 { 2 } else { 0 };

    let mut bytes = Vec::with_capacity(count as usize * size_of::<vendor::rknpu_task>());
    let mut submit = vendor::rknpu_submit {
        // Blocking. PINGPONG lets a task's registers be written into one bank while the other's run.
        flags: vendor::RKNPU_JOB_PC | vendor::RKNPU_JOB_PINGPONG,
        timeout: u32::try_from(job.timeout.min(LONGEST).as_millis()).unwrap_or(u32::MAX).max(1),
        task_number: count,
        iommu_domain_id: u32::from(job.domain.0),
        core_mask: u32::from(cores),
        fence_fd: -1,
        ..vendor::rknpu_submit::default()
    };
    let mut last = Vec::with_capacity(chains.len());
    let mut start = 0;
    for chain in chains {
        let number = chain.tasks.len() as u32;
        submit.subcore_task[first_entry + usize::from(chain.core.0)] =
            vendor::rknpu_subcore_task { task_start: start, task_number: number };
        for task in &chain.tasks {
            let object = vendor::rknpu_task {
                enable_mask: task.enable_mask,
                int_mask: task.interrupt_mask,
                int_clear: ALL_INTERRUPTS,
                regcfg_amount: task.words,
                regcmd_addr: u64::from(job.commands.iova()) + u64::from(task.offset),
                ..vendor::rknpu_task::default()
            };
            bytes.extend_from_slice(&task_bytes(&object));
        }
        start += number;
        // The driver checks the status of a core against its last task's mask.
        last.extend(chain.tasks.last().map(|task| (start - 1, task.interrupt_mask)));
    }
    let request = Request { domain: job.domain, bytes: bytes.len(), purpose: Purpose::Tasks, iommu };
    let tasks = allocate::allocate(link, request)?;
    submit.task_obj_addr = tasks.0.object.obj_addr;
    let mut guard = tasks.write(..)?;
    guard.copy_from_slice(&bytes);
    guard.finish()?;
    Ok(VendorJob { tasks, submit, last })
}

/// A task object as it lies in memory.
fn task_bytes(task: &vendor::rknpu_task) -> [u8; 40] {
    let mut bytes = [0; 40];
    let fields = [
        task.flags,
        task.op_idx,
        task.enable_mask,
        task.int_mask,
        task.int_clear,
        task.int_status,
        task.regcfg_amount,
        task.regcfg_offset,
    ];
    for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    bytes[32..].copy_from_slice(&task.regcmd_addr.to_le_bytes());
    bytes
}

fn rocket_job(job: &Job, uses: &[Use], addresses: &[Vec<Addresses>]) -> Result<RocketJob, JobError> {
    let base = job.commands.iova();
    // Rocket counts a task's words with the tail, the vendor's driver without.
    let tasks = job.chains.iter().flat_map(|chain| &chain.tasks).map(|task| rocket::drm_rocket_task {
        regcmd: base + task.offset,
        regcmd_count: task.words + TAIL_WORDS,
    });
    let handles =
        |write: bool| uses.iter().filter(move |it| it.write == write).map(|it| it.inner.object.handle);
    Ok(RocketJob {
        tasks: tasks.collect(),
        in_handles: handles(false).collect(),
        out_handles: handles(true).collect(),
        proof: Proof::choose(uses, addresses)?,
    })
}
