//! One call of the backend cut into pieces: which rows of which matrix the NPU computes, from which tiles, in which round.

use std::ops::Range;

use rknpu_driver::device::DomainId;
use rookery_kernels::{Activations, LinearJob, Weights};

use super::policy::{CostModel, Decision, Form, Product, SPLIT_STEP, Way};
use super::store::{Place, Store};

/// Bytes of expanded weights in each address space: what is expanded at once.
pub(super) const STAGE_BYTES: usize = 16 << 20;

/// Output channels of one job's matrix that the NPU computes together.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Index of the job.
    pub(super) job: usize,
    /// Output channels: whole panels, or up to the last one.
    pub(super) channels: Range<usize>,
    /// K.
    pub(super) inner: usize,
    /// Where the matrix is.
    pub(super) place: Place,
    pub(super) source: Source,
}

/// What the NPU reads as weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// int8 tiles as they are stored, from this byte of their buffer on.
    Stored(usize),
    /// int4 tiles as they are stored, from this byte of their buffer on, multiplied as int4.
    Nibbles(usize),
    /// int4 tiles expanded to int8, from this byte of the stage on.
    Expanded(usize),
}

/// What a call does where.
#[derive(Clone, Debug, Default)]
pub(super) struct Division {
    /// Pieces for the NPU; all of one round run at once.
    pub(super) rounds: Vec<Vec<Piece>>,
    /// The first channel of each job that the processor computes; that job's N if none.
    pub(super) cpu_from: Vec<usize>,
}

impl Division {
    /// Divides a call between the NPU and a processor with `threads` threads.
    pub(super) fn new(
        store: &Store,
        cost: &mut CostModel,
        threads: usize,
        a: &Activations,
        jobs: &[LinearJob<'_>],
    ) -> Self {
        let mut pieces = Vec::new();
        let mut cpu_from = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            let weights = &job.weights;
            let place = store.find(weights.tile_bytes()).filter(|place| !place.buffer.is_stale());
            let Some(place) = place else {
                cpu_from.push(0);
                continue;
            };
            let decision = cost.decide(product(a, weights), threads);
            cpu_from.push(decision.on_npu);
            if decision.on_npu > 0 {
                pieces.extend(pieces_of(index, &decision, place, weights));
            }
        }
        Self { rounds: rounds(pieces), cpu_from }
    }

    /// Whether the processor computes a part.
    pub(super) fn has_cpu_part(&self, jobs: &[LinearJob<'_>]) -> bool {
        self.cpu_from.iter().zip(jobs).any(|(from, job)| *from < job.weights.rows())
    }
}

/// The product of activations with weights.
pub(super) fn product(a: &Activations, weights: &Weights<'_>) -> Product {
    Product { rows: a.rows(), inner: a.cols(), outputs: weights.rows(), form: form(weights) }
}

/// How weights are stored.
fn form(weights: &Weights<'_>) -> Form {
    match weights {
        Weights::W8(_) => Form::W8,
        Weights::W4(_) => Form::W4,
    }
}

/// The pieces of one matrix: one, or as many as the stage needs.
fn pieces_of(job: usize, decision: &Decision, place: &Place, weights: &Weights<'_>) -> Vec<Piece> {
    let (inner, end) = (weights.cols(), decision.on_npu);
    let piece = |channels, source| Piece { job, channels, inner, place: place.clone(), source };
    match (form(weights), decision.way) {
        (Form::W8, _) => vec![piece(0..end, Source::Stored(place.offset))],
        (Form::W4, Way::Int4) => vec![piece(0..end, Source::Nibbles(place.offset))],
        (Form::W4, Way::Int8) => {
            let panel = SPLIT_STEP * inner.next_multiple_of(32);
            let step = (STAGE_BYTES / panel).max(1) * SPLIT_STEP;
            let starts = (0..end).step_by(step);
            starts.map(|start| piece(start..end.min(start + step), Source::Expanded(0))).collect()
        }
    }
}

/// Puts pieces into rounds, in order, so that what a round expands fits the stage of its address space.
fn rounds(pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let mut rounds: Vec<Vec<Piece>> = Vec::new();
    for mut piece in pieces {
        let bytes = piece.expanded_bytes();
        let room = rounds.iter().map(|round| staged(round, piece.place.domain));
        let index = room.clone().position(|used| used + bytes <= STAGE_BYTES).unwrap_or(rounds.len());
        if bytes > 0 {
            piece.source = Source::Expanded(room.clone().nth(index).unwrap_or(0));
        }
        drop(room);
        if index == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[index].push(piece);
    }
    rounds
}

/// Bytes that a round expands in an address space.
fn staged(round: &[Piece], domain: DomainId) -> usize {
    round.iter().filter(|piece| piece.place.domain == domain).map(Piece::expanded_bytes).sum()
}

impl Piece {
    /// Bytes of the stage that it takes.
    pub(super) fn expanded_bytes(&self) -> usize {
        match self.source {
            Source::Stored(_) | Source::Nibbles(_) => 0,
            Source::Expanded(_) => {
                self.channels.len().next_multiple_of(SPLIT_STEP) * self.inner.next_multiple_of(32)
            }
        }
    }
}
