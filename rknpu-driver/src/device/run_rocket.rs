//! Running jobs on rocket: queued on one descriptor a domain, then waited for.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::link::{Kernel, lock};
use super::run::{Failure, Lease, settle};
use super::{DeviceInner, SIMULATED_PATIENCE};
use crate::error::{Fault, JobError};
use crate::ioctl::retry;
use crate::job::prepare::Kicked;
use crate::job::proof::Mark;
use crate::job::{JobReport, Prepared, PreparedJob};
use crate::uapi::rocket::JOB_TIMEOUT_MS;

/// What a wait gets beyond a job's own time: the kernel's own time-out, its reset, and jobs of other
/// processes before this one.
const GRACE: Duration = Duration::from_secs(3);

/// Runs the jobs in rounds: the first of each domain at once, then the second of each, and so on. Within a
/// domain nothing is queued behind a running job, so that each job's time and a simulator's account are its
/// own; that costs a wake-up a job.
pub(super) fn run(device: &DeviceInner, jobs: &[&PreparedJob]) -> Result<Vec<JobReport>, JobError> {
    let mut domains: Vec<u8> = jobs.iter().map(|job| job.0.domain.0).collect();
    domains.sort_unstable();
    domains.dedup();
    // Everyone takes the turns in the same order. One turn a domain: other threads may use the others
    // meanwhile.
    let _turns: Vec<_> = domains.iter().map(|&domain| lock(&device.turns[usize::from(domain)])).collect();
    let mut reports: Vec<Option<JobReport>> = vec![None; jobs.len()];
    let mut left: Vec<usize> = (0..jobs.len()).collect();
    while !left.is_empty() {
        if let Some(fault) = device.shared.fault() {
            return Err(JobError::Faulted(fault));
        }
        let mut round: Vec<usize> = Vec::with_capacity(domains.len());
        left.retain(|&index| {
            let later = round.iter().any(|&taken: &usize| jobs[taken].0.domain == jobs[index].0.domain);
            if !later {
                round.push(index);
            }
            later
        });
        run_round(device, jobs, &round, &mut reports)?;
    }
    // Every job was in a round, and every round succeeded.
    Ok(reports.into_iter().map(Option::unwrap_or_default).collect())
}

/// Starts all jobs of a round, then waits for all that were started, whatever became of the others.
fn run_round(
    device: &DeviceInner,
    jobs: &[&PreparedJob],
    round: &[usize],
    reports: &mut [Option<JobReport>],
) -> Result<(), JobError> {
    let started: Vec<_> = round.iter().map(|&index| (index, Running::start(&jobs[index].0))).collect();
    let mut failed = None;
    for (index, running) in started {
        let result = running.and_then(|running| running.finish(device));
        match settle(device, jobs[index], result) {
            Ok(report) => reports[index] = Some(report),
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A job that was queued.
struct Running<'a> {
    prepared: &'a Prepared,
    lease: Lease<'a>,
    mark: Mark<'a>,
    started: Instant,
}

impl<'a> Running<'a> {
    fn start(prepared: &'a Prepared) -> Result<Self, Failure> {
        let (Kernel::Rocket(kernel), Kicked::Rocket(job)) = (&prepared.link.kernel, &prepared.kicked) else {
            return Err(Failure::not_started(JobError::Malformed("it is another interface's".to_owned())));
        };
        let mark = job.proof.mark();
        let lease = Lease::take(prepared, Some(&mark))?;
        let started = Instant::now();
        retry(|| kernel.submit(&job.tasks, &job.in_handles, &job.out_handles)).map_err(|errno| {
            // The call is all or nothing: an error of it, unlike an error in it, queued no job.
            let failure = Failure::of_call(&prepared.link, "DRM_IOCTL_ROCKET_SUBMIT", errno);
            Failure { may_run: false, ..failure }
        })?;
        Ok(Self { prepared, lease, mark, started })
    }

    fn finish(self, device: &DeviceInner) -> Result<JobReport, Failure> {
        let Self { prepared, lease, mark, started } = self;
        let waited = wait(prepared, device.info.simulated);
        if waited.as_ref().is_err_and(|failure| failure.may_run) {
            // Closed to others before the lease ends, so that nobody slips in between.
            device.close(prepared);
        }
        let measured = started.elapsed();
        drop(lease);
        waited?;
        let simulated = prepared.link.kernel.take_simulated();
        let elapsed = simulated.as_ref().map(|work| work.elapsed);
        // The kernel ends a job after its own time-out and lets waiters go as if it had run. A simulator that
        // gives no account of its time (behind a preloaded library) computes for as long as it takes, so
        // there only the mark tells.
        let device_time = elapsed.or((!device.info.simulated).then_some(measured)).unwrap_or_default();
        if device_time >= Duration::from_millis(JOB_TIMEOUT_MS) {
            let error = JobError::TimedOut { after: device_time };
            return Err(Failure { error, fault: Some(Fault::TimedOut), may_run: false });
        }
        if !mark.was_written().map_err(Failure::not_started)? {
            let error = JobError::WrongStatus { what: "no output of its last task".to_owned() };
            return Err(Failure { error, fault: Some(Fault::WrongStatus), may_run: false });
        }
        Ok(JobReport {
            elapsed: elapsed.unwrap_or(measured),
            tasks_done: prepared.tasks,
            simulated: simulated.map(|work| work.chains),
        })
    }
}

/// Waits until the kernel says the job is over, which holds for every buffer that it writes at once.
fn wait(prepared: &Prepared, simulated: bool) -> Result<(), Failure> {
    let Some(written) = prepared.uses.iter().find(|it| it.write) else {
        return Err(Failure::not_started(JobError::Malformed("it writes no buffer".to_owned())));
    };
    let own = prepared.timeout.max(Duration::from_millis(JOB_TIMEOUT_MS)) + GRACE;
    // A simulator's work takes longer than the device's would.
    let limit = if simulated { own.max(SIMULATED_PATIENCE) } else { own };
    match written.inner.object.prep(limit) {
        Ok(()) => Ok(()),
        Err(Errno::ETIMEDOUT | Errno::EBUSY) => {
            let error = JobError::TimedOut { after: limit };
            Err(Failure { error, fault: Some(Fault::TimedOut), may_run: true })
        }
        Err(errno) => {
            let failure = Failure::of_call(&prepared.link, "DRM_IOCTL_ROCKET_PREP_BO", errno);
            // The job was queued: until a wait succeeds it may run.
            let fault = failure.fault.or(Some(Fault::Call(errno)));
            Err(Failure { fault, may_run: true, ..failure })
        }
    }
}
