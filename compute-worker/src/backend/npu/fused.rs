//! Operations between linear layers, in fp16 on the device, where the configuration gives the numeric contract up for them.
//!
//! They have no checksum and are not the processor's bits; docs/npu-fused.md says how far off they are. What the device
//! refuses (a number beyond fp16) or fails to compute, the processor computes.

use std::time::Instant;

use rknpu_driver::device::{Device, DomainId};
use rknpu_driver::error::JobError;
use rknpu_driver::fused::{FusedError, FusedOps};
use rknpu_driver::job::JobReport;

use super::error::{is_shortage, of_access, of_allocation, of_job};
use super::{FaultKind, NpuBackend, Permit};
use crate::config::NpuFused;

/// The operations that are taken over.
#[derive(Debug)]
pub(super) struct Fused {
    ops: FusedOps,
    silu: bool,
    norm: bool,
}

impl Fused {
    /// None if nothing is to be taken over.
    pub(super) fn new(device: &Device, which: &[NpuFused]) -> Option<Self> {
        let domain = device.domains().first().map_or(DomainId(0), |domain| domain.id);
        let [silu, norm] = [NpuFused::Silu, NpuFused::Norm].map(|operation| which.contains(&operation));
        (silu || norm).then(|| Self { ops: FusedOps::new(device.clone(), domain), silu, norm })
    }
}

impl Fused {
    /// As part of a backend's name.
    pub(super) fn name(&self) -> String {
        let names = [(self.silu, "silu"), (self.norm, "norm")];
        let names: Vec<_> = names.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
        format!("+fused({})", names.join(","))
    }
}

impl NpuBackend {
    /// See [`crate::backend::Backend::rms_norm`].
    pub(super) fn fused_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> bool {
        self.fused_by(|fused| fused.norm.then(|| fused.ops.rms_norm(x, weight, eps, out)))
    }

    /// See [`crate::backend::Backend::silu_mul`].
    pub(super) fn fused_silu(&mut self, gate: &[f32], up: &[f32], columns: usize, out: &mut [f32]) -> bool {
        self.fused_by(|fused| fused.silu.then(|| fused.ops.silu_mul(gate, up, columns, out)))
    }

    fn fused_by(&mut self, run: impl FnOnce(&Fused) -> Option<Result<JobReport, FusedError>>) -> bool {
        let now = Instant::now();
        let usable = self.faults.permit(now) == Permit::Use && self.scarce.may_try(now);
        let Some(outcome) = self.fused.as_ref().filter(|_| usable).and_then(run) else { return false };
        match outcome {
            Ok(report) => {
                self.report.jobs += 1;
                self.report.tasks += u64::from(report.tasks_done);
                self.report.busy += report.elapsed;
                true
            }
            Err(error) => {
                // Numbers that the device cannot hold are the processor's to compute, and no failure.
                let Some(kind) = kind(&error) else { return false };
                if matches!(&error, FusedError::Allocate(error) if is_shortage(error)) {
                    self.short(&error);
                } else {
                    self.failed(kind, &error);
                }
                self.report.fallbacks += 1;
                false
            }
        }
    }
}

/// The kind of fault, if it is the device's and not the numbers'.
fn kind(error: &FusedError) -> Option<FaultKind> {
    match error {
        FusedError::Job(JobError::Stale(_)) => None,
        FusedError::Job(error) => Some(of_job(error)),
        FusedError::Allocate(error) => Some(of_allocation(error)),
        FusedError::Sync(error) => Some(of_access(error)),
        FusedError::Shape { .. }
        | FusedError::Length { .. }
        | FusedError::Range { .. }
        | FusedError::Domain(_)
        | FusedError::Task(_)
        | FusedError::Bind(_) => None,
    }
}
