//! Linear layers on the RK3588's NPU: through the vendor's driver, mainline's, or the simulator of either.
//!
//! ```text
//! adopt:   tiles ──copied once──► sealed buffers of the NPU, which the kernels read too         (store)
//! linear:  policy ─► pieces ─► pack activations ─► jobs on the device │ rest on the pool         (call, jobs)
//!          ─► accumulators ─► checksum ─► outputs, with the bits of the kernels' own `linear`
//!          any fault ─► the same call on the processor; reset, set aside, try again              (faults)
//! ```
//!
//! # Invariants
//! - A result reaches the outputs for good only after its checksum held (unless `check-results` is off): what the device
//!   computes wrongly is computed again, within the same call.
//! - Whatever the device does, [`NpuBackend::linear`] succeeds, in bounded time: jobs, accesses and resets are bounded by
//!   the driver, resets in number by [`FaultState`].
//! - Weights live once: in the device's buffers, which stay readable by the processor even when the device is gone.

mod call;
mod compute;
mod error;
mod faults;
mod fused;
mod jobs;
mod open;
mod policy;
mod report;
mod self_check;
mod settings;
mod store;
mod waiter;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rknpu_driver::device::{Device, Interface, Recovery};
use rknpu_driver::plan::PlanOptions;
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};

pub use error::NpuError;
pub use faults::{FaultKind, FaultLimits, FaultState, Permit};
pub use open::{open, simulated};
pub use policy::{CostModel, Decision, Form, Product, Way};
pub use report::StepReport;
pub use settings::{BoardSettings, NpuSettings};

use self::call::Division;
use self::jobs::Jobs;
use self::store::Store;
use self::waiter::Waiter;
use super::{Backend, BackendError};
use crate::model::weights::ModelWeights;

/// The NPU as a backend, with the processor's kernels beside it.
pub struct NpuBackend {
    device: Device,
    kernels: &'static Kernels,
    check_results: bool,
    cost: CostModel,
    faults: FaultState,
    store: Store,
    /// There was no memory for any of the weights: worth another try.
    refused: bool,
    jobs: Jobs,
    /// Started when the first call is shared by both.
    waiter: Option<Waiter>,
    /// Checksums of pieces, by address of their tiles and number of channels.
    checksums: HashMap<(usize, usize), Arc<[u32]>>,
    fused: Option<fused::Fused>,
    report: StepReport,
    scratch: HostScratch,
}

/// Memory of the host that calls reuse.
#[derive(Default)]
struct HostScratch {
    /// Rows of activations, padded to as many as a plan has.
    rows: Vec<i8>,
    /// Accumulators of one piece, row-major.
    accumulators: Vec<i32>,
}

impl NpuBackend {
    /// A backend on `device`, whose processor part computes with `kernels`.
    pub fn new(device: Device, kernels: &'static Kernels, settings: &NpuSettings) -> Self {
        let cost = open::cost_model(&device, settings);
        let options =
            PlanOptions { cores: settings.cores.into(), board: *cost.board(), ..PlanOptions::default() };
        Self {
            kernels,
            check_results: settings.check_results,
            cost,
            faults: FaultState::new(settings.faults),
            store: Store::default(),
            refused: false,
            jobs: Jobs::new(device.clone(), options, settings.job_timeout, settings.max_plans),
            waiter: None,
            checksums: HashMap::new(),
            fused: fused::Fused::new(&device, &settings.fused),
            report: StepReport::default(),
            scratch: HostScratch::default(),
            device,
        }
    }

    /// Whether the device may be used now. Resets it where that is due.
    fn permitted(&mut self) -> bool {
        let now = Instant::now();
        match self.faults.permit(now) {
            Permit::Use => !self.store.is_stale(),
            Permit::Cpu => false,
            Permit::Reset => match self.device.reset() {
                Ok(recovery) => {
                    tracing::info!(device = self.name(), ?recovery, "the NPU was reset");
                    self.report.resets += 1;
                    self.faults.reset_succeeded();
                    if recovery == Recovery::BuffersLost {
                        self.jobs.forget();
                    }
                    !self.store.is_stale()
                }
                Err(error) => {
                    self.failed(FaultKind::Reset, &error);
                    false
                }
            },
        }
    }

    /// Notes a fault: for the state machine, the report, and the log.
    fn failed(&mut self, kind: FaultKind, error: &dyn std::error::Error) {
        let before = self.faults.is_set_aside();
        self.faults.failed(kind, Instant::now());
        self.report.faults.push(kind);
        let (device, error) = (self.name(), super::choice::chain(error));
        if self.faults.is_set_aside() && !before {
            tracing::error!(
                device,
                error,
                "the NPU failed and is set aside; the processor computes in its place"
            );
        } else {
            tracing::warn!(device, error, "the NPU failed; the processor computed in its place");
        }
    }

    /// Leaves products that the driver cannot compute to the processor, from now on.
    fn exclude(&mut self, a: &Activations, jobs: &[LinearJob<'_>], error: &NpuError) {
        let error = super::choice::chain(error);
        tracing::warn!(error, "the NPU's driver has no way to compute a product; the processor will");
        for job in jobs {
            self.cost.exclude(call::product(a, &job.weights));
        }
    }
}

impl Backend for NpuBackend {
    fn adopt(&mut self, weights: &mut ModelWeights) -> Result<(), BackendError> {
        self.jobs.forget();
        self.checksums.clear();
        // The old store's buffers live on in the segments until they are copied from.
        self.store = Store::default();
        let (store, refusal) = Store::build(&self.device, weights);
        let (held, left) = (store.held, store.left);
        self.store = store;
        self.refused = refusal.is_some() && held == 0;
        match refusal {
            None if left == 0 => tracing::debug!(bytes = held, "the weights are in the NPU's memory"),
            None => tracing::warn!(
                held,
                left,
                "the NPU cannot address all weights; the processor computes with the rest"
            ),
            Some(error) => {
                tracing::warn!(
                    held,
                    left,
                    "the NPU has no memory for all weights; the processor computes with the rest"
                );
                let error = NpuError::Allocate(error);
                self.failed(error.kind(), &error);
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.report.calls += 1;
        if !self.permitted() {
            self.report.fallbacks += 1;
            self.kernels.linear(pool, a, jobs);
            return Ok(());
        }
        let division = Division::new(&self.store, &mut self.cost, pool.threads(), a, jobs);
        if division.rounds.is_empty() || a.rows() == 0 {
            self.report.cpu_calls += 1;
            self.kernels.linear(pool, a, jobs);
            return Ok(());
        }
        match self.compute(pool, a, jobs, &division) {
            Ok(()) => self.faults.succeeded(),
            Err(error) => {
                if error.is_fault() {
                    self.failed(error.kind(), &error);
                } else {
                    self.exclude(a, jobs, &error);
                }
                self.report.fallbacks += 1;
                self.kernels.linear(pool, a, jobs);
            }
        }
        Ok(())
    }

    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> bool {
        self.fused_norm(x, weight, eps, out)
    }

    fn silu_mul(&mut self, gate: &[f32], up: &[f32], columns: usize, out: &mut [f32]) -> bool {
        self.fused_silu(gate, up, columns, out)
    }

    fn name(&self) -> String {
        let info = self.device.info();
        let interface = match info.interface {
            Interface::Vendor => "vendor",
            Interface::Rocket => "rocket",
        };
        let kind = if info.simulated { "npu-sim" } else { "npu" };
        format!("{kind}/{interface}+{}", self.kernels.isa())
    }

    fn degraded(&self) -> Option<FaultKind> {
        self.faults.degraded()
    }

    fn wants_weights(&self) -> bool {
        let lost = self.store.is_stale() || self.refused;
        lost && self.faults.permit(Instant::now()) == Permit::Use
    }

    fn reports_steps(&self) -> bool {
        true
    }

    fn take_step_report(&mut self) -> Option<StepReport> {
        let simulated = self.device.info().simulated;
        let report = std::mem::take(&mut self.report);
        (!report.is_empty()).then_some(StepReport { simulated, ..report })
    }
}
