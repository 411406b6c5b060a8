//! Running jobs on the vendor's driver: one blocking submit a job.

use std::time::Duration;

use nix::errno::Errno;

use super::DeviceInner;
use super::link::{Kernel, lock};
use super::run::{Failure, Lease, settle};
use crate::error::{Fault, JobError};
use crate::ioctl::retry;
use crate::job::check::fuzz;
use crate::job::prepare::{Kicked, VendorJob};
use crate::job::{JobReport, Prepared, PreparedJob};
use crate::uapi::VendorKernel;

/// Bytes of a task object, and where its status lies.
const TASK: usize = size_of::<crate::uapi::vendor::rknpu_task>();
const STATUS: usize = std::mem::offset_of!(crate::uapi::vendor::rknpu_task, int_status);

pub(super) fn run(device: &DeviceInner, jobs: &[&PreparedJob]) -> Result<Vec<JobReport>, JobError> {
    // One job at a time from this process: what a job's status and a simulator's account say is then that
    // job's.
    let _turn = lock(&device.turns[0]);
    jobs.iter()
        .map(|job| {
            if let Some(fault) = device.shared.fault() {
                return Err(JobError::Faulted(fault));
            }
            let result = Lease::take(&job.0, None).and_then(|lease| {
                let result = submit(&job.0);
                if result.as_ref().is_err_and(|failure| failure.may_run) {
                    // Closed to others before the lease ends, so that nobody slips in between.
                    device.close(&job.0);
                }
                drop(lease);
                result
            });
            settle(device, job, result)
        })
        .collect()
}

fn submit(prepared: &Prepared) -> Result<JobReport, Failure> {
    let (Kernel::Vendor(kernel), Kicked::Vendor(job)) = (&prepared.link.kernel, &prepared.kicked) else {
        return Err(Failure::not_started(JobError::Malformed("it is another interface's".to_owned())));
    };
    clear_status(job)?;
    // The driver waits without heeding signals, so an interrupted call has started nothing, and starting it
    // again runs it once.
    let submitted = retry(|| {
        let mut args = job.submit;
        kernel.submit(&mut args).map(|()| args)
    });
    let args = match submitted {
        Ok(args) => args,
        // It has waited up to three times the time-out and tried a soft reset, whose success it does not
        // report.
        Err(Errno::ETIMEDOUT) => {
            let error = JobError::TimedOut { after: prepared.timeout };
            return Err(Failure { error, fault: Some(Fault::TimedOut), may_run: true });
        }
        Err(errno) => return Err(Failure::of_call(&prepared.link, "RKNPU_SUBMIT", errno)),
    };
    check_status(prepared, job, args.task_counter)?;
    Ok(report(&**kernel, prepared.tasks, args.hw_elapse_time))
}

fn report(kernel: &dyn VendorKernel, tasks_done: u32, nanoseconds: i64) -> JobReport {
    let simulated = kernel.take_simulated();
    let elapsed = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    JobReport {
        elapsed: simulated.as_ref().map_or(elapsed, |work| work.elapsed),
        tasks_done,
        simulated: simulated.map(|work| work.chains),
    }
}

/// Clears the status of each core's last task, so that one found afterwards is this run's.
fn clear_status(job: &VendorJob) -> Result<(), Failure> {
    let mut tasks = job.tasks.write(..).map_err(Failure::not_started)?;
    for &(index, _) in &job.last {
        let at = index as usize * TASK + STATUS;
        tasks[at..at + 4].fill(0);
    }
    Ok(())
}

/// Checks the counter and the statuses that the driver wrote.
///
/// It keeps one last task a job, that of the core it started last, and writes the status of the lowest core
/// there. So one status is all there is with several cores, and it must be what its own task or the lowest
/// core's last task waits for.
fn check_status(prepared: &Prepared, job: &VendorJob, counter: u32) -> Result<(), Failure> {
    let wrong = |what: String| Failure {
        error: JobError::WrongStatus { what },
        fault: Some(Fault::WrongStatus),
        may_run: true,
    };
    if counter != prepared.tasks {
        return Err(wrong(format!("{counter} of {} tasks done", prepared.tasks)));
    }
    let tasks = job.tasks.read(..).map_err(Failure::not_started)?;
    let lowest = job.last.first().map_or(0, |&(_, mask)| mask);
    let mut seen = 0;
    for &(index, mask) in &job.last {
        let at = index as usize * TASK + STATUS;
        let status = u32::from_le_bytes([tasks[at], tasks[at + 1], tasks[at + 2], tasks[at + 3]]);
        if status != 0 && fuzz(status) != mask && fuzz(status) != lowest {
            return Err(wrong(format!("status {status:#x} in task {index}, which waits for {mask:#x}")));
        }
        seen |= status;
    }
    if seen == 0 { Err(wrong("no interrupt status".to_owned())) } else { Ok(()) }
}
