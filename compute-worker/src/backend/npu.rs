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
mod shortage;
mod store;
mod waiter;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rknpu_driver::device::{Device, Interface, Recovery};
use rknpu_driver::error::AllocateError;
use rknpu_driver::plan::{Limits, PlanOptions};
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};
use rookery_model::bundle::Segment;

pub use error::NpuError;
pub use faults::{FaultKind, FaultLimits, FaultState, Permit};
pub use open::{open, simulated};
pub use policy::{CostModel, Decision, Form, Product, Way};
pub use report::StepReport;
pub use settings::{BoardSettings, NpuSettings};
pub use store::Ledger;

use self::call::Division;
use self::jobs::Jobs;
use self::shortage::Shortage;
use self::store::Store;
use self::waiter::Waiter;
use super::{Backend, BackendError};
use crate::model::weights::ModelWeights;
use crate::one_line::one_line;

/// The NPU as a backend, with the processor's kernels beside it.
pub struct NpuBackend {
    device: Device,
    kernels: &'static Kernels,
    settings: NpuSettings,
    check_results: bool,
    cost: CostModel,
    faults: FaultState,
    store: Store,
    /// There was no memory for some of the weights.
    left: Shortage,
    /// There was no memory for activations, results or commands.
    scarce: Shortage,
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
        Self::sharing(device, kernels, settings, Ledger::default())
    }

    /// The same beside other backends on `device`; `ledger` is theirs too.
    pub fn sharing(
        device: Device,
        kernels: &'static Kernels,
        settings: &NpuSettings,
        ledger: Ledger,
    ) -> Self {
        let fused = fused::Fused::new(&device, &settings.fused);
        if let Some(fused) = &fused {
            let operations = fused.name();
            tracing::warn!(operations, "fp16 on the NPU: answers differ from those of exact workers");
        }
        let cost = open::cost_model(&device, settings);
        let options = PlanOptions {
            cores: settings.cores.into(),
            board: *cost.board(),
            limits: Limits::default().on(device.info().interface),
            ..PlanOptions::default()
        };
        let shortage = || Shortage::new(settings.faults.reset_backoff, settings.faults.probation_interval);
        Self {
            kernels,
            check_results: settings.check_results,
            cost,
            faults: FaultState::new(settings.faults),
            settings: settings.clone(),
            store: Store::new(ledger),
            left: shortage(),
            scarce: shortage(),
            jobs: Jobs::new(device.clone(), options, settings.job_timeout, settings.max_plans),
            waiter: None,
            checksums: HashMap::new(),
            fused,
            report: StepReport::default(),
            scratch: HostScratch::default(),
            device,
        }
    }

    /// Whether the device may compute now. Resets it where that is due.
    fn permitted(&mut self) -> bool {
        self.usable() && self.scarce.may_try(Instant::now()) && !self.store.is_lost()
    }

    /// Whether the device may be used now. Resets it where that is due.
    fn usable(&mut self) -> bool {
        match self.faults.permit(Instant::now()) {
            Permit::Use => true,
            Permit::Cpu => false,
            Permit::Reset => match self.device.reset() {
                Ok(recovery) => {
                    tracing::info!(device = self.name(), ?recovery, "the NPU was reset");
                    self.report.resets += 1;
                    self.faults.reset_succeeded(Instant::now());
                    if recovery == Recovery::BuffersLost {
                        self.jobs.forget();
                    }
                    true
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
        let (device, error) = (self.name(), one_line(error));
        if self.faults.is_set_aside() && !before {
            tracing::error!(
                device,
                error,
                "the NPU failed and is set aside; the processor computes in its place"
            );
        } else {
            tracing::warn!(device, error, "the NPU failed; the processor computes until it works again");
        }
    }

    /// Notes that there was no memory for a call: nothing to reset the device for.
    fn short(&mut self, error: &dyn std::error::Error) {
        self.report.faults.push(FaultKind::Memory);
        if self.scarce.begins(Instant::now()) {
            let error = one_line(error);
            tracing::warn!(error, "the NPU has no memory for a call; the processor computes until it has");
        }
    }

    /// Computes on the processor, from tiles that nobody overwrote.
    fn on_processor(&self, pool: &Pool, a: &Activations, jobs: &mut [LinearJob<'_>]) {
        if !self.store.is_spoilt() {
            return self.kernels.linear(pool, a, jobs);
        }
        let restored = jobs.iter_mut().map(|job| LinearJob {
            weights: self.store.original(job.weights.tile_bytes()).map_or(job.weights, Segment::view),
            bias: job.bias,
            out: &mut *job.out,
            out_stride: job.out_stride,
            out_column: job.out_column,
        });
        self.kernels.linear(pool, a, &mut restored.collect::<Vec<_>>());
    }

    /// Tries a device that failed once and that no call needs, so that it can settle.
    fn check(&mut self) {
        match self_check::probe(&self.device, &self.settings) {
            Ok(()) => self.faults.settle(),
            Err(error) if error.is_shortage() => {}
            Err(error) => self.failed(error.kind(), &error),
        }
    }

    /// Tells how much of the model is in the device's memory.
    fn note_adopted(&mut self, before: usize, refusal: Option<AllocateError>) {
        let (held, left) = (self.store.held(), self.store.left);
        let error = refusal.map(NpuError::Weights);
        if let Some(error) = error.as_ref().filter(|error| !error.is_shortage()) {
            self.failed(error.kind(), error);
        }
        if left == 0 {
            self.left.ends();
            tracing::debug!(bytes = held, "the weights are in the NPU's memory");
            return;
        }
        self.left.begins(Instant::now());
        if error.is_some() {
            self.report.faults.push(FaultKind::Memory);
        }
        if left != before {
            let error = error.map_or("they are more than it addresses".to_owned(), |e| one_line(&e));
            tracing::warn!(
                held,
                left,
                error,
                "not all weights are in the NPU's memory; the processor computes with the rest until there is room"
            );
        }
    }

    /// Leaves products that the driver cannot compute to the processor, from now on.
    fn exclude(&mut self, a: &Activations, jobs: &[LinearJob<'_>], error: &NpuError) {
        let error = one_line(error);
        tracing::warn!(error, "the NPU's driver has no way to compute a product; the processor will");
        for job in jobs {
            self.cost.exclude(call::product(a, &job.weights));
        }
    }
}

impl Backend for NpuBackend {
    fn adopt(&mut self, weights: &mut ModelWeights) -> Result<(), BackendError> {
        let usable = self.usable();
        if self.store.is_lost() {
            // Jobs and checksums go by addresses, which others may get.
            self.jobs.forget();
            self.checksums.clear();
        }
        let before = self.store.left;
        let refusal = self.store.adopt(usable.then_some(&self.device), weights);
        if usable {
            self.note_adopted(before, refusal);
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
            self.on_processor(pool, a, jobs);
            return Ok(());
        }
        let division = Division::new(&self.store, &mut self.cost, pool.threads(), a, jobs);
        if division.rounds.is_empty() || a.rows() == 0 {
            self.report.cpu_calls += 1;
            self.kernels.linear(pool, a, jobs);
            if self.faults.take_check(Instant::now()) {
                self.check();
            }
            return Ok(());
        }
        match self.compute(pool, a, jobs, &division) {
            Ok(()) => {
                self.scarce.ends();
                self.faults.succeeded(Instant::now());
            }
            Err(error) => {
                if error.is_shortage() {
                    self.short(&error);
                } else if error.is_fault() {
                    self.failed(error.kind(), &error);
                } else {
                    self.exclude(a, jobs, &error);
                }
                self.report.fallbacks += 1;
                self.on_processor(pool, a, jobs);
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

    fn is_exact(&self) -> bool {
        self.fused.is_none()
    }

    fn name(&self) -> String {
        let info = self.device.info();
        let interface = match info.interface {
            Interface::Vendor => "vendor",
            Interface::Rocket => "rocket",
        };
        let kind = if info.simulated { "npu-sim" } else { "npu" };
        let fused = self.fused.as_ref().map(fused::Fused::name).unwrap_or_default();
        format!("{kind}/{interface}+{}{fused}", self.kernels.isa())
    }

    fn degraded(&self) -> Option<FaultKind> {
        let short = self.store.left > 0 || self.scarce.lasts();
        self.faults.degraded().or(short.then_some(FaultKind::Memory))
    }

    fn wants_weights(&self) -> bool {
        let now = Instant::now();
        let wanted = self.store.is_lost() || self.store.left > 0 && self.left.may_try(now);
        // Overwritten weights go whatever state the device is in: the embedding is read without any call of this.
        self.store.is_spoilt() || wanted && self.faults.permit(now) == Permit::Use
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
