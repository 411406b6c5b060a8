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
mod error;
mod faults;
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

use rknpu_driver::device::{Device, DomainId, Interface, Recovery};
use rknpu_driver::job::JobReport;
use rknpu_driver::plan::PlanOptions;
use rookery_kernels::{Accumulators, Activations, Kernels, LinearJob, Pool};

pub use error::NpuError;
pub use faults::{FaultKind, FaultLimits, FaultState, Permit};
pub use open::{open, simulated};
pub use policy::{CostModel, Decision, Form, Product, Way};
pub use report::StepReport;
pub use settings::{BoardSettings, NpuSettings};

use self::call::{Division, Piece, Source};
use self::jobs::{Jobs, Prepared};
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

    /// Computes a call as it was divided.
    fn compute(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
        division: &Division,
    ) -> Result<(), NpuError> {
        let shared = division.has_cpu_part(jobs);
        self.report.split_calls += u64::from(shared);
        for (index, round) in division.rounds.iter().enumerate() {
            let began = Instant::now();
            self.expand(pool, jobs, round)?;
            let prepared = self.prepare(a, round)?;
            self.report.submit += began.elapsed();
            let began = Instant::now();
            let reports = if shared && index == 0 {
                self.run_beside(pool, a, jobs, division, &prepared)?
            } else {
                let batch: Vec<_> = prepared.iter().map(|(prepared, _)| prepared.bound.job()).collect();
                self.device.run(&batch)?
            };
            self.report.wait += began.elapsed();
            self.note(&prepared, &reports);
            let began = Instant::now();
            for (prepared, pieces) in &prepared {
                self.finish(pool, a, jobs, prepared, pieces)?;
            }
            self.report.finish += began.elapsed();
        }
        Ok(())
    }

    /// Expands the weights of pieces that need it.
    fn expand(&mut self, pool: &Pool, jobs: &[LinearJob<'_>], round: &[Piece]) -> Result<(), NpuError> {
        for piece in round {
            let Source::Expanded(offset) = piece.source else { continue };
            let stage = self.jobs.stage(piece.place.domain)?;
            let mut guard = stage.write(offset..offset + piece.expanded_bytes())?;
            let weights = jobs[piece.job].weights.part(piece.channels.clone());
            self.kernels.expand_w4(pool, &weights, &mut guard);
            guard.finish()?;
        }
        Ok(())
    }

    /// The jobs of a round, one for each address space, with activations packed.
    fn prepare<'p>(
        &mut self,
        a: &Activations,
        round: &'p [Piece],
    ) -> Result<Vec<(Arc<Prepared>, Vec<&'p Piece>)>, NpuError> {
        let rows = planned_rows(a.rows());
        let mut domains: Vec<DomainId> = round.iter().map(|piece| piece.place.domain).collect();
        domains.sort_unstable();
        domains.dedup();
        let mut all = Vec::with_capacity(domains.len());
        for domain in domains {
            let pieces: Vec<&Piece> = round.iter().filter(|piece| piece.place.domain == domain).collect();
            let prepared = self.jobs.prepare(domain, rows, &pieces)?;
            pack(a, rows, &prepared, &mut self.scratch.rows)?;
            all.push((prepared, pieces));
        }
        Ok(all)
    }

    /// Runs jobs while the pool computes the processor's part.
    fn run_beside(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
        division: &Division,
        prepared: &[(Arc<Prepared>, Vec<&Piece>)],
    ) -> Result<Vec<JobReport>, NpuError> {
        let waiter = match self.waiter.take() {
            Some(waiter) => waiter,
            None => Waiter::new(self.device.clone())?,
        };
        waiter.start(prepared.iter().map(|(prepared, _)| prepared.bound.job().clone()).collect())?;
        let parts = jobs.iter_mut().zip(&division.cpu_from).filter(|(job, from)| **from < job.weights.rows());
        let mut parts: Vec<LinearJob<'_>> =
            parts.map(|(job, from)| part(job, *from..job.weights.rows())).collect();
        self.kernels.linear(pool, a, &mut parts);
        let reports = waiter.wait();
        self.waiter = Some(waiter);
        reports
    }

    /// Counts what jobs did.
    fn note(&mut self, prepared: &[(Arc<Prepared>, Vec<&Piece>)], reports: &[JobReport]) {
        let mut cores = 0;
        for ((prepared, _), report) in prepared.iter().zip(reports) {
            self.report.jobs += 1;
            self.report.tasks += u64::from(report.tasks_done);
            self.report.bytes += prepared.work.bytes();
            self.report.cycles += prepared.work.mac_cycles;
            self.report.busy += report.elapsed;
            cores += prepared.cores;
        }
        self.report.cores = self.report.cores.max(cores);
    }

    /// Turns results into outputs, and verifies them.
    fn finish(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
        prepared: &Prepared,
        pieces: &[&Piece],
    ) -> Result<(), NpuError> {
        for (piece, product) in pieces.iter().zip(&prepared.products) {
            let mut part = part(&mut jobs[piece.job], piece.channels.clone());
            let columns = self.check_results.then(|| self.checksum(pool, &part));
            let channels = piece.channels.len();
            let accumulators = &mut self.scratch.accumulators;
            accumulators.resize(product.plan.rows() * channels, 0);
            let end = product.output_at + product.plan.inner().output_bytes();
            let guard = prepared.output.read(product.output_at..end)?;
            product.plan.read(&guard, &part.weights, accumulators);
            drop(guard);
            let acc = Accumulators { values: accumulators, row_stride: channels, group_stride: 4 };
            if !self.kernels.finish(pool, a, &acc, &mut part, columns.as_deref()) {
                return Err(NpuError::WrongResult);
            }
        }
        Ok(())
    }

    /// The checksum of a piece's weights, computed when they are first used.
    fn checksum(&mut self, pool: &Pool, part: &LinearJob<'_>) -> Arc<[u32]> {
        let key = (part.weights.tile_bytes().as_ptr().addr(), part.weights.rows());
        let kernels = self.kernels;
        let columns =
            self.checksums.entry(key).or_insert_with(|| kernels.checksum(pool, &part.weights).into());
        Arc::clone(columns)
    }
}

/// Output channels of a job by themselves.
fn part<'a>(job: &'a mut LinearJob<'_>, channels: std::ops::Range<usize>) -> LinearJob<'a> {
    LinearJob {
        weights: job.weights.part(channels.clone()),
        bias: job.bias.map(|bias| &bias[channels.clone()]),
        out: &mut *job.out,
        out_stride: job.out_stride,
        out_column: job.out_column + channels.start,
    }
}

/// Rows that are planned for `rows` rows: few sizes, so that plans repeat. The device computes 16 in the time of one, so
/// rounding up costs it little.
fn planned_rows(rows: usize) -> usize {
    match rows {
        0..=4 => rows,
        5..=8 => 8,
        9..=64 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(32),
    }
}

/// Packs activations for every product of a job; rows beyond them are zeros.
fn pack(a: &Activations, rows: usize, prepared: &Prepared, padded: &mut Vec<i8>) -> Result<(), NpuError> {
    let stride = a.stride();
    let values = if rows == a.rows() {
        a.values()
    } else {
        padded.clear();
        padded.extend_from_slice(&a.values()[..a.rows() * stride]);
        padded.resize(rows * stride, 0);
        padded
    };
    for product in &prepared.products {
        let end = product.input_at + product.plan.inner().input_bytes();
        let mut guard = prepared.input.write(product.input_at..end)?;
        product.plan.pack(values, stride, &mut guard);
        guard.finish()?;
    }
    Ok(())
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
