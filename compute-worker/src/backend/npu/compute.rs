//! One call, computed as it was divided: pack, run, verify, finish.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rknpu_driver::device::DomainId;
use rknpu_driver::job::JobReport;
use rookery_kernels::{Accumulators, Activations, LinearJob, Pool};

use super::call::{Division, Piece, Source};
use super::jobs::Prepared;
use super::waiter::Waiter;
use super::{NpuBackend, NpuError};

/// A prepared job and the pieces that it computes.
type Batch<'p> = (Arc<Prepared>, Vec<&'p Piece>);

impl NpuBackend {
    /// Computes a call as it was divided.
    pub(super) fn compute(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
        division: &Division,
    ) -> Result<(), NpuError> {
        let shared = division.has_cpu_part(jobs);
        self.report.split_calls += u64::from(shared);
        for (index, round) in division.rounds.iter().enumerate() {
            // Time counts whether or not it led anywhere: what faults cost is in these figures too.
            let began = Instant::now();
            let prepared = self.expand(pool, jobs, round).and_then(|()| self.prepare(a, round));
            self.report.submit += began.elapsed();
            let prepared = prepared?;
            self.report.jobs += prepared.len() as u64;
            let began = Instant::now();
            let reports = if shared && index == 0 {
                self.run_beside(pool, a, jobs, division, &prepared)
            } else {
                let batch: Vec<_> = prepared.iter().map(|(prepared, _)| prepared.bound.job()).collect();
                self.device.run(&batch).map_err(NpuError::from)
            };
            self.report.wait += began.elapsed();
            self.note(&prepared, &reports?);
            let began = Instant::now();
            let finished = prepared
                .iter()
                .try_for_each(|(prepared, pieces)| self.finish(pool, a, jobs, prepared, pieces));
            self.report.finish += began.elapsed();
            finished?;
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
    fn prepare<'p>(&mut self, a: &Activations, round: &'p [Piece]) -> Result<Vec<Batch<'p>>, NpuError> {
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
        prepared: &[Batch<'_>],
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
    fn note(&mut self, prepared: &[Batch<'_>], reports: &[JobReport]) {
        let mut cores = 0;
        for ((prepared, _), report) in prepared.iter().zip(reports) {
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
                return Err(self.blame(pool, &part, columns.as_deref()));
            }
        }
        Ok(())
    }

    /// Why a result is wrong: the device computed wrongly, or something overwrote the weights that it read. The processor
    /// reads the same, so that then none of the store may be used any more.
    fn blame(&mut self, pool: &Pool, part: &LinearJob<'_>, columns: Option<&[u32]>) -> NpuError {
        if columns.is_none_or(|columns| *self.kernels.checksum(pool, &part.weights) == *columns) {
            return NpuError::WrongResult;
        }
        self.store.spoil();
        NpuError::Overwritten
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
fn part<'a>(job: &'a mut LinearJob<'_>, channels: Range<usize>) -> LinearJob<'a> {
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
