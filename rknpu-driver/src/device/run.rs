//! Running jobs.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::link::{Link, is_gone};
use super::{DeviceInner, Interface, run_rocket, run_vendor};
use crate::buffer::Inner;
use crate::error::{Fault, JobError, SyncError};
use crate::job::check::Use;
use crate::job::proof::Mark;
use crate::job::{JobReport, Prepared, PreparedJob};

/// Why a job failed, and what follows from it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: JobError,
    /// The device is set aside for this reason.
    pub(super) fault: Option<Fault>,
    /// The hardware may still be at work in the job's memory.
    pub(super) may_run: bool,
}

impl Failure {
    /// The job was not started: nothing follows.
    pub(super) fn not_started(error: impl Into<JobError>) -> Self {
        Self { error: error.into(), fault: None, may_run: false }
    }

    /// The kernel refused to start the job or to wait for it. Whether it runs is told by the errno alone.
    pub(super) fn of_call(link: &Link, call: &'static str, errno: Errno) -> Self {
        let source = link.note(errno);
        if is_gone(source) {
            // DRM asks whether the device is there before it looks at the call.
            return Self { error: JobError::Gone, fault: Some(Fault::Gone), may_run: false };
        }
        let error = JobError::Call { call, source };
        if matches!(source, Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM | Errno::EBUSY) {
            return Self::not_started(error);
        }
        Self { error, fault: Some(Fault::Call(source)), may_run: true }
    }
}

/// A job's hold of its buffers.
#[derive(Debug)]
pub(super) struct Lease<'a>(Vec<&'a Use>);

impl<'a> Lease<'a> {
    /// Takes all buffers of a job, or none, and leaves the mark in its buffer. Everyone takes them in the order
    /// of their addresses in memory, so no two wait for each other.
    pub(super) fn take(prepared: &'a Prepared, mark: Option<&Mark<'_>>) -> Result<Self, Failure> {
        let mut uses: Vec<&Use> = prepared.uses.iter().collect();
        uses.sort_by_key(|it| ptr::from_ref::<Inner>(&it.inner).addr());
        let mut lease = Lease(Vec::with_capacity(uses.len()));
        for it in uses {
            let mark = mark.and_then(|mark| mark.place(&it.inner));
            it.inner.enter_job(it.write, mark).map_err(|error| Failure::not_started(refusal(error, it)))?;
            lease.0.push(it);
        }
        // Nobody writes the commands from here on.
        match prepared.uses.first() {
            Some(commands) if commands.inner.epoch() != prepared.epoch => {
                Err(Failure::not_started(JobError::CommandsChanged))
            }
            _ => Ok(lease),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        for it in &self.0 {
            it.inner.leave_job(it.write);
        }
    }
}

fn refusal(error: SyncError, it: &Use) -> JobError {
    // Sealed after the job was prepared.
    if error == SyncError::Sealed { JobError::Sealed { iova: it.inner.iova } } else { error.into() }
}

/// Runs jobs in order, and jobs of different rocket domains at the same time.
pub(super) fn run(device: &DeviceInner, jobs: &[&PreparedJob]) -> Result<Vec<JobReport>, JobError> {
    match device.shared.fault() {
        Some(Fault::Gone) => return Err(JobError::Gone),
        Some(fault) => return Err(JobError::Faulted(fault)),
        None => {}
    }
    for job in jobs {
        check_owner(device, &job.0)?;
    }
    match device.info.interface {
        Interface::Vendor => run_vendor::run(device, jobs),
        Interface::Rocket => run_rocket::run(device, jobs),
    }
}

fn check_owner(device: &DeviceInner, job: &Prepared) -> Result<(), JobError> {
    let link = device.link(job.domain).ok_or(JobError::Domain(job.domain))?;
    if Arc::ptr_eq(&link, &job.link) {
        return Ok(());
    }
    if job.link.is_retired() {
        return Err(JobError::Stale(job.domain));
    }
    Err(JobError::Malformed("it was prepared by another device".to_owned()))
}

/// Counts how a job went and draws the consequences: a fault, and the memory kept.
pub(super) fn settle(
    device: &DeviceInner,
    job: &PreparedJob,
    result: Result<JobReport, Failure>,
) -> Result<JobReport, JobError> {
    let Failure { error, fault, may_run } = match result {
        Ok(report) => {
            device.shared.jobs_done.fetch_add(1, Ordering::Relaxed);
            return Ok(report);
        }
        Err(failure) => failure,
    };
    device.shared.jobs_failed.fetch_add(1, Ordering::Relaxed);
    if may_run {
        device.quarantine(job.0.clone());
    }
    if let Some(fault) = fault {
        device.shared.set_fault(fault);
    }
    Err(error)
}
