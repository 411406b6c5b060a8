//! Jobs of the vendor's driver: from `RKNPU_SUBMIT` to the interrupt.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::errno::Errno;

use super::engine::{CoreWork, JobResult};
use super::objects::{Object, lock};
use super::vendor::{VendorFile, VendorNode};
use crate::sim::faults::JobFaults;
use crate::sim::{CORES, Kick};
use crate::uapi::vendor::*;

/// Bytes of a task's struct, and where its `int_status` lies.
const TASK_BYTES: usize = size_of::<rknpu_task>();
const INT_STATUS: usize = std::mem::offset_of!(rknpu_task, int_status);
/// Interrupts come in pairs, one bit for each of a block's two groups of registers.
const STATUS_PAIRS: [u32; 6] = [0x3, 0xc, 0x30, 0xc0, 0x300, 0xc00];
/// The driver sets a core's number here in S_POINTER of CNA and CORE.
const POINTERS: u32 = 0xe;
const CORE_SHIFT: u32 = 28;

/// What a job may take on the device that nobody waits for: its own time-out counts from the next such job on, which may come late or never.
const UNWATCHED: Duration = Duration::from_secs(6);

/// A job as it is queued.
struct Queued {
    args: rknpu_submit,
    tasks: Arc<Object>,
    faults: JobFaults,
}

impl VendorFile {
    pub(super) fn submit_job(&self, args: &mut rknpu_submit) -> Result<(), Errno> {
        self.check()?;
        if args.task_number == 0 || args.core_mask > (1 << CORES) - 1 {
            return Err(Errno::EINVAL);
        }
        // The object is looked at before the job's kind; a null one fails at the commit, which is `EINVAL` too.
        let tasks = if args.task_obj_addr == 0 { None } else { Some(self.node.object(args.task_obj_addr)?) };
        // As a kernel built without fences, which is the default.
        if args.flags & (RKNPU_JOB_FENCE_IN | RKNPU_JOB_FENCE_OUT) != 0 || args.flags & RKNPU_JOB_PC == 0 {
            return Err(Errno::EINVAL);
        }
        let tasks = tasks.ok_or(Errno::EINVAL)?;
        let faults = self.node.engine.faults.job();
        if let Some(absence) = faults.gone {
            self.node.presence.leave(absence);
            return Err(Errno::ENODEV);
        }
        if args.core_mask == 0 {
            args.core_mask = 1 << self.node.cores.least_loaded();
        }
        let job = Queued { args: *args, tasks, faults };
        if args.flags & RKNPU_JOB_NONBLOCK != 0 {
            return self.node.submit_and_leave(job);
        }
        let node = &self.node;
        node.store.books.jobs.fetch_add(1, Relaxed);
        let ran = node.run(&job);
        node.store.books.jobs.fetch_sub(1, Relaxed);
        let (cores, result) = ran?;
        lock(&self.log).add(&cores, &result);
        self.finish(args, &job, &cores, &result)
    }

    /// What the waiting program gets to see.
    fn finish(
        &self,
        args: &mut rknpu_submit,
        job: &Queued,
        cores: &[usize],
        result: &JobResult,
    ) -> Result<(), Errno> {
        // The driver waits on, and reports the status of, the lowest core; the last task it remembers is that of the core it committed last.
        let (first, last) = (&result.cores[0], cores.last().copied().unwrap_or(0));
        job.write_status(last, cores.len(), first.status);
        let timeout = job.time_out();
        if !result.done() || result.elapsed > timeout {
            args.task_counter = first.counter;
            if self.node.engine.real_time_outs {
                std::thread::sleep(timeout);
            }
            self.node.soft_reset();
            return Err(Errno::ETIMEDOUT);
        }
        args.task_counter = args.task_number;
        args.hw_elapse_time = i64::try_from(result.elapsed.as_nanos()).unwrap_or(i64::MAX);
        Ok(())
    }
}

impl VendorNode {
    /// `RKNPU_ACT_RESET`, and what a time-out ends in: all cores, whoever's job they are in. Memory stays.
    pub(super) fn soft_reset(&self) {
        self.cores.reset();
        for core in 0..CORES {
            self.engine.machine.reset(core);
        }
    }

    /// A submit that does not wait. Nothing tells how it ends; a job that hangs keeps its cores until the next such submit to them, or a
    /// reset.
    fn submit_and_leave(self: &Arc<Self>, job: Queued) -> Result<(), Errno> {
        if self.cores.any_hung(job.args.core_mask) {
            self.soft_reset();
        }
        let node = Arc::clone(self);
        node.store.books.jobs.fetch_add(1, Relaxed);
        let run = move || {
            if let Ok((cores, result)) = node.run(&job) {
                let last = cores.last().copied().unwrap_or(0);
                job.write_status(last, cores.len(), result.cores[0].status);
            }
            drop(job);
            node.store.books.jobs.fetch_sub(1, Relaxed);
        };
        let spawned = std::thread::Builder::new().name("rknpu-sim-job".into()).spawn(run);
        spawned.map(drop).map_err(|_| {
            self.store.books.jobs.fetch_sub(1, Relaxed);
            Errno::ENOMEM
        })
    }

    /// Waits for domain and cores, and runs the job. Gives the numbers of its cores in the order of the result's.
    fn run(&self, job: &Queued) -> Result<(Vec<usize>, JobResult), Errno> {
        let mask = job.args.core_mask;
        // A mask the driver does not know is queued and never committed: its waits pass.
        let cores: Vec<usize> = match mask {
            1 | 2 | 4 | 3 | 7 => (0..CORES).filter(|core| mask >> core & 1 == 1).collect(),
            _ => return Err(Errno::EINVAL),
        };
        let domain = self.domains.enter(job.args.iommu_domain_id)?;
        let work: Result<Vec<_>, _> = cores.iter().map(|core| job.core_work(*core, cores.len())).collect();
        let work = work?;
        let taken = self.cores.take(mask)?;
        let memory = &domain.space().memory;
        let result = self.engine.run(memory, &work, job.faults, ends_chain, job.time_out());
        let left_hanging = !result.done() && job.args.flags & RKNPU_JOB_NONBLOCK != 0;
        let undisturbed = self.cores.release(taken, left_hanging);
        // A job that a reset ended is neither done nor timed out.
        if undisturbed { Ok((cores, result)) } else { Err(Errno::EINVAL) }
    }
}

impl Queued {
    fn time_out(&self) -> Duration {
        let own = Duration::from_millis(u64::from(self.args.timeout));
        if self.args.flags & RKNPU_JOB_NONBLOCK != 0 { own.max(UNWATCHED) } else { own }
    }

    /// The range of tasks that a core works on: the driver does not look at the job's own range.
    fn range(&self, core: usize, cores: usize) -> rknpu_subcore_task {
        let index = if cores == CORES { core + 2 } else { core };
        self.args.subcore_task[index]
    }

    /// A core's chains of at most 4095 tasks, each kicked when the one before has interrupted.
    fn core_work(&self, core: usize, cores: usize) -> Result<CoreWork, Errno> {
        let range = self.range(core, cores);
        let end = range.task_start.checked_add(range.task_number).ok_or(Errno::EFAULT)?;
        let ping_pong = u32::from(self.args.flags & RKNPU_JOB_PINGPONG != 0);
        let mut kicks = Vec::new();
        let mut start = range.task_start;
        while start < end {
            let tasks = (end - start).min(RKNPU_MAX_SUBMIT_NUMBER);
            let (first, last) = (self.task(start)?, self.task(start + tasks - 1)?);
            kicks.push(Kick {
                base_address: first.regcmd_addr as u32,
                task_con: (0x6 | ping_pong) << 12 | tasks,
                dma_base: self.args.task_base_addr as u32,
                pointers: POINTERS | (core as u32) << CORE_SHIFT,
                ..Kick::new(0, first.regcfg_amount, tasks, last.int_mask)
            });
            start += tasks;
        }
        Ok(CoreWork { core, kicks })
    }

    /// A task as the driver reads it, through its own mapping of the object: without one, or past the end, it would follow a wild pointer.
    fn task(&self, index: u32) -> Result<rknpu_task, Errno> {
        let at = index as usize * TASK_BYTES;
        if self.tasks.flags & RKNPU_MEM_KERNEL_MAPPING == 0 || at + TASK_BYTES > self.tasks.backing.len() {
            return Err(Errno::EFAULT);
        }
        let mut bytes = [0; TASK_BYTES];
        self.tasks.backing.copy_out(at, &mut bytes);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok(rknpu_task {
            flags: word(0),
            op_idx: word(4),
            enable_mask: word(8),
            int_mask: word(12),
            int_clear: word(16),
            int_status: word(INT_STATUS),
            regcfg_amount: word(24),
            regcfg_offset: word(28),
            regcmd_addr: u64::from(word(32)) | u64::from(word(36)) << 32,
        })
    }

    fn write_status(&self, core: usize, cores: usize, status: u32) {
        let range = self.range(core, cores);
        let last = (range.task_start + range.task_number).saturating_sub(1) as usize;
        if range.task_number > 0 && (last + 1) * TASK_BYTES <= self.tasks.backing.len() {
            self.tasks.backing.copy_in(last * TASK_BYTES + INT_STATUS, &status.to_le_bytes());
        }
    }
}

/// The driver widens a status to whole pairs and takes nothing but exactly the mask for the end.
fn ends_chain(status: u32, mask: u32) -> bool {
    let widened = STATUS_PAIRS.iter().filter(|pair| status & **pair != 0).fold(0, |all, pair| all | pair);
    widened == mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_widened_to_pairs() {
        assert!(ends_chain(0x100, 0x300));
        assert!(ends_chain(0x300, 0x300));
        assert!(ends_chain(0x400, 0xc00));
        assert!(!ends_chain(0x100, 0x100));
        assert!(!ends_chain(0x500, 0x300));
        assert!(!ends_chain(0, 0x300));
        assert!(!ends_chain(0x1000, 0x300));
    }
}
